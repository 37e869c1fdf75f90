"""The C++ functions as functions of tensors, gradients included.

Every function allocates its outputs and checks its inputs. Shapes and meaning of each C++ function are in its file.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int8, Int32, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable

from modernbert.engines.cpu.build import library
from modernbert.engines.cpu.checked_calls import (
    FLOAT32,
    FLOATS,
    HEAD_WIDTH,
    INT64,
    WIDTH_STEP,
    call,
    expect,
    expect_angles,
    expect_offsets,
    expect_whole_vectors,
    rows_per_block,
)

__all__ = [
    "PackedLayers", "apply_moments_", "attend", "cross_entropy_", "encode", "geglu", "linear", "multiply_",
    "pack_int8", "pack_weight", "residual_layer_norm", "unpack_weight", "update_moments_",
]  # fmt: skip

# Outputs of one GEMM panel.
PANEL = 64


@dataclass
class PackedLayers:
    """The weights of all layers of an encoder, as `encode` takes them.

    Args:
        weights: For each layer Wqkv, Wo, both halves of Wi, and the MLP's Wo, packed by `pack_weight` and all of one
            dtype, or by `pack_int8`; then the scales of its two norms, float32 [D].
        is_global: For each layer, whether it attends to whole documents.
    """

    weights: Sequence[Sequence[Tensor]]
    is_global: Sequence[bool]
    dtype: torch.dtype = field(init=False)
    table: Int64[Tensor, "layers 8"] = field(init=False)
    """The addresses of each layer's tensors, and whether it is global."""

    def __post_init__(self) -> None:
        """Raises: ValueError for a tensor of another dtype or layout."""
        self.dtype = self.weights[0][0].dtype
        for *packed, attn_norm, mlp_norm in self.weights:
            for each in packed:
                expect("packed weight", each, (self.dtype,), None, None, None, None)
            for each in (attn_norm, mlp_norm):
                expect("scale of a norm", each, FLOAT32, None)
        addresses = [
            [*(tensor.data_ptr() for tensor in layer), int(kind)]
            for layer, kind in zip(self.weights, self.is_global, strict=True)
        ]
        self.table = torch.tensor(addresses, dtype=torch.int64)


def attend(
    qkv: Float[Tensor, "T 3 H K"],
    cosines: Float[Tensor, "T half"],
    sines: Float[Tensor, "T half"],
    offsets: Int32[Tensor, " offsets"],
    window: tuple[int, int] | None,
) -> Float[Tensor, "T H K"]:
    """Rotate queries and keys, and attend within documents; K is 64.

    Raises: ValueError for tensors of another dtype, device, shape or layout.
    """
    num_tokens, _, num_heads, _ = qkv.shape
    qkv = qkv.contiguous()
    expect("qkv", qkv, FLOATS, num_tokens, 3, num_heads, HEAD_WIDTH)
    expect_angles(num_tokens, cosines, sines)
    expect_offsets(offsets, num_tokens)
    result: Tensor = _Attend.apply(qkv, cosines, sines, offsets, window or (-1, -1))
    return result


