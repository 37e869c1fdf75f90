"""Embedding models: one vector of length 1 per document, or one per token (late interaction), and MaxSim."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from modernbert.batch import Batch
from modernbert.model.embedding_config import EmbeddingConfig
from modernbert.model.heads import pool
from modernbert.model.interface import Model
from modernbert.tokenizer.input_templates import InputTemplate
from modernbert.tokenizer.tokenizer import Tokenizer

__all__ = ["Embedder", "document_template", "finish_vectors", "max_sims", "query_template"]


class Embedder(Model):
    """The encoder, pooling, and an optional linear layer."""

    pooling: str

    def __init__(self, encoder: Model, pooling: str, projection: nn.Linear | None = None) -> None:
        super().__init__()
        self.model, self.pooling, self.projection = encoder, pooling, projection

    @property
    def encoder(self) -> Model:
        """The encoder."""
        return self.model.encoder

    @property
    def vector_size(self) -> int:
        """Number of components of a vector, E."""
        return self.hidden_size if self.projection is None else self.projection.out_features

    def encode(self, batch: Batch, rows: Int64[Tensor, " M"] | None = None) -> Float[Tensor, "M D"]:
        """Return the hidden states of every token of a batch, or of the tokens `rows`."""
        return self.model.encode(batch, rows)

    def forward(self, batch: Batch) -> Float[Tensor, "rows E"]:
        """Return a vector per document; for late interaction per token, or per token in `batch.label_positions`."""
        hidden = self.model.encode(batch)
        if self.pooling != "tokens":
            hidden = pool(hidden.float(), batch.layout, self.pooling)
        elif batch.label_positions is not None:
            hidden = hidden.index_select(0, batch.label_positions)
        return finish_vectors(hidden, self.projection)


def query_template(vectors: EmbeddingConfig, max_length: int) -> InputTemplate:
    """Return the template that queries are encoded with; `max_length` applies without a `query_length`."""
    return InputTemplate(vectors.query_length or max_length, vectors.query_prompt, vectors.expand_queries)


def document_template(vectors: EmbeddingConfig, max_length: int, tokenizer: Tokenizer) -> InputTemplate:
    """Return the template that documents are encoded with; `max_length` applies without a `document_length`."""
    skip = frozenset(token for name in vectors.skip if (token := tokenizer.token_to_id(name)) is not None)
    return InputTemplate(vectors.document_length or max_length, vectors.document_prompt, skip=skip)


def finish_vectors(
    rows: Float[Tensor, "N D"],
    projection: nn.Linear | None = None,
    truncate_dim: int | None = None,
    normalize: bool = True,
) -> Float[Tensor, "N E"]:
    """Project, truncate and normalize rows, which are pooled texts or tokens; return float32.

    Args:
        rows: Hidden states, or means of them.
        projection: A linear layer to apply, in the dtype of its weights.
        truncate_dim: Keep the first components only.
        normalize: Scale to length 1.
    """
    if projection is not None:
        autocast = torch.is_autocast_enabled(rows.device.type)
        rows = projection(rows if autocast else rows.to(projection.weight.dtype))
    rows = rows.float()[:, :truncate_dim]
    return F.normalize(rows, dim=-1) if normalize else rows


def max_sims(
    queries: Float[Tensor, "q E"], query_lengths: Int64[Tensor, " Q"], passages: Float[Tensor, "p E"],
    lengths: Int64[Tensor, " P"],
) -> Float[Tensor, "Q P"]:  # fmt: skip
    """Return the late-interaction score of each query with each passage, without padding.

    The score is the sum over the query's tokens of the largest similarity to a token of the passage.

    Source: Khattab & Zaharia 2020 (ColBERT).
    """
    best = torch.segment_reduce(passages @ queries.T, "max", lengths=lengths, axis=0)
    return torch.segment_reduce(best.T.contiguous(), "sum", lengths=query_lengths, axis=0)
