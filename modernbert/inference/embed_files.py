"""`modernbert embed`: one vector for each text of the command line, of standard input, or of files of any size.

The vectors go to standard output as JSON lines, or to a file: .npy, .jsonl, .parquet (number, origin, text, vector), or
a .lance folder (a LanceDB table with the same columns). Texts are embedded chunk by chunk, on one device or several, or
on a Ray cluster. A command that was stopped continues with the unfinished chunks. The file is complete, or absent.
"""

import os
import sys
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import asdict, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modernbert.checkpoints.folder import ModelFolder
from modernbert.data.input_errors import Skips
from modernbert.data.remote_files import RemoteFile, is_url
from modernbert.data.source_files import File
from modernbert.devices import choose_device, limit_threads
from modernbert.errors import InputError, counted
from modernbert.extras import require
from modernbert.files import only_process, remove_leftovers, try_delete
from modernbert.hub_download import at_revision
from modernbert.inference.modernbert import ModernBert, load_folder
from modernbert.inference.replicas import load_in_process
from modernbert.inference.text_checks import check_number
from modernbert.inference.text_inputs import (
    check_files,
    find_file,
    keep_input,
    stream_input,
    stream_rows,
    without_errors,
)
from modernbert.inference.text_options import EmbedConfig
from modernbert.inference.text_parts import (
    PART_CHARACTERS,
    ChunkFolder,
    ChunkVectors,
    TextChunk,
    chunks_of,
    relocate_error,
)
from modernbert.inference.text_rows import TextRow
from modernbert.inference.vector_files import Block, Write, block_lines, check_writer
from modernbert.progress import show_texts
from modernbert.ray_workers import ray_map
from modernbert.workers import WorkerPool

__all__ = ["EmbedConfig", "run"]

# The file descriptor of standard input.
_INPUT = 0
# Fields that do not change the vectors of a text.
_FREE = (
    "texts", "input", "text_field", "output", "overwrite", "on_error", "device", "engine", "model", "executor",
    "processes", "revision",
)  # fmt: skip


def run(config: EmbedConfig) -> None:
    """Embed all texts, then write the vectors.

    Raises: InputError for a row that cannot be embedded (see `on_error`), an unknown kind of file, a full disk, or
        chunks that were made with another model or other settings.
    """
    # Worker processes, too, load the model by this name.
    config = replace(config, model=at_revision(config.model, config.revision), revision=None)
    _check(config)
    skips = Skips()
    named = config.on_error == "skip"
    if config.output is None:
        for block in _blocks(_embedded_in_order(config), config.on_error, skips):
            for line in block_lines(block, named):
                print(line)
        skips.show()
        return
    write = _announced(check_writer(config.output, overwrite=config.overwrite))
    if config.texts:
        blocks = list(_blocks(_embedded_in_order(config), config.on_error, skips))
        write(config.output, iter(blocks), named)
        skips.show()
    else:
        _write_read(_anywhere(config) if config.executor == "ray" else config, config.output, write)


def _announced(write: Write) -> Write:
    """Return a writer that prints afterwards what it has written, and where."""

    def announced(out: Path, blocks: Iterator[Block], named: bool) -> None:
        num_texts, width, dtype = 0, 0, ""

        def watched() -> Iterator[Block]:
            nonlocal num_texts, width, dtype
            for block in blocks:
                num_texts, width, dtype = num_texts + len(block.rows), block.vectors.shape[1], str(block.vectors.dtype)
                yield block

        write(out, watched(), named)
        print(f"{out}: {counted(num_texts, 'vector')} of {counted(width, 'number')}, {dtype}", file=sys.stderr)

    return announced


def _write_read(config: EmbedConfig, out: Path, write: Write) -> None:
    """Embed files chunk by chunk, keep the chunks in a folder, and write all vectors at the end."""
    about = _about(config)
    folder = out.absolute().with_name(f"{out.name}.parts")
    remove_leftovers(folder)
    skips = Skips()
    with only_process(folder):
        try:
            kept = _kept_input(folder) if not config.input else None
            done = ChunkFolder(folder, about)
            before, met = done.done, set[str]()
            left = partial(_parts, config, kept, before, PART_CHARACTERS)
            ours = config.executor == "local"
            for digest, vectors in _embedded(config, left()) if ours else _on_cluster(config, left, about["model"]):
                done.save(digest, vectors)

            def finished() -> Iterator[tuple[TextChunk, ChunkVectors]]:
                for part in chunks_of(_read(config, kept), PART_CHARACTERS):
                    vectors = done.load(part.digest)
                    if vectors is None:
                        raise InputError(
                            f"{part.rows[0].origin}: changed while it was read; the same command embeds what changed"
                        )
                    met.add(part.digest)
                    yield part, vectors

            write(out, _blocks(finished(), config.on_error, skips), config.on_error == "skip")
        except BaseException:
            if not any(folder.glob("*.npy")):
                try_delete(folder)
            raise
    try_delete(folder)
    if before & met:
        print(f"{out}: {len(before & met):,} of {counted(len(met), 'part')} were finished before", file=sys.stderr)
    skips.show()


