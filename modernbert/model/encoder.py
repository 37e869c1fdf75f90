"""The encoder of ModernBERT: RoPE, attention, MLP, block, encoder, from top to bottom.

Batches are ragged: documents end to end, without padding. An `Engine` computes attention, GEMMs, norms and GeGLU.
Parameters are named as in the published checkpoints. Source: paper, section 2.1 and appendix A.
"""

import functools
from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from modernbert.batch import Batch, SequenceLengths
from modernbert.engines.engine import AttentionFn, Engine, Rope
from modernbert.engines.inference_plan import PlanCache
from modernbert.engines.registry import PORTABLE, keep_or_choose
from modernbert.model.config import ModelConfig
from modernbert.model.interface import Model

__all__ = ["Encoder", "rope_angles"]


def rope_angles(positions: Tensor, head_width: int, theta: float) -> Rope:
    """Return cosines and sines [T, 1, K/2] in float32: half the width rotates against the other half (NeoX layout).

    Source: Su et al. 2021 (RoPE).
    """
    angles = positions.float()[:, None] * _frequencies(head_width, theta, positions.device)[None, :]
    return angles.cos()[:, None, :], angles.sin()[:, None, :]


@functools.cache
@torch.inference_mode(False)
def _frequencies(head_width: int, theta: float, device: torch.device) -> Tensor:
    # Computed on the CPU: a power may differ in the last bit on another device. Cached: CUDA graphs read its address.
    powers = torch.arange(0, head_width, 2, dtype=torch.int64, device="cpu").float() / head_width
    return (1.0 / theta**powers).to(device)


class Embeddings(nn.Module):
    """Token embeddings and their norm; positions enter with RoPE."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=False)

    def forward(self, tokens: Int64[Tensor, " T"]) -> Float[Tensor, "T D"]:
        """Return the normalized embeddings."""
        return self.norm(self.tok_embeddings(tokens))


class Attention(nn.Module):
    """Multi-head attention within documents."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads_shape = (3, config.num_attention_heads, config.head_width)
        self.Wqkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.Wo = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.out_drop = nn.Dropout(config.attention_output_dropout)

    @property
    def dropout(self) -> float:
        """The dropout of the output in the present mode."""
        return self.out_drop.p if self.training else 0.0


class Mlp(nn.Module):
    """GeGLU: the first half of `Wi` passes through the exact GELU and gates the second half."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.Wi = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.Wo = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Float[Tensor, "T D"], engine: Engine) -> Float[Tensor, "T D"]:
        """Transform each token."""
        return engine.linear(self.Wo, engine.geglu(engine.linear(self.Wi, x)))


class Layer(nn.Module):
    """A pre-norm block; the first one has no attention norm, since the embeddings are normalized.

    The output of the MLP is returned beside the residual stream: the next norm adds it in the same pass over memory.
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
        self, residual: Float[Tensor, "T D"], x: Float[Tensor, "T D"] | None, attend: AttentionFn, engine: Engine,
        rows: Int64[Tensor, " M"] | None = None,
    ) -> tuple[Float[Tensor, "M D"], Float[Tensor, "M D"]]:  # fmt: skip
        """Return the residual stream after attention, and the output of the MLP, which is not yet added to it.

        Args:
            residual: The residual stream.
            x: The output of the last block's MLP; None in the first block.
            attend: Attention over queries, keys and values [T, 3, H, K].
            engine: Computes the rest.
            rows: Return these tokens alone; after attention, tokens do not depend on each other.
        """
        if x is None or isinstance(self.attn_norm, nn.Identity):
            normed = residual
        else:
            residual, normed = engine.residual_layer_norm(residual, x, self.attn_norm, 0.0)
        qkv = engine.linear(self.attn.Wqkv, normed).unflatten(-1, self.attn.heads_shape)
        attn_out = attend(qkv).flatten(1)
        if rows is not None:
            residual, attn_out = residual.index_select(0, rows), attn_out.index_select(0, rows)
        attn_out = engine.linear(self.attn.Wo, attn_out)
        residual, normed = engine.residual_layer_norm(residual, attn_out, self.mlp_norm, self.attn.dropout)
        return residual, self.mlp(normed, engine)


