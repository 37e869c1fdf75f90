"""Attention over a flat stream, each query over a range of keys: in local layers a few of its neighbours.

In: queries, keys and values [T, 3, H, K] as they leave their projection, and the range of keys that each token sees.
Out: [T, H, K]. Queries go in blocks of the stream, whatever documents they are of: a block passes over the keys that
any of its queries sees, which in a window of 64 to each side are no more than 192 for 64 queries, however many short
documents there are. Flash kernels begin anew for each document, and pass over more of them.

Who sees whom is mutual, so the way back reads the same ranges from the side of the keys. Source: FlashAttention 2 (Dao
2023), online softmax in powers of two; the turn by rotary positions happens in the same memory before (`rotary`).
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int32
from torch import Tensor
from torch.autograd.function import once_differentiable

from modernbert.kernels.rotary import turn_, turned_back
from modernbert.ragged import Layout

__all__ = ["attend", "ranges"]

Window = tuple[int, int] | None
Ranges = tuple[Int32[Tensor, " T"], Int32[Tensor, " T"]]

# Rows of a block, and of those that it passes over in a step; as fast as any that was tried on an H200.
_BLOCK, _STEP, _STEP_BACK = 64, 64, 32


def ranges(layout: Layout, window: Window) -> Ranges:
    """Return for each token the first key it sees, and the one behind the last, as rows of the stream."""
    documents = layout.doc_ids()
    firsts, lasts = layout.cu_seqlens[:-1][documents], layout.cu_seqlens[1:][documents]
    if window is None:
        return firsts, lasts
    here = firsts + layout.positions
    return torch.maximum(firsts, here - window[0]), torch.minimum(lasts, here + window[1] + 1)


def attend(
    qkv: Float[Tensor, "T 3 H K"], cosines: Float[Tensor, "T K2"], sines: Float[Tensor, "T K2"], seen: Ranges
) -> Float[Tensor, "T H K"]:
    """Turn queries and keys in place, and attend; each token sees a range, and is seen by the tokens in it."""
    return _Attend.apply(qkv, cosines, sines, *seen)  # type: ignore[no-any-return]


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, qkv: Tensor, cosines: Tensor, sines: Tensor, first: Tensor, last: Tensor
    ) -> Tensor:
        qkv = qkv.detach().contiguous()
        turn_(qkv, cosines, sines)
        num_tokens, _, num_heads, width = qkv.shape
        mixed = torch.empty(num_tokens, num_heads, width, dtype=qkv.dtype, device=qkv.device)
        sums = torch.empty(num_heads, num_tokens, dtype=torch.float32, device=qkv.device)
        _forward_kernel[triton.cdiv(num_tokens, _BLOCK), num_heads](
            qkv, mixed, sums, first, last, num_tokens, num_heads, 1 / (math.sqrt(width) * math.log(2)),
            WIDTH=width, BLOCK=_BLOCK, STEP=_STEP, num_warps=4, num_stages=3,
        )  # fmt: skip
        ctx.save_for_backward(qkv, mixed, sums, cosines, sines, first, last)
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        qkv, mixed, sums, cosines, sines, first, last = ctx.saved_tensors
        num_tokens, _, num_heads, width = qkv.shape
        upstream = upstream.contiguous()
        slopes, along = torch.empty_like(qkv), torch.empty_like(sums)
        scale = 1 / math.sqrt(width)
        grid = (triton.cdiv(num_tokens, _BLOCK), num_heads)
        options = {"WIDTH": width, "BLOCK": _BLOCK, "STEP": _STEP_BACK, "num_warps": 4, "num_stages": 3}
        _queries_back_kernel[grid](
            qkv, mixed, upstream, sums, along, slopes, cosines, sines, first, last, num_tokens, num_heads, scale,
            scale / math.log(2), **options,
        )  # fmt: skip
        _keys_back_kernel[grid](
            qkv, upstream, sums, along, slopes, cosines, sines, first, last, num_tokens, num_heads, scale,
            scale / math.log(2), **options,
        )  # fmt: skip
        return slopes, None, None, None, None


@triton.jit
def _rows_of(base, rows, inside, stride, WIDTH: tl.constexpr):
    places = rows.to(tl.int64)[:, None] * stride + tl.arange(0, WIDTH)[None, :]
    return tl.load(base + places, mask=inside[:, None], other=0.0)


@triton.jit
def _ranges_of(first, last, start, rows, inside, num_tokens, BLOCK: tl.constexpr, STEP: tl.constexpr):
    """Return what each row of a block sees, and where to pass over: ranges grow along the stream, so those of the ends
    bound those between.
    """
    low = tl.load(first + rows, mask=inside, other=0)
    high = tl.load(last + rows, mask=inside, other=0)
    begin = tl.load(first + start) // STEP * STEP
    end = tl.load(last + tl.minimum(start + BLOCK, num_tokens) - 1)
    return low, high, begin, end


@triton.jit
def _store_turned_back(base, slopes, rows, inside, stride, cosines, sines, WIDTH: tl.constexpr):
    """Write the gradient of what was turned as that of what it was before."""
    half: tl.constexpr = WIDTH // 2
    columns = tl.arange(0, half)
    apart = tl.permute(tl.reshape(slopes, (slopes.shape[0], 2, half)), (0, 2, 1))
    x, y = tl.split(apart)
    first, second = turned_back(x, y, cosines, sines, rows[:, None] * half + columns[None, :], inside[:, None])
    places = rows.to(tl.int64)[:, None] * stride + columns[None, :]
    kind = base.dtype.element_ty
    tl.store(base + places, first.to(kind), mask=inside[:, None])
    tl.store(base + places + half, second.to(kind), mask=inside[:, None])


@triton.jit(do_not_specialize=["num_tokens"])
def _forward_kernel(
    qkv, mixed, sums, first, last, num_tokens, num_heads, scale,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1)
    start = tl.program_id(0) * BLOCK
    rows = start + tl.arange(0, BLOCK)
    inside = rows < num_tokens
    stride = 3 * num_heads * WIDTH
    keys, values = qkv + (num_heads + head) * WIDTH, qkv + (2 * num_heads + head) * WIDTH
    query = _rows_of(qkv + head * WIDTH, rows, inside, stride, WIDTH)
    low, high, begin, end = _ranges_of(first, last, start, rows, inside, num_tokens, BLOCK, STEP)
    peak = tl.full((BLOCK,), -1e30, dtype=tl.float32)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    gathered = tl.zeros((BLOCK, WIDTH), dtype=tl.float32)
    for at in range(begin, end, STEP):
        columns = at + tl.arange(0, STEP)
        there = columns < num_tokens
        key = _rows_of(keys, columns, there, stride, WIDTH)
        scores = tl.dot(query, tl.trans(key)) * scale
        visible = (columns[None, :] >= low[:, None]) & (columns[None, :] < high[:, None])
        scores = tl.where(visible, scores, -1e30)
        higher = tl.maximum(peak, tl.max(scores, axis=1))
        weights = tl.where(visible, tl.exp2(scores - higher[:, None]), 0.0)
        shrink = tl.exp2(peak - higher)
        total = total * shrink + tl.sum(weights, axis=1)
        value = _rows_of(values, columns, there, stride, WIDTH)
        gathered = gathered * shrink[:, None] + tl.dot(weights.to(value.dtype), value)
        peak = higher
    total = tl.where(inside, total, 1.0)
    places = (rows.to(tl.int64) * num_heads + head)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    tl.store(mixed + places, (gathered / total[:, None]).to(mixed.dtype.element_ty), mask=inside[:, None])
    tl.store(sums + head * num_tokens + rows, peak + tl.log2(total), mask=inside)


@triton.jit(do_not_specialize=["num_tokens"])
def _keys_back_kernel(
    qkv, upstream, sums, along, slopes, cosines, sines, first, last, num_tokens, num_heads, scale, scale2,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Go over the queries that see a block of keys; write the gradients of keys and values."""
    head = tl.program_id(1)
    start = tl.program_id(0) * BLOCK
    rows = start + tl.arange(0, BLOCK)
    inside = rows < num_tokens
    stride = 3 * num_heads * WIDTH
    key = _rows_of(qkv + (num_heads + head) * WIDTH, rows, inside, stride, WIDTH)
    value = _rows_of(qkv + (2 * num_heads + head) * WIDTH, rows, inside, stride, WIDTH)
    low, high, begin, end = _ranges_of(first, last, start, rows, inside, num_tokens, BLOCK, STEP)
    d_key = tl.zeros((BLOCK, WIDTH), dtype=tl.float32)
    d_value = tl.zeros((BLOCK, WIDTH), dtype=tl.float32)
    for at in range(begin, end, STEP):
        columns = at + tl.arange(0, STEP)
        there = columns < num_tokens
        query = _rows_of(qkv + head * WIDTH, columns, there, stride, WIDTH)
        given = _rows_of(upstream + head * WIDTH, columns, there, num_heads * WIDTH, WIDTH)
        total = tl.load(sums + head * num_tokens + columns, mask=there, other=0.0)
        level = tl.load(along + head * num_tokens + columns, mask=there, other=0.0)
        visible = (columns[None, :] >= low[:, None]) & (columns[None, :] < high[:, None])
        weights = tl.where(visible, tl.exp2(tl.dot(key, tl.trans(query)) * scale2 - total[None, :]), 0.0)
        d_value += tl.dot(weights.to(given.dtype), given)
        d_scores = weights * (tl.dot(value, tl.trans(given)) - level[None, :])
        d_key += tl.dot(d_scores.to(query.dtype), query)
    _store_turned_back(slopes + (num_heads + head) * WIDTH, d_key * scale, rows, inside, stride, cosines, sines, WIDTH)
    places = rows.to(tl.int64)[:, None] * stride + tl.arange(0, WIDTH)[None, :]
    base = slopes + (2 * num_heads + head) * WIDTH
    tl.store(base + places, d_value.to(slopes.dtype.element_ty), mask=inside[:, None])


