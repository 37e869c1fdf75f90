"""`modernbert embed`: one vector a text, from words, from standard input, or from files of any size.

In: texts. Out: JSON lines on standard output, or a file: .npy, .jsonl, .parquet (number, text, vector), or a folder
that ends in .lance (the same, a table of LanceDB). What is read is embedded part by part, on one device or several, or
on a cluster. A call that was stopped goes on with the parts that are not done, wherever they were begun, and the file
appears whole or not at all.
"""

import os
import sys
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modernbert.cluster import share_out
from modernbert.device import choose_device
from modernbert.errors import InputError
from modernbert.extras import require
from modernbert.infer.parts import PART_CHARACTERS, Part, PartsFolder, parts_of, placed
from modernbert.infer.pipeline import ModernBert, load_in_process
from modernbert.infer.progress import show_texts
from modernbert.infer.texts import Located, keep_input, stream_input, stream_texts
from modernbert.infer.vector_files import Write, check_writer, json_line
from modernbert.model.hub import digest_of
from modernbert.processes import Processes
from modernbert.storage import check_target, only_process, sha256_of, try_delete
from modernbert.text.formats import require_readers

__all__ = ["EmbedConfig", "run"]

# The number by which the system knows standard input.
_INPUT = 0
# What decides neither which parts there are nor what comes of them.
_FREE = ("texts", "out", "devices", "backend", "model", "engine", "processes")


@dataclass(frozen=True)
class EmbedConfig:
    """What to load, what to embed, and where to write; without `out`, JSON lines on standard output.

    `texts` are words of the command line, `files` are read as they are embedded; without either, lines of standard
    input. There are so many `processes` in all, on the `devices` in turn, one on each by default. The `engine` ray
    gives them to the machines of a cluster, each with what `share_out` finds for it.
    """

    model: str
    texts: Sequence[str] = ()
    files: Sequence[Path] = ()
    text_field: str = "text"
    out: Path | None = None
    pooling: str | None = None
    normalize: bool = True
    prompt: str | None = None
    truncate_dim: int | None = None
    overflow: str = "error"
    precision: str = "float32"
    devices: Sequence[str] = ("auto",)
    dtype: str = "auto"
    backend: str = "auto"
    engine: str = "local"
    processes: int | None = None


def run(config: EmbedConfig) -> None:
    """Embed all texts, then write them at once.

    Raises: InputError for a text that is too long, an unknown kind of file, a full disk, or parts that another call
    has left.
    """
    _check(config)
    if config.out is None or config.texts:
        found = (vectors for _, vectors in _embedded(config, _parts(config, None, (), PART_CHARACTERS)))
    if config.out is None:
        for vector in chain.from_iterable(found):
            print(json_line(vector))
        return
    write = check_writer(config.out)
    if config.out.suffix != ".lance":
        check_target(config.out)
    if config.texts:
        write(config.out, iter(list(found)), iter(config.texts))
    else:
        _write_read(_anywhere(config) if config.engine == "ray" else config, config.out, write)


def _write_read(config: EmbedConfig, out: Path, write: Write) -> None:
    """Embed what is read part by part, keep the parts, and write them all at the end."""
    about = _about(config)
    folder = out.absolute().with_name(f"{out.name}.parts")
    with only_process(folder):
        try:
            kept = _kept_input(folder, about) if not config.files else None
            done = PartsFolder(folder, about)
            left = partial(_parts, config, kept, done.done, PART_CHARACTERS)
            ours = config.engine == "local"
            for number, vectors in _embedded(config, left()) if ours else _on_cluster(config, left, about["model"]):
                done.save(number, vectors)
            for before, now in zip(about["files"], _marks(config.files), strict=False):
                if before != now:
                    raise InputError(f"{now[0]}: changed while it was read; remove {folder} to begin anew")
            write(out, done.load(), (text for _, text in _read(config, kept)))
        except BaseException:
            if not any(folder.glob("*.npy")):
                try_delete(folder)
            raise
    try_delete(folder)


def _kept_input(folder: Path, about: dict[str, Any]) -> Path:
    """Keep what comes on standard input, and say what it is."""
    kept = folder / "input.txt"
    keep_input(kept)
    about["files"] = [["standard input", sha256_of(kept)]]
    return kept


def _check(config: EmbedConfig) -> None:
    if config.out is not None and any(_is_same(file, config.out) for file in config.files or (_INPUT,)):
        raise InputError(f"{config.out}: is read as texts, expected another name for their vectors")
    if config.engine not in ("local", "ray"):
        raise InputError(f"engine: found {config.engine!r}, expected local or ray")
    if config.processes is not None and config.processes < 1:
        raise InputError(f"processes: found {config.processes}, expected at least 1")
    if config.engine == "local":
        for device in config.devices:
            choose_device(device)
    elif config.out is None or config.texts:
        raise InputError("engine: ray embeds files or standard input, into a file (--out)")
    elif len(config.devices) > 1:
        raise InputError(f"device: found {len(config.devices)}, expected one; --processes says how many there are")
    if config.engine == "ray":
        require("engine", "ray")
    require_readers(config.files)


