import itertools
import json
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from modernbert.batch import Batch
from modernbert.data.chunks import ChunkOrder, Chunks
from modernbert.data.corpus import Tally, read_documents
from modernbert.data.shards import Shards, write_shards
from modernbert.data.stream import Packed, Stream, heldout_batches, prefetch
from modernbert.errors import InputError
from modernbert.tokenizer.bpe_training import train_tokenizer
from modernbert.tokenizer.tokenizer import Tokenizer

SETTINGS: dict[str, Any] = {"seed": 3, "max_len": 32, "budget_tokens": 128, "mask_rate": 0.3}


def unmasked(batch: Batch) -> list[list[int]]:
    tokens = batch.tokens.clone()
    assert batch.label_positions is not None and batch.labels is not None
    tokens[batch.label_positions] = batch.labels
    return [piece.tolist() for piece in tokens.split(list(batch.layout.lengths))]


def take(stream: Stream, num: int) -> list[Packed]:
    return list(itertools.islice(stream, num))


def equal(first: Batch, second: Batch) -> bool:
    pairs = [
        (first.tokens, second.tokens),
        (first.label_positions, second.label_positions),
        (first.labels, second.labels),
    ]
    return first.layout.lengths == second.layout.lengths and all(torch.equal(a, b) for a, b in pairs)


@pytest.fixture
def texts(make_texts: Any) -> list[str]:
    return make_texts(150, seed=7)


@pytest.fixture
def shards(make_shards: Any, texts: list[str]) -> Shards:
    return make_shards(texts)