def encode(
    embedded: Float[Tensor, "T D"],
    layers: PackedLayers,
    final_norm: Float[Tensor, " D"],
    angles: Sequence[tuple[Float[Tensor, "T 1 half"], Float[Tensor, "T 1 half"]]],
    offsets: Int32[Tensor, " offsets"],
    window: tuple[int, int],
    *,
    num_heads: int,
    feed_width: int,
    eps: float,
) -> Float[Tensor, "T D"]:
    """Run all layers of an encoder on embeddings, without gradients.

    `angles` are cosines and sines of global and of local layers.

    Raises: ValueError for tensors of another dtype, device, shape or layout.
    """
    num_tokens, width = embedded.shape
    embedded = embedded.contiguous()
    dtypes = FLOATS if layers.dtype == torch.int8 else (layers.dtype,)
    expect("embeddings", embedded, dtypes, num_tokens, num_heads * HEAD_WIDTH)
    expect("scale of the final norm", final_norm, FLOAT32, width)
    angles = [tuple(part.flatten(1) for part in pair) for pair in angles]  # type: ignore[misc]
    for pair in angles:
        expect_angles(num_tokens, *pair)
    expect_offsets(offsets, num_tokens)
    num_rows = -(-num_tokens // WIDTH_STEP) * WIDTH_STEP
    out = torch.empty_like(embedded, memory_format=torch.contiguous_format)
    hidden = torch.empty(num_rows, width)
    qkv, attn_out = (embedded.new_empty(num_rows, number * width) for number in (3, 1))
    call(
        "encode", (embedded.dtype, layers.dtype), embedded, out, hidden, qkv, attn_out, layers.table, final_norm,
        *angles[0], *angles[1], offsets, len(offsets) - 1, num_tokens, len(layers.weights), width, feed_width,
        num_heads, *window, eps,
    )  # fmt: skip
    return out


def linear(rows: Float[Tensor, "T D_in"], weight: Float[Tensor, "D_out D_in"]) -> Float[Tensor, "T D_out"]:
    """Multiply rows by the weight of a linear layer, in the dtype of the rows; both widths are multiples of 64.

    The weight is float32 or has the dtype of the rows; its gradient has its own dtype and is accumulated in float32.

    Raises: ValueError for other shapes or types.
    """
    num_rows, depth = rows.shape
    expect("rows", rows, FLOATS, num_rows, depth, contiguous=False)
    expect("weight", weight, (torch.float32, rows.dtype), None, depth, contiguous=False)
    result: Tensor = _Linear.apply(rows, weight)
    return result


def pack_weight(
    matrix: Float[Tensor, "_ _"], dtype: torch.dtype | None = None, *, transposed: bool = False
) -> Float[Tensor, "panels groups width group"]:
    """Pack a matrix [k, n] as the right operand of a GEMM: in panels of columns, with pairs of bfloat16 rows adjacent.

    The width of a panel depends on the processor, and its rows are zero-padded to a multiple of 32. With `transposed`,
    the matrix is given as [n, k], like the weight of a linear layer.

    Raises: ValueError unless n is a multiple of 64 and, with `transposed`, k a multiple of 32.
    """
    dtype = dtype or matrix.dtype
    if dtype not in (torch.float32, torch.bfloat16) or matrix.dtype not in (torch.float32, dtype):
        raise ValueError(f"cannot pack {matrix.dtype} as {dtype}, expected float32 or bfloat16, not widened")
    expect("matrix", matrix, (torch.float32, dtype), None, None, contiguous=False)
    num_columns, depth = matrix.shape if transposed else matrix.shape[::-1]
    if num_columns % PANEL or (transposed and depth % 32):
        raise ValueError(f"a matrix of {depth} by {num_columns}, expected multiples of 32 and of {PANEL}")
    width, group = int(library().packed_width()), 4 // dtype.itemsize
    packed = matrix.new_empty(num_columns // width, _padded_depth(depth) // group, width, group, dtype=dtype)
    name = "pack_transposed" if transposed else "pack"
    call(name, (matrix.dtype, dtype), matrix.contiguous(), packed, num_columns, depth)
    return packed


def pack_int8(weight: Int8[Tensor, "n k"], scale: Float[Tensor, " n"]) -> Int8[Tensor, "panels groups width four"]:
    """Pack the weight and the scales of an int8 layer as the right operand of a GEMM: in panels of outputs.

    Four inputs of an output are adjacent. Behind the inputs of a panel are its scales, float32, and the offsets that
    cancel the unsigned zero of the left operand, int32.

    Raises: ValueError unless n and k are multiples of 64.
    """
    num_columns, depth = weight.shape
    expect("weight", weight, (torch.int8,), num_columns, depth)
    expect("scale", scale, FLOAT32, num_columns)
    if num_columns % PANEL or depth % 64:
        raise ValueError(f"an int8 weight of {depth} by {num_columns}, expected multiples of 64")
    width = int(library().packed_width())
    groups = weight.view(-1, width, depth // 4, 4).transpose(1, 2)
    offsets = weight.sum(dim=1, dtype=torch.int32) * -int(library().int8_zero())
    scales, zeros = (each.view(torch.int8).view(-1, 1, width, 4) for each in (scale, offsets))
    return torch.cat((groups, scales, zeros), dim=1)


def _padded_depth(depth: int) -> int:
    """Return the number of rows of packed panels: a multiple of the tile depth, at least one tile."""
    return -(-max(depth, 1) // 32) * 32


def unpack_weight(packed: Float[Tensor, "panels groups width group"]) -> Float[Tensor, "n k"]:
    """Return the weight [n, k] that `pack_weight` packed; k is a multiple of 32."""
    return packed.transpose(1, 2).flatten(2).flatten(0, 1)


def multiply_(
    out: Float[Tensor, "m n"],
    rows: Float[Tensor, "_ _"],
    packed: Float[Tensor, "panels groups width group"],
    *,
    transposed: bool = False,
    add: bool = False,
) -> Tensor:
    """Write the product of rows [m, k] and a packed matrix to `out`; with `add`, add it to `out`.

    With `transposed`, the rows are given as [k, m], and m is a multiple of 16.

    Raises: ValueError for shapes or dtypes that do not match.
    """
    num_rows, depth = rows.shape[::-1] if transposed else rows.shape
    shape = num_rows, packed.shape[0] * packed.shape[2]
    if (
        packed.shape[1] * packed.shape[3] != _padded_depth(depth)
        or out.shape != shape
        or (transposed and num_rows % 16)
    ):
        raise ValueError(f"{tuple(rows.shape)} times packed {tuple(packed.shape)} into {tuple(out.shape)}")
    expect("rows", rows, FLOATS, None, None, contiguous=False)
    expect("packed", packed, (rows.dtype,), None, None, None, None)
    expect("out", out, (torch.float32, rows.dtype), *shape)
    dtypes = out.dtype, rows.dtype
    call("multiply_rows", dtypes, rows.contiguous(), int(transposed), packed, out, *shape, depth, int(add))
    return out


def residual_layer_norm(
    residual: Float[Tensor, "T D"],
    x: Float[Tensor, "T D"],
    scale: Float[Tensor, " D"],
    eps: float,
    dropout: float = 0.0,
) -> tuple[Float[Tensor, "T D"], Float[Tensor, "T D"]]:
    """Return `residual + dropout(x)` in the dtype of `residual`, and its LayerNorm in the dtype of `x`.

    The seed of dropout comes from torch's generator. D is a multiple of 16.

    Raises: ValueError for tensors of another dtype, device or shape.
    """
    num_rows, width = residual.shape
    expect("residual", residual, FLOATS, num_rows, width, contiguous=False)
    # The residual stream never has fewer bits than the added rows.
    narrow = (torch.bfloat16,) if residual.dtype == torch.bfloat16 else FLOATS
    expect("x", x, narrow, num_rows, width, contiguous=False)
    expect("scale", scale, (torch.float32, torch.bfloat16, torch.float16), width, contiguous=False)
    expect_whole_vectors(width)
    seed = int(torch.randint(2**31, ())) if dropout else 0
    result: tuple[Tensor, Tensor] = _ResidualLayerNorm.apply(residual, x, scale, eps, (float(dropout), seed))
    return result


def geglu(both: Float[Tensor, "T twoF"]) -> Float[Tensor, "T F"]:
    """Return the exact GELU of the first half of each row times the second half; F is a multiple of 16.

    Raises: ValueError for a tensor of another dtype, device or shape.
    """
    expect("both", both, FLOATS, None, None, contiguous=False)
    expect_whole_vectors(both.shape[1] / 2)
    result: Tensor = _Geglu.apply(both)
    return result


def cross_entropy_(
    logits: Float[Tensor, "rows V"],
    bias: Float[Tensor, " V"],
    labels: Int64[Tensor, " rows"],
    grad_bias: Float[Tensor, " V"] | None,
) -> float:
    """Return the summed cross entropy of logits to which the bias is not yet added.

    With `grad_bias`, the logits are overwritten with their gradient, and the gradient of the bias is added to it.

    Raises: IndexError for a label outside the logits; ValueError for tensors of another dtype, device, shape
        or layout.
    """
    num_rows, width = logits.shape
    expect("logits", logits, FLOATS, num_rows, width)
    expect("bias", bias, (torch.float32, torch.bfloat16, torch.float16), width)
    expect("labels", labels, INT64, num_rows)
    if num_rows and not (0 <= int(labels.min()) and int(labels.max()) < width):
        raise IndexError(f"labels from {int(labels.min())} to {int(labels.max())}, expected 0 to {width - 1}")
    parts = None if grad_bias is None else torch.empty(-(-num_rows // rows_per_block()), width)
    loss = call("cross_entropy", (logits.dtype,), logits, bias.float(), labels, parts, num_rows, width)
    if grad_bias is not None and parts is not None:
        grad_bias += parts.sum(dim=0)
    return float(loss)


def update_moments_(
    gradients: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    betas: tuple[float, float],
    eps: float,
) -> Float[Tensor, " tensors"]:
    """Update the moments of float32 tensors; return each tensor's sum of (gradient / root of the second moment)^2.

    Raises: ValueError for tensors of another dtype, device or layout, or of different shapes.
    """
    beta1, beta2 = betas
    sums = []
    for grad, exp_avg, exp_avg_sq in zip(gradients, exp_avgs, exp_avg_sqs, strict=True):
        _expect_float32(grad.shape, grad=grad, exp_avg=exp_avg, exp_avg_sq=exp_avg_sq)
        rates = 1 - beta1, beta2, 1 - beta2
        sums.append(call("update_moments", (), grad, exp_avg, exp_avg_sq, grad.numel(), *rates, eps))
    return torch.tensor(sums, dtype=torch.float64)


def apply_moments_(
    weights: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    rates: Float[Tensor, " tensors"],
    decays: Float[Tensor, " tensors"],
    eps: float,
) -> None:
    """Scale each float32 weight by its decay, and subtract its rate times m / (sqrt(v) + eps).

    Raises: ValueError for tensors of another dtype, device or layout, or of different shapes.
    """
    tensors = zip(weights, exp_avgs, exp_avg_sqs, rates.tolist(), decays.tolist(), strict=True)
    for weight, exp_avg, exp_avg_sq, rate, decay in tensors:
        _expect_float32(weight.shape, weight=weight, exp_avg=exp_avg, exp_avg_sq=exp_avg_sq)
        call("apply_moments", (), weight, exp_avg, exp_avg_sq, weight.numel(), rate, decay, eps)


def _expect_float32(shape: torch.Size, **tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        expect(name, tensor, FLOAT32, *shape)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(rows, weight)
        return multiply_(rows.new_empty(len(rows), len(weight)), rows, pack_weight(weight, rows.dtype, transposed=True))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:  # type: ignore[override]
        rows, weight = ctx.saved_tensors
        grad_rows = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_rows = multiply_(rows.new_empty(rows.shape), grad, pack_weight(weight, rows.dtype))
        if ctx.needs_input_grad[1]:
            grad_weight = multiply_(weight.new_empty(weight.shape), grad, pack_weight(rows), transposed=True)
        return grad_rows, grad_weight


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, cosines: Tensor, sines: Tensor, offsets: Tensor, window: tuple[int, int]
    ) -> Tensor:
        num_tokens, _, num_heads, width = qkv.shape
        attn_out = qkv.new_empty(num_tokens, num_heads, width)
        lse = torch.empty(num_tokens, num_heads) if ctx.needs_input_grad[0] else None
        shape = (len(offsets) - 1, num_heads, *window)
        call("attend", (qkv.dtype, qkv.dtype), qkv, attn_out, lse, cosines, sines, offsets, *shape)
        ctx.save_for_backward(qkv, attn_out, lse, cosines, sines, offsets)
        ctx.shape = shape
        return attn_out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        qkv, attn_out, lse, *fixed = ctx.saved_tensors
        grad_qkv = torch.empty_like(qkv)
        call("attend_backward", (qkv.dtype,), qkv, attn_out, lse, grad.contiguous(), grad_qkv, *fixed, *ctx.shape)
        return grad_qkv, None, None, None, None


class _ResidualLayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, residual: Tensor, x: Tensor, scale: Tensor, eps: float, dropout: tuple[float, int]
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        residual, x = residual.contiguous(), x.contiguous()
        wide_scale, moments = scale.float().contiguous(), torch.empty(len(residual), 2)
        total, normed = torch.empty_like(residual), torch.empty_like(x)
        call(
            "residual_layer_norm", (residual.dtype, x.dtype), residual, x, wide_scale, eps, total, normed, moments,
            *dropout, *residual.shape,
        )  # fmt: skip
        ctx.save_for_backward(total, scale, wide_scale, moments)
        ctx.narrow, ctx.dropout = x.dtype, dropout
        return total, normed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor | None, grad_normed: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        total, scale, wide_scale, moments = ctx.saved_tensors
        if grad_normed is None:
            grad_normed = torch.zeros_like(total, dtype=ctx.narrow)
        grad_residual = torch.empty_like(total)
        # With one dtype and no dropout, both gradients are the same tensor.
        is_one = ctx.narrow == total.dtype and not ctx.dropout[0]
        grad_x = None if is_one else torch.empty_like(total, dtype=ctx.narrow)
        parts = torch.empty(-(-len(total) // rows_per_block()), total.shape[1])
        grad_total = None if grad_total is None else grad_total.contiguous()
        call(
            "residual_layer_norm_backward", (total.dtype, grad_normed.dtype), total, wide_scale, moments, grad_total,
            grad_normed.contiguous(), grad_residual, grad_x, parts, *ctx.dropout, *total.shape,
        )  # fmt: skip
        grad_scale = parts.sum(dim=0).to(scale.dtype)
        return grad_residual, grad_residual if grad_x is None else grad_x, grad_scale, None, None


class _Geglu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, both: Tensor) -> Tensor:
        both = both.contiguous()
        num_rows, width = both.shape[0], both.shape[1] // 2
        out = both.new_empty(num_rows, width)
        call("geglu", (both.dtype,), both, out, num_rows, width)
        ctx.save_for_backward(both)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        (both,) = ctx.saved_tensors
        grad_both = torch.empty_like(both)
        call("geglu_backward", (both.dtype,), both, grad.contiguous(), grad_both, *grad.shape)
        return grad_both
