"""Cross entropy of rows of logits, overwritten with their gradient.

Two passes over each row: online log-sum-exp, then the gradient. A label outside the vocabulary makes the loss NaN.
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int64
from torch import Tensor

__all__ = ["cross_entropy_"]

_COLUMNS = 4096


def cross_entropy_(
    logits: Float[Tensor, "rows V"], bias: Float[Tensor, " V"], labels: Int64[Tensor, " rows"], write_grad: bool
) -> Float[Tensor, ""]:
    """Return the summed cross entropy, in float32; with `write_grad`, overwrite the logits with its gradient."""
    losses = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
    _cross_entropy_kernel[len(logits),](
        logits, bias, labels, losses, logits.shape[1], WRITE_GRAD=write_grad, COLUMNS=_COLUMNS, num_warps=8
    )
    return losses.sum()


@triton.jit
def _cross_entropy_kernel(logits, bias, labels, losses, width, WRITE_GRAD: tl.constexpr, COLUMNS: tl.constexpr):
    row = logits + tl.program_id(0).to(tl.int64) * width
    label = tl.load(labels + tl.program_id(0))
    known = (label >= 0) & (label < width)
    picked = tl.load(row + label, mask=known, other=float("nan")).to(tl.float32)
    picked += tl.load(bias + label, mask=known, other=0.0).to(tl.float32)
    m_i = tl.full((COLUMNS,), -1e30, dtype=tl.float32)
    l_i = tl.zeros((COLUMNS,), dtype=tl.float32)
    for at in range(0, width, COLUMNS):
        columns = at + tl.arange(0, COLUMNS)
        inside = columns < width
        x = tl.load(row + columns, mask=inside, other=0.0).to(tl.float32)
        x = tl.where(inside, x + tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32), -1e30)
        m_new = tl.maximum(m_i, x)
        l_i = l_i * tl.exp(m_i - m_new) + tl.where(inside, tl.exp(x - m_new), 0.0)
        m_i = m_new
    m = tl.max(m_i, axis=0)
    lse = m + tl.log(tl.sum(l_i * tl.exp(m_i - m), axis=0))
    tl.store(losses + tl.program_id(0), lse - picked)
    if WRITE_GRAD:
        tl.debug_barrier()  # the label's logit is read by every thread before any writes
        for at in range(0, width, COLUMNS):
            columns = at + tl.arange(0, COLUMNS)
            inside = columns < width
            x = tl.load(row + columns, mask=inside, other=0.0).to(tl.float32)
            x += tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)
            grad = tl.exp(x - lse) - tl.where(columns == label, 1.0, 0.0)
            tl.store(row + columns, grad.to(logits.dtype.element_ty), mask=inside)
