"""The interface of engines: every computation of an encoder that depends on the hardware.

An engine computes attention, linear layers, LayerNorm, GeGLU, the masked-LM loss and the optimizer step. The base class
computes everything but attention with torch, so an engine only implements its faster operations.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor, nn

from modernbert.batch import SequenceLengths
from modernbert.engines.inference_plan import is_plain_norm
from modernbert.engines.linear_cross_entropy import ChunkKernels, chunked_linear_cross_entropy
from modernbert.model.config import ModelConfig

if TYPE_CHECKING:
    from modernbert.engines.inference_plan import InferencePlan
    from modernbert.model.encoder import Encoder

__all__ = [
    "AttentionFn",
    "AttentionKernel",
    "Engine",
    "OptimizerKernels",
    "Rope",
    "RopeAttention",
    "RowKernels",
    "Window",
]

AttentionFn = Callable[[Tensor], Tensor]
"""Attention of one layer: queries, keys and values [T, 3, H, K] before RoPE -> outputs [T, H, K]."""
AttentionKernel = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Attention without RoPE: queries, keys and values [T, H, K] each -> outputs [T, H, K]."""
Rope = tuple[Tensor, Tensor]
"""Cosines and sines of each token's position, float32 [T, 1, K/2]."""
Window = tuple[int, int] | None
"""How many tokens to the left and to the right a token attends to; None is the whole document."""


@runtime_checkable
class OptimizerKernels(Protocol):
    """The two passes of an Adam step over lists of contiguous float32 tensors, updated in place."""

    def update_moments_(
        self,
        gradients: Sequence[Tensor],
        exp_avgs: Sequence[Tensor],
        exp_avg_sqs: Sequence[Tensor],
        betas: tuple[float, float],
        eps: float,
    ) -> Float[Tensor, " tensors"]:
        """Update the moments, and return each tensor's sum of g^2 / max(v, eps^2)."""

    def apply_moments_(
        self,
        weights: Sequence[Tensor],
        exp_avgs: Sequence[Tensor],
        exp_avg_sqs: Sequence[Tensor],
        rates: Float[Tensor, " tensors"],
        decays: Float[Tensor, " tensors"],
        eps: float,
    ) -> None:
        """Scale each weight by its tensor's decay, and subtract its rate times m / (sqrt(v) + eps)."""


@runtime_checkable
class RowKernels(Protocol):
    """Fused, differentiable kernels over rows."""

    def residual_layer_norm(
        self, residual: Tensor, x: Tensor, weight: Tensor, eps: float, dropout: float, /
    ) -> tuple[Tensor, Tensor]:
        """Return `residual + dropout(x)` and its LayerNorm, in one pass."""

    def geglu(self, x: Float[Tensor, "T F2"], /) -> Float[Tensor, "T F"]:
        """Return the exact GELU of the first half of each row times the second half."""


