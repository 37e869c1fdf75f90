"""`modernbert prepare`: tokenize documents into shards, and hold some of them out on request."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from modernbert.data.corpus import Document, Tally, find_files, show_documents
from modernbert.data.input_errors import Outage
from modernbert.data.prepare_options import PrepareConfig, SplitDocuments
from modernbert.data.readers import mark_of, size_of
from modernbert.data.shards import Shards, fill_folder
from modernbert.data.source_files import File
from modernbert.errors import InputError, counted
from modernbert.extras import require
from modernbert.files import (
    move_into_place,
    only_process,
    remove_leftovers,
    sha256_of,
    translate_errors,
    try_delete,
    write_file,
)
from modernbert.hub_download import find_tokenizer
from modernbert.tokenizer.tokenizer import Tokenizer

__all__ = ["PrepareConfig", "find_changed_file", "run"]

SHARD_CHARS = 16_000_000
# Files of more bytes in all are compared by size and modification time only: hashing them would delay the first token.
MAX_HASHED_BYTES = 4 * 2**30
_CONTINUES = "continues with the finished shards"


def run(config: PrepareConfig, *, replace_other: bool = False) -> Path:
    """Write `train` and, if documents are held out, `heldout` into the output folder, and return that folder.

    Both appear at once or not at all. The work is done in `OUTPUT.unfinished`. A stopped run continues with the shards
    that are finished, if the options and the files are the same. A finished folder is verified and reused; one with
    other options or files is an error, or is replaced if `replace_other`.

    Raises:
        InputError: The corpus, the tokenizer or the output folder cannot be used.
    """
    if config.executor == "ray":
        require("executor", "ray")
    # First, because it also checks the libraries that read the files, before the Hub is asked for the tokenizer.
    files = find_files(config.input, text_field=config.text_field, on_error=config.on_error)
    config = replace(config, tokenizer=str(find_tokenizer(config.tokenizer)))
    out = config.output
    work = Path(f"{out}.unfinished")
    remove_leftovers(work)
    identity = _identity(config)
    if replace_other and out.exists() and (other := _find_difference(out, identity, files)):
        print(f"{out}: was prepared {other}, starting over", flush=True)
        try_delete(out)
    if out.exists():
        _check_finished(out, identity, files)
        if work.exists():
            try_delete(work)
        print(f"{out}: is finished and intact")
    else:
        with only_process(work):
            _write_all(config, out, work, _begin(work, identity, files))
    for split in _splits(config):
        shards = Shards.open(out / split, verify=False)
        print(f"{out / split}: {counted(shards.num_docs, 'document')}, {counted(shards.num_tokens, 'token')}")
    return out


def _splits(config: PrepareConfig) -> list[str]:
    return ["train", "heldout"] if config.heldout else ["train"]


def find_changed_file(folder: Path, files: Sequence[File], *, complete: bool = True) -> str | None:
    """Return how a file differs from the files that a folder of shards was made from; None if all are the same.

    A file with another modification time is the same if its content is, and its content was hashed (see
    `MAX_HASHED_BYTES`). Without `complete`, files may be missing.
    """
    found = _read_json(folder / "prepare.json").get("files")
    return _find_changed(found, files, complete) if isinstance(found, dict) else None


def _find_changed(was: Mapping[str, Any], files: Sequence[File], complete: bool = True) -> str | None:
    for file in files:
        if (before := was.get(str(file))) is None:
            return f"{file}: is new"
        size, mark, digest = before
        is_same = size == size_of(file) and (mark == mark_of(file) or (digest and digest == _digest(file)))
        if not is_same:
            return f"{file}: has changed"
    gone = set(was) - set(map(str, files)) if complete else ()
    return f"{min(gone)}: is missing" if gone else None


def _digest(file: File) -> str | None:
    try:
        return sha256_of(file) if isinstance(file, Path) else None
    except OSError:  # reported, or skipped, when the file is read
        return None


def _identity(config: PrepareConfig) -> dict[str, Any]:
    """Return what decides the bytes of the shards, beside the files: settings and tokenizer."""
    return {
        "input": list(map(str, config.input)),
        **{each.name: getattr(config, each.name) for each in fields(SplitDocuments)},
        "tokenizer": Tokenizer.load(config.tokenizer).fingerprint,
        "shard_chars": SHARD_CHARS,
    }


def _read_json(path: Path) -> dict[str, Any]:
    """Return the settings in a file. Raises: InputError if it cannot be read."""
    try:
        found = json.loads(path.read_text())
        if not isinstance(found, dict):
            raise ValueError("not an object")
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
    return found


def _find_difference(out: Path, identity: dict[str, Any], files: Sequence[File]) -> str | None:
    """Return in what a finished folder differs from what would be written now.

    Raises:
        InputError: It is something else.
    """
    if not (out / "prepare.json").is_file():
        raise InputError(f"{out}: exists already, expected a new folder")
    return _difference(_read_json(out / "prepare.json"), identity, files)


def _difference(found: Mapping[str, Any], identity: Mapping[str, Any], files: Sequence[File]) -> str | None:
    if differing := [name for name in identity if found.get(name) != identity[name]]:
        return f"with another {differing[0]}"
    changed = _find_changed(found["files"], files) if isinstance(found.get("files"), dict) else None
    return f"from other files ({changed})" if changed else None


def _check_finished(out: Path, identity: dict[str, Any], files: Sequence[File]) -> None:
    """Check that a folder is what would be written now, and intact.

    Raises:
        InputError: It is something else, or damaged.
    """
    if other := _find_difference(out, identity, files):
        raise InputError(f"{out}: exists already, prepared {other}; expected a new folder")
    for split in ("train", "heldout") if identity["heldout"] else ("train",):
        Shards.open(out / split)


def _begin(work: Path, identity: dict[str, Any], files: Sequence[File]) -> dict[str, Any]:
    """Keep the shards of an earlier process with the same identity, else start over; return identity and files."""
    path = work / "settings.json"
    if path.exists():
        try:
            found = _read_json(path)
            is_same = isinstance(found.get("files"), dict) and _difference(found, identity, files) is None
        except InputError:
            is_same = False
        if is_same:
            print(f"{work}: continuing, {len(list((work / 'done').rglob('*.json'))):,} shards are done", flush=True)
            return found
        print(f"{work}: was made with other settings or files, starting over", flush=True)
    try:
        for entry in work.iterdir():
            if entry.name != ".lock":
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    except OSError as error:
        raise InputError(f"{work}: cannot be emptied ({error.strerror or error}); delete it by hand") from None
    sizes = {file: size_of(file) for file in files}
    is_hashed = sum(size for file, size in sizes.items() if isinstance(file, Path)) <= MAX_HASHED_BYTES
    settings = {
        **identity,
        "files": {
            str(file): [size, mark_of(file), _digest(file) if is_hashed else None] for file, size in sizes.items()
        },
    }
    write_file(path, json.dumps(settings))
    return settings


def _write_all(config: PrepareConfig, out: Path, work: Path, settings: dict[str, Any]) -> None:
    """Write all splits and move them into place; after a failure, finished shards stay for the next attempt."""
    try:
        for split in _splits(config):
            tally = _write_split(config, work, split)
        (work / "whole" / "prepare.json").write_text(json.dumps(settings) + "\n")
        move_into_place(work / "whole", out)
    except Outage as error:
        raise InputError(f"{error}; the same command {_CONTINUES}") from None
    except InputError:
        try_delete(work)
        raise
    except OSError as error:
        if any((work / "done").rglob("*.json")):
            reason = error.strerror or error
            raise InputError(f"{work}: cannot be written ({reason}); the same command {_CONTINUES}") from None
        try_delete(work)
        raise translate_errors(out, error) from error
    try_delete(work)
    print(f"{out}: {tally.describe()}")
    tally.skips.show()


def _write_split(config: PrepareConfig, work: Path, split: str) -> Tally:
    """Read the whole corpus and write the documents of one split. Reading twice is cheap compared to tokenizing."""
    tally, num_tokens = Tally(), 0
    with show_documents(
        f"preparing {split}", config.input, tally, config, deduplicate=config.deduplicate,
        made=lambda: f"{num_tokens:,} tokens",
    ) as (documents, show):  # fmt: skip

        def count(more: int) -> None:
            nonlocal num_tokens
            num_tokens += more
            show()

        for folder in (work / "whole" / split, work / "done" / split):
            folder.mkdir(parents=True, exist_ok=True)
        fill_folder(
            _of_split(documents, split, config.heldout, tally),
            config.tokenizer,
            (work / "whole" / split).absolute(),
            tally=tally,
            shard_chars=SHARD_CHARS,
            processes=config.processes or _num_cores(),
            progress=count,
            executor=config.executor,
            done=(work / "done" / split).absolute(),
        )
    return tally


def _of_split(documents: Iterable[Document], split: str, heldout: float, tally: Tally) -> Iterator[Document]:
    """Yield the documents of one split.

    Raises:
        InputError: The split has no document.
    """
    is_empty = True
    for document in documents:
        digest = hashlib.sha256(document.text.encode()).digest()
        is_heldout = int.from_bytes(digest[:8]) < heldout * 2**64
        if is_heldout == (split == "heldout"):
            is_empty = False
            yield document
    if is_empty:
        found = f"the share {heldout} of {tally.documents:,} documents"
        more = "more documents (--txt-unit line or paragraph makes several of a .txt, .md or .rst file)"
        if split == "heldout":
            raise InputError(f"heldout: {found} holds none out, expected a larger share or {more}")
        raise InputError(f"heldout: {found} leaves none for train, expected a smaller share or {more}")


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
