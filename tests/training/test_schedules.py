"""The schedule against the figures of the published runs."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modernbert.training.schedules import Schedule

BILLION = 10**9


def changes(schedule):
    """Tokens (in billions) at which the number of micro-batches changes."""
    steps = [schedule.steps_per_size * size for size in range(1, schedule.max_micro_batches)]
    plans = [(schedule.plan(step - 1), schedule.plan(step)) for step in steps]
    assert [after.num_micro_batches - before.num_micro_batches for before, after in plans] == [1] * len(plans)
    return [after.tokens_before / BILLION for _, after in plans]


def test_batch_warmup_of_base():
    # A micro-batch is 8 devices times 96 rows of 1,024 tokens.
    schedule = Schedule(
        tokens=1_719 * BILLION,
        micro_batch_tokens=768 * 1024,
        peak_lr=8e-4,
        warmup_tokens=3 * BILLION,
        max_micro_batches=6,
        batch_warmup_tokens=50 * BILLION,
    )
    assert changes(schedule) == pytest.approx([3.33, 10, 20, 33.3, 50], rel=2e-3)
    assert schedule.plan(schedule.num_steps - 1).num_micro_batches * 768 == 4_608


def test_batch_warmup_of_large():
    schedule = Schedule(
        tokens=1_719 * BILLION,
        micro_batch_tokens=448 * 1024,
        peak_lr=5e-4,
        max_micro_batches=11,
        batch_warmup_tokens=10 * BILLION,
    )
    assert changes(schedule) == pytest.approx([0.18, 0.55, 1.09, 1.82, 2.73, 3.82, 5.09, 6.55, 8.18, 10], rel=1e-2)


def test_decay_of_base_ends_at_its_floor():
    # The published decay phase ran 10,598 steps of 576 rows of 8,192 tokens, nearly all full.
    schedule = Schedule(
        tokens=50 * BILLION, micro_batch_tokens=96 * 8192, peak_lr=3e-4, decay_tokens=50 * BILLION, max_micro_batches=6
    )
    assert schedule.num_steps == 10_596
    assert schedule.plan(0).lr == 3e-4
    assert schedule.learning_rate(50 * BILLION) == pytest.approx(3e-7)
    # A quarter of the way 1 - sqrt(t) is at one half.
    assert schedule.learning_rate(50 * BILLION // 4) == pytest.approx(3e-4 * (0.001 + 0.999 * 0.5))


def test_trapezoid_rises_stays_and_falls():
    schedule = Schedule(tokens=1000, micro_batch_tokens=10, peak_lr=2.0, warmup_tokens=100, decay_tokens=200)
    rates = [schedule.plan(step).lr for step in range(schedule.num_steps)]
    assert rates[:11] == pytest.approx([0.2 * step for step in range(11)])
    assert set(rates[10:81]) == {2.0}
    assert all(later < earlier for earlier, later in zip(rates[80:], rates[81:], strict=False))


schedules = st.builds(
    Schedule,
    tokens=st.integers(1, 20_000),
    micro_batch_tokens=st.integers(1, 64),
    peak_lr=st.just(1e-3),
    max_micro_batches=st.integers(1, 9),
    batch_warmup_tokens=st.integers(0, 30_000),
)


@settings(deadline=None)
@given(schedules)
def test_plans_add_up_to_the_tokens_of_the_phase(schedule):
    tokens = 0
    for step in range(schedule.num_steps):
        plan = schedule.plan(step)
        assert plan.tokens_before == tokens
        tokens += plan.num_micro_batches * schedule.micro_batch_tokens
    assert tokens <= schedule.tokens
    following = schedule.plan(schedule.num_steps)
    assert tokens + following.num_micro_batches * schedule.micro_batch_tokens > schedule.tokens
