"""Models of `transformers` with the interface of `Model`: batches are padded inside, and outputs unpadded."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from modernbert.batch import Batch, SequenceLengths
from modernbert.model.interface import HeadSpec, Model

__all__ = ["ForeignClassifier", "ForeignEncoder", "ForeignModel"]

# Rows are padded to a multiple of this, since libraries prepare a GEMM for each new shape.
_STEP = 8
# Tokens of a padded batch, padding included.
_GRID_TOKENS = 8_192


@dataclass(frozen=True)
class _Grid:
    """Ids or hidden states of documents of similar length, padded; `numbers` are their positions in the batch."""

    numbers: Sequence[int]
    values: Tensor
    mask: Int64[Tensor, "N S"]
    real: Bool[Tensor, "N S"]


class ForeignModel(Model):
    """A model of transformers that computes padded batches inside, with the interface of `Model`."""

    def __init__(self, inner: nn.Module, pad_id: int, sep_id: int, max_length: int) -> None:
        super().__init__()
        self.inner, self.pad_id, self.sep_id = inner, pad_id, sep_id
        self.family = str(self._facts.model_type)
        self.base_model_prefix = str(inner.base_model_prefix)
        self._max_length = max_length

    @property
    def _facts(self) -> Any:
        """The config of transformers."""
        return self.inner.config

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states, D."""
        return int(self._facts.hidden_size)

    @property
    def num_layers(self) -> int:
        """Number of layers."""
        return int(self._facts.num_hidden_layers)

    @property
    def vocab_size(self) -> int:
        """Number of token ids that the model has embeddings for, V."""
        return int(self._facts.vocab_size)

    @property
    def max_length(self) -> int:
        """The most tokens of a document."""
        return self._max_length


class ForeignEncoder(ForeignModel):
    """An encoder without a head."""

    def encode(self, batch: Batch, rows: Int64[Tensor, " M"] | None = None) -> Float[Tensor, "M D"]:
        """Return the hidden states of every token of a batch, or of the tokens `rows`."""
        return self(batch.tokens, batch.layout, rows)

    def forward(
        self, tokens: Int64[Tensor, " T"], layout: SequenceLengths, where: Int64[Tensor, " M"] | None = None
    ) -> Float[Tensor, "M D"]:
        """Return the hidden states of every token, or of the tokens `where`."""
        grids = _grids(tokens, layout, self.pad_id, self.max_length)
        rows = [self.inner(**_inputs(self.inner, grid, self.sep_id)).last_hidden_state[grid.real] for grid in grids]
        hidden = _in_order(rows, grids, layout.lengths)
        return hidden if where is None else hidden.index_select(0, where)


class ForeignClassifier(ForeignModel):
    """An encoder with the head that its family scores documents or tokens with."""

    task: str

    def __init__(
        self, inner: nn.Module, spec: HeadSpec, labels: Sequence[str], pad_id: int, sep_id: int, max_length: int
    ) -> None:
        super().__init__(inner, pad_id, sep_id, max_length)
        self.set_head(spec, labels)

    @property
    def encoder(self) -> ForeignEncoder:
        """The encoder without its pooler, which is a part of the head; the weights are shared."""
        body = _with_child(getattr(self.inner, self.base_model_prefix), "pooler", None)
        return ForeignEncoder(body, self.pad_id, self.sep_id, self.max_length)

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the encoder's weights."""
        return self.encoder.dtype

    def encode(self, batch: Batch, rows: Int64[Tensor, " M"] | None = None) -> Float[Tensor, "M D"]:
        """Return the hidden states of every token of a batch, or of the tokens `rows`."""
        return self.encoder.encode(batch, rows)

    def logits(self, batch: Batch) -> Float[Tensor, "M labels"]:
        """Return `forward`."""
        return self(batch)

    def forward(self, batch: Batch) -> Float[Tensor, "M labels"]:
        """Return the scores of every document or every token, or of those in `batch.label_positions`."""
        return self.head_logits(self.encode(batch), batch.layout, batch.label_positions)

    def head_logits(
        self,
        hidden: Float[Tensor, "T D"],
        layout: SequenceLengths | None = None,
        rows: Int64[Tensor, " M"] | None = None,
    ) -> Float[Tensor, "M labels"]:
        """Return the scores of hidden states, computed in the precision of the head."""
        named, of_body = self.inner.named_parameters(), f"{self.base_model_prefix}."
        hidden = hidden.to(next(each.dtype for name, each in named if not name.startswith(of_body)))
        with torch.autocast(hidden.device.type, enabled=False):
            if self.scores_tokens:
                hidden = hidden if rows is None else hidden.index_select(0, rows)
                return self._head(hidden[None], torch.ones_like(hidden[None, :, 0], dtype=torch.int64))[0]
            assert layout is not None, "a head that scores documents needs their lengths"
            grids = _grids(hidden, layout, 0, self.max_length)
            scores = [self._head(grid.values, grid.mask) for grid in grids]
        found = _in_order(scores, grids, [1] * layout.num_docs)
        return found if rows is None else found.index_select(0, rows)

    def _head(self, hidden: Float[Tensor, "N S D"], mask: Tensor) -> Tensor:
        """Run the model of transformers with a module that returns the hidden states in place of its encoder."""
        given = _GivenStates(getattr(self.inner, self.base_model_prefix), hidden)
        head = _with_child(self.inner, self.base_model_prefix, given)
        return head(input_ids=torch.zeros_like(mask), attention_mask=mask).logits


