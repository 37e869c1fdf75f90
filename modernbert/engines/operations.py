"""What a layer computes beside attention: its products, the residual sum with its norm, and GeGLU.

In: the name of an attention backend. Out: the three as functions, of torch, or of the package's own loops or kernels. A
file of its own because layers are the same with any.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modernbert.devices import has_amx
from modernbert.engines.cpu import calls
from modernbert.engines.plain_modules import is_plain

__all__ = ["Operations", "can_multiply", "operations_of"]


class Operations(NamedTuple):
    """`linear(layer, rows)` multiplies by a layer's weights; `add_norm(hidden, delta, norm, dropout)` returns the sum
    and its norm, with that share of `delta` dropped; `geglu(both)` gates one half of each row.
    """

    linear: Callable[[nn.Module, Tensor], Tensor]
    add_norm: Callable[[Tensor, Tensor, nn.LayerNorm, float], tuple[Tensor, Tensor]]
    geglu: Callable[[Tensor], Tensor]


def operations_of(backend: str) -> Operations:
    """Return the functions that go with an attention backend."""
    if backend == "triton":
        return _kernels()
    return _LOOPS if backend == "native" else _TORCH


def can_multiply(*widths: int) -> bool:
    """Say whether the loops multiply matrices of these widths, and training's some hundred rows faster than torch."""
    # Where a processor has AMX, products stay with oneDNN: those of the loops have not been measured against it there.
    return not any(width % calls.PANEL for width in widths) and not has_amx()


def _linear(layer: nn.Module, rows: Tensor) -> Tensor:
    result: Tensor = layer(rows)
    return result


def _add_norm(hidden: Tensor, delta: Tensor, norm: nn.LayerNorm, dropout: float) -> tuple[Tensor, Tensor]:
    hidden = hidden + (F.dropout(delta, dropout) if dropout else delta)
    return hidden, norm(hidden)


def _geglu(both: Tensor) -> Tensor:
    activated, gate = both.chunk(2, dim=-1)
    return F.gelu(activated) * gate


def _linear_in_loops(layer: nn.Module, rows: Tensor) -> Tensor:
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else rows.dtype
    if (
        not isinstance(layer, nn.Linear)
        or not is_plain(layer)
        or layer.bias is not None
        or not can_multiply(*layer.weight.shape)
        or layer.weight.dtype not in (torch.float32, dtype)
    ):
        return _linear(layer, rows)
    return calls.linear(rows.to(dtype), layer.weight)


def _linear_before_kernels(layer: nn.Module, rows: Tensor) -> Tensor:
    result = _linear(layer, rows)
    # The attention kernel rotates queries and keys in place; a forward hook may have kept this tensor.
    return result.clone() if layer._forward_hooks else result


def _add_norm_in_loops(hidden: Tensor, delta: Tensor, norm: nn.LayerNorm, dropout: float) -> tuple[Tensor, Tensor]:
    if not _is_scale_alone(norm):
        return _add_norm(hidden, delta, norm, dropout)
    return calls.add_norm(hidden, delta, norm.weight, norm.eps, dropout)


def _is_scale_alone(norm: nn.LayerNorm) -> bool:
    """Return whether a norm is what the loops and kernels compute: plain, with a scale and no bias."""
    return is_plain(norm) and norm.bias is None and norm.weight is not None


@functools.cache
def _kernels() -> Operations:
    from modernbert.engines.cuda import elementwise_kernels

    def add_norm(hidden: Tensor, delta: Tensor, norm: nn.LayerNorm, dropout: float) -> tuple[Tensor, Tensor]:
        if not _is_scale_alone(norm):
            return _add_norm(hidden, delta, norm, dropout)
        return elementwise_kernels.add_norm(hidden, delta, norm.weight, norm.eps, dropout)

    return Operations(_linear_before_kernels, add_norm, elementwise_kernels.geglu)


_TORCH = Operations(_linear, _add_norm, _geglu)
_LOOPS = Operations(_linear_in_loops, _add_norm_in_loops, calls.geglu)
