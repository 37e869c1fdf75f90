"""The CUDA engine: attention, LayerNorm, GeGLU, cross entropy and the optimizer step as Triton kernels."""

import functools
import importlib.util
from typing import TYPE_CHECKING, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from modernbert.batch import SequenceLengths
from modernbert.engines.engine import AttentionFn, Engine, OptimizerKernels, Rope, RowKernels, Window
from modernbert.engines.flash_engine import flash_attention, flash_unavailable_reason
from modernbert.engines.inference_plan import InferencePlan
from modernbert.engines.linear_cross_entropy import ChunkKernels
from modernbert.model.config import ModelConfig

if TYPE_CHECKING:
    from modernbert.model.encoder import Encoder

__all__ = ["CudaEngine"]

# Mean document length from which FlashAttention is faster than our kernel in global layers.
_FLASH_LENGTH = 400


class CudaEngine(Engine):
    """Compute with Triton kernels in half precision; global layers of long documents use FlashAttention.

    The kernels are imported on first use: importing Triton takes time, and torch installs it for CUDA alone.
    """

    name = "cuda"
    device_type = "cuda"
    preference = 4

    def unavailable_reason(self, device: torch.device, dtype: torch.dtype, config: ModelConfig) -> str | None:
        """Return why the kernels do not run there: the device, the dtype, the heads, or no compiler."""
        if reason := flash_unavailable_reason(device, dtype):
            return reason
        if config.head_width & (config.head_width - 1) or not 16 <= config.head_width <= 128:
            return f"needs heads of width 16, 32, 64 or 128, found {config.head_width}"
        return _compiler_unavailable_reason(device)

    def plan_attention(self, lengths: SequenceLengths, window: Window, rope: Rope, dtype: torch.dtype) -> AttentionFn:
        """Return attention that rotates queries and keys in place."""
        from modernbert.engines.cuda import attention_kernels, rope_kernels

        cosines, sines = (part[:, 0] for part in rope)
        assert window is None or window[0] == window[1], "the backward kernel requires a symmetric window"
        if window is None and lengths.num_tokens >= _FLASH_LENGTH * lengths.num_docs:
            kernel = flash_attention(lengths, window)
            return lambda qkv: kernel(*rope_kernels.split_rotated_qkv(qkv, cosines, sines))
        ranges = attention_kernels.key_ranges(lengths, window)
        return lambda qkv: attention_kernels.attend(qkv, cosines, sines, ranges)

    def linear(self, layer: nn.Module, x: Tensor) -> Tensor:
        """Apply a linear layer; the result is copied where a forward hook may have kept it, since RoPE is in place."""
        result = super().linear(layer, x)
        return result.clone() if layer._forward_hooks else result

    def row_kernels(self) -> RowKernels:
        """Return LayerNorm and GeGLU in Triton."""
        from modernbert.engines.cuda import elementwise_kernels

        return elementwise_kernels

    def chunk_kernels(self, weight: Float[Tensor, "V D"]) -> type[ChunkKernels]:
        """Return the cross entropy in Triton, and GEMMs by torch."""
        return _TritonChunks

    def optimizer_kernels(self, device: torch.device) -> OptimizerKernels | None:
        """Return the optimizer step in four launches for all tensors."""
        if device.type != "cuda" or _compiler_unavailable_reason(device):
            return None
        from modernbert.engines.cuda import optimizer_kernels

        return cast(OptimizerKernels, optimizer_kernels)

    def inference_plan(self, encoder: "Encoder", dtype: torch.dtype) -> InferencePlan | None:
        """Return CUDA graphs of short batches."""
        from modernbert.engines.cuda.cuda_graphs import CudaGraphs

        return CudaGraphs()


class _TritonChunks(ChunkKernels):
    def cross_entropy_(self, logits: Tensor, bias: Tensor, labels: Tensor, grad_bias: Tensor | None) -> Tensor:
        from modernbert.engines.cuda.cross_entropy_kernel import cross_entropy_

        with torch.cuda.device_of(logits):
            total = cross_entropy_(logits, bias, labels, write_grad=grad_bias is not None)
        if grad_bias is not None:
            grad_bias += logits.sum(dim=0, dtype=grad_bias.dtype)
        return total


@functools.cache
def _compiler_unavailable_reason(device: torch.device) -> str | None:
    """Return why no kernel can be compiled: torch for CUDA includes Triton, but not the C compiler that it needs."""
    if importlib.util.find_spec("triton") is None:
        return "needs triton, which is not installed"
    try:
        from modernbert.engines.cuda import elementwise_kernels

        with torch.inference_mode(False), torch.no_grad(), torch.cuda.device(device):
            elementwise_kernels.geglu(torch.ones(1, 32, dtype=torch.bfloat16, device=device))
        return None
    except Exception as error:  # a missing compiler, header or folder raises many types
        return f"fails here: {' '.join(str(error).split())[:120]}"
