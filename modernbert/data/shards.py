"""Shards: tokenized documents on disk, written once, verified when opened, and read in any order.

A shard is two files: `.tokens` has the token ids of its documents end to end, little-endian, without [CLS] and [SEP],
which are added when documents are cut to a length; `.offsets` has the start of each document and the end of the last
one, as 64-bit integers. `index.json` describes them.
"""

import hashlib
import json
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, Integer

from modernbert.data.corpus import Document, Tally
from modernbert.data.input_errors import Outage
from modernbert.data.shard_workers import EXECUTORS
from modernbert.errors import InputError
from modernbert.files import new_folder, sha256_of, sync_file, write_file
from modernbert.tokenizer.tokenizer import Tokenizer

__all__ = ["Shards", "fill_folder", "write_shards"]

FORMAT, VERSION = "modernbert-shards", 1
OFFSET = np.dtype("<u8")
# Memory-mapped files that a process keeps open; systems commonly allow 1,024 open files.
OPEN_SHARDS = 256


def write_shards(
    documents: Iterable[Document],
    tokenizer_file: Path | str,
    out: Path | str,
    *,
    tally: Tally,
    shard_chars: int = 16_000_000,
    processes: int = 1,
    progress: Callable[[int], None] = lambda num_tokens: None,
) -> None:
    """Tokenize documents into the new folder `out`, as `fill_folder` does; the folder appears whole or not at all.

    Raises:
        InputError: `out` exists, the disk is full, or a document cannot be read; nothing is left behind.
    """
    with new_folder(Path(out)) as folder:
        fill_folder(
            documents,
            tokenizer_file,
            folder,
            tally=tally,
            shard_chars=shard_chars,
            processes=processes,
            progress=progress,
        )


def fill_folder(
    documents: Iterable[Document],
    tokenizer_file: Path | str,
    folder: Path,
    *,
    tally: Tally,
    shard_chars: int = 16_000_000,
    processes: int = 1,
    progress: Callable[[int], None] = lambda num_tokens: None,
    executor: str = "local",
    done: Path | None = None,
) -> None:
    """Tokenize documents into a folder that is moved into place later.

    Shards are filled by characters, so their bytes depend neither on the number of processes nor on the executor.

    Args:
        documents: The documents.
        tokenizer_file: The `tokenizer.json` or its folder.
        folder: The folder to write to.
        tally: The counts of the reader of `documents`, which the index stores.
        shard_chars: Number of characters after which a shard ends.
        processes: Number of processes.
        progress: Called with the number of tokens of each shard.
        executor: Where to tokenize: `local` or `ray`.
        done: A folder for the entries of finished shards. Given the same documents again, intact shards are reused.

    Raises:
        InputError: A document cannot be read, or there is none.
        OSError: The disk is full or not writable.
    """
    tokenizer = Tokenizer.load(tokenizer_file)
    shards = []
    tasks = (Task(n, texts, folder, done) for n, texts in enumerate(_grouped(documents, shard_chars)))
    for shard in _in_order(tasks, tokenizer_file, tokenizer, executor, processes):
        shards.append(shard)
        progress(shard["num_tokens"])
    if not shards:
        raise InputError("documents: found no document to write, expected at least one")
    index = {
        "format": FORMAT,
        "version": VERSION,
        "dtype": _dtype(tokenizer.vocab_size).name,
        "vocab_size": tokenizer.vocab_size,
        "fingerprint": tokenizer.fingerprint,
        "num_docs": sum(shard["num_docs"] for shard in shards),
        "num_tokens": sum(shard["num_tokens"] for shard in shards),
        "corpus": asdict(tally),
        "shards": shards,
    }
    (folder / "index.json").write_text(json.dumps(index, indent=1) + "\n")