def _blocks(found: Iterable[tuple[TextChunk, ChunkVectors]], on_error: str, skips: Skips) -> Iterator[Block]:
    """Yield the rows of chunks with their vectors; rows without a vector only if these are to be null.

    Raises: InputError naming the first row without a vector if `on_error` is fail, or if no row has one.
    """
    first = 0
    has_vectors = False
    for part, vectors in found:
        texts = iter(range(len(part.texts)))
        rows, errors = [row for row in part.rows if not row.is_rest], list[InputError | None]()
        for row in part.rows:
            error = row.error
            if error is None and (number := next(texts)) in vectors.lost:
                error = InputError(f"{row.origin}: {vectors.lost[number]}")
            if error is not None:
                if on_error == "fail" or (row.is_rest and on_error == "null"):
                    raise error
                skips.add(error)
            errors += [] if row.is_rest else [error]
        is_null = np.array([error is not None for error in errors], dtype=bool)
        values = np.zeros((len(rows), vectors.values.shape[1]), vectors.values.dtype)
        values[~is_null] = vectors.values
        numbers = first + np.arange(len(rows))
        first += len(rows)
        has_vectors = has_vectors or bool((~is_null).any())
        if on_error == "skip":
            rows = [row for row, error in zip(rows, errors, strict=True) if error is None]
            numbers, values, is_null = numbers[~is_null], values[~is_null], is_null[~is_null]
        if rows:
            yield Block(numbers, rows, values, is_null)
    if not has_vectors:
        more = f" ({skips.reasons[0]})" if skips.reasons else ""
        raise InputError(f"all {skips.number:,} rows were skipped, expected at least one text{more}")


def _embedded_in_order(config: EmbedConfig) -> Iterator[tuple[TextChunk, ChunkVectors]]:
    """Embed one chunk after another on this machine, and keep none."""
    waiting = deque[TextChunk]()

    def parts() -> Iterator[TextChunk]:
        for part in _parts(config, None, (), PART_CHARACTERS):
            waiting.append(part)
            yield part

    for _, vectors in _embedded(config, parts()):
        yield waiting.popleft(), vectors


def _kept_input(folder: Path) -> Path:
    """Copy standard input to a file, so that it can be read twice."""
    kept = folder / "input.txt"
    keep_input(kept)
    return kept


def _check(config: EmbedConfig) -> None:
    files = _files(config)
    if config.texts and files:
        raise InputError(f"found texts and the file {files[0]}, expected one or the other")
    check_files(files)
    if config.output is not None and config.output.suffix == ".npy" and config.on_error == "skip":
        raise InputError(
            f"{config.output}: cannot say which rows were skipped; expected .jsonl, .parquet or .lance with "
            "`on_error=skip`, or `on_error=null`, which writes NaN"
        )
    if config.output is not None and config.output.suffix == ".npy" and config.on_error == "null":
        if config.precision not in ("float32", "float16"):
            raise InputError(f"precision: found {config.precision!r}, which has no NaN for `on_error=null`")
    if config.output is not None and any(_is_same(file, config.output) for file in files or (_INPUT,)):
        raise InputError(f"{config.output}: is read as texts, expected another name for their vectors")
    if config.executor == "local":
        for device in config.device:
            choose_device(device)
    elif config.output is None or config.texts:
        raise InputError("executor: ray embeds files or standard input, into a file (`output`)")
    elif len(config.device) > 1:
        raise InputError(f"device: found {len(config.device)}, expected one; `processes` says how many there are")
    if config.executor == "ray":
        require("executor", "ray")


def _files(config: EmbedConfig) -> list[File]:
    return [find_file(each) for each in config.input]


def _is_same(file: File | int, other: Path) -> bool:
    if isinstance(file, RemoteFile):
        return False
    try:
        return os.path.samestat(os.stat(file), other.stat())
    except OSError:  # one of them does not exist
        return False


def _anywhere(config: EmbedConfig) -> EmbedConfig:
    """Return the config with absolute paths, for workers in other folders."""
    model = Path(config.model)
    files = [each if is_url(str(each)) else Path(each).absolute() for each in config.input]
    return replace(config, input=files, model=str(model.absolute()) if model.is_dir() else config.model)


def _about(config: EmbedConfig) -> dict[str, Any]:
    """Return everything that determines the vector of a text: the model's digest and the settings.

    Raises: InputError naming a file that does not exist, or cannot be read twice.
    """
    for path in _files(config):
        if isinstance(path, Path) and not path.is_file():
            kind = "a folder" if path.is_dir() else "nothing that can be read twice"
            raise InputError(f"{path}: is {kind}, expected a file, or texts on standard input")
    about: dict[str, Any] = {key: value for key, value in asdict(config).items() if key not in _FREE}
    return about | {"model": ModelFolder.open(config.model).digest}


