"""`modernbert embed`: one vector a text, from words or from files of any size.

In: texts. Out: JSON lines on standard output, or a file: .npy, .jsonl, .parquet (number, text, vector), or a folder
that ends in .lance (the same, a table of LanceDB). Files are read and embedded part by part, on one device or several.
A call that was stopped goes on with the parts that are not done, and the file appears whole or not at all.
"""

import io
import json
import re
import shutil
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modernbert.device import choose_device
from modernbert.errors import InputError
from modernbert.infer.pipeline import ModernBert
from modernbert.infer.progress import show_texts
from modernbert.infer.texts import Located, stream_texts
from modernbert.infer.vector_files import check_writer
from modernbert.model.hub import digest_of
from modernbert.processes import Processes
from modernbert.storage import check_target, only_process, write_file

__all__ = ["EmbedConfig", "run"]

# Texts of a part: what is computed again, at most, after a stop.
_PART_TEXTS = 4_096


@dataclass(frozen=True)
class EmbedConfig:
    """What to load, what to embed, and where to write; without `out`, JSON lines on standard output.

    `texts` are words of the command line or of standard input, `files` are read as they are embedded. With several
    `devices`, each has a process.
    """

    model: str
    texts: Sequence[str] = ()
    files: Sequence[Path] = ()
    text_field: str = "text"
    out: Path | None = None
    pooling: str | None = None
    normalize: bool = True
    prompt: str = ""
    truncate_dim: int | None = None
    overflow: str = "error"
    precision: str = "float32"
    devices: Sequence[str] = ("auto",)
    dtype: str = "auto"
    backend: str = "auto"


def run(config: EmbedConfig) -> None:
    """Embed all texts, then write them at once.

    Raises: InputError for a text that is too long, an unknown kind of file, a full disk, or parts that another call
    has left.
    """
    located = ((f"text {number}", text) for number, text in enumerate(config.texts))
    if config.out is None:
        for _, vectors in _embedded(config, _parts(located if config.texts else _read(config)), set()):
            for vector in vectors:
                print(json.dumps([round(float(x), 7) for x in vector]))
        return
    write = check_writer(config.out)
    if config.out.suffix != ".lance":
        check_target(config.out)
    if config.texts:
        found = [vectors for _, vectors in _embedded(config, _parts(located), set())]
        write(config.out, iter(found), iter(config.texts))
        return
    folder = config.out.with_name(f"{config.out.name}.parts")
    about = _about(config)
    with only_process(folder):
        _begin(folder, about)
        done = {int(path.stem) for path in folder.glob("*.npy")}
        for number, vectors in _embedded(config, _parts(_read(config)), done):
            buffer = io.BytesIO()
            np.save(buffer, vectors)
            write_file(folder / f"{number:08d}.npy", buffer.getvalue())
        paths = sorted(folder.glob("*.npy"))
        if not paths:
            raise InputError(f"{', '.join(map(str, config.files))}: found no text, expected at least one")
        write(config.out, map(np.load, paths), (text for _, text in _read(config)))
    shutil.rmtree(folder)


def _about(config: EmbedConfig) -> dict[str, Any]:
    """Return of what the parts are: model, settings, files.

    Raises: InputError naming a file that is not there.
    """
    free = ("texts", "out", "devices", "backend", "model")
    about: dict[str, Any] = {key: value for key, value in asdict(config).items() if key not in free}
    about["model"] = digest_of(config.model)
    about["files"] = []
    for path in config.files:
        try:
            about["files"].append([str(path), path.stat().st_size, path.stat().st_mtime_ns])
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    return about


def _begin(folder: Path, about: dict[str, Any]) -> None:
    """Write down of what the parts of a folder are, or check that they are of the same.

    Raises: InputError naming what is other.
    """
    path = folder / "about.json"
    if path.exists():
        begun = json.loads(path.read_text())
        for key, value in about.items():
            if begun.get(key) != value:
                raise InputError(
                    f"{folder}: was begun with {key}={begun.get(key)!r}, found {value!r}; remove it to begin anew"
                )
    write_file(path, json.dumps(about, indent=1) + "\n")


def _read(config: EmbedConfig) -> Iterator[Located]:
    return stream_texts(config.files, config.text_field)


def _parts(located: Iterator[Located]) -> Iterator[tuple[int, list[Located]]]:
    number = 0
    while part := list(islice(located, _PART_TEXTS)):
        yield number, part
        number += 1


def _embedded(
    config: EmbedConfig, parts: Iterator[tuple[int, list[Located]]], done: set[int]
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the vectors of the parts that are not done, in order."""
    left = ((number, part) for number, part in parts if number not in done)
    if len(config.devices) == 1:
        bert = _load(config, config.devices[0])
        with show_texts(None, len(config.files) > 0) as show:
            for number, part in left:
                yield number, _embed(bert, part, config)
                show(number * _PART_TEXTS + len(part), 0)
        return
    for device in config.devices:
        choose_device(device)
    threads = max(1, torch.get_num_threads() // len(config.devices))
    numbers: deque[int] = deque()

    def tasks() -> Iterator[list[Located]]:
        for number, part in left:
            numbers.append(number)
            yield part

    with Processes(config.devices, partial(_load_in_worker, config, threads)) as pool:
        for vectors in pool.map(partial(_embed, config=config), tasks()):
            yield numbers.popleft(), vectors


def _load_in_worker(config: EmbedConfig, threads: int, device: str) -> ModernBert:
    torch.set_num_threads(threads)
    return _load(config, device)


def _load(config: EmbedConfig, device: str) -> ModernBert:
    return ModernBert.load(config.model, device=device, dtype=config.dtype, backend=config.backend)


def _embed(bert: ModernBert, part: Sequence[Located], config: EmbedConfig) -> np.ndarray:
    try:
        return bert.embed(
            [text for _, text in part], pooling=config.pooling, normalize=config.normalize, prompt=config.prompt,
            truncate_dim=config.truncate_dim, overflow=config.overflow, precision=config.precision,
        )  # fmt: skip
    except InputError as error:
        # The text is known by its place in the part; whoever reads this knows it by its line.
        found = re.match(r"text (\d+):", str(error))
        if found is None:
            raise
        raise InputError(f"{part[int(found[1])][0]}{str(error)[found.end() - 1 :]}") from None