class Encoder(Model):
    """ModernBERT without a head.

    `engine` and `config` may be replaced between batches; a new config must have the same shape (context extension
    changes the RoPE theta of global layers).

    Args:
        config: The shape.
        engine: Computes attention, GEMMs, norms and GeGLU; by default the engine that runs everywhere.
    """

    def __init__(self, config: ModelConfig, engine: Engine = PORTABLE) -> None:
        super().__init__()
        self.config = config
        self.engine = engine
        self.recompute = False
        """Save only the input of each block for the backward pass, which then computes the block again."""
        self.plans: PlanCache | None = None
        """The inference plan; None computes layer by layer."""
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(Layer(config, number) for number in range(config.num_hidden_layers))
        self.final_norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=False)

    def forward(
        self, tokens: Int64[Tensor, " T"], layout: SequenceLengths, rows: Int64[Tensor, " M"] | None = None
    ) -> Float[Tensor, "M D"]:
        """Return the hidden states of some rows, or of every token, after the final norm.

        Under autocast they are float32, or of autocast's dtype with engines that have their own norm.
        """
        with torch.cuda.device_of(tokens):  # Triton launches kernels on the current device
            plan = None if self.plans is None else self.plans.find(self, tokens, layout)
            return self.run_layers(tokens, layout, rows) if plan is None else plan.run(self, tokens, layout, rows)

    def run_layers(
        self,
        tokens: Int64[Tensor, " T"],
        layout: SequenceLengths,
        rows: Int64[Tensor, " M"] | None = None,
        engine: Engine | None = None,
    ) -> Float[Tensor, "M D"]:
        """Compute `forward` layer by layer, without an inference plan.

        The last block computes only the rows: at 30 % of the tokens, that saves 2 % of a base model.
        """
        engine = engine or self.engine
        residual: Tensor = self.embeddings(tokens)
        x: Tensor | None = None
        attend = self._plan_attention(layout, engine, _compute_dtype(residual))
        for number, layer in enumerate(self.layers):
            arguments = attend[self.config.is_global(number)], engine, rows if number == len(self.layers) - 1 else None
            if self.recompute and torch.is_grad_enabled():
                residual, x = checkpoint(layer, residual, x, *arguments, use_reentrant=False)
            else:
                residual, x = layer(residual, x, *arguments)
        assert x is not None, "a model has layers"
        return engine.residual_layer_norm(residual, x, self.final_norm, 0.0)[1]

    @property
    def encoder(self) -> "Encoder":
        """The encoder itself: it has no head."""
        return self

    def encode(self, batch: Batch, rows: Int64[Tensor, " M"] | None = None) -> Float[Tensor, "M D"]:
        """Return the hidden states of every token of a batch, or of the tokens `rows`."""
        return self(batch.tokens, batch.layout, rows)

    def rope(self, layout: SequenceLengths, is_global: bool) -> Rope:
        """Return the cosines and sines of global or of local layers."""
        theta = self.config.global_rope_theta if is_global else self.config.local_rope_theta
        return rope_angles(layout.positions, self.config.head_width, theta)

    def set_dropout(self, share: float) -> None:
        """Set the dropout of attention's output."""
        self.config = replace(self.config, attention_output_dropout=share)
        for module in self.modules():
            if isinstance(module, nn.Dropout):
                module.p = share

    def train(self, mode: bool = True) -> "Encoder":
        """Set training mode, which frees the inference plan, or evaluation mode."""
        if self.plans is not None and mode:
            self.plans.drop()
        elif self.plans is not None and self.plans.is_evaluating(self):
            return self  # visiting every module takes longer than a plan's check, in each call of `ModernBert`
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Encoder":
        super()._apply(fn, recurse)
        if self.plans is not None:
            self.plans.drop()
            weight = self.final_norm.weight
            self.engine = keep_or_choose(self.plans.engine, weight.device, weight.dtype, self.config)
        return self

    def _plan_attention(self, layout: SequenceLengths, engine: Engine, dtype: torch.dtype) -> dict[bool, AttentionFn]:
        """Return attention of global (True) and of local (False) layers, as far as there are such layers."""
        kinds = {self.config.is_global(number) for number in range(self.config.num_hidden_layers)}
        return {
            kind: engine.plan_attention(layout, None if kind else self.config.window, self.rope(layout, kind), dtype)
            for kind in kinds
        }


def _compute_dtype(hidden: Tensor) -> torch.dtype:
    """Return the dtype of queries and keys: autocast's where it is on, else that of the weights."""
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
