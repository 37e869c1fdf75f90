"""Models with a head: the masked LM and fine-tuned classifiers. `model.interface.Model` documents their interface.

Rows with a label are gathered after the last attention, so the last MLP, the head and the decoder run on about 30 % of
the tokens in pretraining. Source: paper, section 2.1.1; the published classes in transformers.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from modernbert.batch import Batch, SequenceLengths
from modernbert.engines.engine import Engine
from modernbert.engines.inference_plan import is_plain
from modernbert.engines.registry import PORTABLE
from modernbert.errors import InputError
from modernbert.model.config import ModelConfig
from modernbert.model.encoder import Encoder
from modernbert.model.initialization import draw_normal
from modernbert.model.interface import FILL_MASK, HeadSpec, Model
from modernbert.model.meta_device import on_meta

__all__ = ["Classifier", "MaskedLM", "PredictionHead", "linear_fp32", "new_classifier", "pool"]


class PredictionHead(nn.Module):
    """Dense layer, exact GELU, LayerNorm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=False)

    def forward(self, rows: Float[Tensor, "M D"]) -> Float[Tensor, "M D"]:
        """Transform each row."""
        return self.norm(F.gelu(self.dense(rows)))

    def forward_fp32(self, rows: Float[Tensor, "M D"]) -> Float[Tensor, "M D"]:
        """Compute `forward` in float32, whatever the precision of the weights."""
        rows = F.gelu(linear_fp32(self.dense, rows))
        if not is_plain(self.norm):
            return self.norm(rows.to(self.norm.weight.dtype)).float()
        return F.layer_norm(rows, self.norm.normalized_shape, self.norm.weight.float(), eps=self.norm.eps)


class HeadModel(Model):
    """An encoder, `model`, with a head; `forward` returns the logits."""

    model: Encoder

    @property
    def encoder(self) -> Encoder:
        """The model without its head."""
        return self.model

    def encode(self, batch: Batch, rows: Int64[Tensor, " M"] | None = None) -> Float[Tensor, "M D"]:
        """Return the hidden states of every token of a batch, or of the tokens `rows`."""
        return self.model.encode(batch, rows)

    def logits(self, batch: Batch) -> Float[Tensor, "M labels"]:
        """Return `forward`."""
        return self(batch)


