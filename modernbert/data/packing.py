"""Sequence packing: fills bins of a fixed number of tokens with chunks by greedy best fit."""

from bisect import bisect_right, insort
from collections import OrderedDict

import numpy as np

from modernbert.errors import InputError

__all__ = ["Packer"]


class Packer:
    """Packs by greedy best fit from a pool that the caller keeps full.

    A bin starts with the oldest chunks of the pool, up to three quarters of the budget, so that no chunk waits long
    because of its length. Then the longest chunk that fits is added while another fits after it. The rest is given to
    the one or two chunks that fill it best. Of equal lengths, the older chunk goes first. The result depends only on
    the chunks that were added.

    Source: ModernBERT, ACL edition, appendix A.2 (best fit over a buffer, above 99 % full).
    """

    def __init__(self, budget_tokens: int, pool_size: int = 4096) -> None:
        if budget_tokens < 1 or pool_size < 1:
            raise InputError(f"packing: found budget {budget_tokens} and pool size {pool_size}, expected at least 1")
        self.budget_tokens = budget_tokens
        self.pool_size = pool_size
        self._num_added = 0
        self._pool: OrderedDict[int, tuple[int, int]] = OrderedDict()  # age -> (chunk, length), oldest first
        self._by_length: list[tuple[int, int]] = []  # (length, -age): of equal lengths, the oldest is last
        self._counts = np.zeros(budget_tokens + 1, dtype=np.int64)  # chunks in the pool by length

    def __len__(self) -> int:
        return len(self._pool)

    @property
    def is_full(self) -> bool:
        """Whether the pool has as many chunks as it should before a bin is packed."""
        return len(self._pool) >= self.pool_size

    def add(self, chunk: int, length: int) -> None:
        """Put a chunk into the pool.

        Raises:
            InputError: It is longer than the budget.
        """
        if not 0 < length <= self.budget_tokens:
            raise InputError(f"chunk {chunk}: has {length} tokens, expected 1 to {self.budget_tokens} (the budget)")
        self._pool[self._num_added] = (chunk, length)
        insort(self._by_length, (length, -self._num_added))
        self._counts[length] += 1
        self._num_added += 1

    def pack(self) -> list[int]:
        """Take the chunks of one bin out of the pool.

        >>> packer = Packer(budget_tokens=10)
        >>> for chunk, length in enumerate([8, 3, 5, 2]):
        ...     packer.add(chunk, length)
        >>> packer.pack(), packer.pack()
        ([0, 3], [1, 2])

        Raises:
            IndexError: The pool is empty.
        """
        if not self._pool:
            raise IndexError("the pool is empty")
        chunks: list[int] = []
        free = self.budget_tokens
        while self._pool and 4 * free > self.budget_tokens:
            oldest = next(iter(self._pool))
            if self._pool[oldest][1] > free:
                break
            chunk, length = self._take(oldest)
            chunks.append(chunk)
            free -= length
        while lengths := self._choose(free):
            for length in lengths:
                place = bisect_right(self._by_length, (length, 0)) - 1
                chunk, _ = self._take(-self._by_length[place][1])
                chunks.append(chunk)
                free -= length
        return chunks

    def _take(self, age: int) -> tuple[int, int]:
        chunk, length = self._pool.pop(age)
        del self._by_length[bisect_right(self._by_length, (length, -age)) - 1]
        self._counts[length] -= 1
        return chunk, length

    def _choose(self, free: int) -> tuple[int, ...]:
        """Return the lengths to add to the bin next; none if nothing fits."""
        place = bisect_right(self._by_length, (free, 0)) - 1
        if place < 0:
            return ()
        longest = self._by_length[place][0]
        rest = free - longest
        if rest == 0 or rest >= self._by_length[0][0]:
            return (longest,)
        return max((longest,), self._best_pair(free), key=sum)

    def _best_pair(self, free: int) -> tuple[int, ...]:
        """Return the two lengths in the pool with the largest sum that fits; none if no two fit."""
        lengths = np.flatnonzero(self._counts[: free + 1])
        partners = np.searchsorted(lengths, free - lengths, side="right") - 1
        is_lone = (partners == np.arange(len(lengths))) & (self._counts[lengths] == 1)
        partners -= is_lone
        sums = np.where(partners >= 0, lengths + lengths[partners], 0)
        best = int(sums.argmax())
        return (int(lengths[best]), int(lengths[partners[best]])) if sums[best] else ()

    def state(self) -> tuple[tuple[int, int], ...]:
        """Return (chunk, length) of the pool, oldest first. Added to an empty packer, they restore it."""
        return tuple(self._pool.values())
