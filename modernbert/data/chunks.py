"""Chunks of documents, each known by one number: their lengths, their ids, and their order in each epoch."""

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Int64

from modernbert.data.shards import Shards

__all__ = ["ChunkOrder", "Chunks"]

# Chunks whose lengths are looked up at a time.
LOOKAHEAD = 1024


class Chunks:
    """The chunks of several sources, numbered source by source and document by document.

    A document is cut every `max_len - 2` ids; its last chunk is the rest. A chunk is wrapped in [CLS] and [SEP].
    """

    def __init__(self, sources: Sequence[Shards], max_len: int, cls_id: int, sep_id: int) -> None:
        self._sources = list(sources)
        self._size = max_len - 2
        self._cls_id, self._sep_id = cls_id, sep_id
        self._lengths = np.concatenate([shards.lengths for shards in sources])
        self._ends = np.cumsum(-(-self._lengths // self._size))
        last_docs = np.cumsum([shards.num_docs for shards in sources])
        self._first_docs = [0, *last_docs.tolist()]
        ends = [0, *self._ends[last_docs - 1].tolist()]
        self.ranges = [range(first, last) for first, last in zip(ends, ends[1:], strict=False)]

    def num_tokens(self, source: int) -> int:
        """Return the number of tokens in all chunks of a source, [CLS] and [SEP] included."""
        return self._sources[source].num_tokens + 2 * len(self.ranges[source])

    def lengths(self, chunks: Int64[np.ndarray, " N"]) -> Int64[np.ndarray, " N"]:
        """Return the length of each chunk, [CLS] and [SEP] included."""
        docs, starts = self._locate(chunks)
        return np.minimum(self._lengths[docs] - starts, self._size) + 2

    def source_of(self, chunks: Int64[np.ndarray, " N"]) -> Int64[np.ndarray, " N"]:
        """Return the index of the source of each chunk."""
        return np.searchsorted([each.stop for each in self.ranges], chunks, side="right")

    def gather(self, chunks: Int64[np.ndarray, " N"]) -> tuple[Int64[np.ndarray, " T"], list[int]]:
        """Concatenate the ids of chunks, each wrapped in [CLS] and [SEP]; return them and the length of each."""
        docs, starts = self._locate(chunks)
        lengths = (np.minimum(self._lengths[docs] - starts, self._size) + 2).tolist()
        tokens = np.empty(sum(lengths), dtype=np.int64)
        end = 0
        rows = zip(self.source_of(chunks).tolist(), docs.tolist(), starts.tolist(), lengths, strict=True)
        for source, doc, start, length in rows:
            begin, end = end, end + length
            tokens[begin] = self._cls_id
            ids = self._sources[source].tokens(doc - self._first_docs[source], start, start + self._size)
            tokens[begin + 1 : end - 1] = ids
            tokens[end - 1] = self._sep_id
        return tokens, lengths

    def _locate(self, chunks: Int64[np.ndarray, " N"]) -> tuple[Int64[np.ndarray, " N"], Int64[np.ndarray, " N"]]:
        """Return the document of each chunk, and the position in the document where it begins."""
        docs = np.searchsorted(self._ends, chunks, side="right")
        counts = -(-self._lengths[docs] // self._size)
        return docs, (chunks - (self._ends[docs] - counts)) * self._size


class ChunkOrder:
    """Iterates over the chunks of one source, in another order each epoch.

    `place` is (epoch, chunks of it already taken). The permutation of an epoch depends on the seed, the epoch and the
    index of the source.

    Source: ModernBERT, appendix C.1: PCG64DXSM, because torch's permutation is biased at the size of their data.
    """

    def __init__(self, chunks: Chunks, source: int, seed: int, place: Iterable[int] = (0, 0)) -> None:
        self._chunks, self._source, self._seed = chunks, source, seed
        self._epoch, self._taken = place
        self._permutation = self._permute()
        self._ahead: list[tuple[int, int]] = []

    @property
    def place(self) -> tuple[int, int]:
        """The place from which a new order continues here."""
        return self._epoch, self._taken

    def take(self) -> tuple[int, int]:
        """Return the next chunk and its length."""
        if not self._ahead:
            self._look_ahead()
        self._taken += 1
        return self._ahead.pop()

    def _look_ahead(self) -> None:
        if self._taken == len(self._permutation):
            self._epoch, self._taken = self._epoch + 1, 0
            self._permutation = self._permute()
        chunks = self._permutation[self._taken : self._taken + LOOKAHEAD]
        ahead = zip(chunks.tolist(), self._chunks.lengths(chunks).tolist(), strict=True)
        self._ahead = list(ahead)[::-1]

    def _permute(self) -> Int64[np.ndarray, " N"]:
        owned = self._chunks.ranges[self._source]
        seeds = np.random.SeedSequence([self._seed, self._epoch, self._source])
        shuffled = np.random.Generator(np.random.PCG64DXSM(seeds)).permutation(len(owned))
        return owned.start + shuffled
