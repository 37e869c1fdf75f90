"""Pieces of text into bins of a fixed number of tokens.

In: piece numbers and lengths. Out: lists of piece numbers whose lengths come to the budget or a little less. A file of
its own because the fill of the bins is a promise of the paper, and can be measured without any text.
"""

from bisect import bisect_right, insort
from collections import OrderedDict

import numpy as np

from modernbert.errors import InputError

__all__ = ["Packer"]


class Packer:
    """Pack by greedy best fit from a pool that the caller keeps full.

    A bin begins with the oldest pieces of the pool, up to three quarters of it, so that pieces come about as they were
    added and none waits long for its length to be wanted. Then the longest piece that still fits goes in, as long as
    another will fit after it. What is left for the end goes to the one piece, or the two, that fill it best. Of equal
    lengths the older goes first. What is packed depends only on what was added.

    Source: ModernBERT, ACL edition, appendix A.2 (best fit over a buffer, above 99 % full).
    """

    def __init__(self, budget_tokens: int, pool_size: int = 4096) -> None:
        if budget_tokens < 1 or pool_size < 1:
            raise InputError(f"packing: found budget {budget_tokens} and pool size {pool_size}, expected at least 1")
        self.budget_tokens = budget_tokens
        self.pool_size = pool_size
        self._num_added = 0
        self._pool: OrderedDict[int, tuple[int, int]] = OrderedDict()  # age -> (piece, length), oldest first
        self._by_length: list[tuple[int, int]] = []  # (length, -age): of equal lengths the oldest comes last
        self._counts = np.zeros(budget_tokens + 1, dtype=np.int64)  # pieces in the pool by length

    def __len__(self) -> int:
        return len(self._pool)

    @property
    def is_full(self) -> bool:
        """Whether the pool holds as many pieces as it should before a bin is packed."""
        return len(self._pool) >= self.pool_size

    def add(self, piece: int, length: int) -> None:
        """Put a piece into the pool.

        Raises: InputError if it is longer than the budget.
        """
        if not 0 < length <= self.budget_tokens:
            raise InputError(f"piece {piece}: has {length} tokens, expected 1 to {self.budget_tokens} (the budget)")
        self._pool[self._num_added] = (piece, length)
        insort(self._by_length, (length, -self._num_added))
        self._counts[length] += 1
        self._num_added += 1

    def pack(self) -> list[int]:
        """Take the pieces of one bin out of the pool.

        >>> packer = Packer(budget_tokens=10)
        >>> for piece, length in enumerate([8, 3, 5, 2]):
        ...     packer.add(piece, length)
        >>> packer.pack(), packer.pack()
        ([0, 3], [1, 2])

        Raises: IndexError if the pool is empty.
        """
        if not self._pool:
            raise IndexError("the pool is empty")
        pieces: list[int] = []
        free = self.budget_tokens
        while self._pool and 4 * free > self.budget_tokens:
            oldest = next(iter(self._pool))
            if self._pool[oldest][1] > free:
                break
            piece, length = self._take(oldest)
            pieces.append(piece)
            free -= length
        while lengths := self._choose(free):
            for length in lengths:
                place = bisect_right(self._by_length, (length, 0)) - 1
                piece, _ = self._take(-self._by_length[place][1])
                pieces.append(piece)
                free -= length
        return pieces

    def _take(self, age: int) -> tuple[int, int]:
        piece, length = self._pool.pop(age)
        del self._by_length[bisect_right(self._by_length, (length, -age)) - 1]
        self._counts[length] -= 1
        return piece, length

    def _choose(self, free: int) -> tuple[int, ...]:
        """Return the lengths to go into the bin next; none if nothing fits."""
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
        """Return (piece, length) of the pool, oldest first: added to an empty packer, they make it go on from here."""
        return tuple(self._pool.values())
