"""The encoder: tokens of a ragged batch -> hidden states.

In: tokens [T] and their layout. Out: hidden states [T, D]. Module names are those of the published checkpoints, so that
reading and writing them is near the identity. Source: paper, section 2.1 and appendix A.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from modernbert.batch import Batch, SequenceLengths
from modernbert.engines.attention import Attend, prepare
from modernbert.engines.cpu.prepacked_linear import PrepackedLinear
from modernbert.engines.cuda.cuda_graphs import CudaGraphs
from modernbert.engines.inference_only import refuse_conversion
from modernbert.engines.operations import Operations, operations_of
from modernbert.model.config import ModelConfig
from modernbert.model.interface import Model
from modernbert.model.rope import rotate_heads, rotation

__all__ = ["Encoder"]


class Embeddings(nn.Module):
    """Look tokens up and normalise them; positions come in with the attention."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=False)

    def forward(self, tokens: Int64[Tensor, " T"]) -> Float[Tensor, "T D"]:
        """Return the normalised embeddings."""
        return self.norm(self.tok_embeddings(tokens))


class Attention(nn.Module):
    """The projections around attention: to queries, keys and values, and the way back."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads_shape = (3, config.num_attention_heads, config.head_width)
        self.Wqkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.Wo = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.out_drop = nn.Dropout(config.attention_output_dropout)

    def project(self, normed: Float[Tensor, "T D"], ops: Operations) -> Float[Tensor, "T 3 H K"]:
        """Return queries, keys and values."""
        return ops.linear(self.Wqkv, normed).unflatten(-1, self.heads_shape)

    def merge(self, mixed: Float[Tensor, "T H K"], ops: Operations) -> Float[Tensor, "T D"]:
        """Return what attention adds to the stream, before a share of it is dropped."""
        return ops.linear(self.Wo, mixed.flatten(1))

    @property
    def dropout(self) -> float:
        """The share of it that is dropped now."""
        return self.out_drop.p if self.training else 0.0


class Mlp(nn.Module):
    """GeGLU: the first half of `Wi` passes through the exact GELU and gates the second half."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.Wi = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.Wo = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, normed: Float[Tensor, "T D"], ops: Operations) -> Float[Tensor, "T D"]:
        """Transform each token by itself."""
        return ops.linear(self.Wo, ops.geglu(ops.linear(self.Wi, normed)))


class Layer(nn.Module):
    """A pre-norm block; the first one has no attention norm, since the embeddings are normalised already.

    What a block adds to the residual stream is handed on beside it and added by the next norm, in the same pass.
    """

    def __init__(self, config: ModelConfig, number: int) -> None:
        super().__init__()

        def norm() -> nn.LayerNorm:
            return nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=False)

        self.attn_norm = nn.Identity() if number == 0 else norm()
        self.attn = Attention(config)
        self.mlp_norm = norm()
        self.mlp = Mlp(config)

    def forward(
        self, hidden: Float[Tensor, "T D"], delta: Float[Tensor, "T D"] | None, attend: Attend, ops: Operations,
        where: Int64[Tensor, " M"] | None = None,
    ) -> tuple[Float[Tensor, "M D"], Float[Tensor, "M D"]]:  # fmt: skip
        """Take the stream and what is still to be added to it; return the same for the next layer, M = T.

        With `where`, return these rows alone: from its attention on each token goes its own way.
        """
        # Attention stands between two functions, for those can be compiled: it is another closure for each layout.
        hidden, qkv = self.before(hidden, delta, ops)
        mixed = attend(qkv)
        if where is not None:
            hidden, mixed = hidden.index_select(0, where), mixed.index_select(0, where)
        return self.after(hidden, mixed, ops)

    def before(self, hidden: Tensor, delta: Tensor | None, ops: Operations) -> tuple[Tensor, Tensor]:
        """Return the stream, and what goes into attention."""
        if delta is None or isinstance(self.attn_norm, nn.Identity):
            return hidden, self.attn.project(hidden, ops)
        hidden, normed = ops.add_norm(hidden, delta, self.attn_norm, 0.0)
        return hidden, self.attn.project(normed, ops)

    def after(self, hidden: Tensor, mixed: Tensor, ops: Operations) -> tuple[Tensor, Tensor]:
        """Add attention to the stream; return it, and what the feed-forward network adds."""
        hidden, normed = ops.add_norm(hidden, self.attn.merge(mixed, ops), self.mlp_norm, self.attn.dropout)
        return hidden, self.mlp(normed, ops)


