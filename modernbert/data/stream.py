"""Packed and masked batches from shards: an endless stream for training, and a finite one for held-out evaluation.

The contents and the masks of bin number b are a function of the seed and b.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import Any, TypeVar

import numpy as np
import torch

from modernbert.batch import Batch, SequenceLengths
from modernbert.data.chunks import ChunkOrder, Chunks
from modernbert.data.masking import mask_tokens
from modernbert.data.packing import Packer
from modernbert.data.shards import Shards
from modernbert.errors import InputError
from modernbert.tokenizer.tokenizer import Tokenizer

__all__ = ["Packed", "Stream", "heldout_batches", "prefetch"]

Item = TypeVar("Item")

# Chunks that bins are chosen from, unless two bins need more.
_MIN_POOL, _MAX_POOL = 32, 4096


@dataclass(frozen=True)
class Packed:
    """One batch of a stream, its number, and the state of the stream after it.

    `batch` is None if the bin belongs to another process.
    """

    batch: Batch | None
    bin: int
    num_tokens: int
    """Tokens in the bin; `num_tokens / budget_tokens` is the fill."""
    budget_tokens: int
    source_tokens: dict[str, int]
    """Tokens of each source in all bins up to and including this one."""
    epochs: dict[str, float]
    """How often each source has been read so far."""
    _identity: dict[str, Any]
    _sources: tuple[tuple[tuple[int, int], int], ...]
    _pool: tuple[tuple[int, int], ...]

    def cursor(self) -> dict[str, Any]:
        """Return the state of the stream after this batch, for JSON. Prefetched batches do not change it."""
        return {
            "identity": self._identity,
            "bin": self.bin + 1,
            "sources": {
                name: {"place": list(place), "drawn": drawn, "served": self.source_tokens[name]}
                for name, (place, drawn) in zip(self.source_tokens, self._sources, strict=True)
            },
            "pool": [chunk for chunk, _ in self._pool],
        }


class Stream:
    """An endless stream of packed and masked batches.

    Documents are cut into chunks of at most `max_len` tokens, [CLS] and [SEP] included; nothing is dropped. With
    several sources, the next chunk comes from the source furthest behind its share of the tokens.

    Args:
        sources: The shards of each source by name.
        tokenizer: The tokenizer of the shards.
        seed: The seed of the order and the masks.
        max_len: The maximum length of a chunk in tokens.
        budget_tokens: The maximum number of tokens of a batch.
        mask_rate: The probability that a token is masked.
        weights: The share of each source of the tokens; by default in proportion to their sizes.
        cursor: The state after an earlier batch, from which the stream continues with bitwise equal batches.
        share: (rank, world size). All processes iterate over the same bins; a process builds the batches of the bins
            rank, rank + world size, ..., which is nearly all of the work.

    Raises:
        InputError: The tokenizer, shards, weights, lengths and cursor do not match.

    Source: ModernBERT, ACL edition, appendix A.2 for the packing, C.1 for the order.
    """

    def __init__(
        self,
        sources: Mapping[str, Shards],
        tokenizer: Tokenizer,
        *,
        seed: int,
        max_len: int,
        budget_tokens: int,
        mask_rate: float,
        weights: Mapping[str, float] | None = None,
        cursor: Mapping[str, Any] | None = None,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        _check(sources, tokenizer, seed, max_len, budget_tokens, mask_rate)
        chunks = Chunks(list(sources.values()), max_len, tokenizer.cls_id, tokenizer.sep_id)
        self._builder = _Builder(chunks, tokenizer, seed, mask_rate)
        self._names = list(sources)
        self._rank, self._world_size = share
        self._sizes = {name: chunks.num_tokens(n) for n, name in enumerate(sources)}
        self._shares = _shares(self._sizes, weights)
        pool_size = _pool_size(chunks, self._shares, budget_tokens)
        self._packer = Packer(budget_tokens, pool_size)
        self._identity: dict[str, Any] = {
            "seed": seed,
            "max_len": max_len,
            "budget_tokens": budget_tokens,
            # A list, because their order numbers the chunks.
            "sources": [[name, shards.num_docs, shards.num_tokens] for name, shards in sources.items()],
            "pool": pool_size,
        }
        cursor = cursor or {"identity": self._identity, "bin": 0, "pool": [], "sources": {}}
        _check_cursor(cursor, self._identity)
        start = [cursor["sources"].get(name, {"place": (0, 0), "drawn": 0, "served": 0}) for name in self._names]
        self._bin: int = cursor["bin"]
        self._orders = [ChunkOrder(chunks, n, seed, source["place"]) for n, source in enumerate(start)]
        self._drawn: list[int] = [source["drawn"] for source in start]
        self._served: list[int] = [source["served"] for source in start]
        pool = np.array(cursor["pool"], dtype=np.int64)
        for chunk, length in zip(pool.tolist(), chunks.lengths(pool).tolist(), strict=True):
            self._packer.add(chunk, length)

    def __iter__(self) -> Iterator[Packed]:
        """Yield batches. A stream has one position, so iterate over it once."""
        while True:
            while not self._packer.is_full:
                self._draw()
            numbers = self._packer.pack()
            by_source = self._builder.count(numbers)
            is_ours = self._bin % self._world_size == self._rank
            self._served = [served + more for served, more in zip(self._served, by_source, strict=True)]
            packed = Packed(
                batch=self._builder.build(numbers, self._bin) if is_ours else None,
                bin=self._bin,
                num_tokens=sum(by_source),
                budget_tokens=self._packer.budget_tokens,
                source_tokens=dict(zip(self._names, self._served, strict=True)),
                epochs={
                    name: served / size for (name, size), served in zip(self._sizes.items(), self._served, strict=True)
                },
                _identity=self._identity,
                _sources=tuple((order.place, drawn) for order, drawn in zip(self._orders, self._drawn, strict=True)),
                _pool=self._packer.state(),
            )
            self._bin += 1
            yield packed

    def _draw(self) -> None:
        """Move one chunk into the pool, from the source furthest behind its share."""
        total = sum(self._drawn)
        behind = [share * total - drawn for share, drawn in zip(self._shares, self._drawn, strict=True)]
        # At the start and in ties, the largest share goes first; a share of 0 never does.
        source = max(range(len(behind)), key=lambda n: (self._shares[n] > 0, behind[n], self._shares[n]))
        chunk, length = self._orders[source].take()
        self._packer.add(chunk, length)
        self._drawn[source] += length


def heldout_batches(
    shards: Shards,
    tokenizer: Tokenizer,
    *,
    seed: int,
    max_len: int,
    budget_tokens: int,
    mask_rate: float,
    limit_tokens: int | None = None,
) -> Iterator[Batch]:
    """Yield every chunk of some shards once, packed, with the same masks at each call.

    Chunks are shuffled. With `limit_tokens`, stop at the first batch that reaches it, after a sample of all documents.

    Raises:
        InputError: The tokenizer, shards and lengths do not match.
    """
    _check({"heldout": shards}, tokenizer, seed, max_len, budget_tokens, mask_rate)
    chunks = Chunks([shards], max_len, tokenizer.cls_id, tokenizer.sep_id)

    def batches() -> Iterator[Batch]:
        builder = _Builder(chunks, tokenizer, seed, mask_rate)
        order = ChunkOrder(chunks, 0, seed)
        packer = Packer(budget_tokens)
        left = len(chunks.ranges[0])
        number = num_tokens = 0
        while (left or len(packer)) and (limit_tokens is None or num_tokens < limit_tokens):
            while left and not packer.is_full:
                packer.add(*order.take())
                left -= 1
            batch = builder.build(packer.pack(), number)
            number, num_tokens = number + 1, num_tokens + batch.num_tokens
            yield batch

    return batches()


def prefetch(items: Iterator[Item], depth: int = 4) -> Iterator[Item]:
    """Yield the same items, made up to `depth` ahead by one background thread.

    Errors of the thread are raised here. The thread ends with the items, or when this generator is closed.
    """
    queue: Queue[tuple[Item] | BaseException | None] = Queue(maxsize=depth)
    stopped = Event()

    def put(entry: tuple[Item] | BaseException | None) -> None:
        while not stopped.is_set():
            try:
                queue.put(entry, timeout=0.1)
                return
            except Full:
                continue

    def work() -> None:
        try:
            for item in items:
                put((item,))
                if stopped.is_set():
                    return
            put(None)
        except BaseException as error:
            put(error)

    thread = Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while (entry := queue.get()) is not None:
            if isinstance(entry, BaseException):
                raise entry
            yield entry[0]
    finally:
        stopped.set()
        while not queue.empty():
            try:
                queue.get_nowait()
            except Empty:
                break
        thread.join()


class _Builder:
    """Builds the masked batch of a bin, a function of the seed, the bin and its chunks."""

    def __init__(self, chunks: Chunks, tokenizer: Tokenizer, seed: int, mask_rate: float) -> None:
        self._chunks, self._tokenizer, self._seed, self._mask_rate = chunks, tokenizer, seed, mask_rate

    def count(self, chunks: Sequence[int]) -> list[int]:
        """Return how many tokens of some chunks come from each source."""
        numbers = np.array(chunks, dtype=np.int64)
        by_source = np.zeros(len(self._chunks.ranges), dtype=np.int64)
        np.add.at(by_source, self._chunks.source_of(numbers), self._chunks.lengths(numbers))
        return by_source.tolist()

    def build(self, chunks: Sequence[int], bin: int) -> Batch:
        """Return the masked batch of some chunks."""
        tokens, lengths = self._chunks.gather(np.array(chunks, dtype=np.int64))
        # A key per bin: the masks of a bin do not depend on the bins before it.
        rng = np.random.Generator(np.random.Philox(key=np.array([self._seed, bin], dtype=np.uint64)))
        masked, where, labels = mask_tokens(
            tokens,
            rng,
            rate=self._mask_rate,
            mask_id=self._tokenizer.mask_id,
            is_special=self._tokenizer.is_special,
            ordinary_ids=self._tokenizer.ordinary_ids,
        )
        return Batch(
            tokens=torch.from_numpy(masked),
            layout=SequenceLengths.from_lengths(lengths),
            label_positions=torch.from_numpy(where),
            labels=torch.from_numpy(labels),
        )


def _check(
    sources: Mapping[str, Shards], tokenizer: Tokenizer, seed: int, max_len: int, budget_tokens: int, mask_rate: float
) -> None:
    if not sources:
        raise InputError("sources: found none, expected at least one folder of shards")
    for name, shards in sources.items():
        if (shards.fingerprint, shards.vocab_size) != (tokenizer.fingerprint, tokenizer.vocab_size):
            raise InputError(
                f"{name}: {shards.folder} was made with tokenizer {shards.fingerprint} ({shards.vocab_size:,} ids), "
                f"found {tokenizer.fingerprint} ({tokenizer.vocab_size:,} ids)"
            )
        if not shards.num_tokens:
            raise InputError(f"{name}: {shards.folder} holds no tokens")
    if not 3 <= max_len <= budget_tokens:
        raise InputError(f"max_len: found {max_len}, expected 3 to {budget_tokens} (the tokens of a micro-batch)")
    if not 0 < mask_rate < 1:
        raise InputError(f"mask_rate: found {mask_rate}, expected a share between 0 and 1")
    if not 0 <= seed < 2**63:
        raise InputError(f"seed: found {seed}, expected 0 to 2**63 - 1")


def _shares(sizes: Mapping[str, int], weights: Mapping[str, float] | None) -> list[float]:
    """Return each source's share of the tokens served."""
    weights = weights or sizes
    if set(weights) != set(sizes):
        raise InputError(f"weights: found {sorted(weights)}, expected one for each source: {sorted(sizes)}")
    for name, weight in weights.items():
        if not (math.isfinite(weight) and weight >= 0):
            raise InputError(f"weights: {name} is {weight}, expected 0 or more")
    total = sum(weights.values())
    if total <= 0:
        raise InputError("weights: all are 0, expected at least one above")
    return [weights[name] / total for name in sizes]


def _pool_size(chunks: Chunks, shares: Sequence[float], budget_tokens: int) -> int:
    """Return the size of the pool: at most an eighth of an epoch of each source, but enough for two bins.

    With more of an epoch in the pool, some chunks would be served twice before others are served once.
    """
    counts = [len(owned) for owned in chunks.ranges]
    # Chunks per token, because shares are of tokens.
    rates = [share * count / chunks.num_tokens(n) for n, (share, count) in enumerate(zip(shares, counts, strict=True))]
    eighths = [count * sum(rates) / (8 * rate) for count, rate in zip(counts, rates, strict=True) if rate]
    return int(max(_MIN_POOL, 2 * budget_tokens * sum(rates), min(_MAX_POOL, *eighths)))


def _check_cursor(cursor: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    if "pool" not in cursor["identity"]:
        raise InputError(
            "cursor: is of an earlier version, which packed differently; start a new run with init_from and "
            "init_optimizer, or finish this one with that version"
        )
    for key, expected in identity.items():
        if cursor["identity"].get(key) != expected:
            raise InputError(f"cursor: was taken with {key} {cursor['identity'].get(key)}, expected {expected}")
