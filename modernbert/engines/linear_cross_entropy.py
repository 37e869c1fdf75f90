"""Linear layer and cross entropy over the vocabulary in one operation, a chunk of rows at a time.

The logits [M, V] are never whole in memory. Engines choose the kernels of the softmax and of the GEMMs.
"""

from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int64, Integer
from torch import Tensor

__all__ = ["CHUNK_ROWS", "GPU_CHUNK_ROWS", "ChunkKernels", "chunked_linear_cross_entropy"]

# Rows whose logits are in memory at a time, in the dtype of the GEMM: 98 MiB of bfloat16 at 50,368 entries on a CPU,
# 787 MiB on a GPU, where adding a chunk's gradient of the weight to the total costs relatively more.
CHUNK_ROWS = 1024
GPU_CHUNK_ROWS = 8192
# Rows of a chunk that are in float32 at a time: few on a CPU, to fit the cache; many on a GPU, to fill it.
FP32_ROWS = 64
GPU_FP32_ROWS = 1024


class ChunkKernels:
    """The three GEMMs of a chunk with one weight [V, D], and its cross entropy, in torch.

    Args:
        weight: The weight of the linear layer.
        dtype: The dtype of the GEMMs.
        scratch: A buffer in float32 or wider for some rows of a chunk.
    """

    def __init__(self, weight: Float[Tensor, "V D"], dtype: torch.dtype, scratch: Float[Tensor, "rows V"]) -> None:
        self.weight, self.dtype, self.scratch = weight, dtype, scratch

    def logits_(self, out: Float[Tensor, "rows V"], x: Float[Tensor, "rows D"]) -> Tensor:
        """Write the logits to `out`, without bias."""
        return torch.mm(x, self._narrow.T, out=out)

    def grad_x_(self, out: Float[Tensor, "rows D"], grad_logits: Float[Tensor, "rows V"]) -> Tensor:
        """Write the gradient of the rows to `out`."""
        return torch.mm(grad_logits, self._narrow, out=out)

    def add_grad_weight_(self, total: Tensor, grad_logits: Tensor, x: Tensor) -> None:
        """Add the gradient of the weight to `total`."""
        _add_converted(total, torch.mm(grad_logits.T, x, out=self._product), self.scratch)

    def cross_entropy_(
        self, logits: Float[Tensor, "rows V"], bias: Tensor, labels: Tensor, grad_bias: Tensor | None
    ) -> Tensor | float:
        """Return the summed cross entropy of logits to which the bias is not yet added.

        With `grad_bias`, the logits are overwritten with their gradient, and the gradient of the bias is added to it.
        """
        total = torch.zeros((), dtype=self.scratch.dtype, device=logits.device)
        size = len(self.scratch)
        for part, targets in zip(logits.split(size), labels.split(size), strict=True):
            grad_logits = self.scratch[: len(part)].copy_(part).add_(bias)
            total += _loss_and_grad_(grad_logits, targets)
            if grad_bias is not None:
                grad_bias += grad_logits.sum(dim=0).to(bias.dtype)
                part.copy_(grad_logits)
        return total

    @cached_property
    def _narrow(self) -> Float[Tensor, "V D"]:
        return self.weight.to(self.dtype)

    @cached_property
    def _product(self) -> Float[Tensor, "V D"]:
        return torch.empty_like(self._narrow)


def chunked_linear_cross_entropy(
    x: Float[Tensor, "M D"],
    weight: Float[Tensor, "V D"],
    bias: Float[Tensor, " V"],
    labels: Integer[Tensor, " M"],
    kernels: type[ChunkKernels] = ChunkKernels,
) -> Float[Tensor, ""]:
    """Return the summed cross entropy of `x @ weight.T + bias`, in float32 or wider.

    A chunk's gradients are computed right after its logits, so neither is stored or recomputed; the backward pass only
    scales them. Source: the idea is that of Cut Cross-Entropy (Wijmans et al. 2024) and Liger Kernel.
    """
    total: Tensor = _LinearCrossEntropy.apply(x, weight, bias, labels.long(), kernels, torch.is_grad_enabled())
    return total


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, labels: Tensor,
        kernels: type[ChunkKernels], with_gradients: bool,
    ) -> Tensor:  # fmt: skip
        wide = torch.promote_types(x.dtype, torch.float32)
        needs_gradients = with_gradients and any(ctx.needs_input_grad)
        total = torch.zeros((), dtype=wide, device=x.device)
        grad_x, grad_weight, grad_bias = (
            each.new_zeros(each.shape if needs_gradients else 0) for each in (x, weight, bias)
        )
        # Reuse one scratch buffer for all chunks: allocating it costs more than the GEMM.
        on_cpu = x.device.type == "cpu"
        size = min(CHUNK_ROWS if on_cpu else GPU_CHUNK_ROWS, len(x))
        fp32_size = min(FP32_ROWS if on_cpu else GPU_FP32_ROWS, size)
        scratch = x.new_empty(size, len(weight))
        scratch_fp32 = torch.empty(fp32_size, len(weight), dtype=wide, device=x.device)
        chunk_kernels = kernels(weight, x.dtype, scratch_fp32)
        for start in range(0, len(x), max(1, size)):
            chunk, targets = x[start : start + size], labels[start : start + size]
            logits = chunk_kernels.logits_(scratch[: len(chunk)], chunk)
            total += chunk_kernels.cross_entropy_(logits, bias, targets, grad_bias if needs_gradients else None)
            if needs_gradients:
                chunk_kernels.grad_x_(grad_x[start : start + size], logits)
                chunk_kernels.add_grad_weight_(grad_weight, logits, chunk)
        ctx.save_for_backward(grad_x, grad_weight, grad_bias)
        return total

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        grads = ctx.saved_tensors
        # Reading the value costs nothing on a CPU; on a GPU it would synchronize.
        if upstream.device.type != "cpu" or upstream != 1:
            grads = tuple(grad * upstream.to(grad.dtype) for grad in grads)
        return (*grads, None, None, None)


def _loss_and_grad_(logits: Float[Tensor, "rows V"], labels: Int64[Tensor, " rows"]) -> Float[Tensor, ""]:
    """Return the summed cross entropy, and overwrite the logits with its gradient."""
    picked = logits.gather(1, labels[:, None])
    maxima = logits.amax(dim=-1, keepdim=True)
    sum_exp = logits.sub_(maxima).exp_().sum(dim=-1, keepdim=True)
    logits.div_(sum_exp)
    logits[torch.arange(len(logits), device=logits.device), labels] -= 1
    return (sum_exp.log() + maxima - picked).sum()


def _add_converted(total: Float[Tensor, "V D"], part: Float[Tensor, "V D"], scratch: Tensor) -> None:
    """Add a tensor of another dtype, converted in pieces: torch's mixed-dtype sum is many times slower on a CPU."""
    if part.dtype == total.dtype:
        total += part
        return
    flat = scratch.flatten()
    size = max(1, flat.numel() // total.shape[1])
    for target, piece in zip(total.split(size), part.split(size), strict=True):
        target += flat[: piece.numel()].view_as(piece).copy_(piece)