class MaskedLM(HeadModel):
    """The encoder with the masked-LM head; the decoder shares its weight with the token embedding and has a bias."""

    task = FILL_MASK
    scores_tokens = True

    def __init__(self, config: ModelConfig, engine: Engine = PORTABLE) -> None:
        super().__init__()
        self.model = Encoder(config, engine)
        self.head = PredictionHead(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        self.decoder.weight = self.model.embeddings.tok_embeddings.weight

    @property
    def output_layer(self) -> nn.Linear:
        """The decoder."""
        return self.decoder

    def head_logits(
        self,
        hidden: Float[Tensor, "T D"],
        layout: SequenceLengths | None = None,
        rows: Int64[Tensor, " M"] | None = None,
    ) -> Float[Tensor, "M V"]:
        """Return the logits of hidden states, or of those at `rows`."""
        return self.decode(hidden if rows is None else hidden.index_select(0, rows))

    def forward(self, batch: Batch) -> Float[Tensor, "M V"]:
        """Return the logits at `batch.label_positions`, in their order, or at every token if it is None."""
        return self.decoder(self.features(batch))

    def features(self, batch: Batch) -> Float[Tensor, "M D"]:
        """Return the input of the decoder: the head's output at `batch.label_positions`."""
        return self.head(self.encode(batch, batch.label_positions))

    def decode(self, rows: Float[Tensor, "M D"]) -> Float[Tensor, "M V"]:
        """Return the logits of rows of hidden states."""
        return self.decoder(self.head(rows))


class Classifier(HeadModel):
    """The encoder, the prediction head, and a linear layer with a row for each label.

    All published fine-tuned heads have these parameter names and shapes, so one class serves the tasks of this package.
    A task with another head names a subclass (`ClassifierTask.model_class`). Heads that score documents pool first.
    """

    task: str

    def __init__(self, config: ModelConfig, spec: HeadSpec, labels: Sequence[str], engine: Engine = PORTABLE) -> None:
        super().__init__()
        self.set_head(spec, labels)
        self.model = Encoder(config, engine)
        self.head = PredictionHead(config)
        self.classifier = nn.Linear(config.hidden_size, len(self.labels))

    @property
    def output_layer(self) -> nn.Linear:
        """The linear layer with a row for each label."""
        return self.classifier

    def forward(self, batch: Batch) -> Float[Tensor, "M labels"]:
        """Return the scores of every document or every token, or of those in `batch.label_positions`."""
        if self.scores_tokens:
            return self.head_logits(self.encode(batch, batch.label_positions))
        return self.head_logits(self.encode(batch), batch.layout, batch.label_positions)

    def pool(self, hidden: Float[Tensor, "T D"], layout: SequenceLengths) -> Float[Tensor, "N D"]:
        """Return one vector per document, by `classifier_pooling` of the config."""
        return pool(hidden, layout, self.model.config.classifier_pooling)

    def head_logits(
        self,
        hidden: Float[Tensor, "T D"],
        layout: SequenceLengths | None = None,
        rows: Int64[Tensor, " M"] | None = None,
    ) -> Float[Tensor, "M labels"]:
        """Return the scores of hidden states, of documents in float32: in bfloat16, ranked documents would tie."""
        if not self.scores_tokens:
            assert layout is not None, "a head that scores documents needs their lengths"
            hidden = self.pool(hidden.float(), layout)
        hidden = hidden if rows is None else hidden.index_select(0, rows)
        if self.scores_tokens:
            return self.classifier(self.head(hidden))
        with torch.autocast(hidden.device.type, enabled=False):
            return linear_fp32(self.classifier, self.head.forward_fp32(hidden))


def linear_fp32(layer: nn.Linear, rows: Float[Tensor, "N D_in"]) -> Float[Tensor, "N D_out"]:
    """Return the output of a layer in float32, whatever the precision of its weights; hooks and adapters are called."""
    if not is_plain(layer):
        return layer(rows.to(next(layer.parameters()).dtype)).float()
    return F.linear(rows, layer.weight.float(), None if layer.bias is None else layer.bias.float())


def pool(hidden: Float[Tensor, "T D"], layout: SequenceLengths, pooling: str) -> Float[Tensor, "N D"]:
    """Return one vector per document: the `mean` of its tokens, or its first token (`cls`)."""
    if pooling == "cls":
        return hidden.index_select(0, layout.starts.long())
    lengths = (layout.cu_seqlens[1:] - layout.cu_seqlens[:-1]).long()
    return torch.segment_reduce(hidden, "mean", lengths=lengths, axis=0)


def new_classifier(
    model: Model, spec: HeadSpec, labels: Sequence[str], seed: int, kind: type[Classifier] = Classifier
) -> Classifier:
    """Return a classifier with the encoder of a model, and its prediction head if it has one.

    The classifier shares the model's weights. Its other layers are drawn from the seed, unless the model was trained
    for the same task and labels.

    Raises: InputError for labels that are not different.
    """
    if len(set(labels)) < len(labels) or not labels:
        raise InputError(f"labels: found {list(labels)}, expected different ones")
    encoder = model.encoder
    config = encoder.config
    with on_meta():
        classifier = kind(config, spec, labels)
    classifier.add_module("model", encoder)
    generator = torch.Generator().manual_seed(seed)
    device = encoder.device
    if model.task is None:
        classifier.head.to_empty(device=device)
        nn.init.ones_(classifier.head.norm.weight)
        _fill(classifier.head.dense, config.initializer_range, config, generator)
    else:
        classifier.add_module("head", model.get_submodule("head"))
    is_same = (model.task, model.labels) == (classifier.task, classifier.labels)
    for name, layer in list(classifier.named_children()):
        if name in ("model", "head"):
            continue
        if is_same:
            classifier.add_module(name, model.get_submodule(name))
            continue
        layer.to_empty(device=device)
        for linear in (each for each in layer.modules() if isinstance(each, nn.Linear)):
            # The standard deviation keeps the size of the scores independent of the width. Source: transformers.
            _fill(linear, config.hidden_size**-0.5, config, generator)
    return classifier


@torch.no_grad()
def _fill(linear: nn.Linear, std: float, config: ModelConfig, generator: torch.Generator) -> None:
    linear.weight.copy_(draw_normal(linear.weight.shape, std, config.initializer_cutoff_factor * std, generator))
    if linear.bias is not None:
        linear.bias.zero_()
