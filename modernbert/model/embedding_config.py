"""How an embedding model turns texts into vectors, as options."""

from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Ge

__all__ = ["EmbeddingConfig"]


@dataclass(frozen=True)
class EmbeddingConfig:
    """How texts become vectors."""

    pooling: str = "mean"
    """mean, cls, or tokens for a vector per token, compared by MaxSim."""
    query_prompt: str = ""
    """Text in front of queries."""
    document_prompt: str = ""
    """Text in front of documents."""
    query_length: Annotated[int, Ge(4)] | None = None
    """Maximum tokens of a query; from the model, by default."""
    document_length: Annotated[int, Ge(8)] | None = None
    """Maximum tokens of a document; from the model, by default."""
    expand_queries: bool = False
    """Fill queries up to `query_length` with [MASK]."""
    skip: list[str] = field(default_factory=list)
    """Tokens of documents that get no vector, for late interaction."""
    truncate_dim: Annotated[int, Ge(1)] | None = None
    """Number of components of a vector to keep; all, by default."""
