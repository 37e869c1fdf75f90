"""The CPU engine: attention, GEMMs, LayerNorm, GeGLU, cross entropy and the optimizer step in C++."""

from functools import cached_property
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

from modernbert.batch import SequenceLengths
from modernbert.devices import dtype_name, has_amx
from modernbert.engines.cpu import build, calls
from modernbert.engines.cpu.checked_calls import HEAD_WIDTH, WIDTH_STEP
from modernbert.engines.cpu.packed_encoder import PackedEncoder
from modernbert.engines.cpu.prepacked_linear import PrepackedLinears, can_prepack
from modernbert.engines.engine import AttentionFn, Engine, OptimizerKernels, Rope, RowKernels, Window
from modernbert.engines.inference_plan import InferencePlan, is_plain
from modernbert.engines.linear_cross_entropy import ChunkKernels
from modernbert.model.config import ModelConfig
from modernbert.model.int8_linear import is_int8

if TYPE_CHECKING:
    from modernbert.model.encoder import Encoder

__all__ = ["CpuEngine", "supports_gemm"]


class CpuEngine(Engine):
    """Compute with C++ kernels, compiled for this processor on first use."""

    name = "cpu"
    device_type = "cpu"
    preference = 2

    def unavailable_reason(self, device: torch.device, dtype: torch.dtype, config: ModelConfig) -> str | None:
        """Return why the kernels do not run there: the device, the dtype, the shape of the model, or no compiler."""
        if device.type != "cpu":
            return f"needs a CPU, found {device.type}"
        if dtype not in (torch.float32, torch.bfloat16):
            return f"computes in float32 or bfloat16, found {dtype_name(dtype)}"
        if config.head_width != HEAD_WIDTH:
            return f"needs heads of width {HEAD_WIDTH}, found {config.head_width}"
        if config.intermediate_size % WIDTH_STEP:
            return f"needs an intermediate_size that divides by {WIDTH_STEP}, found {config.intermediate_size}"
        return build.unavailable_reason()

    def plan_attention(self, lengths: SequenceLengths, window: Window, rope: Rope, dtype: torch.dtype) -> AttentionFn:
        """Return RoPE and attention in one pass over the documents."""
        cosines, sines = (part[:, 0] for part in rope)
        return lambda qkv: calls.attend(qkv, cosines, sines, lengths.cu_seqlens, window)

    def linear(self, layer: nn.Module, x: Tensor) -> Tensor:
        """Apply a plain linear layer in C++, and any other module as it is."""
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        if (
            not isinstance(layer, nn.Linear)
            or not is_plain(layer)
            or layer.bias is not None
            or not supports_gemm(*layer.weight.shape)
            or layer.weight.dtype not in (torch.float32, dtype)
        ):
            return super().linear(layer, x)
        return calls.linear(x.to(dtype), layer.weight)

    def row_kernels(self) -> RowKernels:
        """Return LayerNorm and GeGLU in C++."""
        return calls

    def chunk_kernels(self, weight: Float[Tensor, "V D"]) -> type[ChunkKernels]:
        """Return the cross entropy in C++, and GEMMs in C++ for the widths they support."""
        return _PackedChunks if supports_gemm(*weight.shape) else _CppChunks

    def optimizer_kernels(self, device: torch.device) -> OptimizerKernels | None:
        """Return the two passes of the optimizer step in C++."""
        return calls if device.type == "cpu" and build.unavailable_reason() is None else None

    def inference_plan(self, encoder: "Encoder", dtype: torch.dtype) -> InferencePlan | None:
        """Return all layers in one call, or, where C++ has no GEMM for the widths, oneDNN's packed linear layers."""
        config, device = encoder.config, encoder.final_norm.weight.device
        if device.type == "cpu" and dtype in (torch.float32, torch.bfloat16):
            if is_int8(encoder) or supports_gemm(config.hidden_size, config.intermediate_size):
                return PackedEncoder(encoder)
            if can_prepack(device, dtype):
                return PrepackedLinears(encoder)
        return None


def supports_gemm(*widths: int) -> bool:
    """Return whether C++ multiplies matrices of these widths, faster than torch at a few hundred rows."""
    # With AMX, GEMMs stay with oneDNN: ours have not been measured against it there.
    return not any(width % calls.PANEL for width in widths) and not has_amx()


class _CppChunks(ChunkKernels):
    """Cross entropy in C++."""

    def cross_entropy_(self, logits: Tensor, bias: Tensor, labels: Tensor, grad_bias: Tensor | None) -> float:
        return calls.cross_entropy_(logits, bias, labels, grad_bias)


class _PackedChunks(_CppChunks):
    """GEMMs in C++, with the weight packed once for all chunks."""

    def logits_(self, out: Tensor, x: Tensor) -> Tensor:
        return calls.multiply_(out, x, self._outputs)

    def grad_x_(self, out: Tensor, grad_logits: Tensor) -> Tensor:
        return calls.multiply_(out, grad_logits, self._inputs)

    def add_grad_weight_(self, total: Tensor, grad_logits: Tensor, x: Tensor) -> None:
        calls.multiply_(total, grad_logits, calls.pack_weight(x), transposed=True, add=True)

    @cached_property
    def _outputs(self) -> Tensor:
        return calls.pack_weight(self.weight, self.dtype, transposed=True)

    @cached_property
    def _inputs(self) -> Tensor:
        return calls.pack_weight(self.weight, self.dtype)
