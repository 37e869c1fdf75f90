"""`modernbert index`: make files searchable, or bring what was made up to date."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from modernbert.infer.catalog import Catalog
from modernbert.infer.pipeline import ModernBert
from modernbert.infer.progress import show_texts
from modernbert.model.hub import digest_of
from modernbert.storage import only_process
from modernbert.text.corpus import Document, Tally, read_documents

__all__ = ["IndexConfig", "run"]


@dataclass(frozen=True)
class IndexConfig:
    """What to load, which files to index, where to, and how long a passage may be."""

    model: str
    sources: Sequence[str]
    out: Path
    passage_tokens: int = 256
    text_field: str = "text"
    device: str = "auto"
    dtype: str = "auto"
    backend: str = "auto"


def run(config: IndexConfig) -> None:
    """Index what is new or changed, forget what is gone, and say how much that was.

    Raises: InputError for files that cannot be read, or an index that was begun with another model.
    """
    tally = Tally()
    documents = read_documents(list(config.sources), tally, text_field=config.text_field)
    bert = ModernBert.load(config.model, device=config.device, dtype=config.dtype, backend=config.backend)
    model = str(Path(config.model).absolute()) if Path(config.model).is_dir() else config.model
    longest = min(config.passage_tokens, bert.longest)
    catalog = Catalog.begin(config.out, bert, model, digest_of(config.model), longest)
    with only_process(config.out), show_texts(None, True) as show:

        def watched() -> Iterator[Document]:
            for document in documents:
                yield document
                show(tally.documents, 0)

        update = catalog.update(bert, watched())
    passed = f", {tally.passed_over:,} files of unknown kinds passed over" if tally.passed_over else ""
    print(
        f"{config.out}: {update.passages:,} passages; documents: {update.added:,} new or changed, {update.kept:,} as "
        f"before, {update.removed:,} gone{passed}"
    )