class Shards:
    """A folder of tokenized documents, read in any order without loading all of them."""

    def __init__(self, folder: Path, index: dict[str, Any]) -> None:
        self.folder = folder
        self.fingerprint: str = index["fingerprint"]
        self.vocab_size: int = index["vocab_size"]
        self.num_docs: int = index["num_docs"]
        self.num_tokens: int = index["num_tokens"]
        self._dtype = np.dtype(index["dtype"]).newbyteorder("<")
        self._files = [shard["tokens"]["file"] for shard in index["shards"]]
        offsets = [_read_offsets(folder, shard) for shard in index["shards"]]
        self._first_docs = np.cumsum([0] + [len(part) - 1 for part in offsets])[:-1].tolist()
        self._starts = np.concatenate([part[:-1] for part in offsets])
        self.lengths: Int64[np.ndarray, " _"] = np.concatenate([np.diff(part) for part in offsets])
        self._mapped = lru_cache(maxsize=OPEN_SHARDS)(self._map)

    @staticmethod
    def open(folder: Path | str, verify: bool = True) -> "Shards":
        """Open a folder of shards; check the size of every file and, if `verify`, its SHA-256.

        Raises:
            InputError: A file is missing, truncated or changed; names it.
        """
        folder = Path(folder)
        index = _read_index(folder / "index.json")
        _check_index(folder / "index.json", index)
        for shard in index["shards"]:
            for part in ("tokens", "offsets"):
                _verify(folder / shard[part]["file"], shard[part], verify)
        return Shards(folder, index)

    def tokens(self, doc: int, start: int = 0, stop: int | None = None) -> Integer[np.ndarray, " _"]:
        """Return the ids `start` to `stop` of a document as a read-only view."""
        shard = bisect_right(self._first_docs, doc) - 1
        first, length = int(self._starts[doc]), int(self.lengths[doc])
        stop = length if stop is None else min(stop, length)
        return self._mapped(shard)[first + start : first + stop]

    def _map(self, shard: int) -> Integer[np.ndarray, " _"]:
        path = self.folder / self._files[shard]
        if path.stat().st_size == 0:  # an empty file cannot be mapped; its documents have no tokens
            return np.empty(0, dtype=self._dtype)
        # A plain array: slices of np.memmap are several times slower.
        return np.asarray(np.memmap(path, dtype=self._dtype, mode="r"))


@dataclass(frozen=True)
class Task:
    """One shard to write, and the folder for its entry."""

    number: int
    texts: list[str]
    folder: Path
    done: Path | None


def _grouped(documents: Iterable[Document], shard_chars: int) -> Iterator[list[str]]:
    texts: list[str] = []
    num_chars = 0
    for document in documents:
        texts.append(document.text)
        num_chars += len(document.text)
        if num_chars >= shard_chars:
            yield texts
            texts, num_chars = [], 0
    if texts:
        yield texts


def _in_order(
    tasks: Iterator[Task], tokenizer_file: Path | str, tokenizer: Tokenizer, executor: str, processes: int
) -> Iterator[dict[str, Any]]:
    """Write a shard for each task; yield their entries for the index in order."""
    if executor == "local" and processes == 1:
        for task in tasks:
            yield write_shard(task, tokenizer)
        return
    running: deque[Future[dict[str, Any]]] = deque()
    with EXECUTORS[executor](processes) as (submit, num_workers):
        for task in tasks:
            running.append(submit(_write_in_worker, task, Path(tokenizer_file).absolute()))
            if len(running) > num_workers:  # one waits while all work; more would only use memory
                yield running.popleft().result()
        while running:
            yield running.popleft().result()


@cache
def _load_tokenizer(file: Path) -> Tokenizer:
    return Tokenizer.load(file)


def _write_in_worker(task: Task, tokenizer_file: Path) -> dict[str, Any]:
    return write_shard(task, _load_tokenizer(tokenizer_file))


def write_shard(task: Task, tokenizer: Tokenizer) -> dict[str, Any]:
    """Write the two files of a shard, unless an earlier process did; return its entry for the index."""
    name = f"shard-{task.number:05d}"
    entry_file = task.done / f"{name}.json" if task.done else None
    if entry_file is not None and (entry := _read_finished(entry_file, task)) is not None:
        return entry
    documents = tokenizer.encode(task.texts, special=False)
    ends = np.cumsum([len(document) for document in documents])
    values = np.concatenate(documents).astype(_dtype(tokenizer.vocab_size))
    entry = {
        "num_docs": len(documents),
        "num_tokens": int(ends[-1]),
        "tokens": _write(task.folder / f"{name}.tokens", values),
        "offsets": _write(task.folder / f"{name}.offsets", np.concatenate([[0], ends]).astype(OFFSET)),
    }
    if entry_file is not None:
        for part in ("tokens", "offsets"):
            sync_file(task.folder / entry[part]["file"])
        try:
            write_file(entry_file, json.dumps(entry))
        except InputError as error:
            raise Outage(str(error)) from None
    return entry


