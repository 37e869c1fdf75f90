"""What stands between matrix products: the residual sum with its norm, and GeGLU.

In: the name of an attention backend. Out: the two as functions, of torch, or of the package's own loops or kernels. A
file of its own because layers are the same with any.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from modernbert.native import calls

__all__ = ["Between", "between_of"]


class Between(NamedTuple):
    """`add_norm(hidden, delta, norm, dropout)` returns the sum and its norm, with that share of `delta` dropped;
    `geglu(both)` gates one half of each row.
    """

    add_norm: Callable[[Tensor, Tensor, nn.LayerNorm, float], tuple[Tensor, Tensor]]
    geglu: Callable[[Tensor], Tensor]


def between_of(backend: str) -> Between:
    """Return the functions that go with an attention backend."""
    if backend == "triton":
        return _kernels()
    return _LOOPS if backend == "native" else _TORCH


def _add_norm(hidden: Tensor, delta: Tensor, norm: nn.LayerNorm, dropout: float) -> tuple[Tensor, Tensor]:
    hidden = hidden + _dropped(delta, dropout)
    return hidden, norm(hidden)


def _geglu(both: Tensor) -> Tensor:
    activated, gate = both.chunk(2, dim=-1)
    return F.gelu(activated) * gate


def _dropped(delta: Tensor, dropout: float) -> Tensor:
    return F.dropout(delta, dropout) if dropout else delta


def _add_norm_in_loops(hidden: Tensor, delta: Tensor, norm: nn.LayerNorm, dropout: float) -> tuple[Tensor, Tensor]:
    return calls.add_norm(hidden, _dropped(delta, dropout), norm.weight, norm.eps)


@functools.cache
def _kernels() -> Between:
    from modernbert.kernels import elementwise

    def add_norm(hidden: Tensor, delta: Tensor, norm: nn.LayerNorm, dropout: float) -> tuple[Tensor, Tensor]:
        return elementwise.add_norm(hidden, delta, norm.weight, norm.eps, dropout)

    return Between(add_norm, elementwise.geglu)


_TORCH = Between(_add_norm, _geglu)
_LOOPS = Between(_add_norm_in_loops, calls.geglu)
