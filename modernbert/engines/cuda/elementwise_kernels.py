"""Residual sum with LayerNorm, and GeGLU, forward and backward, each in one pass over memory.

Arithmetic is float32; inputs are float32, bfloat16 or float16, and the norm has the dtype of the next GEMM.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["geglu", "residual_layer_norm"]

# Sizes of tiles: the fastest of those tried on an H200.
_ROWS, _GATE_ROWS, _GATE_COLUMNS = 1, 16, 128
# Programs of the backward pass, 8 per multiprocessor (132): each accumulates the gradient of the weight over its rows.
_PROGRAMS = 8 * 132


def residual_layer_norm(
    residual: Float[Tensor, "T D"],
    x: Float[Tensor, "T D"],
    weight: Float[Tensor, " D"],
    eps: float,
    dropout: float = 0.0,
) -> tuple[Float[Tensor, "T D"], Float[Tensor, "T D"]]:
    """Return `residual + dropout(x)` in the dtype of `residual`, and its LayerNorm in the dtype of `x`.

    The seed of dropout comes from torch's CPU generator, which needs no device synchronization.
    """
    seed = int(torch.randint(2**31, (), device="cpu")) if dropout else 0
    return _ResidualLayerNorm.apply(residual, x, weight, eps, dropout, seed)  # type: ignore[no-any-return]


def geglu(both: Float[Tensor, "T F2"]) -> Float[Tensor, "T F"]:
    """Return the exact GELU of the first half of each row times the second half."""
    return _Geglu.apply(both)  # type: ignore[no-any-return]


class _ResidualLayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, residual: Tensor, x: Tensor, weight: Tensor, eps: float, dropout: float, seed: int
    ) -> tuple[Tensor, Tensor]:
        residual, x = residual.contiguous(), x.contiguous()
        num_rows, width = residual.shape
        total, normed = torch.empty_like(residual), torch.empty_like(x)
        mean, rstd = (torch.empty(num_rows, dtype=torch.float32, device=residual.device) for _ in range(2))
        grid = (triton.cdiv(num_rows, _ROWS),)
        _residual_layer_norm_kernel[grid](
            residual, x, weight, total, normed, mean, rstd, num_rows, width, eps, dropout, seed,
            ROWS=_ROWS, COLUMNS=triton.next_power_of_2(width), DROP=dropout > 0, num_warps=4,
        )  # fmt: skip
        ctx.save_for_backward(total, weight, mean, rstd)
        ctx.x_dtype, ctx.dropout, ctx.seed = x.dtype, dropout, seed
        return total, normed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_total: Tensor, d_normed: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        total, weight, mean, rstd = ctx.saved_tensors
        d_total, d_normed = d_total.contiguous(), d_normed.contiguous()
        num_rows, width = total.shape
        d_residual = torch.empty_like(total)
        d_x = d_residual
        if ctx.x_dtype != total.dtype or ctx.dropout:
            d_x = torch.empty(total.shape, dtype=ctx.x_dtype, device=total.device)
        programs = min(_PROGRAMS, triton.cdiv(num_rows, _ROWS))
        d_weight = torch.empty(programs, width, dtype=torch.float32, device=total.device)
        _residual_layer_norm_backward_kernel[(programs,)](
            d_total, d_normed, total, weight, mean, rstd, d_residual, d_x, d_weight, num_rows, width,
            ctx.dropout, ctx.seed, ROWS=_ROWS, COLUMNS=triton.next_power_of_2(width),
            SEPARATE_X=d_x is not d_residual, DROP=ctx.dropout > 0, num_warps=4,
        )  # fmt: skip
        return d_residual, d_x, d_weight.sum(dim=0).to(weight.dtype), None, None, None


@triton.jit
def _dropout_mask(offsets, dropout, seed):
    """Return the dropout mask, scaled by 1 / (1 - dropout): a hash of index and seed, equal forward and backward."""
    x = (offsets.to(tl.uint32) ^ seed.to(tl.uint32)) * 0x9E3779B1 + seed.to(tl.uint32)
    # Source: C. Wellons, hash prospector, "lowbias32".
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    x = x ^ (x >> 16)
    return tl.where((x >> 8).to(tl.float32) * (1.0 / 16777216.0) >= dropout, 1.0 / (1.0 - dropout), 0.0)


@triton.jit(do_not_specialize=["num_rows", "seed"])
def _residual_layer_norm_kernel(
    residual, x, weight, total, normed, mean, rstd, num_rows, width, eps, dropout, seed,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DROP: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)
    inside = (rows < num_rows)[:, None] & (columns < width)[None, :]
    offsets = rows.to(tl.int64)[:, None] * width + columns[None, :]
    value = tl.load(residual + offsets, mask=inside, other=0.0).to(tl.float32)
    added = tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32)
    value += added * _dropout_mask(offsets, dropout, seed) if DROP else added
    # Normalize the rounded sum, since that is the residual stream of the next layer.
    rounded = value.to(total.dtype.element_ty)
    tl.store(total + offsets, rounded, mask=inside)
    value = rounded.to(tl.float32)
    mu = tl.sum(value, axis=1) / width
    centered = tl.where(inside, value - mu[:, None], 0.0)
    rstd_i = tl.rsqrt(tl.sum(centered * centered, axis=1) / width + eps)
    weights = tl.load(weight + columns, mask=columns < width, other=0.0).to(tl.float32)
    tl.store(normed + offsets, (centered * rstd_i[:, None] * weights[None, :]).to(normed.dtype.element_ty), mask=inside)
    tl.store(mean + rows, mu, mask=rows < num_rows)
    tl.store(rstd + rows, rstd_i, mask=rows < num_rows)


@triton.jit(do_not_specialize=["num_rows", "seed"])
def _residual_layer_norm_backward_kernel(
    d_total, d_normed, total, weight, mean, rstd, d_residual, d_x, d_weight, num_rows, width, dropout, seed,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, SEPARATE_X: tl.constexpr, DROP: tl.constexpr,
):  # fmt: skip
    columns = tl.arange(0, COLUMNS)
    weights = tl.load(weight + columns, mask=columns < width, other=0.0).to(tl.float32)
    d_weight_acc = tl.zeros((COLUMNS,), dtype=tl.float32)
    for first in range(tl.program_id(0) * ROWS, num_rows, tl.num_programs(0) * ROWS):
        rows = first + tl.arange(0, ROWS)
        inside = (rows < num_rows)[:, None] & (columns < width)[None, :]
        offsets = rows.to(tl.int64)[:, None] * width + columns[None, :]
        upstream = tl.load(d_normed + offsets, mask=inside, other=0.0).to(tl.float32)
        x = tl.load(total + offsets, mask=inside, other=0.0).to(tl.float32)
        mu = tl.load(mean + rows, mask=rows < num_rows, other=0.0)
        rstd_i = tl.load(rstd + rows, mask=rows < num_rows, other=0.0)
        x_hat = tl.where(inside, (x - mu[:, None]) * rstd_i[:, None], 0.0)
        d_weight_acc += tl.sum(upstream * x_hat, axis=0)
        grad_x_hat = upstream * weights[None, :]
        mean_dot = tl.sum(grad_x_hat * x_hat, axis=1) / width
        mean_grad = tl.sum(grad_x_hat, axis=1) / width
        grad = (grad_x_hat - mean_grad[:, None] - x_hat * mean_dot[:, None]) * rstd_i[:, None]
        grad += tl.load(d_total + offsets, mask=inside, other=0.0).to(tl.float32)
        tl.store(d_residual + offsets, grad.to(d_residual.dtype.element_ty), mask=inside)
        if SEPARATE_X:
            if DROP:
                grad *= _dropout_mask(offsets, dropout, seed)
            tl.store(d_x + offsets, grad.to(d_x.dtype.element_ty), mask=inside)
    tl.store(d_weight + tl.program_id(0) * width + columns, d_weight_acc, mask=columns < width)


class _Geglu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, both: Tensor) -> Tensor:  # type: ignore[override]
        both = both.contiguous()
        num_rows, feed = both.shape[0], both.shape[1] // 2
        out = torch.empty(num_rows, feed, dtype=both.dtype, device=both.device)
        grid = (triton.cdiv(num_rows, _GATE_ROWS), triton.cdiv(feed, _GATE_COLUMNS))
        _geglu_kernel[grid](both, out, num_rows, feed, ROWS=_GATE_ROWS, COLUMNS=_GATE_COLUMNS, num_warps=4)
        ctx.save_for_backward(both)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> Tensor:  # type: ignore[override]
        (both,) = ctx.saved_tensors
        num_rows, feed = both.shape[0], both.shape[1] // 2
        grad_both = torch.empty_like(both)
        grid = (triton.cdiv(num_rows, _GATE_ROWS), triton.cdiv(feed, _GATE_COLUMNS))
        _geglu_backward_kernel[grid](
            both, upstream.contiguous(), grad_both, num_rows, feed, ROWS=_GATE_ROWS, COLUMNS=_GATE_COLUMNS, num_warps=4
        )
        return grad_both


@triton.jit
def _offsets(num_rows, feed, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    starts = rows.to(tl.int64)[:, None] * feed
    # The first half of each row is activated, the second half is the gate.
    return starts + columns[None, :], 2 * starts + columns[None, :], (rows < num_rows)[:, None] & (columns < feed)[None]


@triton.jit(do_not_specialize=["num_rows"])
def _geglu_kernel(both, out, num_rows, feed, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    out_offsets, in_offsets, inside = _offsets(num_rows, feed, ROWS, COLUMNS)
    x = tl.load(both + in_offsets, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(both + in_offsets + feed, mask=inside, other=0.0).to(tl.float32)
    cdf = 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))
    tl.store(out + out_offsets, (x * cdf * gate).to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["num_rows"])
def _geglu_backward_kernel(both, upstream, grad_both, num_rows, feed, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    out_offsets, in_offsets, inside = _offsets(num_rows, feed, ROWS, COLUMNS)
    x = tl.load(both + in_offsets, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(both + in_offsets + feed, mask=inside, other=0.0).to(tl.float32)
    grad_out = tl.load(upstream + out_offsets, mask=inside, other=0.0).to(tl.float32)
    cdf = 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))
    density = 0.3989422804014327 * tl.exp(-0.5 * x * x)
    dtype = grad_both.dtype.element_ty
    tl.store(grad_both + in_offsets, (grad_out * gate * (cdf + x * density)).to(dtype), mask=inside)
    tl.store(grad_both + in_offsets + feed, (grad_out * x * cdf).to(dtype), mask=inside)
