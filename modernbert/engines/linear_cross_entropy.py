"""Linear layer and cross entropy over the vocabulary in one operation, a chunk of rows at a time.

The logits [M, V] are never whole in memory. GEMMs and softmax are torch's, C++ kernels or Triton kernels.
"""

from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from modernbert.engines.cpu import calls
from modernbert.engines.operations import can_multiply

__all__ = ["CHUNK_ROWS", "GPU_CHUNK_ROWS", "decoded_loss"]

# Rows whose logits are in memory at a time, in the dtype of the GEMM: 98 MiB of bfloat16 at 50,368 entries on a CPU,
# 787 MiB on a GPU, where adding a chunk's gradient of the weight to the total costs relatively more.
CHUNK_ROWS = 1024
GPU_CHUNK_ROWS = 8192
# Rows of a chunk that are in float32 at a time: few on a CPU, to fit the cache; many on a GPU, to fill it.
WIDE_ROWS = 64
GPU_WIDE_ROWS = 1024


def decoded_loss(
    rows: Float[Tensor, "M D"], weight: Float[Tensor, "V D"], bias: Float[Tensor, " V"], labels: Int64[Tensor, " M"],
    backend: str,
) -> Float[Tensor, ""]:  # fmt: skip
    """Return the summed cross entropy of `rows @ weight.T + bias`, in float32 or wider.

    A chunk's gradients are computed right after its logits, so neither is stored or recomputed; the backward pass only
    scales them. Source: the idea is that of Cut Cross-Entropy (Wijmans et al. 2024) and Liger Kernel.
    """
    total: Tensor = _DecodedLoss.apply(rows, weight, bias, labels.long(), backend, torch.is_grad_enabled())
    return total


class _DecodedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, backend: str, with_gradients: bool
    ) -> Tensor:
        wide = torch.promote_types(rows.dtype, torch.float32)
        needs_gradients = with_gradients and any(ctx.needs_input_grad)
        total = torch.zeros((), dtype=wide, device=rows.device)
        grad_rows, grad_weight, grad_bias = (
            x.new_zeros(x.shape if needs_gradients else 0) for x in (rows, weight, bias)
        )
        # Reuse one scratch buffer for all chunks: allocating it costs more than the GEMM.
        on_cpu = rows.device.type == "cpu"
        size = min(CHUNK_ROWS if on_cpu else GPU_CHUNK_ROWS, len(rows))
        wide_size = min(WIDE_ROWS if on_cpu else GPU_WIDE_ROWS, size)
        scratch = rows.new_empty(size, len(weight))
        scratch_fp32 = torch.empty(wide_size, len(weight), dtype=wide, device=rows.device)
        decoder = _decoder_of(backend, weight)(weight, rows.dtype, scratch_fp32)
        for start in range(0, len(rows), max(1, size)):
            chunk, expected = rows[start : start + size], labels[start : start + size]
            logits = decoder.logits_(scratch[: len(chunk)], chunk)
            total += decoder.grad_logits_(logits, bias, expected, grad_bias if needs_gradients else None)
            if needs_gradients:
                decoder.grad_rows_(grad_rows[start : start + size], logits)
                decoder.add_grad_weight_(grad_weight, logits, chunk)
        ctx.save_for_backward(grad_rows, grad_weight, grad_bias)
        return total

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        grads = ctx.saved_tensors
        # Reading the value costs nothing on a CPU; on a GPU it would synchronize.
        if upstream.device.type != "cpu" or upstream != 1:
            grads = tuple(grad * upstream.to(grad.dtype) for grad in grads)
        return (*grads, None, None, None)


