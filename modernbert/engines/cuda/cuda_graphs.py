"""CUDA graphs of short batches: the kernels of one pass, launched at once.

The host launches the hundreds of kernels of a short text more slowly than the device runs them. A graph has a fixed
size, so a batch is padded to one of a few sizes with one more document, whose tokens are arbitrary, and empty
documents. Documents do not see each other, so the results stay the same.

Source: the documentation of `torch.cuda.CUDAGraph`.
"""

import bisect
import logging
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from modernbert.batch import SequenceLengths

if TYPE_CHECKING:
    from modernbert.model.encoder import Encoder

__all__ = ["CudaGraphs", "pad_to_size"]

logger = logging.getLogger("modernbert")

# Numbers of tokens: above the first, padding is at most a third. For more tokens than the last, the device computes
# long enough for the host to be ahead of it.
_SIZES = (32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
_DOCUMENTS = (8, 64)


@dataclass
class _Captured:
    """A graph, and the tensors that it reads and writes."""

    graph: Any
    tokens: Tensor
    lengths: SequenceLengths
    hidden: Tensor


class CudaGraphs:
    """The inference plan of CUDA: graphs of one encoder, captured at the first batch of each size.

    Graphs read weights by address. They share their memory, so one runs at a time.
    """

    def __init__(self) -> None:
        self._captured: dict[tuple[int, int], _Captured] = {}
        self._lock = threading.Lock()
        self._stream: Any = None
        self._last: Any = None  # the event after which the shared memory may be written again
        self._fails = False

    def accepts(self, tokens: Tensor, lengths: SequenceLengths) -> bool:
        """Return whether a batch is short, and graphs can be captured now."""
        return (
            tokens.device.type == "cuda"
            and not self._fails
            and lengths.num_tokens <= _SIZES[-1]
            and lengths.num_docs < _DOCUMENTS[-1]
            and not torch.cuda.is_current_stream_capturing()
        )

    def run(
        self, encoder: "Encoder", tokens: Int64[Tensor, " T"], lengths: SequenceLengths, rows: Tensor | None
    ) -> Float[Tensor, "M D"]:
        """Return the hidden states of some rows, or of all.

        The tensors of a graph outlive the call, so they are not tensors of inference mode.
        """
        size = _size_of(lengths)
        with self._lock, torch.inference_mode(False), torch.no_grad():
            padded = pad_to_size(tokens, lengths, *size)
            if size not in self._captured:
                try:
                    self._captured[size] = self._capture(encoder, *padded)
                except RuntimeError as error:
                    self._fails = True
                    logger.warning("short texts run without CUDA graphs: %s", " ".join(str(error).split())[:120])
                    return encoder.run_layers(tokens, lengths, rows)
            hidden = self._replay(self._captured[size], *padded)
        return hidden[: lengths.num_tokens] if rows is None else hidden.index_select(0, rows)

    def _replay(self, captured: _Captured, tokens: Tensor, lengths: SequenceLengths) -> Tensor:
        stream = torch.cuda.current_stream(tokens.device)
        if self._last is not None:
            stream.wait_event(self._last)
        captured.tokens.copy_(tokens)
        captured.lengths.cu_seqlens.copy_(lengths.cu_seqlens)
        captured.lengths.positions.copy_(lengths.positions)
        captured.graph.replay()
        hidden = captured.hidden.clone()
        self._last = stream.record_event()
        return hidden

    def _capture(self, encoder: "Encoder", tokens: Tensor, lengths: SequenceLengths) -> _Captured:
        current = torch.cuda.current_stream(tokens.device)
        self._stream = self._stream or torch.cuda.Stream(tokens.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):  # kernels are compiled, and their constants made, before the capture
            for _ in range(2):
                encoder.run_layers(tokens, lengths)
        current.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        earlier = next(iter(self._captured.values()), None)
        pool = None if earlier is None else earlier.graph.pool()
        # Other threads may allocate meanwhile.
        with torch.cuda.graph(graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"):
            hidden = encoder.run_layers(tokens, lengths)
        return _Captured(graph, tokens, lengths, hidden)


def pad_to_size(
    tokens: Tensor, lengths: SequenceLengths, num_tokens: int, num_docs: int
) -> tuple[Tensor, SequenceLengths]:
    """Return a batch of `num_tokens` and `num_docs` that begins with this one.

    One filler document is followed by empty ones. `max_seqlen` is `num_tokens`, since a graph launches its kernels for
    the longest document that a batch of this size can have.
    """
    missing = num_tokens - lengths.num_tokens
    device = tokens.device
    ends = torch.full((num_docs - lengths.num_docs,), num_tokens, dtype=torch.int32, device=device)
    positions = torch.arange(missing, dtype=torch.int32, device=device)
    return torch.cat((tokens, tokens.new_zeros(missing))), SequenceLengths(
        lengths=(*lengths.lengths, missing, *(0,) * (num_docs - lengths.num_docs - 1)),
        cu_seqlens=torch.cat((lengths.cu_seqlens, ends)),
        positions=torch.cat((lengths.positions, positions)),
        max_seqlen=num_tokens,
    )


def _size_of(lengths: SequenceLengths) -> tuple[int, int]:
    num_tokens = _SIZES[bisect.bisect_left(_SIZES, lengths.num_tokens)]
    return num_tokens, _DOCUMENTS[bisect.bisect_right(_DOCUMENTS, lengths.num_docs)]
