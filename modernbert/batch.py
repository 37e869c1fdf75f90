"""Ragged batches: concatenated documents without padding, and their lengths.

`SequenceLengths` and `Batch` are the only batch types of the package, and the only interface between data and model.

Axis letters, used in every annotation of the package:

    T tokens of a batch      D width (hidden size)     V vocabulary
    N documents of a batch   H heads                   Q queries
    M rows with a loss       K width of one head       P passages
    F feed-forward width     S longest document        offsets = N + 1
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Int32, Int64, Shaped
from torch import Tensor

from modernbert.errors import InputError

__all__ = ["Batch", "SequenceLengths", "to_device_async", "batch_by_size"]

Item = TypeVar("Item")


@dataclass(frozen=True, repr=False)
class SequenceLengths:
    """The lengths and offsets of the documents of a batch.

    >>> SequenceLengths.from_lengths([2, 3])
    SequenceLengths(2 documents, 5 tokens, longest 3, on cpu)

    `lengths` and `max_seqlen` are Python integers, since reading them from a GPU would synchronize.
    """

    lengths: tuple[int, ...]
    cu_seqlens: Int32[Tensor, " offsets"]
    positions: Int32[Tensor, " T"]
    max_seqlen: int
    """Upper bound of the lengths, for the launch of kernels; the longest document, except in a CUDA graph."""

    @staticmethod
    def from_lengths(lengths: Sequence[int]) -> "SequenceLengths":
        """Return the offsets of documents of these lengths, on the CPU.

        >>> SequenceLengths.from_lengths([2, 3]).positions.tolist()
        [0, 1, 0, 1, 2]

        Raises:
            InputError: If there is no document, or one without tokens.
        """
        sizes = np.asarray(lengths, dtype=np.int64)
        if sizes.size == 0:
            raise InputError("a batch needs at least one document, found none")
        if sizes.min() < 1:
            raise InputError(f"document {int(sizes.argmin())} has {sizes.min()} tokens, expected at least 1")
        ends = np.cumsum(sizes)
        if ends[-1] >= 2**31:
            raise InputError(f"a batch of {ends[-1]:,} tokens exceeds the 32-bit offsets of attention kernels")
        starts = ends - sizes
        positions = np.arange(ends[-1], dtype=np.int64) - np.repeat(starts, sizes)
        return SequenceLengths(
            lengths=tuple(sizes.tolist()),
            cu_seqlens=torch.from_numpy(np.concatenate(([0], ends)).astype(np.int32)),
            positions=torch.from_numpy(positions.astype(np.int32)),
            max_seqlen=int(sizes.max()),
        )

    def __repr__(self) -> str:
        return f"SequenceLengths({self.describe()}, on {self.cu_seqlens.device})"

    def describe(self) -> str:
        """Return the number of documents and tokens, and the longest document."""
        return f"{self.num_docs:,} documents, {self.num_tokens:,} tokens, longest {self.max_seqlen:,}"

    @property
    def num_docs(self) -> int:
        """Number of documents, N."""
        return len(self.lengths)

    @property
    def num_tokens(self) -> int:
        """Number of tokens, T."""
        return sum(self.lengths)

    @property
    def starts(self) -> Int32[Tensor, " N"]:
        """Row of each document's first token."""
        return self.cu_seqlens[:-1]

    def doc_ids(self) -> Int64[Tensor, " T"]:
        """Return the index of each token's document.

        >>> SequenceLengths.from_lengths([2, 3]).doc_ids().tolist()
        [0, 0, 1, 1, 1]
        """
        device = self.cu_seqlens.device
        sizes = (self.cu_seqlens[1:] - self.cu_seqlens[:-1]).to(torch.int64)
        numbers = torch.arange(self.num_docs, device=device)
        return torch.repeat_interleave(numbers, sizes, output_size=self.num_tokens)

    def to(self, device: torch.device | str) -> "SequenceLengths":
        """Move the tensors; the lengths stay in Python."""
        return replace(
            self,
            cu_seqlens=to_device_async(self.cu_seqlens, device),
            positions=to_device_async(self.positions, device),
        )


@dataclass(frozen=True, repr=False)
class Batch:
    """The tokens of several documents, and their labels.

    >>> Batch.from_documents([[50281, 50282], [50281, 1394, 50282]])
    Batch(2 documents, 5 tokens, longest 3, 0 labels, on cpu)

    `label_positions` are token positions of the batch and `labels` their labels: masked tokens in pretraining, tags of
    words. Labels without `label_positions` belong to the documents, one each; a label may be a vector. Both are None
    for a batch without labels.
    """

    tokens: Int64[Tensor, " T"]
    layout: SequenceLengths
    label_positions: Int64[Tensor, " M"] | None = None
    labels: Shaped[Tensor, "M ..."] | None = None

    @staticmethod
    def from_documents(documents: Sequence[Sequence[int] | np.ndarray]) -> "Batch":
        """Concatenate the token ids of documents, on the CPU.

        Raises:
            InputError: If there is no document, or one without tokens.
        """
        layout = SequenceLengths.from_lengths([len(document) for document in documents])
        flat = np.concatenate([np.asarray(document, dtype=np.int64) for document in documents])
        return Batch(tokens=torch.from_numpy(flat), layout=layout)

    def __repr__(self) -> str:
        return f"Batch({self.layout.describe()}, {self.num_labels:,} labels, on {self.tokens.device})"

    @property
    def num_tokens(self) -> int:
        """Number of tokens, T."""
        return self.tokens.shape[0]

    @property
    def num_labels(self) -> int:
        """Number of rows with a loss, M."""
        return 0 if self.labels is None else self.labels.shape[0]

    def to(self, device: torch.device | str) -> "Batch":
        """Move every tensor to a device."""
        return Batch(
            tokens=to_device_async(self.tokens, device),
            layout=self.layout.to(device),
            label_positions=None if self.label_positions is None else to_device_async(self.label_positions, device),
            labels=None if self.labels is None else to_device_async(self.labels, device),
        )


def to_device_async(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Copy a tensor to a device without blocking the host: copies to a GPU need pinned memory for that."""
    if tensor.device.type == "cpu" and torch.device(device).type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def batch_by_size(items: Iterable[Item], budget: int, size: Callable[[Item], int]) -> Iterator[list[Item]]:
    """Split items, in order, into groups of a bounded size; a larger item is a group alone.

    >>> list(batch_by_size([3, 3, 9, 1], 6, lambda item: item))
    [[3, 3], [9], [1]]
    """
    group: list[Item] = []
    filled = 0
    for item in items:
        if group and filled + size(item) > budget:
            yield group
            group, filled = [], 0
        group.append(item)
        filled += size(item)
    if group:
        yield group
