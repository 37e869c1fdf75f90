"""What a layer computes beside attention: its products, the residual sum with its norm, and GeGLU.

In: the name of an attention backend. Out: the three as functions, of torch, or of the package's own loops or kernels. A
file of its own because layers are the same with any.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modernbert.device import has_amx
from modernbert.native import calls

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
        not _is_plain(layer)
        or not can_multiply(*layer.weight.shape)
        or layer.weight.dtype not in (torch.float32, dtype)
    ):
        return _linear(layer, rows)
    return calls.linear(rows.to(dtype), layer.weight)


def _is_plain(layer: nn.Module) -> TypeGuard[nn.Linear]:
    """Say whether a layer is its weights alone: what somebody put in its place, or hung on it, goes before."""
    hooks = layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks
    return type(layer) is nn.Linear and layer.bias is None and not any(hooks)


def _add_norm_in_loops(hidden: Tensor, delta: Tensor, norm: nn.LayerNorm, dropout: float) -> tuple[Tensor, Tensor]:
    return calls.add_norm(hidden, delta, norm.weight, norm.eps, dropout)


@functools.cache
def _kernels() -> Operations:
    from modernbert.kernels import elementwise

    def add_norm(hidden: Tensor, delta: Tensor, norm: nn.LayerNorm, dropout: float) -> tuple[Tensor, Tensor]:
        return elementwise.add_norm(hidden, delta, norm.weight, norm.eps, dropout)

    return Operations(_linear, add_norm, elementwise.geglu)


_TORCH = Operations(_linear, _add_norm, _geglu)
_LOOPS = Operations(_linear_in_loops, _add_norm_in_loops, calls.geglu)
