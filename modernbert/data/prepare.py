"""`modernbert prepare`: tokenize documents into shards, and hold some of them out on request."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from modernbert.data.corpus import Document, Tally, find_files, show_documents
from modernbert.data.input_errors import Outage
from modernbert.data.prepare_options import PrepareConfig
from modernbert.data.readers import mark_of, size_of
from modernbert.data.shards import Shards, fill_folder
from modernbert.data.source_files import File
from modernbert.errors import InputError
from modernbert.extras import require
from modernbert.files import move_into_place, only_process, remove_leftovers, translate_errors, try_delete, write_file
from modernbert.hub_download import find_tokenizer
from modernbert.tokenizer.tokenizer import Tokenizer

__all__ = ["PrepareConfig", "run"]

SHARD_CHARS = 16_000_000
_CONTINUES = "continues with the finished shards"


def run(config: PrepareConfig) -> Path:
    """Write `train` and, if documents are held out, `heldout` into the output folder, and return that folder.

    Both appear at once or not at all. The work is done in `OUTPUT.unfinished`. A stopped run continues with the shards
    that are finished, if the options and the files are the same. A finished folder is verified and reused.

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
    identity = _identity(config, files)
    if out.exists():
        _check_finished(out, identity)
        if work.exists():
            try_delete(work)
        print(f"{out}: is finished and intact")
    else:
        with only_process(work):
            _begin(work, identity)
            _write_all(config, out, work, identity)
    for split in _splits(config):
        shards = Shards.open(out / split, verify=False)
        print(f"{out / split}: {shards.num_docs:,} documents, {shards.num_tokens:,} tokens")
    return out


def _splits(config: PrepareConfig) -> list[str]:
    return ["train", "heldout"] if config.heldout else ["train"]


def _identity(config: PrepareConfig, files: Sequence[File]) -> dict[str, Any]:
    """Return what decides the bytes of the shards: settings, tokenizer and files."""
    listed = "\n".join(f"{file} {size_of(file)} {mark_of(file)}" for file in files)
    names = ("heldout", "text_field", "txt_unit", "invalid", "on_error", "deduplicate")
    return {
        "input": list(map(str, config.input)),
        **{name: getattr(config, name) for name in names},
        "tokenizer": Tokenizer.load(config.tokenizer).fingerprint,
        "shard_chars": SHARD_CHARS,
        "files": hashlib.sha256(listed.encode("utf-8", "surrogateescape")).hexdigest(),
    }


def _check_finished(out: Path, identity: dict[str, Any]) -> None:
    """Check that a folder is what would be written now, and intact.

    Raises:
        InputError: It is something else, or damaged.
    """
    path = out / "prepare.json"
    if not path.is_file():
        raise InputError(f"{out}: exists already, expected a new folder")
    try:
        found = json.loads(path.read_text())
        differing = [name for name in identity if found.get(name) != identity[name]]
    except (ValueError, AttributeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
    if differing:
        what = "from other files, or before they changed" if differing == ["files"] else f"with another {differing[0]}"
        raise InputError(f"{out}: exists already, prepared {what}; expected a new folder")
    for split in ("train", "heldout") if identity["heldout"] else ("train",):
        Shards.open(out / split)


def _begin(work: Path, identity: dict[str, Any]) -> None:
    """Keep the shards of an earlier process with the same identity, else start over."""
    path = work / "settings.json"
    if path.exists():
        try:
            is_same = json.loads(path.read_text()) == identity
        except ValueError:
            is_same = False
        if is_same:
            print(f"{work}: continuing, {len(list((work / 'done').rglob('*.json'))):,} shards are done", flush=True)
            return
        print(f"{work}: was made with other settings or files, starting over", flush=True)
    try:
        for entry in work.iterdir():
            if entry.name != ".lock":
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    except OSError as error:
        raise InputError(f"{work}: cannot be emptied ({error.strerror or error}); delete it by hand") from None
    write_file(path, json.dumps(identity))


def _write_all(config: PrepareConfig, out: Path, work: Path, identity: dict[str, Any]) -> None:
    """Write all splits and move them into place; after a failure, finished shards stay for the next attempt."""
    try:
        for split in _splits(config):
            tally = _write_split(config, work, split)
        (work / "whole" / "prepare.json").write_text(json.dumps(identity, indent=1) + "\n")
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
