"""Cross entropy of rows of logits, which become their own gradient where they are.

In: logits [rows, V] in any precision, a bias, labels. Out: the sum of the losses; the logits hold their slopes. Two
passes over each row: to sum it up, and to write. A label of no entry makes the loss NaN.
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int64
from torch import Tensor

__all__ = ["cross_entropy_"]

_COLUMNS = 4096


def cross_entropy_(
    logits: Float[Tensor, "rows V"], bias: Float[Tensor, " V"], labels: Int64[Tensor, " rows"], slopes: bool
) -> Float[Tensor, ""]:
    """Return the summed cross entropy, in float32; with `slopes`, put its gradient into the logits."""
    losses = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
    _cross_entropy_kernel[len(logits),](
        logits, bias, labels, losses, logits.shape[1], SLOPES=slopes, COLUMNS=_COLUMNS, num_warps=8
    )
    return losses.sum()


@triton.jit
def _cross_entropy_kernel(logits, bias, labels, losses, width, SLOPES: tl.constexpr, COLUMNS: tl.constexpr):
    row = logits + tl.program_id(0).to(tl.int64) * width
    label = tl.load(labels + tl.program_id(0))
    known = (label >= 0) & (label < width)
    picked = tl.load(row + label, mask=known, other=float("nan")).to(tl.float32)
    picked += tl.load(bias + label, mask=known, other=0.0).to(tl.float32)
    peaks = tl.full((COLUMNS,), -1e30, dtype=tl.float32)
    sums = tl.zeros((COLUMNS,), dtype=tl.float32)
    for at in range(0, width, COLUMNS):
        columns = at + tl.arange(0, COLUMNS)
        inside = columns < width
        x = tl.load(row + columns, mask=inside, other=0.0).to(tl.float32)
        x = tl.where(inside, x + tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32), -1e30)
        higher = tl.maximum(peaks, x)
        sums = sums * tl.exp(peaks - higher) + tl.where(inside, tl.exp(x - higher), 0.0)
        peaks = higher
    peak = tl.max(peaks, axis=0)
    total = peak + tl.log(tl.sum(sums * tl.exp(peaks - peak), axis=0))
    tl.store(losses + tl.program_id(0), total - picked)
    if SLOPES:
        tl.debug_barrier()  # the label's logit is read by every thread before any writes
        for at in range(0, width, COLUMNS):
            columns = at + tl.arange(0, COLUMNS)
            inside = columns < width
            x = tl.load(row + columns, mask=inside, other=0.0).to(tl.float32)
            x += tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)
            slope = tl.exp(x - total) - tl.where(columns == label, 1.0, 0.0)
            tl.store(row + columns, slope.to(logits.dtype.element_ty), mask=inside)
