"""GTE-en-MLM without padding, on the attention of this package: the strongest long-context model beside ModernBERT.

The published code unpads with a library that runs on few machines. A test compares with `transformers`.

Source: Zhang et al. 2024 (mGTE), the config of Alibaba-NLP/gte-en-mlm-base and -large.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from modernbert.batch import SequenceLengths
from modernbert.engines.engine import AttentionFn, Engine
from modernbert.model.encoder import rope_angles

__all__ = ["Gte", "GteShape"]


@dataclass(frozen=True)
class GteShape:
    """Sizes of a GTE; heads have 64 dimensions."""

    num_layers: int = 12
    width: int = 768
    feed_forward: int = 3072
    vocab_size: int = 30_528
    theta: float = 160_000.0
    eps: float = 1e-12

    @property
    def num_heads(self) -> int:
        """Number of heads."""
        return self.width // 64


class GteLayer(nn.Module):
    """Attention and a gated MLP, each followed by its norm."""

    def __init__(self, shape: GteShape) -> None:
        super().__init__()
        self.heads_shape = (3, shape.num_heads, 64)
        self.qkv_proj = nn.Linear(shape.width, 3 * shape.width)
        self.o_proj = nn.Linear(shape.width, shape.width)
        self.attn_ln = nn.LayerNorm(shape.width, eps=shape.eps)
        self.up_gate_proj = nn.Linear(shape.width, 2 * shape.feed_forward, bias=False)
        self.down_proj = nn.Linear(shape.feed_forward, shape.width)
        self.mlp_ln = nn.LayerNorm(shape.width, eps=shape.eps)

    def forward(self, hidden: Float[Tensor, "T D"], attend: AttentionFn) -> Float[Tensor, "T D"]:
        """Return the output of the layer."""
        attn_out = attend(self.qkv_proj(hidden).unflatten(-1, self.heads_shape)).flatten(1)
        hidden = self.attn_ln(hidden + self.o_proj(attn_out))
        up, gate = self.up_gate_proj(hidden).chunk(2, dim=-1)
        return self.mlp_ln(hidden + self.down_proj(up * F.gelu(gate)))


class Gte(nn.Module):
    """The encoder, embeddings to hidden states."""

    def __init__(self, shape: GteShape, engine: Engine) -> None:
        super().__init__()
        self.shape, self.engine = shape, engine
        self.word_embeddings = nn.Embedding(shape.vocab_size, shape.width)
        self.norm = nn.LayerNorm(shape.width, eps=shape.eps)
        self.layers = nn.ModuleList(GteLayer(shape) for _ in range(shape.num_layers))

    def forward(self, tokens: Int64[Tensor, " T"], layout: SequenceLengths) -> Float[Tensor, "T D"]:
        """Return the hidden state of every token."""
        hidden = self.norm(self.word_embeddings(tokens))
        angles = rope_angles(layout.positions, 64, self.shape.theta)
        attend = self.engine.plan_attention(layout, None, angles, hidden.dtype)
        for layer in self.layers:
            hidden = layer(hidden, attend)
        return hidden

    @torch.no_grad()
    def load(self, weights: dict[str, Tensor]) -> None:
        """Copy the weights of the GteModel of `transformers`, whose projections are separate."""
        self.word_embeddings.weight.copy_(weights["embeddings.word_embeddings.weight"])
        self.norm.weight.copy_(weights["embeddings.LayerNorm.weight"])
        self.norm.bias.copy_(weights["embeddings.LayerNorm.bias"])
        for number, layer in enumerate(self.layers):
            there = f"layers.{number}."
            for mine, theirs in (("attn_ln", "post_attention_layernorm"), ("mlp_ln", "post_mlp_layernorm"),
                                 ("o_proj", "self_attn.o_proj"), ("down_proj", "mlp.down_proj")):  # fmt: skip
                for part in ("weight", "bias"):
                    layer.get_parameter(f"{mine}.{part}").copy_(weights[f"{there}{theirs}.{part}"])
            for part in ("weight", "bias"):
                projections = [weights[f"{there}self_attn.{name}_proj.{part}"] for name in "qkv"]
                layer.get_parameter(f"qkv_proj.{part}").copy_(torch.cat(projections))
            halves = [weights[f"{there}mlp.{name}_proj.weight"] for name in ("up", "gate")]
            layer.get_parameter("up_gate_proj.weight").copy_(torch.cat(halves))