def _read(config: EmbedConfig, kept: Path | None) -> Iterator[TextRow]:
    """Yield the rows to embed; with `on_error` fail, the first row without a text is an error."""
    if config.texts:
        rows: Iterator[TextRow] = (TextRow(f"text {number}", text) for number, text in enumerate(config.texts))
    else:
        rows = stream_rows(_files(config), config.text_field) if config.input else stream_input(kept)
    for row in rows:
        if row.error is not None and (config.on_error == "fail" or (row.is_rest and config.on_error == "null")):
            raise row.error
        yield row


def _parts(config: EmbedConfig, kept: Path | None, done: Container[str], characters: int) -> Iterator[TextChunk]:
    """Yield the unfinished chunks.

    Raises: InputError if there is no text.
    """
    is_empty = True
    for part in chunks_of(_read(config, kept), characters):
        is_empty = False
        if part.digest not in done:
            yield part
    if is_empty:
        raise InputError(f"{', '.join(map(str, config.input)) or 'standard input'}: found no text, expected one")


def _embedded(config: EmbedConfig, left: Iterator[TextChunk]) -> Iterator[tuple[str, ChunkVectors]]:
    """Yield the vectors of chunks, in order."""
    # Read before a model is opened: an error in the first rows does not wait for it.
    if (first := next(left, None)) is None:
        return
    left = chain([first], left)
    folder = ModelFolder.open(config.model)
    _check_width(config, folder)
    number = config.processes or len(config.device)
    devices = [config.device[n % len(config.device)] for n in range(number)]
    if number == 1:
        bert = _load(config, folder, devices[0])
        yield from _shown(config, (_embed(bert, part, config) for part in left))
        return
    limit_threads()
    begin = partial(load_in_process, config.model, config.dtype, config.engine, number, torch.get_num_threads())
    with WorkerPool(devices, begin) as pool:
        yield from _shown(config, pool.map(partial(_embed, config=config), left))


def _check_width(config: EmbedConfig, folder: ModelFolder) -> None:
    """Check the number of components by the config of a ModernBERT, before its weights are loaded."""
    if config.truncate_dim is not None and folder.is_modernbert:
        width = folder.config.hidden_size
        is_late = folder.embedding_config.pooling == "tokens"
        projection = None if is_late else folder.load_projection(width)
        check_number("truncate_dim", config.truncate_dim, width if projection is None else projection.out_features)


def _on_cluster(
    config: EmbedConfig, left: Callable[[], Iterator[TextChunk]], files: str
) -> Iterator[tuple[str, ChunkVectors]]:
    """Yield the vectors of chunks, in the order in which they finish."""
    begin = partial(_load_there, config, files)
    work = partial(_embed, config=config)
    return _shown(config, ray_map(left, begin, work, device=config.device[0], processes=config.processes))


def _shown(config: EmbedConfig, found: Iterator[tuple[str, ChunkVectors]]) -> Iterator[tuple[str, ChunkVectors]]:
    """Pass vectors on and show progress, unless the vectors themselves go to the terminal."""
    num_texts = 0
    with show_texts(None, not config.texts and (config.output is not None or not sys.stdout.isatty())) as show:
        for digest, vectors in found:
            yield digest, vectors
            num_texts += len(vectors.values) + len(vectors.lost)
            show(num_texts, 0)


def _load(config: EmbedConfig, folder: ModelFolder, device: str) -> ModernBert:
    return load_folder(folder, device=device, dtype=config.dtype, engine=config.engine)


def _load_there(config: EmbedConfig, files: str, device: str) -> ModernBert:
    """Load the model on another machine.

    Raises: InputError if the model of this name has other files there.
    """
    folder = ModelFolder.open(config.model)
    if folder.digest != files:
        raise InputError(f"{config.model}: has other files on another machine of the cluster")
    return _load(config, folder, device)


def _embed(bert: ModernBert, part: TextChunk, config: EmbedConfig) -> tuple[str, ChunkVectors]:
    texts = [text for _, text in part.texts]
    work: Callable[[list[str]], Any] = partial(
        bert.embed, pooling=config.pooling, normalize=config.normalize, prompt=config.prompt,
        truncate_dim=config.truncate_dim, overflow=config.overflow, precision=config.precision,
    )  # fmt: skip
    if config.on_error == "fail":
        try:
            return part.digest, ChunkVectors(work(texts), {})
        except InputError as error:
            raise relocate_error(error, part.texts) from None
    # Texts that are likely to be refused are embedded alone, so that their errors do not repeat work on others.
    prompt = config.prompt or ""
    lengths = bert.count_tokens([prompt + text for text in texts])
    odd = [n for n, length in enumerate(lengths) if config.overflow == "error" and not 0 < length <= bert.max_length]
    good = sorted(set(range(len(texts))) - set(odd))
    made: dict[int, np.ndarray] = {}
    lost: dict[int, str] = {}
    for numbers in (good, *([number] for number in odd)):
        found, refused = without_errors(work, [texts[number] for number in numbers])
        made |= {number: row for number, row in zip(numbers, found, strict=True) if row is not None}
        lost |= {numbers[place]: reason for place, reason in refused.items()}
    return part.digest, ChunkVectors(np.stack([made[number] for number in sorted(made)]) if made else work([]), lost)
