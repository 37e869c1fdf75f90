"""Rotary positions where queries and keys lie: the projection's output is turned in place.

In: queries, keys and values [T, 3, H, K] side by side, cosines and sines [T, K/2]. Out: the same memory, or on the way
back three gradients in one piece. A turn has no need of what it turned: the way back is the turn the other way.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["apart", "turn_", "turned_back"]

_ROWS = 64


def turn_(qkv: Float[Tensor, "T 3 H K"], cosines: Float[Tensor, "T K2"], sines: Float[Tensor, "T K2"]) -> None:
    """Turn queries and keys in place; autograd is told that their memory is written."""
    num_tokens, _, num_heads, width = qkv.shape
    grid = (triton.cdiv(num_tokens * 2 * num_heads, _ROWS),)
    _turn_kernel[grid](
        qkv, cosines, sines, num_tokens * 2 * num_heads, 2 * num_heads, 3 * num_heads,
        HALF=width // 2, ROWS=_ROWS, num_warps=4,
    )  # fmt: skip
    if not qkv.is_inference():
        torch.autograd.graph.increment_version(qkv)


def apart(
    qkv: Float[Tensor, "T 3 H K"], cosines: Float[Tensor, "T K2"], sines: Float[Tensor, "T K2"]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries and keys, turned, and values, [T, H, K] each: views of what is given, which is turned itself."""
    return _Apart.apply(qkv, cosines, sines)  # type: ignore[no-any-return]


class _Apart(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, qkv: Tensor, cosines: Tensor, sines: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(cosines, sines)
        turned = qkv.detach().contiguous()
        turn_(turned, cosines, sines)
        return turned[:, 0], turned[:, 1], turned[:, 2]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        cosines, sines = ctx.saved_tensors
        dq, dk, dv = (each.contiguous() for each in upstream)
        num_tokens, num_heads, width = dq.shape
        slopes = torch.empty(num_tokens, 3, num_heads, width, dtype=dq.dtype, device=dq.device)
        num_rows = num_tokens * num_heads
        _gather_kernel[triton.cdiv(num_rows, _ROWS), 3](
            dq, dk, dv, slopes, cosines, sines, num_rows, num_heads, HALF=width // 2, ROWS=_ROWS, num_warps=4
        )
        return slopes, None, None


@triton.jit(do_not_specialize=["num_rows"])
def _turn_kernel(
    qkv, cosines, sines, num_rows, turned_heads, all_heads, HALF: tl.constexpr, ROWS: tl.constexpr
):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, HALF)
    inside = (rows < num_rows)[:, None]
    tokens = rows // turned_heads
    places = (tokens.to(tl.int64) * all_heads + rows % turned_heads)[:, None] * 2 * HALF + columns[None, :]
    angles = tokens[:, None] * HALF + columns[None, :]
    cosine = tl.load(cosines + angles, mask=inside, other=0.0)
    sine = tl.load(sines + angles, mask=inside, other=0.0)
    x = tl.load(qkv + places, mask=inside, other=0.0).to(tl.float32)
    y = tl.load(qkv + places + HALF, mask=inside, other=0.0).to(tl.float32)
    kind = qkv.dtype.element_ty
    tl.store(qkv + places, (x * cosine - y * sine).to(kind), mask=inside)
    tl.store(qkv + places + HALF, (y * cosine + x * sine).to(kind), mask=inside)


@triton.jit
def turned_back(x, y, cosines, sines, angles, inside):
    """Turn the two halves of some rows the other way."""
    cosine = tl.load(cosines + angles, mask=inside, other=0.0)
    sine = tl.load(sines + angles, mask=inside, other=0.0)
    return x * cosine + y * sine, y * cosine - x * sine


@triton.jit(do_not_specialize=["num_rows"])
def _gather_kernel(
    dq, dk, dv, slopes, cosines, sines, num_rows, num_heads, HALF: tl.constexpr, ROWS: tl.constexpr
):  # fmt: skip
    which = tl.program_id(1)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, HALF)
    inside = (rows < num_rows)[:, None]
    given = rows.to(tl.int64)[:, None] * 2 * HALF + columns[None, :]
    tokens = rows // num_heads
    source = dq
    if which == 1:
        source = dk
    if which == 2:
        source = dv
    x = tl.load(source + given, mask=inside, other=0.0).to(tl.float32)
    y = tl.load(source + given + HALF, mask=inside, other=0.0).to(tl.float32)
    first, second = x, y
    if which < 2:
        first, second = turned_back(x, y, cosines, sines, tokens[:, None] * HALF + columns[None, :], inside)
    places = ((tokens.to(tl.int64) * 3 + which) * num_heads + rows % num_heads)[:, None] * 2 * HALF + columns[None, :]
    kind = slopes.dtype.element_ty
    tl.store(slopes + places, first.to(kind), mask=inside)
    tl.store(slopes + places + HALF, second.to(kind), mask=inside)
