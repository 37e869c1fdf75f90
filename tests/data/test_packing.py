import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modernbert.data.packing import Packer
from modernbert.errors import InputError


def pack_all(lengths: list[int], budget: int, pool_size: int) -> list[list[int]]:
    packer = Packer(budget, pool_size)
    waiting = list(enumerate(lengths))[::-1]
    bins = []
    while waiting or len(packer):
        while waiting and not packer.is_full:
            packer.add(*waiting.pop())
        bins.append(packer.pack())
    return bins


def first_of_bin(lengths: list[int], budget: int) -> int:
    """Count the oldest pieces, until three quarters are full or the next one does not fit."""
    for number, filled in enumerate(itertools.accumulate(lengths)):
        if filled > budget:
            return number
        if filled >= 0.75 * budget:
            return number + 1
    return len(lengths)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=80), st.integers(1, 20))
@settings(deadline=None)
def test_every_piece_is_packed_once_and_no_bin_is_over_full(lengths: list[int], pool_size: int) -> None:
    bins = pack_all(lengths, 50, pool_size)
    assert sorted(itertools.chain(*bins)) == list(range(len(lengths)))
    assert all(sum(lengths[piece] for piece in pieces) <= 50 for pieces in bins)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40))
@settings(deadline=None)
def test_a_bin_begins_with_the_oldest_pieces_and_ends_when_nothing_fits(lengths: list[int]) -> None:
    packer = Packer(50, 100)
    for piece, length in enumerate(lengths):
        packer.add(piece, length)
    left = set(range(len(lengths)))
    while left:
        pieces = packer.pack()
        oldest = first_of_bin([lengths[piece] for piece in sorted(left)], 50)
        assert pieces[:oldest] == sorted(left)[:oldest]
        left -= set(pieces)
        free = 50 - sum(lengths[piece] for piece in pieces)
        assert all(lengths[piece] > free for piece in left)
        for length in {lengths[piece] for piece in pieces[1:]}:
            taken = [piece for piece in pieces[1:] if lengths[piece] == length]
            assert all(piece > max(taken) for piece in left if lengths[piece] == length), "younger before older"


@given(st.lists(st.integers(1, 30), min_size=1, max_size=9), st.integers(30, 60))
@settings(deadline=None)
def test_first_bin_is_as_full_as_any_choice_of_two_more(lengths: list[int], budget: int) -> None:
    bins = pack_all(lengths, budget, len(lengths))
    filled = sum(lengths[piece] for piece in bins[0])
    oldest = first_of_bin(lengths, budget)
    others, free = lengths[oldest:], budget - sum(lengths[:oldest])
    choices = itertools.chain.from_iterable(itertools.combinations(others, n) for n in range(3))
    fitting = [sum(choice) for choice in choices if sum(choice) <= free]
    singles = [length for length in others if length <= free]
    # If another chunk fits after the longest, the greedy rule adds it; otherwise it must fill as much as any two.
    if not singles or free - max(singles) < min(others):
        assert filled >= budget - free + max(fitting)


@pytest.mark.parametrize(("longest", "budget"), [(1024, 8192), (8192, 8192), (8192, 16384)])
def test_bins_of_long_tailed_lengths_are_998_per_mille_full(longest: int, budget: int) -> None:
    rng = random.Random(0)
    packer = Packer(budget)
    filled = 0
    for _ in range(300):
        while not packer.is_full:
            length = min(longest, max(64, int(rng.lognormvariate(6.8, 1.2))))
            packer.add(length, length)
        filled += sum(packer.pack())
    assert filled >= 0.998 * 300 * budget


def test_a_packer_restored_from_a_state_packs_the_same() -> None:
    rng = random.Random(1)
    first = Packer(100, 50)
    for piece in range(50):
        first.add(piece, rng.randint(1, 100))
    first.pack()
    second = Packer(100, 50)
    for piece, length in first.state():
        second.add(piece, length)
    for piece in range(50, 60):
        first.add(piece, piece)
        second.add(piece, piece)
    while len(first):
        assert first.pack() == second.pack()
    assert not len(second)


def test_bad_lengths_are_refused() -> None:
    packer = Packer(10)
    for length in (0, 11):
        with pytest.raises(InputError, match=rf"chunk 7: has {length} tokens, expected 1 to 10"):
            packer.add(7, length)
    with pytest.raises(IndexError, match="the pool is empty"):
        packer.pack()
    with pytest.raises(InputError, match="expected at least 1"):
        Packer(0)
