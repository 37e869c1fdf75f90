"""Short batches on a GPU: a pass that is captured once for each size, and replayed.

In: an encoder's pass over tokens and a layout, and short batches. Out: the same hidden states, sooner. A short text is
hundreds of kernels of a few microseconds each, and the host takes longer to launch them one by one than the device to
run them; a captured pass is launched at once. It is of a fixed size, so a batch is filled up: one more document of any
tokens takes the places that are left, and empty documents follow. Documents do not see each other, so nothing changes.

Source: CUDA graphs, as in the documentation of `torch.cuda.CUDAGraph`.
"""

import bisect
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from modernbert.ragged import Layout

__all__ = ["Replays", "filled"]

# Places for tokens: at most a third of a batch is filled up. Beyond the last the device has enough to do for long
# enough that the host is ahead of it.
_SIZES = (32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
_DOCUMENTS = (8, 64)


@dataclass
class _Captured:
    """A pass, and the tensors that it reads and writes."""

    graph: Any
    tokens: Tensor
    layout: Layout
    hidden: Tensor


class Replays:
    """The passes of one encoder that were captured so far; they share their memory, and one runs at a time."""

    def __init__(self, encode: Callable[[Tensor, Layout], Tensor]) -> None:
        self._encode = encode
        self._captured: dict[tuple[int, int], _Captured] = {}
        self._lock = threading.Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        return None  # a copy has other weights

    def take(self, tokens: Tensor, layout: Layout) -> bool:
        """Whether a batch is short enough to gain by it, and where and how passes can be captured."""
        return (
            tokens.device.type == "cuda"
            and not torch.is_grad_enabled()
            and layout.num_tokens <= _SIZES[-1]
            and layout.num_docs < _DOCUMENTS[-1]
        )

    def __call__(self, tokens: Int64[Tensor, " T"], layout: Layout) -> Float[Tensor, "T D"]:
        """Return the hidden states of a batch that `take` takes."""
        size = _size_of(layout)
        with self._lock:
            if size not in self._captured:
                self._captured[size] = self._capture(*filled(tokens, layout, *size))
            captured = self._captured[size]
            filled_tokens, filled_layout = filled(tokens, layout, *size)
            captured.tokens.copy_(filled_tokens)
            captured.layout.cu_seqlens.copy_(filled_layout.cu_seqlens)
            captured.layout.positions.copy_(filled_layout.positions)
            captured.graph.replay()
            return captured.hidden[: layout.num_tokens].clone()

    def _capture(self, tokens: Tensor, layout: Layout) -> _Captured:
        aside = torch.cuda.Stream(tokens.device)
        aside.wait_stream(torch.cuda.current_stream(tokens.device))
        with torch.cuda.stream(aside):  # what kernels make once is made before
            for _ in range(2):
                self._encode(tokens, layout)
        torch.cuda.current_stream(tokens.device).wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        earlier = next(iter(self._captured.values()), None)
        with torch.cuda.graph(graph, pool=None if earlier is None else earlier.graph.pool()):
            hidden = self._encode(tokens, layout)
        return _Captured(graph, tokens, layout, hidden)


def filled(tokens: Tensor, layout: Layout, num_tokens: int, num_docs: int) -> tuple[Tensor, Layout]:
    """Return a batch of so many tokens and documents that begins with this one.

    The document that fills it up stands last but for empty ones; the layout says of the first document that it is as
    long as all, since kernels are launched for the longest that there may be.
    """
    left = num_tokens - layout.num_tokens
    device = tokens.device
    ends = torch.full((num_docs - layout.num_docs,), num_tokens, dtype=torch.int32, device=device)
    positions = torch.arange(left, dtype=torch.int32, device=device)
    return torch.cat((tokens, tokens.new_zeros(left))), Layout(
        lengths=(num_tokens, *(0,) * (num_docs - 1)),
        cu_seqlens=torch.cat((layout.cu_seqlens, ends)),
        positions=torch.cat((layout.positions, positions)),
    )


def _size_of(layout: Layout) -> tuple[int, int]:
    places = _SIZES[bisect.bisect_left(_SIZES, layout.num_tokens)]
    return places, _DOCUMENTS[bisect.bisect_right(_DOCUMENTS, layout.num_docs)]
