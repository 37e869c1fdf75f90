"""What stands between matrix products: the residual sum with its norm, and GeGLU.

In: the name of an attention backend. Out: the two as functions, of torch or of the package's own loops. A file of its
own because layers are the same with either.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from modernbert.native import calls

__all__ = ["Between", "between_of"]


class Between(NamedTuple):
    """`add_norm(hidden, delta, norm)` returns the sum and its norm; `geglu(both)` gates one half of each row."""

    add_norm: Callable[[Tensor, Tensor, nn.LayerNorm], tuple[Tensor, Tensor]]
    geglu: Callable[[Tensor], Tensor]


def between_of(backend: str) -> Between:
    """Return the functions that go with an attention backend."""
    return _LOOPS if backend == "native" else _TORCH


def _add_norm(hidden: Tensor, delta: Tensor, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    hidden = hidden + delta
    return hidden, norm(hidden)


def _geglu(both: Tensor) -> Tensor:
    activated, gate = both.chunk(2, dim=-1)
    return F.gelu(activated) * gate


def _add_norm_in_loops(hidden: Tensor, delta: Tensor, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    return calls.add_norm(hidden, delta, norm.weight, norm.eps)


_TORCH = Between(_add_norm, _geglu)
_LOOPS = Between(_add_norm_in_loops, calls.geglu)