def _read_finished(entry_file: Path, task: Task) -> dict[str, Any] | None:
    """Return the entry of a shard that an earlier process finished, if its files are intact."""
    try:
        entry: dict[str, Any] = json.loads(entry_file.read_text())
        for part in ("tokens", "offsets"):
            _verify(task.folder / entry[part]["file"], entry[part], content=True)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return entry if entry["num_docs"] == len(task.texts) else None


def _write(path: Path, values: Integer[np.ndarray, " _"]) -> dict[str, Any]:
    data = values.tobytes()
    path.write_bytes(data)
    return {"file": path.name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _dtype(vocab_size: int) -> np.dtype[Any]:
    return np.dtype("<u2") if vocab_size <= 2**16 else np.dtype("<u4")


def _read_index(path: Path) -> dict[str, Any]:
    if not path.parent.is_dir():
        raise InputError(f"{path.parent}: no such folder of shards; `modernbert prepare` writes one")
    if not path.exists():
        raise InputError(f"{path.parent}: has no index.json, expected a folder written by `modernbert prepare`")
    try:
        index = json.loads(path.read_bytes())
        found = index["format"], index["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: is not an index of shards ({type(error).__name__}: {error})") from None
    if found != (FORMAT, VERSION):
        raise InputError(f"{path}: is {found[0]} version {found[1]}, expected {FORMAT} version {VERSION}")
    return index


def _check_index(path: Path, index: dict[str, Any]) -> None:
    """Check that an index has all fields and does not contradict itself, since it decides how files are read."""

    def check(field: str, found: object, expected: object) -> None:
        if type(found) is not type(expected) or found != expected:
            raise InputError(f"{path}: {field} is {found!r}, expected {expected!r}")

    _check_types(path, "", index, {"vocab_size": int, "fingerprint": str, "num_docs": int, "num_tokens": int})
    _check_types(path, "", index, {"dtype": str, "shards": list})
    dtype = _dtype(index["vocab_size"])
    check("dtype", index["dtype"], dtype.name)
    if not index["shards"]:
        raise InputError(f"{path}: shards is [], expected at least one")
    for n, shard in enumerate(index["shards"]):
        place = f"shards[{n}]"
        _check_types(path, place, shard, {"num_docs": int, "num_tokens": int, "tokens": dict, "offsets": dict})
        sizes = {"tokens": shard["num_tokens"] * dtype.itemsize, "offsets": (shard["num_docs"] + 1) * OFFSET.itemsize}
        for part, size in sizes.items():
            _check_types(path, f"{place}.{part}", shard[part], {"file": str, "bytes": int, "sha256": str})
            file = shard[part]["file"]
            if Path(file).name != file:
                raise InputError(f"{path}: {place}.{part}.file is {file!r}, expected a name without a folder")
            check(f"{place}.{part}.bytes", shard[part]["bytes"], size)
    for total in ("num_docs", "num_tokens"):
        check(total, index[total], sum(shard[total] for shard in index["shards"]))


def _check_types(path: Path, place: str, found: object, expected: dict[str, type]) -> None:
    if not isinstance(found, dict):
        raise InputError(f"{path}: {place} is {found!r}, expected an object")
    for key, kind in expected.items():
        field = f"{place}.{key}".lstrip(".")
        if key not in found:
            raise InputError(f"{path}: has no {field}, expected one ({kind.__name__})")
        if type(found[key]) is not kind or (kind is int and found[key] < 0):
            raise InputError(f"{path}: {field} is {found[key]!r}, expected {kind.__name__}")


def _verify(path: Path, entry: dict[str, Any], content: bool) -> None:
    if not path.exists():
        raise InputError(f"{path}: is missing, expected {entry['bytes']:,} bytes")
    if path.stat().st_size != entry["bytes"]:
        raise InputError(f"{path}: has {path.stat().st_size:,} bytes, expected {entry['bytes']:,}")
    if content and (found := sha256_of(path)) != entry["sha256"]:
        raise InputError(f"{path}: has sha256 {found[:16]}..., expected {entry['sha256'][:16]}...; it was changed")


def _read_offsets(folder: Path, shard: dict[str, Any]) -> Int64[np.ndarray, " _"]:
    path = folder / shard["offsets"]["file"]
    offsets = np.fromfile(path, dtype=OFFSET).astype(np.int64)
    if (
        len(offsets) != shard["num_docs"] + 1
        or offsets[0] != 0
        or offsets[-1] != shard["num_tokens"]
        or (np.diff(offsets) < 0).any()
    ):
        raise InputError(f"{path}: does not describe {shard['num_docs']} documents of {shard['num_tokens']} tokens")
    return offsets