def test_pieces_joined_are_the_documents(shards: Shards, tokenizer: Tokenizer, texts: list[str]) -> None:
    pieces = Chunks([shards], 32, tokenizer.cls_id, tokenizer.sep_id)
    numbers = np.arange(len(pieces.ranges[0]))
    tokens, lengths = pieces.gather(numbers)
    assert lengths == pieces.lengths(numbers).tolist()
    assert len(tokens) == sum(lengths) == pieces.num_tokens(0)
    cut = np.split(tokens, np.cumsum(lengths)[:-1])
    assert {ids[0] for ids in cut} == {tokenizer.cls_id} and {ids[-1] for ids in cut} == {tokenizer.sep_id}
    joined = [i for ids in cut for i in ids[1:-1]]
    assert joined == [i for ids in tokenizer.encode(texts, special=False) for i in ids]
    assert max(lengths) == 32
    # No piece is shorter than it must be: only the last of a document may be.
    assert len(lengths) == sum(-(-len(ids) // 30) for ids in tokenizer.encode(texts, special=False))


def test_an_epoch_has_every_piece_once_and_epochs_differ(shards: Shards, tokenizer: Tokenizer) -> None:
    pieces = Chunks([shards], 32, tokenizer.cls_id, tokenizer.sep_id)
    num = len(pieces.ranges[0])
    order = ChunkOrder(pieces, 0, seed=3)
    epochs = [[order.take()[0] for _ in range(num)] for _ in range(3)]
    assert all(sorted(epoch) == list(range(num)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert [ChunkOrder(pieces, 0, seed=4).take() for _ in range(num)] != epochs[0]
    # The order of the second epoch does not depend on reading the first.
    late = ChunkOrder(pieces, 0, seed=3, place=(1, 5))
    assert [late.take()[0] for _ in range(num - 5)] == epochs[1][5:]


def test_tokens_out_are_tokens_in(shards: Shards, tokenizer: Tokenizer) -> None:
    pieces = Chunks([shards], 32, tokenizer.cls_id, tokenizer.sep_id)
    everything = Counter(tuple(pieces.gather(np.array([n]))[0].tolist()) for n in pieces.ranges[0])
    seen: Counter[tuple[int, ...]] = Counter()
    last = None
    for packed in Stream({"a": shards}, tokenizer, **SETTINGS):
        seen.update(map(tuple, unmasked(packed.batch)))
        last = packed.cursor()
        if last["sources"]["a"]["place"][0] == 3:
            break
    assert last is not None
    place = last["sources"]["a"]["place"]
    order = ChunkOrder(pieces, 0, seed=3)
    drawn = [order.take()[0] for _ in range(3 * len(pieces.ranges[0]) + place[1])]
    waiting = Counter(last["pool"])
    served = Counter(drawn)
    served.subtract(waiting)
    expected: Counter[tuple[int, ...]] = Counter()
    for piece, count in served.items():
        expected[tuple(pieces.gather(np.array([piece]))[0].tolist())] += count
    assert seen == +expected
    assert set(seen) == set(everything)
    assert last["sources"]["a"]["served"] == sum(len(ids) * n for ids, n in seen.items())


def test_batches_are_within_budget_and_nearly_full(shards: Shards, tokenizer: Tokenizer) -> None:
    batches = take(Stream({"a": shards}, tokenizer, **SETTINGS), 200)
    assert all(packed.num_tokens <= packed.budget_tokens == 128 for packed in batches)
    assert sum(packed.num_tokens for packed in batches) >= 0.99 * 200 * 128
    assert [packed.bin for packed in batches] == list(range(200))
    assert all(packed.batch.layout.max_seqlen <= 32 for packed in batches)


@pytest.mark.parametrize("max_len, budget_tokens", [(32, 128), (32, 2_000), (128, 256)])
def test_no_piece_waits_while_others_come_again(
    shards: Shards, tokenizer: Tokenizer, max_len: int, budget_tokens: int
) -> None:
    """However few the pieces, and however many go into a bin."""
    lengths: dict[str, Any] = {"max_len": max_len, "budget_tokens": budget_tokens}
    pieces = Chunks([shards], max_len, tokenizer.cls_id, tokenizer.sep_id)
    seen: Counter[tuple[int, ...]] = Counter()
    for packed in Stream({"a": shards}, tokenizer, seed=3, mask_rate=0.3, **lengths):
        seen.update(map(tuple, unmasked(packed.batch)))
        if packed.epochs["a"] >= 5:
            break
    copies = Counter(tuple(pieces.gather(np.array([n]))[0].tolist()) for n in pieces.ranges[0])
    times = [seen[piece] / number for piece, number in copies.items()]
    assert min(times) >= 4 and max(times) <= 6 and times.count(5) > 0.9 * len(times)


def test_bins_of_thousands_of_short_texts_are_full(make_shards: Any, tokenizer: Tokenizer) -> None:
    words = make_shards([f"word {number}" for number in range(5_000)])
    lengths: dict[str, Any] = {"max_len": 32, "budget_tokens": 64_000}
    number = lengths["budget_tokens"] * 5_000 // Chunks([words], 32, 1, 2).num_tokens(0)
    assert number > 4_096
    for packed in take(Stream({"a": words}, tokenizer, seed=1, mask_rate=0.3, **lengths), 3):
        assert packed.num_tokens > 0.99 * packed.budget_tokens


def test_masks_spare_special_tokens_and_depend_on_the_seed(shards: Shards, tokenizer: Tokenizer) -> None:
    batches = take(Stream({"a": shards}, tokenizer, **SETTINGS), 100)
    labels = torch.cat([packed.batch.labels for packed in batches])
    assert not np.isin(labels, tokenizer.special_ids).any()
    num_ordinary = sum(packed.num_tokens - 2 * packed.batch.layout.num_docs for packed in batches)
    assert abs(len(labels) / num_ordinary - 0.3) < 5 * (0.3 * 0.7 / num_ordinary) ** 0.5
    other = take(Stream({"a": shards}, tokenizer, **(SETTINGS | {"seed": 4})), 1)
    assert not equal(batches[0].batch, other[0].batch)


@pytest.mark.parametrize("stop", [0, 1, 7, 60, 130])
def test_a_stream_resumed_from_any_cursor_is_equal_to_the_bit(
    make_shards: Any, tokenizer: Tokenizer, texts: list[str], stop: int
) -> None:
    sources = {"a": make_shards(texts, "a"), "b": make_shards(texts[:30], "b")}
    weights = {"a": 1.0, "b": 2.0}
    whole = take(Stream(sources, tokenizer, weights=weights, **SETTINGS), stop + 40)
    cursor = json.loads(json.dumps(whole[stop].cursor()))
    resumed = take(Stream(sources, tokenizer, weights=weights, cursor=cursor, **SETTINGS), 39)
    for expected, found in zip(whole[stop + 1 :], resumed, strict=True):
        assert equal(expected.batch, found.batch)
        assert expected.cursor() == found.cursor()


def test_a_cursor_ignores_prefetched_batches(shards: Shards, tokenizer: Tokenizer) -> None:
    plain = take(Stream({"a": shards}, tokenizer, **SETTINGS), 8)
    ahead = prefetch(iter(Stream({"a": shards}, tokenizer, **SETTINGS)), depth=5)
    for expected in plain:
        found = next(ahead)
        assert found.cursor() == expected.cursor()
        assert equal(found.batch, expected.batch)
    ahead.close()


def test_shares_are_by_tokens(make_shards: Any, tokenizer: Tokenizer, texts: list[str]) -> None:
    sources = {"long": make_shards(texts, "long"), "short": make_shards([t[:40] for t in texts[:50]], "short")}

    def shares(weights: dict[str, float] | None) -> dict[str, float]:
        last = take(Stream(sources, tokenizer, weights=weights, **SETTINGS), 300)[-1].source_tokens
        return {name: tokens / sum(last.values()) for name, tokens in last.items()}

    assert shares({"long": 1.0, "short": 3.0})["short"] == pytest.approx(0.75, abs=0.01)
    assert shares({"long": 1.0, "short": 0.0})["short"] == 0
    pieces = Chunks(list(sources.values()), 32, tokenizer.cls_id, tokenizer.sep_id)
    sizes = pieces.num_tokens(0), pieces.num_tokens(1)
    assert shares(None)["short"] == pytest.approx(sizes[1] / sum(sizes), abs=0.01)


def test_by_default_all_sources_end_their_epochs_together(
    make_shards: Any, tokenizer: Tokenizer, texts: list[str]
) -> None:
    sources = {"a": make_shards(texts, "a"), "b": make_shards(texts[:40], "b")}
    for packed in take(Stream(sources, tokenizer, **SETTINGS), 300):
        epochs = [source["place"] for source in packed.cursor()["sources"].values()]
        pieces = Chunks(list(sources.values()), 32, tokenizer.cls_id, tokenizer.sep_id)
        done = [epoch + taken / len(owned) for (epoch, taken), owned in zip(epochs, pieces.ranges, strict=True)]
        # Within an epoch one source may have had its longer pieces first; a few pieces of the smaller are a lot of it.
        assert abs(done[0] - done[1]) < 0.2


def test_heldout_has_every_piece_once_and_is_the_same_each_time(shards: Shards, tokenizer: Tokenizer) -> None:
    settings: dict[str, Any] = {"seed": 1, "max_len": 32, "budget_tokens": 128, "mask_rate": 0.15}
    first = list(heldout_batches(shards, tokenizer, **settings))
    second = list(heldout_batches(shards, tokenizer, **settings))
    assert all(equal(a, b) for a, b in zip(first, second, strict=True))
    pieces = Chunks([shards], 32, tokenizer.cls_id, tokenizer.sep_id)
    everything = [pieces.gather(np.array([n]))[0].tolist() for n in pieces.ranges[0]]
    assert sorted(itertools.chain(*map(unmasked, first))) == sorted(everything)
    some = list(heldout_batches(shards, tokenizer, limit_tokens=1_000, **settings))
    assert all(equal(a, b) for a, b in zip(some, first, strict=False))
    assert sum(batch.num_tokens for batch in some[:-1]) < 1_000 <= sum(batch.num_tokens for batch in some)


def test_mismatched_settings_are_named(
    make_texts: Any, shards: Shards, tokenizer: Tokenizer, make_shards: Any, texts: list[str]
) -> None:
    def refused(message: str, sources: dict[str, Shards] | None = None, **changes: Any) -> None:
        given = {"a": shards} if sources is None else sources
        used = changes.pop("tokenizer", tokenizer)
        with pytest.raises(InputError, match=message):
            Stream(given, used, **(SETTINGS | changes))

    refused("sources: found none", {})
    other = train_tokenizer(make_texts(400, seed=2), 512)
    refused(rf"a: .* was made with tokenizer {shards.fingerprint} .*found {other.fingerprint}", tokenizer=other)
    refused("max_len: found 129, expected 3 to 128", max_len=129)
    refused("max_len: found 2, expected 3 to 128", max_len=2)
    refused("mask_rate: found 0", mask_rate=0.0)
    refused("seed: found -1", seed=-1)
    refused(r"weights: found \['b'\], expected one for each source: \['a'\]", weights={"b": 1.0})
    refused("weights: a is -1", weights={"a": -1.0})
    refused("weights: a is nan", weights={"a": float("nan")})
    refused("weights: all are 0", weights={"a": 0.0})
    cursor = take(Stream({"a": shards}, tokenizer, **SETTINGS), 1)[0].cursor()
    refused("cursor: was taken with max_len 32, expected 16", cursor=cursor, max_len=16)
    refused("cursor: was taken with sources", {"a": make_shards(texts[:9], "fewer")}, cursor=cursor)
    old = cursor | {"identity": {key: value for key, value in cursor["identity"].items() if key != "pool"}}
    refused("cursor: is of an earlier version, which packed differently; start a new run", cursor=old)
    both = {"a": shards, "b": make_shards(texts[:50], "b")}
    cursor = take(Stream(both, tokenizer, **SETTINGS), 1)[0].cursor()
    refused("cursor: was taken with sources", dict(reversed(both.items())), cursor=cursor)


def test_prefetch_yields_the_same_and_ends_its_thread() -> None:
    before = threading.active_count()
    assert list(prefetch(iter(range(50)), depth=3)) == list(range(50))
    endless = prefetch(itertools.count(), depth=2)
    assert next(endless) == 0
    assert threading.active_count() == before + 1
    endless.close()
    assert threading.active_count() == before


def test_prefetch_raises_the_error_of_its_thread() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise InputError("shard-00001.tokens: is absent")

    items = prefetch(broken(), depth=2)
    assert next(items) == 1
    with pytest.raises(InputError, match="is absent"):
        next(items)
    assert not any(thread.name == "prefetch" for thread in threading.enumerate())


def test_fill_of_real_text(data_folder: Path, tmp_path: Path) -> None:
    tally = Tally()
    paths = sorted((data_folder / "corpus").glob("wikitext2.*"))
    documents = read_documents(paths, tally, txt_unit="line")
    published = data_folder / "tokenizer" / "modernbert"
    write_shards(documents, published, tmp_path / "wiki", tally=tally)
    shards = Shards.open(tmp_path / "wiki")
    for max_len, budget in ((1024, 8192), (8192, 8192), (8192, 16384)):
        lengths: dict[str, Any] = {"max_len": max_len, "budget_tokens": budget}
        stream = Stream({"wiki": shards}, Tokenizer.load(published), seed=1, mask_rate=0.3, **lengths)
        assert sum(packed.num_tokens for packed in take(stream, 100)) >= 0.998 * 100 * budget