class _Decoder:
    """The operations on one chunk, in torch."""

    def __init__(self, weight: Float[Tensor, "V D"], dtype: torch.dtype, scratch_fp32: Float[Tensor, "rows V"]) -> None:
        self.weight = weight
        self.dtype = dtype
        self.scratch_fp32 = scratch_fp32

    def logits_(self, out: Float[Tensor, "rows V"], rows: Float[Tensor, "rows D"]) -> Tensor:
        """Compute the logits, without bias."""
        return torch.mm(rows, self._narrow.T, out=out)

    def grad_logits_(
        self, logits: Float[Tensor, "rows V"], bias: Tensor, labels: Tensor, grad_bias: Tensor | None
    ) -> Tensor | float:
        """Return the summed cross entropy.

        With `grad_bias`, overwrite the logits with their gradient, and accumulate the gradient of the bias.
        """
        scratch_fp32 = self.scratch_fp32
        total = torch.zeros((), dtype=scratch_fp32.dtype, device=logits.device)
        for part, answers in zip(logits.split(len(scratch_fp32)), labels.split(len(scratch_fp32)), strict=True):
            grad_logits = scratch_fp32[: len(part)].copy_(part).add_(bias)
            total += _loss_and_grad_(grad_logits, answers)
            if grad_bias is not None:
                grad_bias += grad_logits.sum(dim=0).to(bias.dtype)
                part.copy_(grad_logits)
        return total

    def grad_rows_(self, out: Float[Tensor, "rows D"], grad_logits: Float[Tensor, "rows V"]) -> None:
        """Compute the gradient of the rows."""
        torch.mm(grad_logits, self._narrow, out=out)

    def add_grad_weight_(
        self, total: Tensor, grad_logits: Float[Tensor, "rows V"], rows: Float[Tensor, "rows D"]
    ) -> None:
        """Accumulate the gradient of the weight."""
        _add_in_pieces(total, torch.mm(grad_logits.T, rows, out=self._product), self.scratch_fp32)

    @cached_property
    def _narrow(self) -> Float[Tensor, "V D"]:
        return self.weight.to(self.dtype)

    @cached_property
    def _product(self) -> Float[Tensor, "V D"]:
        return torch.empty_like(self._narrow)


class _TritonDecoder(_Decoder):
    def grad_logits_(self, logits: Tensor, bias: Tensor, labels: Tensor, grad_bias: Tensor | None) -> Tensor:
        from modernbert.engines.cuda.cross_entropy_kernel import cross_entropy_

        with torch.cuda.device_of(logits):
            total = cross_entropy_(logits, bias, labels, write_grad=grad_bias is not None)
        if grad_bias is not None:
            grad_bias += logits.sum(dim=0, dtype=grad_bias.dtype)
        return total


class _CpuDecoder(_Decoder):
    def grad_logits_(self, logits: Tensor, bias: Tensor, labels: Tensor, grad_bias: Tensor | None) -> float:
        return calls.cross_entropy_(logits, bias, labels, grad_bias)


class _CpuGemmDecoder(_CpuDecoder):
    """GEMMs in C++ too, for widths that these support."""

    def logits_(self, out: Tensor, rows: Tensor) -> Tensor:
        return calls.multiply_(out, rows, self._outputs)

    def grad_rows_(self, out: Tensor, grad_logits: Tensor) -> None:
        calls.multiply_(out, grad_logits, self._inputs)

    def add_grad_weight_(self, total: Tensor, grad_logits: Tensor, rows: Tensor) -> None:
        calls.multiply_(total, grad_logits, calls.pack_weight(rows), transposed=True, add=True)

    @cached_property
    def _outputs(self) -> Tensor:
        return calls.pack_weight(self.weight, self.dtype, transposed=True)

    @cached_property
    def _inputs(self) -> Tensor:
        return calls.pack_weight(self.weight, self.dtype)


def _decoder_of(backend: str, weight: Float[Tensor, "V D"]) -> type[_Decoder]:
    """Return the decoder of a backend."""
    if backend == "native":
        return _CpuGemmDecoder if can_multiply(*weight.shape) else _CpuDecoder
    return _TritonDecoder if backend == "triton" else _Decoder


def _loss_and_grad_(logits: Float[Tensor, "rows V"], labels: Int64[Tensor, " rows"]) -> Float[Tensor, ""]:
    """Return the summed cross entropy, and overwrite the logits with its gradient."""
    picked = logits.gather(1, labels[:, None])
    peaks = logits.amax(dim=-1, keepdim=True)
    sums = logits.sub_(peaks).exp_().sum(dim=-1, keepdim=True)
    logits.div_(sums)
    logits[torch.arange(len(logits), device=logits.device), labels] -= 1
    return (sums.log() + peaks - picked).sum()


def _add_in_pieces(total: Float[Tensor, "V D"], part: Float[Tensor, "V D"], scratch: Tensor) -> None:
    """Add a tensor of another dtype, converted in pieces: torch's mixed-dtype sum is many times slower on a CPU."""
    if part.dtype == total.dtype:
        total += part
        return
    flat = scratch.flatten()
    size = max(1, flat.numel() // total.shape[1])
    for target, piece in zip(total.split(size), part.split(size), strict=True):
        target += flat[: piece.numel()].view_as(piece).copy_(piece)
