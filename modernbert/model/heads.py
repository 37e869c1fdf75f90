"""Heads: hidden states -> scores and vectors.

In: a batch, or its hidden states. Out: logits, only at the rows asked for; one vector a document. Masked rows are
gathered before the head, so that head and vocabulary see about 30 % of the tokens in pretraining. Source: paper, 2.1.1.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from modernbert.model.config import ModelConfig
from modernbert.model.encoder import Encoder
from modernbert.model.fused import FusedEncoder
from modernbert.ragged import Batch, Layout

__all__ = ["MaskedLM", "Model", "PredictionHead", "encoder_of", "pool"]


class PredictionHead(nn.Module):
    """Dense, exact GELU, norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=False)

    def forward(self, rows: Float[Tensor, "M D"]) -> Float[Tensor, "M D"]:
        """Transform each row by itself."""
        return self.norm(F.gelu(self.dense(rows)))


class MaskedLM(nn.Module):
    """The encoder with the masked-language-model head; the decoder shares the token embedding and has its own bias."""

    def __init__(self, config: ModelConfig, backend: str = "banded") -> None:
        super().__init__()
        self.model = Encoder(config, backend)
        self.head = PredictionHead(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        self.decoder.weight = self.model.embeddings.tok_embeddings.weight

    @property
    def in_loops(self) -> bool:
        """Whether the package's own loops compute what they can."""
        return self.model.backend == "native"

    def forward(self, batch: Batch) -> Float[Tensor, "M V"]:
        """Return logits at the rows `batch.where`, in their order; at every row of the stream where it is None."""
        return self.decoder(self.features(batch))

    def features(self, batch: Batch) -> Float[Tensor, "M D"]:
        """Return what the decoder sees: the rows `batch.where`, through the head."""
        hidden = self.model(batch.tokens, batch.layout)
        return self.head(hidden if batch.where is None else hidden.index_select(0, batch.where))

    def decode(self, rows: Float[Tensor, "M D"]) -> Float[Tensor, "M V"]:
        """Return the logits of some rows of hidden states."""
        return self.decoder(self.head(rows))


Model = MaskedLM | Encoder | FusedEncoder


def encoder_of(model: Model) -> Encoder | FusedEncoder:
    """Return a model without its head."""
    return model.model if isinstance(model, MaskedLM) else model


def pool(hidden: Float[Tensor, "T D"], layout: Layout, pooling: str) -> Float[Tensor, "N D"]:
    """Return one vector a document: the `mean` of its tokens, or its first token `cls`."""
    if pooling == "cls":
        return hidden.index_select(0, layout.starts.long())
    lengths = (layout.cu_seqlens[1:] - layout.cu_seqlens[:-1]).long()
    return torch.segment_reduce(hidden, "mean", lengths=lengths, axis=0)
