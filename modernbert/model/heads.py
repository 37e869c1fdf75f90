"""Heads: hidden states -> scores and vectors.

In: a batch, or its hidden states. Out: logits, only at the rows asked for; scores of documents or words; one vector a
document. Masked rows are gathered after the last attention, so that the rest of that layer, head and vocabulary see
about 30 % of the tokens in pretraining. Source: paper, 2.1.1; the published classes in transformers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from modernbert.batch import Batch, SequenceLengths
from modernbert.engines.cpu.fused_encoder import FusedEncoder
from modernbert.engines.plain_modules import is_plain
from modernbert.errors import InputError
from modernbert.model.config import ModelConfig
from modernbert.model.encoder import Encoder
from modernbert.model.initialization import draw_normal
from modernbert.model.meta_device import on_meta

__all__ = [
    "TASKS",
    "Classifier",
    "MaskedLM",
    "Model",
    "PredictionHead",
    "Task",
    "encoder_of",
    "pool",
    "start_classifier",
]


class PredictionHead(nn.Module):
    """Dense, exact GELU, norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=False)

    def forward(self, rows: Float[Tensor, "M D"]) -> Float[Tensor, "M D"]:
        """Transform each row by itself."""
        return self.norm(F.gelu(self.dense(rows)))

    def wide(self, rows: Float[Tensor, "M D"]) -> Float[Tensor, "M D"]:
        """Do the same in float32, whatever the weights are held in."""
        rows = F.gelu(_linear_fp32(self.dense, rows))
        if not is_plain(self.norm):
            return self.norm(rows.to(self.norm.weight.dtype)).float()
        return F.layer_norm(rows, self.norm.normalized_shape, self.norm.weight.float(), eps=self.norm.eps)


