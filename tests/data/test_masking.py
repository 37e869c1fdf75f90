import numpy as np
import pytest

from modernbert.data.masking import mask_tokens

NUM = 200_000
VOCAB = 100
SPECIAL = np.array([0, 1, 2, 3, 99])
MASK_ID = 3
ORDINARY = np.array([i for i in range(4, 90)])  # 90 to 98 stand for spare entries


def masked(rate: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    tokens = np.random.default_rng(5).integers(0, VOCAB, NUM)
    is_special = np.isin(np.arange(VOCAB), SPECIAL)
    rng = np.random.default_rng(seed)
    changed = mask_tokens(tokens, rng, rate=rate, mask_id=MASK_ID, is_special=is_special, ordinary_ids=ORDINARY)
    return tokens, *changed


def is_plausible(found: int, num: int, rate: float) -> bool:
    """Return whether a count is within five standard deviations of the mean of a binomial distribution."""
    return abs(found - num * rate) < 5 * (num * rate * (1 - rate)) ** 0.5


@pytest.mark.parametrize("rate", [0.05, 0.15, 0.3])
def test_shares_are_80_10_10_of_the_rate(rate: float) -> None:
    tokens, changed, where, labels = masked(rate)
    num_ordinary = int((~np.isin(tokens, SPECIAL)).sum())
    assert is_plausible(len(where), num_ordinary, rate)
    at = changed[where]
    assert is_plausible(int((at == MASK_ID).sum()), len(where), 0.8)
    # One draw in len(ORDINARY) gives back the token that was there, for those whose token can be drawn.
    drawable = np.isin(labels, ORDINARY).mean()
    assert is_plausible(int((at == labels).sum()), len(where), 0.1 + 0.1 * drawable / len(ORDINARY))


def test_special_tokens_are_neither_chosen_nor_drawn() -> None:
    tokens, changed, where, labels = masked(0.3)
    assert not np.isin(labels, SPECIAL).any()
    replaced = changed[where][(changed[where] != MASK_ID) & (changed[where] != labels)]
    assert np.isin(replaced, ORDINARY).all()
    counts = np.bincount(replaced, minlength=VOCAB)[ORDINARY]
    assert all(is_plausible(int(count), len(replaced), 1 / len(ORDINARY)) for count in counts)


def test_rows_are_in_order_and_all_others_are_untouched() -> None:
    tokens, changed, where, labels = masked(0.3)
    assert where.dtype == labels.dtype == changed.dtype == np.int64
    assert (np.diff(where) > 0).all()
    assert (labels == tokens[where]).all()
    rest = np.setdiff1d(np.arange(NUM), where)
    assert (changed[rest] == tokens[rest]).all()


def test_choice_is_a_function_of_the_generator_alone() -> None:
    first, second, other = masked(0.3), masked(0.3), masked(0.3, seed=1)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert not np.array_equal(first[2], other[2])
