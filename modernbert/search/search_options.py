"""Options of the commands that index and search files."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge

from modernbert.common_options import Compute, ModelRevision, OneDevice
from modernbert.option_types import OnError

__all__ = ["IndexConfig", "SearchConfig"]


@dataclass(frozen=True)
class IndexConfig(ModelRevision, Compute):
    """Index files for search, or bring an index up to date with its files."""

    model: str
    """Model folder, or name of a model on the Hub."""
    _: KW_ONLY
    input: Sequence[str]
    """File or folder of text or code, or the address of one; repeat for several."""
    output: Path
    """Index folder, new or existing."""
    passage_tokens: Annotated[int, Ge(1)] | None = None
    """Maximum tokens of a passage; 256 in a new index, by default."""
    text_field: str = "text"
    """Column that holds the text."""
    on_error: OnError = "fail"
    """What to do with unreadable files and rows; skip lists them."""


@dataclass(frozen=True)
class SearchConfig(ModelRevision, OneDevice):
    """Print the passages of indexed files that match a query."""

    index: Path
    """Folder made by `modernbert index`."""
    query: str
    """The query."""
    _: KW_ONLY
    top_k: Annotated[int, Ge(1)] = 5
    """Number of passages to print."""
    how: Literal["hybrid", "vectors", "words"] = "hybrid"
    """Ranking: by embeddings, by words (BM25), or by both."""
    rerank: str | None = None
    """Cross-encoder that ranks the best passages again: a model folder, or NAME or NAME@REVISION on the Hub; none, by
    default."""
    model: str | None = None
    """Model of the index, if its folder was moved."""
    json: bool = False
    """Print a JSON object for each passage."""