@triton.jit(do_not_specialize=["num_tokens"])
def _queries_back_kernel(
    qkv, mixed, upstream, sums, along, slopes, cosines, sines, first, last, num_tokens, num_heads, scale, scale2,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Go over the keys that a block of queries sees; write the gradients of queries, and what the keys' side needs."""
    head = tl.program_id(1)
    start = tl.program_id(0) * BLOCK
    rows = start + tl.arange(0, BLOCK)
    inside = rows < num_tokens
    stride = 3 * num_heads * WIDTH
    query = _rows_of(qkv + head * WIDTH, rows, inside, stride, WIDTH)
    given = _rows_of(upstream + head * WIDTH, rows, inside, num_heads * WIDTH, WIDTH)
    total = tl.load(sums + head * num_tokens + rows, mask=inside, other=0.0)
    outcome = _rows_of(mixed + head * WIDTH, rows, inside, num_heads * WIDTH, WIDTH)
    level = tl.sum(outcome.to(tl.float32) * given.to(tl.float32), axis=1)
    tl.store(along + head * num_tokens + rows, level, mask=inside)
    low, high, begin, end = _ranges_of(first, last, start, rows, inside, num_tokens, BLOCK, STEP)
    d_query = tl.zeros((BLOCK, WIDTH), dtype=tl.float32)
    for at in range(begin, end, STEP):
        columns = at + tl.arange(0, STEP)
        there = columns < num_tokens
        key = _rows_of(qkv + (num_heads + head) * WIDTH, columns, there, stride, WIDTH)
        value = _rows_of(qkv + (2 * num_heads + head) * WIDTH, columns, there, stride, WIDTH)
        visible = (columns[None, :] >= low[:, None]) & (columns[None, :] < high[:, None])
        weights = tl.where(visible, tl.exp2(tl.dot(query, tl.trans(key)) * scale2 - total[:, None]), 0.0)
        d_scores = weights * (tl.dot(given, tl.trans(value)) - level[:, None])
        d_query += tl.dot(d_scores.to(key.dtype), key)
    _store_turned_back(slopes + head * WIDTH, d_query * scale, rows, inside, stride, cosines, sines, WIDTH)
