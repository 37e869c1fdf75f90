"""Attention over the packed stream with a range of keys per query, as in local layers; RoPE is applied in place first.

Blocks of queries are cut from the stream regardless of documents. A block iterates over the union of its queries'
ranges: with 64 tokens to each side, at most 192 keys for 64 queries, however many short documents there are.
FlashAttention starts a block per document and computes more.

The mask is symmetric, so the backward pass over keys reuses the forward ranges.

Source: FlashAttention-2 (Dao 2023), with online softmax in base 2.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int32
from torch import Tensor
from torch.autograd.function import once_differentiable

from modernbert.batch import SequenceLengths
from modernbert.engines.cuda.rope_kernels import apply_rope_, inverse_rope

__all__ = ["attend", "key_ranges"]

Window = tuple[int, int] | None
Ranges = tuple[Int32[Tensor, " T"], Int32[Tensor, " T"]]

# Rows of a block, and of one step over the other operand: the fastest of those tried on an H200.
_BLOCK, _STEP, _STEP_BACK = 64, 64, 32


def key_ranges(lengths: SequenceLengths, window: Window) -> Ranges:
    """Return for each token the first key it attends to and one past the last, as rows of the stream."""
    doc_ids = lengths.doc_ids()
    firsts, lasts = lengths.cu_seqlens[:-1][doc_ids], lengths.cu_seqlens[1:][doc_ids]
    if window is None:
        return firsts, lasts
    rows = firsts + lengths.positions
    return torch.maximum(firsts, rows - window[0]), torch.minimum(lasts, rows + window[1] + 1)


def attend(
    qkv: Float[Tensor, "T 3 H K"], cosines: Float[Tensor, "T K2"], sines: Float[Tensor, "T K2"], ranges: Ranges
) -> Float[Tensor, "T H K"]:
    """Apply RoPE to queries and keys in place, and attend; a token attends to its range, and the mask is symmetric."""
    return _Attend.apply(qkv, cosines, sines, *ranges)  # type: ignore[no-any-return]


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, qkv: Tensor, cosines: Tensor, sines: Tensor, first: Tensor, last: Tensor
    ) -> Tensor:
        qkv = qkv.detach().contiguous()
        apply_rope_(qkv, cosines, sines)
        num_tokens, _, num_heads, width = qkv.shape
        attn_out = torch.empty(num_tokens, num_heads, width, dtype=qkv.dtype, device=qkv.device)
        lse = torch.empty(num_heads, num_tokens, dtype=torch.float32, device=qkv.device)
        _forward_kernel[triton.cdiv(num_tokens, _BLOCK), num_heads](
            qkv, attn_out, lse, first, last, num_tokens, num_heads, 1 / (math.sqrt(width) * math.log(2)),
            WIDTH=width, BLOCK=_BLOCK, STEP=_STEP, num_warps=4, num_stages=3,
        )  # fmt: skip
        ctx.save_for_backward(qkv, attn_out, lse, cosines, sines, first, last)
        return attn_out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        qkv, attn_out, lse, cosines, sines, first, last = ctx.saved_tensors
        num_tokens, _, num_heads, width = qkv.shape
        grad_out = grad_out.contiguous()
        grad_qkv, delta = torch.empty_like(qkv), torch.empty_like(lse)
        scale = 1 / math.sqrt(width)
        grid = (triton.cdiv(num_tokens, _BLOCK), num_heads)
        shared = (lse, delta, grad_qkv, cosines, sines, first, last, num_tokens, num_heads, scale, scale / math.log(2))
        options = {"WIDTH": width, "BLOCK": _BLOCK, "STEP": _STEP_BACK, "num_warps": 4, "num_stages": 3}
        _backward_queries_kernel[grid](qkv, attn_out, grad_out, *shared, **options)
        _backward_keys_kernel[grid](qkv, grad_out, *shared, **options)
        return grad_qkv, None, None, None, None


@triton.jit
def _load_rows(base, rows, inside, stride, WIDTH: tl.constexpr):
    offsets = rows.to(tl.int64)[:, None] * stride + tl.arange(0, WIDTH)[None, :]
    return tl.load(base + offsets, mask=inside[:, None], other=0.0)


@triton.jit
def _locate(first, last, num_tokens, BLOCK: tl.constexpr, STEP: tl.constexpr):
    """Return this program's head, rows and mask, each row's range, and the union of the ranges, whose ends ascend."""
    start = tl.program_id(0) * BLOCK
    rows = start + tl.arange(0, BLOCK)
    inside = rows < num_tokens
    low = tl.load(first + rows, mask=inside, other=0)
    high = tl.load(last + rows, mask=inside, other=0)
    begin = tl.load(first + start) // STEP * STEP
    end = tl.load(last + tl.minimum(start + BLOCK, num_tokens) - 1)
    return tl.program_id(1), rows, inside, low, high, begin, end


@triton.jit
def _is_visible(columns, low, high):
    return (columns[None, :] >= low[:, None]) & (columns[None, :] < high[:, None])


@triton.jit
def _store_inverse_rope(base, grad, rows, inside, stride, cosines, sines, WIDTH: tl.constexpr):
    """Store the gradient before RoPE, given the gradient after it."""
    half: tl.constexpr = WIDTH // 2
    columns = tl.arange(0, half)
    halves = tl.permute(tl.reshape(grad, (grad.shape[0], 2, half)), (0, 2, 1))
    x, y = tl.split(halves)
    first, second = inverse_rope(x, y, cosines, sines, rows[:, None] * half + columns[None, :], inside[:, None])
    offsets = rows.to(tl.int64)[:, None] * stride + columns[None, :]
    dtype = base.dtype.element_ty
    tl.store(base + offsets, first.to(dtype), mask=inside[:, None])
    tl.store(base + offsets + half, second.to(dtype), mask=inside[:, None])


@triton.jit(do_not_specialize=["num_tokens"])
def _forward_kernel(
    qkv, attn_out, lse, first, last, num_tokens, num_heads, scale,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    head, rows, inside, low, high, begin, end = _locate(first, last, num_tokens, BLOCK, STEP)
    stride = 3 * num_heads * WIDTH
    keys, values = qkv + (num_heads + head) * WIDTH, qkv + (2 * num_heads + head) * WIDTH
    query = _load_rows(qkv + head * WIDTH, rows, inside, stride, WIDTH)
    m_i = tl.full((BLOCK,), -1e30, dtype=tl.float32)
    l_i = tl.zeros((BLOCK,), dtype=tl.float32)
    acc = tl.zeros((BLOCK, WIDTH), dtype=tl.float32)
    for at in range(begin, end, STEP):
        columns = at + tl.arange(0, STEP)
        in_stream = columns < num_tokens
        key = _load_rows(keys, columns, in_stream, stride, WIDTH)
        scores = tl.dot(query, tl.trans(key)) * scale
        visible = _is_visible(columns, low, high)
        scores = tl.where(visible, scores, -1e30)
        m_new = tl.maximum(m_i, tl.max(scores, axis=1))
        weights = tl.where(visible, tl.exp2(scores - m_new[:, None]), 0.0)
        rescale = tl.exp2(m_i - m_new)
        l_i = l_i * rescale + tl.sum(weights, axis=1)
        value = _load_rows(values, columns, in_stream, stride, WIDTH)
        acc = acc * rescale[:, None] + tl.dot(weights.to(value.dtype), value)
        m_i = m_new
    l_i = tl.where(inside, l_i, 1.0)
    offsets = (rows.to(tl.int64) * num_heads + head)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    tl.store(attn_out + offsets, (acc / l_i[:, None]).to(attn_out.dtype.element_ty), mask=inside[:, None])
    tl.store(lse + head * num_tokens + rows, m_i + tl.log2(l_i), mask=inside)


@triton.jit(do_not_specialize=["num_tokens"])
def _backward_keys_kernel(
    qkv, grad_out, lse, delta, grad_qkv, cosines, sines, first, last, num_tokens, num_heads, scale, scale2,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Iterate over the queries that attend to a block of keys; store the gradients of keys and values."""
    head, rows, inside, low, high, begin, end = _locate(first, last, num_tokens, BLOCK, STEP)
    stride = 3 * num_heads * WIDTH
    key = _load_rows(qkv + (num_heads + head) * WIDTH, rows, inside, stride, WIDTH)
    value = _load_rows(qkv + (2 * num_heads + head) * WIDTH, rows, inside, stride, WIDTH)
    d_key = tl.zeros((BLOCK, WIDTH), dtype=tl.float32)
    d_value = tl.zeros((BLOCK, WIDTH), dtype=tl.float32)
    for at in range(begin, end, STEP):
        columns = at + tl.arange(0, STEP)
        in_stream = columns < num_tokens
        query = _load_rows(qkv + head * WIDTH, columns, in_stream, stride, WIDTH)
        d_out = _load_rows(grad_out + head * WIDTH, columns, in_stream, num_heads * WIDTH, WIDTH)
        lse_i = tl.load(lse + head * num_tokens + columns, mask=in_stream, other=0.0)
        delta_i = tl.load(delta + head * num_tokens + columns, mask=in_stream, other=0.0)
        visible = _is_visible(columns, low, high)
        weights = tl.where(visible, tl.exp2(tl.dot(key, tl.trans(query)) * scale2 - lse_i[None, :]), 0.0)
        d_value += tl.dot(weights.to(d_out.dtype), d_out)
        d_scores = weights * (tl.dot(value, tl.trans(d_out)) - delta_i[None, :])
        d_key += tl.dot(d_scores.to(query.dtype), query)
    _store_inverse_rope(
        grad_qkv + (num_heads + head) * WIDTH, d_key * scale, rows, inside, stride, cosines, sines, WIDTH
    )
    offsets = rows.to(tl.int64)[:, None] * stride + tl.arange(0, WIDTH)[None, :]
    base = grad_qkv + (2 * num_heads + head) * WIDTH
    tl.store(base + offsets, d_value.to(grad_qkv.dtype.element_ty), mask=inside[:, None])