class _GivenStates(nn.Module):
    """Returns hidden states in the form that an encoder of transformers returns them, with its pooler's output."""

    def __init__(self, body: nn.Module, hidden: Float[Tensor, "N S D"]) -> None:
        super().__init__()
        # In a list, so that the encoder does not become a part of this module.
        self._body, self._hidden = [body], hidden

    def forward(self, *_: Any, **__: Any) -> Any:
        """Return the hidden states, whatever the inputs."""
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        body, hidden = self._body[0], self._hidden
        pooler: Any = getattr(body, "pooler", None)
        if isinstance(pooler, nn.Linear):  # ALBERT has a layer and an activation
            pooled = body.pooler_activation(pooler(hidden[:, 0]))  # type: ignore[operator]
        else:
            pooled = None if pooler is None else pooler(hidden)
        return BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=pooled)


def _grids(rows: Tensor, layout: SequenceLengths, fill: int, max_length: int) -> list[_Grid]:
    """Pad the ids or hidden states of documents of similar length together, the longest first."""
    order = sorted(range(layout.num_docs), key=lambda number: -layout.lengths[number])
    documents = rows.split(list(layout.lengths))
    grids = []
    while order:
        size = layout.lengths[order[0]]
        size = max(size, min(-(-size // _STEP) * _STEP, max_length))
        most = max(1, _GRID_TOKENS // size)
        numbers, order = order[:most], order[most:]
        lengths = torch.tensor([layout.lengths[number] for number in numbers], device=rows.device)
        real = torch.arange(size, device=rows.device) < lengths[:, None]
        values = rows.new_full((*real.shape, *rows.shape[1:]), fill)
        values[real] = torch.cat([documents[number] for number in numbers])
        grids.append(_Grid(numbers, values, real.long(), real))
    return grids


def _in_order(rows: Sequence[Tensor], grids: Sequence[_Grid], sizes: Sequence[int]) -> Tensor:
    """Return the rows of all grids in the order of the documents; a document has `sizes` rows."""
    numbers = [number for grid in grids for number in grid.numbers]
    parts = torch.cat(list(rows)).split([sizes[number] for number in numbers])
    return torch.cat([part for _, part in sorted(zip(numbers, parts, strict=True), key=lambda pair: pair[0])])


def _inputs(inner: nn.Module, grid: _Grid, sep_id: int) -> dict[str, Tensor]:
    """Return the inputs of a model of transformers; the second text of a pair has token type 1, if there are types."""
    inputs = {"input_ids": grid.values, "attention_mask": grid.mask}
    if int(getattr(inner.config, "type_vocab_size", 0) or 0) > 1:
        ends = (grid.values == sep_id).long()
        # Tokens behind the first separator belong to the second text.
        inputs["token_type_ids"] = ((ends.cumsum(1) - ends) > 0).long() * grid.mask
    return inputs


def _with_child(module: nn.Module, name: str, child: nn.Module | None) -> nn.Module:
    """Return a shallow copy of a module with another child; a module without such a child is returned as it is."""
    if name not in module._modules:
        return module
    copied = copy.copy(module)
    copied._modules = module._modules | {name: child}
    return copied