def _is_same(file: Path | int, other: Path) -> bool:
    try:
        return os.path.samestat(os.stat(file), other.stat())
    except OSError:  # one of them is not there
        return False


def _anywhere(config: EmbedConfig) -> EmbedConfig:
    """Return the config with names that mean the same in any folder."""
    model = Path(config.model)
    files = [path.absolute() for path in config.files]
    return replace(config, files=files, model=str(model.absolute()) if model.is_dir() else config.model)


def _about(config: EmbedConfig) -> dict[str, Any]:
    """Return of what the parts are: model, settings, files, and how they are cut.

    Raises: InputError naming a file that is not there.
    """
    about: dict[str, Any] = {key: value for key, value in asdict(config).items() if key not in _FREE}
    about["files"] = _marks(config.files)
    about["model"] = digest_of(config.model)
    about["part_characters"] = PART_CHARACTERS
    return about


def _marks(files: Sequence[Path]) -> list[list[Any]]:
    """Return what changes when a file does."""
    marks: list[list[Any]] = []
    for path in files:
        try:
            found = path.stat()
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
        if not path.is_file():
            kind = "a folder" if path.is_dir() else "nothing that can be read twice"
            raise InputError(f"{path}: is {kind}, expected a file, or texts on standard input")
        marks.append([str(path.absolute()), found.st_size, found.st_mtime_ns])
    return marks


def _read(config: EmbedConfig, kept: Path | None) -> Iterator[Located]:
    if config.texts:
        return ((f"text {number}", text) for number, text in enumerate(config.texts))
    return stream_texts(config.files, config.text_field) if config.files else stream_input(kept)


def _parts(config: EmbedConfig, kept: Path | None, done: Container[int], characters: int) -> Iterator[Part]:
    """Yield the parts that are not done.

    Raises: InputError if there is no text.
    """
    number = -1
    for number, part in parts_of(_read(config, kept), characters):
        if number not in done:
            yield number, part
    if number < 0:
        raise InputError(f"{', '.join(map(str, config.files)) or 'standard input'}: found no text, expected one")


def _embedded(config: EmbedConfig, left: Iterator[Part]) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the vectors of parts, in order."""
    number = config.processes or len(config.devices)
    devices = [config.devices[n % len(config.devices)] for n in range(number)]
    if number == 1:
        bert = _load(config, devices[0])
        yield from _shown(config, (_embed(bert, part, config) for part in left))
        return
    begin = partial(load_in_process, config.model, config.dtype, config.backend, number, torch.get_num_threads())
    with Processes(devices, begin) as pool:
        yield from _shown(config, pool.map(partial(_embed, config=config), left))


def _on_cluster(
    config: EmbedConfig, left: Callable[[], Iterator[Part]], files: str
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the vectors of parts, in the order in which they are done."""
    begin = partial(_load_there, config, files)
    work = partial(_embed, config=config)
    return _shown(config, share_out(left, begin, work, device=config.devices[0], processes=config.processes))


def _shown(config: EmbedConfig, found: Iterator[tuple[int, np.ndarray]]) -> Iterator[tuple[int, np.ndarray]]:
    """Hand vectors on, and show how many there are: not between them, where they are shown themselves."""
    num_texts = 0
    with show_texts(None, not config.texts and (config.out is not None or not sys.stdout.isatty())) as show:
        for number, vectors in found:
            yield number, vectors
            num_texts += len(vectors)
            show(num_texts, 0)


def _load(config: EmbedConfig, device: str) -> ModernBert:
    return ModernBert.load(config.model, device=device, dtype=config.dtype, backend=config.backend)


def _load_there(config: EmbedConfig, files: str, device: str) -> ModernBert:
    """Load the model on another machine.

    Raises: InputError if what goes by its name there has other files.
    """
    if digest_of(config.model) != files:
        raise InputError(f"{config.model}: has other files on another machine of the cluster")
    return _load(config, device)


def _embed(bert: ModernBert, part: Part, config: EmbedConfig) -> tuple[int, np.ndarray]:
    number, located = part
    try:
        vectors = bert.embed(
            [text for _, text in located], pooling=config.pooling, normalize=config.normalize, prompt=config.prompt,
            truncate_dim=config.truncate_dim, overflow=config.overflow, precision=config.precision,
        )  # fmt: skip
    except InputError as error:
        raise placed(error, located) from None
    return number, vectors