@triton.jit(do_not_specialize=["num_tokens"])
def _backward_queries_kernel(
    qkv, attn_out, grad_out, lse, delta, grad_qkv, cosines, sines, first, last, num_tokens, num_heads, scale, scale2,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Iterate over the keys of a block of queries; store the gradient of queries, and delta."""
    head, rows, inside, low, high, begin, end = _locate(first, last, num_tokens, BLOCK, STEP)
    stride = 3 * num_heads * WIDTH
    query = _load_rows(qkv + head * WIDTH, rows, inside, stride, WIDTH)
    d_out = _load_rows(grad_out + head * WIDTH, rows, inside, num_heads * WIDTH, WIDTH)
    lse_i = tl.load(lse + head * num_tokens + rows, mask=inside, other=0.0)
    out = _load_rows(attn_out + head * WIDTH, rows, inside, num_heads * WIDTH, WIDTH)
    delta_i = tl.sum(out.to(tl.float32) * d_out.to(tl.float32), axis=1)
    tl.store(delta + head * num_tokens + rows, delta_i, mask=inside)
    d_query = tl.zeros((BLOCK, WIDTH), dtype=tl.float32)
    for at in range(begin, end, STEP):
        columns = at + tl.arange(0, STEP)
        in_stream = columns < num_tokens
        key = _load_rows(qkv + (num_heads + head) * WIDTH, columns, in_stream, stride, WIDTH)
        value = _load_rows(qkv + (2 * num_heads + head) * WIDTH, columns, in_stream, stride, WIDTH)
        visible = _is_visible(columns, low, high)
        weights = tl.where(visible, tl.exp2(tl.dot(query, tl.trans(key)) * scale2 - lse_i[:, None]), 0.0)
        d_scores = weights * (tl.dot(d_out, tl.trans(value)) - delta_i[:, None])
        d_query += tl.dot(d_scores.to(key.dtype), key)
    _store_inverse_rope(grad_qkv + head * WIDTH, d_query * scale, rows, inside, stride, cosines, sines, WIDTH)