class MaskedLM(nn.Module):
    """The encoder with the masked-language-model head; the decoder shares the token embedding and has its own bias."""

    def __init__(self, config: ModelConfig, backend: str = "banded") -> None:
        super().__init__()
        self.model = Encoder(config, backend)
        self.head = PredictionHead(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        self.decoder.weight = self.model.embeddings.tok_embeddings.weight

    @property
    def backend(self) -> str:
        """What attention runs on, and with it what else the package has loops or kernels of its own for."""
        return self.model.backend

    def forward(self, batch: Batch) -> Float[Tensor, "M V"]:
        """Return logits at `batch.label_positions`, in their order, or at every token where it is None."""
        return self.decoder(self.features(batch))

    def features(self, batch: Batch) -> Float[Tensor, "M D"]:
        """Return what the decoder sees: the rows `batch.label_positions`, through the head."""
        return self.head(self.model(batch.tokens, batch.layout, batch.label_positions))

    def decode(self, rows: Float[Tensor, "M D"]) -> Float[Tensor, "M V"]:
        """Return the logits of some rows of hidden states."""
        return self.decoder(self.head(rows))


@dataclass(frozen=True)
class Task:
    """Say what is scored, and how a published config tells so."""

    of_tokens: bool
    architecture: str
    problem_type: str | None = None


_DOCUMENTS, _TOKENS = "ModernBertForSequenceClassification", "ModernBertForTokenClassification"
TASKS = {
    "classify": Task(False, _DOCUMENTS, "single_label_classification"),
    "multilabel": Task(False, _DOCUMENTS, "multi_label_classification"),
    "regress": Task(False, _DOCUMENTS, "regression"),
    "rerank": Task(False, _DOCUMENTS),
    "choose": Task(False, "ModernBertForMultipleChoice"),
    "tag": Task(True, _TOKENS),
    "extract": Task(True, "ModernBertForQuestionAnswering"),
}


_PAIRED = ("rerank", "choose", "extract")


class Classifier(nn.Module):
    """The encoder, the prediction head, and a linear layer with a row for each label.

    Its parameters are named and shaped alike for every published task of the kind, so one class stands for all.
    Documents are pooled before the head, as the config's `classifier_pooling` says.
    """

    def __init__(self, config: ModelConfig, task: str, labels: Sequence[str], backend: str = "banded") -> None:
        super().__init__()
        self.task, self.labels = task, tuple(labels)
        # Whether it was trained on pairs of texts; other tasks may be, too.
        self.reads_pairs = task in _PAIRED
        self.model = Encoder(config, backend)
        self.head = PredictionHead(config)
        self.classifier = nn.Linear(config.hidden_size, len(self.labels))

    @property
    def is_ranker(self) -> bool:
        """Whether its head gives a pair of texts one score, by which pairs are ranked."""
        return self.task in ("rerank", "regress", "multilabel") and len(self.labels) == 1

    def forward(self, batch: Batch) -> Float[Tensor, "M labels"]:
        """Return scores of every document or every token; where `batch.label_positions` names some, of those alone."""
        if TASKS[self.task].of_tokens:
            return self.score(self.model(batch.tokens, batch.layout, batch.label_positions), batch.layout)
        return self.score(self.model(batch.tokens, batch.layout), batch.layout, batch.label_positions)

    def score(
        self, hidden: Float[Tensor, "T D"], layout: SequenceLengths, where: Int64[Tensor, " M"] | None = None
    ) -> Float[Tensor, "M labels"]:
        """Return the scores of hidden states of documents, as `forward` does; those of whole documents in float32.

        Rounded to bfloat16, documents that are to be ranked by them would be equals. There are few of them.
        """
        if TASKS[self.task].of_tokens:
            rows = hidden if where is None else hidden.index_select(0, where)
            return self.classifier(self.head(rows))
        rows = pool(hidden.float(), layout, self.model.config.classifier_pooling)
        rows = rows if where is None else rows.index_select(0, where)
        with torch.autocast(rows.device.type, enabled=False):
            return _linear_fp32(self.classifier, self.head.wide(rows))


Model = MaskedLM | Classifier | Encoder | FusedEncoder


def encoder_of(model: Model) -> Encoder | FusedEncoder:
    """Return a model without its head."""
    return model if isinstance(model, (Encoder, FusedEncoder)) else model.model


def _linear_fp32(layer: nn.Linear, rows: Float[Tensor, "N D_in"]) -> Float[Tensor, "N D_out"]:
    """Return a layer's output in float32, whatever its weights are held in; hooks and adapters take part."""
    if not is_plain(layer):
        return layer(rows.to(next(layer.parameters()).dtype)).float()
    return F.linear(rows, layer.weight.float(), None if layer.bias is None else layer.bias.float())


def pool(hidden: Float[Tensor, "T D"], layout: SequenceLengths, pooling: str) -> Float[Tensor, "N D"]:
    """Return one vector a document: the `mean` of its tokens, or its first token `cls`."""
    if pooling == "cls":
        return hidden.index_select(0, layout.starts.long())
    lengths = (layout.cu_seqlens[1:] - layout.cu_seqlens[:-1]).long()
    return torch.segment_reduce(hidden, "mean", lengths=lengths, axis=0)


def start_classifier(model: MaskedLM | Encoder | Classifier, task: str, labels: Sequence[str], seed: int) -> Classifier:
    """Return a classifier with the encoder of a model, and its prediction head where it has one.

    The scores start from a seed, unless the model has scores of the same labels for the same task. The model that is
    given shares its weights with what is returned.

    Raises: InputError for an unknown task, or labels that do not fit it.
    """
    if task not in TASKS:
        raise InputError(f"task: found {task!r}, expected {', '.join(TASKS)}")
    if len(set(labels)) < len(labels) or not labels:
        raise InputError(f"labels: found {list(labels)}, expected different ones")
    encoder = model if isinstance(model, Encoder) else model.model
    config = encoder.config
    with on_meta():
        started = Classifier(config, task, labels)
    started.model = encoder
    generator = torch.Generator().manual_seed(seed)
    device = encoder.embeddings.tok_embeddings.weight.device
    if isinstance(model, Encoder):
        started.head.to_empty(device=device)
        nn.init.ones_(started.head.norm.weight)
        _fill(started.head.dense, config.initializer_range, config, generator)
    else:
        started.head = model.head
    if isinstance(model, Classifier) and (model.task, model.labels) == (started.task, started.labels):
        started.classifier = model.classifier
    else:
        started.classifier.to_empty(device=device)
        # As wide as keeps the scores' size whatever the width. Source: the published classes in transformers.
        _fill(started.classifier, config.hidden_size**-0.5, config, generator)
    return started


@torch.no_grad()
def _fill(linear: nn.Linear, std: float, config: ModelConfig, generator: torch.Generator) -> None:
    linear.weight.copy_(draw_normal(linear.weight.shape, std, config.initializer_cutoff_factor * std, generator))
    if linear.bias is not None:
        linear.bias.zero_()
