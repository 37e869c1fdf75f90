"""Short batches on a GPU: a pass that is captured once for each size, and replayed.

In: an encoder's pass over tokens and a layout, and short batches. Out: the same hidden states, sooner. A short text is
hundreds of kernels of a few microseconds each, and the host takes longer to launch them one by one than the device to
run them; a captured pass is launched at once. It is of a fixed size, so a batch is filled up: one more document of any
tokens takes the places that are left, and empty documents follow. Documents do not see each other, so nothing changes.

Source: CUDA graphs, as in the documentation of `torch.cuda.CUDAGraph`.
"""

import bisect
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from modernbert.batch import SequenceLengths
from modernbert.engines.plain_modules import ModuleSnapshot

__all__ = ["CudaGraphs", "filled"]

Encode = Callable[[Tensor, SequenceLengths], Tensor]

# Places for tokens: beyond the first, at most a third of a batch is filled up. Beyond the last the device has enough to
# do for long enough that the host is ahead of it.
_SIZES = (32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
_DOCUMENTS = (8, 64)


@dataclass
class _Captured:
    """A pass, and the tensors that it reads and writes."""

    graph: Any
    tokens: Tensor
    layout: SequenceLengths
    hidden: Tensor


class CudaGraphs:
    """The passes of one encoder that were captured so far; they share their memory, and one runs at a time.

    A captured pass reads weights by address; `forget` it before they are moved. A replay calls no module: with
    a snapshot of the encoder's modules, passes are replayed only while none of them is hooked or replaced.
    """

    def __init__(self, modules: ModuleSnapshot | None = None) -> None:
        self._modules = modules
        self._captured: dict[tuple[int, int], _Captured] = {}
        self._lock = threading.Lock()
        self._stream: Any = None
        self._last: Any = None  # the event after which the shared memory may be written again
        self._fails = False

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()  # captured passes are of these weights, in this process

    def forget(self) -> None:
        """Capture anew from here on."""
        with self._lock:
            self._captured.clear()
            self._stream = self._last = None

    def take(self, tokens: Tensor, layout: SequenceLengths) -> bool:
        """Whether a batch is short enough to gain by it, and where and how passes can be captured."""
        return (
            tokens.device.type == "cuda"
            and not self._fails
            and not torch.is_grad_enabled()
            and not torch.is_autocast_enabled("cuda")
            and layout.num_tokens <= _SIZES[-1]
            and layout.num_docs < _DOCUMENTS[-1]
            and not torch.cuda.is_current_stream_capturing()
            and (self._modules is None or self._modules.is_current())
        )

    def __call__(self, encode: Encode, tokens: Int64[Tensor, " T"], layout: SequenceLengths) -> Float[Tensor, "T D"]:
        """Return the hidden states of a batch that `take` takes; `encode` is the pass that is captured.

        The tensors of a captured pass outlive the call, so they are none of inference mode.
        """
        size = _size_of(layout)
        with self._lock, torch.inference_mode(False), torch.no_grad():
            now = filled(tokens, layout, *size)
            if size not in self._captured:
                try:
                    self._captured[size] = self._capture(encode, *now)
                except RuntimeError as error:
                    self._fails = True
                    print(f"short texts are not replayed: {' '.join(str(error).split())[:120]}", file=sys.stderr)
                    return encode(tokens, layout)
            return self._replay(self._captured[size], *now)[: layout.num_tokens]

    def _replay(self, captured: _Captured, tokens: Tensor, layout: SequenceLengths) -> Tensor:
        stream = torch.cuda.current_stream(tokens.device)
        if self._last is not None:
            stream.wait_event(self._last)
        captured.tokens.copy_(tokens)
        captured.layout.cu_seqlens.copy_(layout.cu_seqlens)
        captured.layout.positions.copy_(layout.positions)
        captured.graph.replay()
        hidden = captured.hidden.clone()
        self._last = stream.record_event()
        return hidden

    def _capture(self, encode: Encode, tokens: Tensor, layout: SequenceLengths) -> _Captured:
        current = torch.cuda.current_stream(tokens.device)
        self._stream = self._stream or torch.cuda.Stream(tokens.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):  # what kernels make once is made before
            for _ in range(2):
                encode(tokens, layout)
        current.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        earlier = next(iter(self._captured.values()), None)
        pool = None if earlier is None else earlier.graph.pool()
        # Other threads may go on allocating meanwhile.
        with torch.cuda.graph(graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"):
            hidden = encode(tokens, layout)
        return _Captured(graph, tokens, layout, hidden)


def filled(tokens: Tensor, layout: SequenceLengths, num_tokens: int, num_docs: int) -> tuple[Tensor, SequenceLengths]:
    """Return a batch of so many tokens and documents that begins with this one.

    The document that fills it up stands last but for empty ones; the layout says of the first document that it is as
    long as all, since kernels are launched for the longest that there may be.
    """
    left = num_tokens - layout.num_tokens
    device = tokens.device
    ends = torch.full((num_docs - layout.num_docs,), num_tokens, dtype=torch.int32, device=device)
    positions = torch.arange(left, dtype=torch.int32, device=device)
    return torch.cat((tokens, tokens.new_zeros(left))), SequenceLengths(
        lengths=(num_tokens, *(0,) * (num_docs - 1)),
        cu_seqlens=torch.cat((layout.cu_seqlens, ends)),
        positions=torch.cat((layout.positions, positions)),
    )


def _size_of(layout: SequenceLengths) -> tuple[int, int]:
    places = _SIZES[bisect.bisect_left(_SIZES, layout.num_tokens)]
    return places, _DOCUMENTS[bisect.bisect_right(_DOCUMENTS, layout.num_docs)]
