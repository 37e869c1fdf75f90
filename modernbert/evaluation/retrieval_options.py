"""Options of the evaluation of retrieval."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge

from modernbert.common_options import ModelRevision, OneDevice

__all__ = ["RetrievalConfig"]


@dataclass(frozen=True)
class RetrievalConfig(ModelRevision, OneDevice):
    """Rank the documents of collections for their queries: nDCG@10, MRR@10, recall@100."""

    model: str
    """Model folder, or name of a model on the Hub."""
    collections: Sequence[str]
    """Folders in the format of BEIR, or mteb:TASK."""
    _: KW_ONLY
    split: str = "test"
    """Split of the relevance judgments: qrels/SPLIT.tsv."""
    bm25: bool = False
    """Rank by BM25, too."""
    pooling: Literal["mean", "cls", "tokens"] | None = None
    """Pooling of token vectors; from the model, by default."""
    query_prompt: str | None = None
    """Text in front of queries; from the model, by default."""
    document_prompt: str | None = None
    """Text in front of documents; from the model, by default."""
    query_length: Annotated[int, Ge(4)] | None = None
    """Maximum tokens of a query; from the model, by default."""
    document_length: Annotated[int, Ge(8)] | None = None
    """Maximum tokens of a document; from the model, by default."""
    output: Path | None = None
    """JSON file for the scores; none, by default."""
    overwrite: bool = False
    """Replace the file of --output if it exists."""
    index: Path | None = None
    """Folder that keeps the embeddings of the documents; none, by default."""
