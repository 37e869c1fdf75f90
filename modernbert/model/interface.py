"""The interface of every model that a folder can hold: with a masked-LM head, a fine-tuned head, or none.

Callers use its properties (`task`, `labels`, `hidden_size`, ...) and outputs (`encode`, `logits`), not its class.
Models of other families (`checkpoints.transformers_models`) have the same interface.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from modernbert.batch import Batch, SequenceLengths
from modernbert.engines.engine import Engine
from modernbert.errors import InputError
from modernbert.model.config import ModelConfig

__all__ = ["FILL_MASK", "MODERNBERT", "HeadSpec", "Model"]

FILL_MASK = "fill-mask"
MODERNBERT = "modernbert"


@dataclass(frozen=True)
class HeadSpec:
    """The use of a fine-tuned head, as its task defines it (`tasks.task`).

    Attributes:
        task: Name of the task.
        scores_tokens: Whether the head scores tokens, not documents.
        reads_pairs: Whether the head always scores pairs of texts.
        ranks_pairs: Whether pairs are ranked by the score, if the head has a single one.
    """

    task: str
    scores_tokens: bool = False
    reads_pairs: bool = False
    ranks_pairs: bool = False


class Model(nn.Module):
    """A model of ragged batches; by default an encoder without a head.

    Attributes:
        task: The task of the head: `fill-mask`, the name of a fine-tuning task, or None without a head.
        labels: The names of the columns of `logits`; empty for the masked LM, whose columns are the vocabulary.
        scores_tokens: Whether a row of `logits` is a token (masked LM, tags, answers), not a document.
        reads_pairs: Whether the model was trained on pairs of texts.
        ranks_pairs: Whether pairs are ranked by the score, if the head has a single one.
        family: The `model_type` of config.json; `modernbert` is computed by this package, others by transformers.
        base_model_prefix: The name of the encoder in a model with a head; tensors in a folder can begin with it.
        pooling: How the model makes vectors of texts: `mean`, `cls` or `tokens`; None for a model that makes none.
        projection: The linear layer behind pooling; only models with `pooling` have it.
        config: The shape. Like the next three, only encoders of this package have it (`model.encoder.config`).
        engine: Computes the encoder.
        layers: The layers.
        final_norm: The norm behind the last layer.
    """

    task: str | None = None
    labels: tuple[str, ...] = ()
    scores_tokens: bool = False
    reads_pairs: bool = False
    ranks_pairs: bool = False
    family: str = MODERNBERT
    base_model_prefix: str = "model"
    pooling: str | None = None
    projection: nn.Linear | None
    config: ModelConfig
    engine: Engine
    layers: nn.ModuleList
    final_norm: nn.LayerNorm

    @property
    def encoder(self) -> "Model":
        """The model without its head."""
        return self

    @property
    def num_labels(self) -> int:
        """Number of labels; 0 for the masked LM and for an encoder without a head."""
        return len(self.labels)

    @property
    def is_classifier(self) -> bool:
        """Whether the head was fine-tuned for a task with labels."""
        return bool(self.labels)

    @property
    def is_ranker(self) -> bool:
        """Whether the head gives a pair of texts one score, by which pairs are ranked."""
        return self.ranks_pairs and self.num_labels == 1

    def set_head(self, spec: HeadSpec, labels: Sequence[str]) -> None:
        """Set the use of the head."""
        self.task, self.labels = spec.task, tuple(labels)
        self.scores_tokens, self.reads_pairs, self.ranks_pairs = (
            spec.scores_tokens, spec.reads_pairs, spec.ranks_pairs
        )  # fmt: skip

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states, D."""
        return self.encoder.config.hidden_size

    @property
    def vector_size(self) -> int:
        """Number of components of a vector, E."""
        return self.hidden_size

    @property
    def num_layers(self) -> int:
        """Number of layers."""
        return self.encoder.config.num_hidden_layers

    @property
    def vocab_size(self) -> int:
        """Number of token ids that the model has embeddings for, V."""
        return self.encoder.config.vocab_size

    @property
    def max_length(self) -> int:
        """The most tokens of a document: the number of positions that the model was trained for."""
        return self.encoder.config.max_position_embeddings

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the weights."""
        return next(self.parameters()).dtype

    @property
    def output_layer(self) -> nn.Linear | None:
        """The last linear layer of the head, or None without a head."""
        return None

    def set_dropout(self, share: float) -> None:
        """Set the dropout of the layers of an encoder of this package."""
        raise NotImplementedError

    def encode(self, batch: Batch, rows: Int64[Tensor, " M"] | None = None) -> Float[Tensor, "M D"]:
        """Return the hidden states of every token of a batch, or of the tokens `rows`."""
        raise NotImplementedError

    def logits(self, batch: Batch) -> Float[Tensor, "M labels"]:
        """Return the outputs of the head for a batch.

        The masked LM returns rows of V logits at the tokens `batch.label_positions`. A fine-tuned head returns the
        scores of its labels, for every document or every token, or for those in `batch.label_positions`.

        Raises: InputError for a model without a head.
        """
        raise InputError("This model has no head, so it has no logits.")

    def head_logits(
        self,
        hidden: Float[Tensor, "T D"],
        layout: SequenceLengths | None = None,
        rows: Int64[Tensor, " M"] | None = None,
    ) -> Float[Tensor, "M labels"]:
        """Compute `logits` from hidden states.

        Args:
            hidden: The output of `encode`.
            layout: The documents of `hidden`; needed by heads that score documents.
            rows: Score these tokens or documents only.

        Raises: InputError for a model without a head.
        """
        raise InputError("This model has no head, so it has no logits.")
