"""The optimizer step over all tensors in four kernel launches, whatever their number.

Tensors are float32 on one GPU, in lists of the same order, and updated in place. torch launches a kernel per tensor and
operation: about a thousand launches and ten passes over memory.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int32, Int64
from torch import Tensor

from modernbert.batch import to_device_async

__all__ = ["apply_moments_", "update_moments_"]

_BLOCK = 2048


def update_moments_(
    gradients: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    betas: tuple[float, float],
    eps: float,
) -> Float[Tensor, " tensors"]:
    """Update the moments of each tensor, and return its sum of g^2 / max(v, eps^2)."""
    where, firsts, sizes = _blocks(gradients)
    parts = torch.empty(len(where), dtype=torch.float32, device=where.device)
    sums = torch.empty(len(sizes), dtype=torch.float32, device=where.device)
    with torch.cuda.device_of(where):
        _update_kernel[len(where),](
            _addresses(gradients, exp_avgs, exp_avg_sqs), where, firsts, sizes, parts, 1 - betas[0], betas[1], eps,
            BLOCK=_BLOCK, num_warps=4,
        )  # fmt: skip
        # In a fixed order: a sum by atomics would differ between runs.
        _sum_kernel[len(sizes),](parts, firsts, sums, BLOCK=1024, num_warps=4)
    return sums


def apply_moments_(
    weights: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    rates: Float[Tensor, " tensors"],
    kept: Float[Tensor, " tensors"],
    eps: float,
) -> None:
    """Scale each weight by its tensor's `kept`, and subtract its rate times m / (sqrt(v) + eps)."""
    where, firsts, sizes = _blocks(weights)
    with torch.cuda.device_of(where):
        _apply_kernel[len(where),](
            _addresses(weights, exp_avgs, exp_avg_sqs), where, firsts, sizes, rates, kept, eps,
            BLOCK=_BLOCK, num_warps=4,
        )  # fmt: skip


def _addresses(*lists: Sequence[Tensor]) -> Int64[Tensor, "tensors lists"]:
    """Return the address of each tensor; not cached, since a gradient is allocated anew at every step."""
    rows = [[tensor.data_ptr() for tensor in tensors] for tensors in zip(*lists, strict=True)]
    return to_device_async(torch.tensor(rows, dtype=torch.int64), lists[0][0].device)


def _blocks(
    tensors: Sequence[Tensor],
) -> tuple[Int32[Tensor, " blocks"], Int32[Tensor, " firsts"], Int64[Tensor, " n"]]:
    """Return each block's tensor, each tensor's first block and the end of the last, and the tensors' sizes."""
    for tensor in tensors:
        assert tensor.dtype == torch.float32 and tensor.is_contiguous(), "the kernels read contiguous float32"
    return _blocks_of(tuple(tensor.numel() for tensor in tensors), tensors[0].device)


@lru_cache(maxsize=16)
def _blocks_of(
    sizes: tuple[int, ...], device: torch.device
) -> tuple[Int32[Tensor, " blocks"], Int32[Tensor, " firsts"], Int64[Tensor, " n"]]:
    counts = [triton.cdiv(size, _BLOCK) for size in sizes]
    firsts = torch.tensor([0, *accumulate(counts)], dtype=torch.int32)
    where = torch.repeat_interleave(torch.arange(len(sizes), dtype=torch.int32), torch.tensor(counts))
    return where.to(device), firsts.to(device), torch.tensor(sizes, dtype=torch.int64).to(device)


@triton.jit
def _locate(where, firsts, sizes, BLOCK: tl.constexpr):
    """Return this program's tensor, its offsets into it, and which of them are inside."""
    which = tl.load(where + tl.program_id(0))
    block = tl.program_id(0) - tl.load(firsts + which)
    offsets = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    return which, offsets, offsets < tl.load(sizes + which)


@triton.jit
def _row(addresses, which, column):
    return tl.load(addresses + which * 3 + column).to(tl.pointer_type(tl.float32))


@triton.jit
def _update_kernel(addresses, where, firsts, sizes, parts, gain, beta, eps, BLOCK: tl.constexpr):
    which, offsets, inside = _locate(where, firsts, sizes, BLOCK)
    first, second = _row(addresses, which, 1) + offsets, _row(addresses, which, 2) + offsets
    gradient = tl.load(_row(addresses, which, 0) + offsets, mask=inside, other=0.0)
    m = tl.load(first, mask=inside, other=0.0)
    v = tl.load(second, mask=inside, other=0.0)
    m += (gradient - m) * gain
    v = v * beta + gradient * gradient * (1 - beta)
    tl.store(first, m, mask=inside)
    tl.store(second, v, mask=inside)
    ratio = gradient / tl.maximum(tl.sqrt(v), eps)
    tl.store(parts + tl.program_id(0), tl.sum(ratio * ratio, axis=0))


@triton.jit
def _sum_kernel(parts, firsts, sums, BLOCK: tl.constexpr):
    end = tl.load(firsts + tl.program_id(0) + 1)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for at in range(tl.load(firsts + tl.program_id(0)), end, BLOCK):
        offsets = at + tl.arange(0, BLOCK)
        total += tl.load(parts + offsets, mask=offsets < end, other=0.0)
    tl.store(sums + tl.program_id(0), tl.sum(total, axis=0))


@triton.jit
def _apply_kernel(addresses, where, firsts, sizes, rates, kept, eps, BLOCK: tl.constexpr):
    which, offsets, inside = _locate(where, firsts, sizes, BLOCK)
    weight = _row(addresses, which, 0) + offsets
    m = tl.load(_row(addresses, which, 1) + offsets, mask=inside, other=0.0)
    v = tl.load(_row(addresses, which, 2) + offsets, mask=inside, other=0.0)
    stepped = tl.load(weight, mask=inside, other=0.0) * tl.load(kept + which)
    stepped -= tl.load(rates + which) * (m / (tl.sqrt(v) + eps))
    tl.store(weight, stepped, mask=inside)
