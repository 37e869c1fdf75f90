"""The encoder: tokens of a ragged batch -> hidden states.

In: tokens [T] and their layout. Out: hidden states [T, D]. Module names are those of the published checkpoints, so that
reading and writing them is near the identity. Source: paper, section 2.1 and appendix A.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from modernbert.model.attention import BACKENDS, Attend
from modernbert.model.config import ModelConfig
from modernbert.ragged import Layout

__all__ = ["Encoder"]

Rotation = tuple[Tensor, Tensor]


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
    """The projections around attention: queries, keys and values with rotary positions; the way back."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads_shape = (3, config.num_attention_heads, config.head_width)
        self.Wqkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.Wo = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.out_drop = nn.Dropout(config.attention_output_dropout)

    def project(self, hidden: Float[Tensor, "T D"], rotation: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, [T, H, K] each."""
        q, k, v = self.Wqkv(hidden).unflatten(-1, self.heads_shape).unbind(1)
        return rotate(q, rotation), rotate(k, rotation), v

    def merge(self, mixed: Float[Tensor, "T H K"]) -> Float[Tensor, "T D"]:
        """Return what attention adds to the stream."""
        return self.out_drop(self.Wo(mixed.flatten(1)))


class Mlp(nn.Module):
    """GeGLU: the first half of `Wi` passes through the exact GELU and gates the second half."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.Wi = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.Wo = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, hidden: Float[Tensor, "T D"]) -> Float[Tensor, "T D"]:
        """Transform each token by itself."""
        activated, gate = self.Wi(hidden).chunk(2, dim=-1)
        return self.Wo(F.gelu(activated) * gate)


class Layer(nn.Module):
    """A pre-norm block; the first one has no attention norm, since the embeddings are normalised already."""

    def __init__(self, config: ModelConfig, number: int) -> None:
        super().__init__()

        def norm() -> nn.LayerNorm:
            return nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=False)

        self.attn_norm = nn.Identity() if number == 0 else norm()
        self.attn = Attention(config)
        self.mlp_norm = norm()
        self.mlp = Mlp(config)

    def forward(self, hidden: Float[Tensor, "T D"], rotation: Rotation, attend: Attend) -> Float[Tensor, "T D"]:
        """Add what attention and feed-forward find to the stream."""
        # Attention stands between two functions, for those can be compiled: it is another closure for each layout.
        mixed = attend(*self.before(hidden, rotation))
        return self.after(hidden, mixed)

    def before(self, hidden: Float[Tensor, "T D"], rotation: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """Return what goes into attention."""
        return self.attn.project(self.attn_norm(hidden), rotation)

    def after(self, hidden: Float[Tensor, "T D"], mixed: Float[Tensor, "T H K"]) -> Float[Tensor, "T D"]:
        """Add attention to the stream, then the feed-forward network."""
        hidden = hidden + self.attn.merge(mixed)
        return hidden + self.mlp(self.mlp_norm(hidden))


class Encoder(nn.Module):
    """ModernBERT without a head.

    `config` may be replaced by one of the same shape between batches: context extension changes the theta of global
    layers and nothing else. `backend` names an attention backend. With `recompute`, training keeps the input of each
    layer only and goes through the layer a second time on the way back: less memory for a third more work.
    """

    def __init__(self, config: ModelConfig, backend: str = "banded") -> None:
        super().__init__()
        self.config = config
        self.backend = backend
        self.recompute = False
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(Layer(config, number) for number in range(config.num_hidden_layers))
        self.final_norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=False)

    def forward(self, tokens: Int64[Tensor, " T"], layout: Layout) -> Float[Tensor, "T D"]:
        """Return the hidden state of every token, after the final norm."""
        hidden = self.embeddings(tokens)
        for layer, rotation, attend in zip(self.layers, *self._shared(layout, hidden), strict=True):
            if self.recompute and torch.is_grad_enabled():
                hidden = checkpoint(layer, hidden, rotation, attend, use_reentrant=False)
            else:
                hidden = layer(hidden, rotation, attend)
        return self.final_norm(hidden)

    def _shared(self, layout: Layout, hidden: Tensor) -> tuple[Sequence[Rotation], Sequence[Attend]]:
        """Make once a batch, for the two kinds of layers, what all layers of one kind share."""
        config, backend = self.config, BACKENDS[self.backend]
        dtype = _compute_dtype(hidden)
        kinds = [config.is_global(number) for number in range(config.num_hidden_layers)]
        thetas = {True: config.global_rope_theta, False: config.local_rope_theta}
        windows = {True: None, False: config.window}
        rotations = {kind: rotation(layout.positions, config.head_width, thetas[kind]) for kind in set(kinds)}
        attends = {kind: backend(layout, windows[kind], dtype) for kind in set(kinds)}
        return [rotations[kind] for kind in kinds], [attends[kind] for kind in kinds]


def rotation(positions: Tensor, head_width: int, theta: float) -> Rotation:
    """Return cosines and sines [T, 1, K/2] in float32: half the width rotates against the other half (NeoX layout)."""
    # On the CPU first: a power in the device's own arithmetic may differ in the last bit.
    powers = torch.arange(0, head_width, 2, dtype=torch.int64).float() / head_width
    frequencies = (1.0 / theta**powers).to(positions.device)
    angles = positions.float()[:, None] * frequencies[None, :]
    return angles.cos()[:, None, :], angles.sin()[:, None, :]


def rotate(x: Float[Tensor, "T H K"], rotation: Rotation) -> Float[Tensor, "T H K"]:
    """Turn each pair of components by its position's angle, in float32 or wider."""
    cosines, sines = rotation
    wide = x if x.dtype == torch.float64 else x.float()
    first, second = wide.chunk(2, dim=-1)
    turned = torch.cat((first * cosines - second * sines, second * cosines + first * sines), dim=-1)
    return turned.to(x.dtype)


def _compute_dtype(hidden: Tensor) -> torch.dtype:
    """Return the dtype attention will see: autocast's where it is on, else the weights'."""
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