class Encoder(Model):
    """ModernBERT without a head.

    `config` may be replaced by one of the same shape between batches: context extension changes the theta of global
    layers and nothing else. `backend` names an attention backend. With `recompute`, training keeps the input of each
    layer only and goes through the layer a second time on the way back: less memory for a third more work. `replays`
    may take over short batches.
    """

    def __init__(self, config: ModelConfig, backend: str = "banded") -> None:
        super().__init__()
        self.config = config
        self.backend = backend
        self.recompute = False
        self.rotate = rotate_heads
        self.replays: CudaGraphs | None = None
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(Layer(config, number) for number in range(config.num_hidden_layers))
        self.final_norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=False)

    def forward(
        self, tokens: Int64[Tensor, " T"], layout: SequenceLengths, where: Int64[Tensor, " M"] | None = None
    ) -> Float[Tensor, "M D"]:
        """Return the hidden states of the rows `where`, or of every token, after the final norm.

        Under autocast they come in float32, or in its type where the package's own loops or kernels compute them.
        """
        with torch.cuda.device_of(tokens):  # kernels of our own start where the current device is
            if self.replays is not None and self.replays.take(tokens, layout):
                hidden = self.replays(self.run_layers, tokens, layout)
                return hidden if where is None else hidden.index_select(0, where)
            return self.run_layers(tokens, layout, where)

    @property
    def encoder(self) -> "Encoder":
        """Return itself: it has no head."""
        return self

    def encode(self, batch: Batch, rows: Int64[Tensor, " M"] | None = None) -> Float[Tensor, "M D"]:
        """Return the hidden states of every token of a batch, or of the tokens `rows`."""
        return self(batch.tokens, batch.layout, rows)

    def run_layers(
        self, tokens: Int64[Tensor, " T"], layout: SequenceLengths, where: Int64[Tensor, " M"] | None = None
    ) -> Float[Tensor, "M D"]:
        """Do what `forward` does, whatever the size of the batch, layer by layer.

        What nobody asks for, the last layer does not compute: with 30 % of rows asked for, 2 % of a base model.
        """
        hidden: Tensor = self.embeddings(tokens)
        delta: Tensor | None = None
        ops = operations_of(self.backend)
        attention = self._attention(layout, _compute_dtype(hidden))
        asked = [None] * (len(attention) - 1) + [where]
        for layer, attend, rows in zip(self.layers, attention, asked, strict=True):
            if self.recompute and torch.is_grad_enabled():
                hidden, delta = checkpoint(layer, hidden, delta, attend, ops, rows, use_reentrant=False)
            else:
                hidden, delta = layer(hidden, delta, attend, ops, rows)
        assert delta is not None, "a model has layers"
        return ops.add_norm(hidden, delta, self.final_norm, 0.0)[1]

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        for module in self.modules():  # before the embeddings are converted
            if isinstance(module, PrepackedLinear):
                refuse_conversion(torch.empty(0, dtype=module.dtype), fn)
                break
        if self.replays is not None:  # weights are moved
            self.replays.forget()
        return super()._apply(fn, recurse)

    def set_dropout(self, share: float) -> None:
        """Drop this share of what attention adds to the stream, while training."""
        self.config = replace(self.config, attention_output_dropout=share)
        for module in self.modules():
            if isinstance(module, nn.Dropout):
                module.p = share

    def _attention(self, layout: SequenceLengths, dtype: torch.dtype) -> Sequence[Attend]:
        """Make once a batch, for the two kinds of layers, what all layers of one kind share."""
        config = self.config
        kinds = [config.is_global(number) for number in range(config.num_hidden_layers)]
        thetas = {True: config.global_rope_theta, False: config.local_rope_theta}
        windows = {True: None, False: config.window}
        rotations = {kind: rotation(layout.positions, config.head_width, thetas[kind]) for kind in set(kinds)}
        attends = {
            kind: prepare(self.backend, layout, windows[kind], rotations[kind], dtype, self.rotate)
            for kind in set(kinds)
        }
        return [attends[kind] for kind in kinds]


def _compute_dtype(hidden: Tensor) -> torch.dtype:
    """Return the dtype attention will see: autocast's where it is on, else the weights'."""
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