class Engine:
    """Compute an encoder on one kind of hardware. There is one object of each engine, which encoders share.

    See CONTRIBUTING.md, "Add an engine".
    """

    name: ClassVar[str]
    device_type: ClassVar[str | None] = None
    """`cuda` or `cpu`; None runs everywhere."""
    preference: ClassVar[int] = 0
    """`auto` chooses the available engine with the highest preference; 0: only by name."""

    def unavailable_reason(self, device: torch.device, dtype: torch.dtype, config: ModelConfig) -> str | None:
        """Return why the engine cannot run a model there, to be read after its name; None if it can."""
        return None

    def plan_attention(self, lengths: SequenceLengths, window: Window, rope: Rope, dtype: torch.dtype) -> AttentionFn:
        """Return attention for all layers of one kind: masks and groups are computed once per batch.

        A token attends within its document. The function may overwrite its input.

        Args:
            lengths: The documents of the batch.
            window: How far a token sees.
            rope: Cosines and sines for queries and keys.
            dtype: The dtype of queries, keys and values.
        """
        raise NotImplementedError

    def linear(self, layer: nn.Module, x: Tensor) -> Tensor:
        """Apply a linear layer, or the module in its place."""
        result: Tensor = layer(x)
        return result

    def residual_layer_norm(
        self, residual: Tensor, x: Tensor, norm: nn.LayerNorm, dropout: float
    ) -> tuple[Tensor, Tensor]:
        """Return `residual + dropout(x)` and its LayerNorm."""
        kernels = self.row_kernels()
        if kernels is not None and is_plain_norm(norm):
            return kernels.residual_layer_norm(residual, x, norm.weight, norm.eps, dropout)
        residual = residual + (F.dropout(x, dropout) if dropout else x)
        return residual, norm(residual)

    def geglu(self, x: Float[Tensor, "T F2"]) -> Float[Tensor, "T F"]:
        """Return the exact GELU of the first half of each row times the second half."""
        if (kernels := self.row_kernels()) is not None:
            return kernels.geglu(x)
        activated, gate = x.chunk(2, dim=-1)
        return F.gelu(activated) * gate

    def linear_cross_entropy(
        self,
        x: Float[Tensor, "M D"],
        weight: Float[Tensor, "V D"],
        bias: Float[Tensor, " V"],
        labels: Integer[Tensor, " M"],
    ) -> tuple[Float[Tensor, ""], int]:
        """Return the summed cross entropy of `x @ weight.T + bias` and the number of rows.

        The logits [M, V] are never whole in memory.
        """
        kernels = self.chunk_kernels(weight)
        return chunked_linear_cross_entropy(x, weight, bias, labels, kernels), len(labels)

    def row_kernels(self) -> RowKernels | None:
        """Return kernels for the operations between GEMMs, or None to compute them with torch."""
        return None

    def chunk_kernels(self, weight: Float[Tensor, "V D"]) -> type[ChunkKernels]:
        """Return the kernels of `linear_cross_entropy`, which computes a chunk of rows at a time."""
        return ChunkKernels

    def optimizer_kernels(self, device: torch.device) -> OptimizerKernels | None:
        """Return kernels for the optimizer step on a device, or None to compute it with torch."""
        return None

    def compile_blocks(self, encoder: "Encoder", dtype: torch.dtype) -> str | None:
        """Compile the encoder's blocks for training; return the reason if they stay as they are."""
        return f"the kernels of engine {self.name} are compiled already"

    def inference_plan(self, encoder: "Encoder", dtype: torch.dtype) -> "InferencePlan | None":
        """Return a faster way to compute a plain encoder without gradients, or None if there is none."""
        return None

    def attention(
        self,
        q: Float[Tensor, "T H K"],
        k: Float[Tensor, "T H K"],
        v: Float[Tensor, "T H K"],
        lengths: SequenceLengths,
        window: Window,
    ) -> Float[Tensor, "T H K"]:
        """Attend within documents without RoPE, for one call."""
        angles = torch.zeros(len(q), 1, q.shape[-1] // 2, device=q.device)
        return self.plan_attention(lengths, window, (angles.cos(), angles), q.dtype)(torch.stack((q, k, v), dim=1))

    def __repr__(self) -> str:
        return f"<engine {self.name}>"

    def __deepcopy__(self, memo: dict[int, Any]) -> "Engine":
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _find_engine, (self.name,)


@dataclass(frozen=True)
class RopeAttention:
    """Attention of one kind of layer: RoPE with torch, then a kernel."""

    rope: Rope
    kernel: AttentionKernel

    def __call__(self, qkv: Float[Tensor, "T 3 H K"]) -> Float[Tensor, "T H K"]:
        """Rotate queries and keys, and attend."""
        return self.kernel(*self.rotate(qkv))

    def rotate(self, qkv: Float[Tensor, "T 3 H K"]) -> tuple[Tensor, Tensor, Tensor]:
        """Return rotated queries, rotated keys, and values, [T, H, K] each; RoPE is computed in float32 or wider.

        Source: Su et al. 2021 (RoPE); the halves of a head rotate against each other (NeoX layout).
        """
        q, k, v = qkv.unbind(1)
        return _rotate(q, self.rope), _rotate(k, self.rope), v


def _rotate(x: Float[Tensor, "T H K"], rope: Rope) -> Float[Tensor, "T H K"]:
    cosines, sines = rope
    wide = x if x.dtype == torch.float64 else x.float()
    first, second = wide.chunk(2, dim=-1)
    rotated = torch.cat((first * cosines - second * sines, second * cosines + first * sines), dim=-1)
    return rotated.to(x.dtype)


def _find_engine(name: str) -> Engine:
    from modernbert.engines.registry import find_engine

    return find_engine(name)
