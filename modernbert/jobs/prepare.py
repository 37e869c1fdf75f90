"""`modernbert prepare`: documents to tokenised shards, with some documents held out if asked."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from modernbert.errors import InputError
from modernbert.storage import new_folder
from modernbert.text.corpus import Document, Tally, read_documents, stored_bytes
from modernbert.text.progress import show_reading, watched
from modernbert.text.shards import Shards, fill_folder

__all__ = ["PrepareConfig", "run"]


@dataclass
class PrepareConfig:
    """What to read, with which tokenizer, and where the folders `train` and `heldout` go."""

    sources: list[str]
    tokenizer: str
    out: str
    heldout: float = 0.0
    """Share of the documents held out; which ones depends on their text alone, so that copies stay together."""
    text_field: str = "text"
    txt_unit: str = "file"
    """What is a document in .txt, .md and .rst: file, line or paragraph."""
    invalid: str = "repair"
    """What to do with text that is not UTF-8: repair or refuse."""
    processes: int = 0
    """0: one for each core."""


def run(config: PrepareConfig) -> Path:
    """Write `out/train` and, if documents are held out, `out/heldout`; both appear at once or not at all.

    Raises: InputError for anything in the corpus, the tokenizer or `out` that is not as it should be.
    """
    if not 0 <= config.heldout < 1:
        raise InputError(f"heldout: found {config.heldout}, expected a share from 0 to below 1")
    if config.processes < 0:
        raise InputError(f"processes: found {config.processes}, expected 0 (all cores) or more")
    out = Path(config.out)
    with new_folder(out) as folder:
        tally = _write_split(config, folder, "train")
        if config.heldout:
            _write_split(config, folder, "heldout")
    counted = f"{tally.documents:,} documents read, {tally.empty:,} empty ones left out, {tally.repaired:,} repaired"
    counted += f", {tally.passed_over:,} files of other formats or linked folders passed over"
    print(f"{out}: {counted}")
    for split in ("train", "heldout") if config.heldout else ("train",):
        shards = Shards.open(out / split, verify=False)
        print(f"{out / split}: {shards.num_docs:,} documents, {shards.num_tokens:,} tokens")
    return out


def _write_split(config: PrepareConfig, folder: Path, split: str) -> Tally:
    """Read the whole corpus and write the documents of one split: reading twice is cheap beside tokenising."""
    tally = Tally()
    documents = read_documents(
        config.sources, tally, text_field=config.text_field, txt_unit=config.txt_unit, invalid=config.invalid
    )
    with show_reading(f"preparing {split}", tally, stored_bytes(config.sources)) as show:
        num_tokens = 0

        def count(more: int) -> None:
            nonlocal num_tokens
            num_tokens += more
            show(f"{num_tokens:,} tokens")

        (folder / split).mkdir()
        fill_folder(
            _of_split(watched(documents, show), split, config.heldout, tally),
            config.tokenizer,
            folder / split,
            tally=tally,
            processes=config.processes or _num_cores(),
            progress=count,
        )
    return tally


def _of_split(documents: Iterable[Document], split: str, heldout: float, tally: Tally) -> Iterator[Document]:
    """Pass on the documents of one split.

    Raises: InputError after the last document if the split has none.
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
        if split == "heldout":
            raise InputError(f"heldout: {found} holds none out, expected a larger share or more documents")
        raise InputError(f"heldout: {found} leaves none for train, expected a smaller share or more documents")


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
