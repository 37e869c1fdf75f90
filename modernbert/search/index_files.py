"""`modernbert index`: make or update a search index of files."""

import os
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

from modernbert.data.corpus import Document, Tally, find_files, read_documents
from modernbert.data.source_files import File
from modernbert.errors import counted
from modernbert.extras import require
from modernbert.files import only_process
from modernbert.inference.modernbert import ModernBert
from modernbert.progress import show_texts
from modernbert.search.passage_index import PassageIndex
from modernbert.search.search_options import IndexConfig

__all__ = ["IndexConfig", "run"]


def run(config: IndexConfig) -> None:
    """Index new and changed files, remove missing ones from the index, and print the counts.

    Raises:
        InputError: A file cannot be read, or the index was made with another model.
    """
    require("index", "lancedb", "pyarrow", extra="index")
    PassageIndex.check_folder(config.output)
    tally = Tally()
    # An existing index may become empty, when all its files are gone; a new index without files is an error.
    exists = PassageIndex.is_in(config.output)
    found = find_files(
        config.input, tally, text_field=config.text_field, on_error=config.on_error, empty_ok=exists
    )  # fmt: skip
    files = _once(found)
    documents = read_documents(files, tally, text_field=config.text_field, on_error=config.on_error, empty_ok=exists)
    # Read a document before anything is written: an error leaves no folder behind.
    first = list(islice(documents, 1))
    bert = ModernBert.load(
        config.model, revision=config.revision, device=config.device, dtype=config.dtype, engine=config.engine
    )
    assert bert.origin is not None, "it was loaded from a folder"
    model = str(Path(config.model).absolute()) if Path(config.model).is_dir() else bert.origin.folder.name
    index = PassageIndex.begin(config.output, bert, model, bert.origin.folder.digest, config.passage_tokens)
    with only_process(config.output), show_texts(None, True) as show:

        def watched() -> Iterator[Document]:
            for document in chain(first, documents):
                yield document
                show(tally.documents, 0)

        # Skipped documents keep their passages, so none can be removed as gone.
        update = index.update(bert, watched(), is_whole=lambda: not tally.skipped)
    skipped = f"; {tally.skipped:,} broken skipped ({tally.skipped_reasons[0]}), none removed" if tally.skipped else ""
    long = counted(update.cut, "passage was", "passages were")
    cut = f"; {long} too long for the model and truncated" if update.cut else ""
    others = counted(tally.passed_over, "file of another format", "files of other formats")
    passed = f", {others} ignored" if tally.passed_over else ""
    print(
        f"{config.output}: {counted(update.passages, 'passage')}; documents: {update.added:,} new or changed, "
        f"{update.kept:,} unchanged, {update.removed:,} removed{passed}{cut}{skipped}"
    )
    tally.skips.show()


def _once(files: Sequence[File]) -> list[File]:
    """Return files without repetitions of one file under several names."""
    found: dict[str, File] = {}
    for file in files:
        found.setdefault(os.path.realpath(file) if isinstance(file, Path) else str(file), file)
    return list(found.values())
