"""RoPE, applied in place to the queries and keys of the fused projection [T, 3, H, K].

A rotation needs no saved input: its backward pass is the inverse rotation of the gradients.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["apply_rope_", "inverse_rope", "split_rotated_qkv"]

_ROWS = 64


def apply_rope_(qkv: Float[Tensor, "T 3 H K"], cosines: Float[Tensor, "T K2"], sines: Float[Tensor, "T K2"]) -> None:
    """Apply RoPE to queries and keys in place, and bump the version counter for autograd."""
    num_tokens, _, num_heads, width = qkv.shape
    grid = (triton.cdiv(num_tokens * 2 * num_heads, _ROWS),)
    _rope_kernel[grid](
        qkv, cosines, sines, num_tokens * 2 * num_heads, 2 * num_heads, 3 * num_heads,
        HALF=width // 2, ROWS=_ROWS, num_warps=4,
    )  # fmt: skip
    if not qkv.is_inference():
        torch.autograd.graph.increment_version(qkv)


def split_rotated_qkv(
    qkv: Float[Tensor, "T 3 H K"], cosines: Float[Tensor, "T K2"], sines: Float[Tensor, "T K2"]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return rotated queries, rotated keys, and values, [T, H, K] each: views of `qkv`, part is rotated in place."""
    return _SplitRotatedQkv.apply(qkv, cosines, sines)  # type: ignore[no-any-return]


class _SplitRotatedQkv(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, qkv: Tensor, cosines: Tensor, sines: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(cosines, sines)
        rotated = qkv.detach().contiguous()
        apply_rope_(rotated, cosines, sines)
        return rotated[:, 0], rotated[:, 1], rotated[:, 2]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        cosines, sines = ctx.saved_tensors
        dq, dk, dv = (each.contiguous() for each in upstream)
        num_tokens, num_heads, width = dq.shape
        grad_qkv = torch.empty(num_tokens, 3, num_heads, width, dtype=dq.dtype, device=dq.device)
        num_rows = num_tokens * num_heads
        _backward_kernel[triton.cdiv(num_rows, _ROWS), 3](
            dq, dk, dv, grad_qkv, cosines, sines, num_rows, num_heads, HALF=width // 2, ROWS=_ROWS, num_warps=4
        )
        return grad_qkv, None, None


@triton.jit(do_not_specialize=["num_rows"])
def _rope_kernel(
    qkv, cosines, sines, num_rows, rotated_heads, all_heads, HALF: tl.constexpr, ROWS: tl.constexpr
):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, HALF)
    inside = (rows < num_rows)[:, None]
    tokens = rows // rotated_heads
    offsets = (tokens.to(tl.int64) * all_heads + rows % rotated_heads)[:, None] * 2 * HALF + columns[None, :]
    angles = tokens[:, None] * HALF + columns[None, :]
    cosine = tl.load(cosines + angles, mask=inside, other=0.0)
    sine = tl.load(sines + angles, mask=inside, other=0.0)
    x = tl.load(qkv + offsets, mask=inside, other=0.0).to(tl.float32)
    y = tl.load(qkv + offsets + HALF, mask=inside, other=0.0).to(tl.float32)
    dtype = qkv.dtype.element_ty
    tl.store(qkv + offsets, (x * cosine - y * sine).to(dtype), mask=inside)
    tl.store(qkv + offsets + HALF, (y * cosine + x * sine).to(dtype), mask=inside)


@triton.jit
def inverse_rope(x, y, cosines, sines, angles, inside):
    """Rotate the two halves of some rows by the negative angle."""
    cosine = tl.load(cosines + angles, mask=inside, other=0.0)
    sine = tl.load(sines + angles, mask=inside, other=0.0)
    return x * cosine + y * sine, y * cosine - x * sine


@triton.jit(do_not_specialize=["num_rows"])
def _backward_kernel(
    dq, dk, dv, grad_qkv, cosines, sines, num_rows, num_heads, HALF: tl.constexpr, ROWS: tl.constexpr
):  # fmt: skip
    part = tl.program_id(1)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, HALF)
    inside = (rows < num_rows)[:, None]
    source_offsets = rows.to(tl.int64)[:, None] * 2 * HALF + columns[None, :]
    tokens = rows // num_heads
    source = dq
    if part == 1:
        source = dk
    if part == 2:
        source = dv
    x = tl.load(source + source_offsets, mask=inside, other=0.0).to(tl.float32)
    y = tl.load(source + source_offsets + HALF, mask=inside, other=0.0).to(tl.float32)
    first, second = x, y
    if part < 2:
        first, second = inverse_rope(x, y, cosines, sines, tokens[:, None] * HALF + columns[None, :], inside)
    offsets = ((tokens.to(tl.int64) * 3 + part) * num_heads + rows % num_heads)[:, None] * 2 * HALF + columns[None, :]
    dtype = grad_qkv.dtype.element_ty
    tl.store(grad_qkv + offsets, first.to(dtype), mask=inside)
    tl.store(grad_qkv + offsets + HALF, second.to(dtype), mask=inside)
