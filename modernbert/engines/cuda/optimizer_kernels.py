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
    tensor_ids, firsts, sizes = _blocks(gradients)
    parts = torch.empty(len(tensor_ids), dtype=torch.float32, device=tensor_ids.device)
    totals = torch.empty(len(sizes), dtype=torch.float32, device=tensor_ids.device)
    with torch.cuda.device_of(tensor_ids):
        _update_kernel[len(tensor_ids),](
            _addresses(gradients, exp_avgs, exp_avg_sqs), tensor_ids, firsts, sizes, parts, 1 - betas[0], betas[1], eps,
            BLOCK=_BLOCK, num_warps=4,
        )  # fmt: skip
        # In a fixed order: a sum by atomics would differ between runs.
        _sum_kernel[len(sizes),](parts, firsts, totals, BLOCK=1024, num_warps=4)
    return totals


def apply_moments_(
    weights: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    rates: Float[Tensor, " tensors"],
    decays: Float[Tensor, " tensors"],
    eps: float,
) -> None:
    """Scale each weight by its tensor's decay, and subtract its rate times m / (sqrt(v) + eps)."""
    tensor_ids, firsts, sizes = _blocks(weights)
    with torch.cuda.device_of(tensor_ids):
        _apply_kernel[len(tensor_ids),](
            _addresses(weights, exp_avgs, exp_avg_sqs), tensor_ids, firsts, sizes, rates, decays, eps,
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
    return _blocks_for_sizes(tuple(tensor.numel() for tensor in tensors), tensors[0].device)


@lru_cache(maxsize=16)
def _blocks_for_sizes(
    sizes: tuple[int, ...], device: torch.device
) -> tuple[Int32[Tensor, " blocks"], Int32[Tensor, " firsts"], Int64[Tensor, " n"]]:
    counts = [triton.cdiv(size, _BLOCK) for size in sizes]
    firsts = torch.tensor([0, *accumulate(counts)], dtype=torch.int32)
    tensor_ids = torch.repeat_interleave(torch.arange(len(sizes), dtype=torch.int32), torch.tensor(counts))
    return tensor_ids.to(device), firsts.to(device), torch.tensor(sizes, dtype=torch.int64).to(device)


@triton.jit
def _locate(tensor_ids, firsts, sizes, BLOCK: tl.constexpr):
    """Return this program's tensor, its offsets into it, and which of them are inside."""
    tensor_id = tl.load(tensor_ids + tl.program_id(0))
    block = tl.program_id(0) - tl.load(firsts + tensor_id)
    offsets = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    return tensor_id, offsets, offsets < tl.load(sizes + tensor_id)


@triton.jit
def _row(addresses, tensor_id, column):
    return tl.load(addresses + tensor_id * 3 + column).to(tl.pointer_type(tl.float32))


@triton.jit
def _update_kernel(addresses, tensor_ids, firsts, sizes, parts, gain, beta, eps, BLOCK: tl.constexpr):
    tensor_id, offsets, inside = _locate(tensor_ids, firsts, sizes, BLOCK)
    first, second = _row(addresses, tensor_id, 1) + offsets, _row(addresses, tensor_id, 2) + offsets
    gradient = tl.load(_row(addresses, tensor_id, 0) + offsets, mask=inside, other=0.0)
    m = tl.load(first, mask=inside, other=0.0)
    v = tl.load(second, mask=inside, other=0.0)
    m += (gradient - m) * gain
    v = v * beta + gradient * gradient * (1 - beta)
    tl.store(first, m, mask=inside)
    tl.store(second, v, mask=inside)
    ratio = gradient / tl.maximum(tl.sqrt(v), eps)
    tl.store(parts + tl.program_id(0), tl.sum(ratio * ratio, axis=0))


@triton.jit
def _sum_kernel(parts, firsts, totals, BLOCK: tl.constexpr):
    end = tl.load(firsts + tl.program_id(0) + 1)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for at in range(tl.load(firsts + tl.program_id(0)), end, BLOCK):
        offsets = at + tl.arange(0, BLOCK)
        total += tl.load(parts + offsets, mask=offsets < end, other=0.0)
    tl.store(totals + tl.program_id(0), tl.sum(total, axis=0))


@triton.jit
def _apply_kernel(addresses, tensor_ids, firsts, sizes, rates, decays, eps, BLOCK: tl.constexpr):
    tensor_id, offsets, inside = _locate(tensor_ids, firsts, sizes, BLOCK)
    weight = _row(addresses, tensor_id, 0) + offsets
    m = tl.load(_row(addresses, tensor_id, 1) + offsets, mask=inside, other=0.0)
    v = tl.load(_row(addresses, tensor_id, 2) + offsets, mask=inside, other=0.0)
    stepped = tl.load(weight, mask=inside, other=0.0) * tl.load(decays + tensor_id)
    stepped -= tl.load(rates + tensor_id) * (m / (tl.sqrt(v) + eps))
    tl.store(weight, stepped, mask=inside)
