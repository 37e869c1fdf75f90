"""The scheduler: the library's results under any load, fair order, and an answer or error for every client."""

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from modernbert import InputError, ModernBert
from modernbert.serving.scheduler import Busy, Gone, Request, Scheduler
from modernbert.tokenizer.input_templates import EncodedText


def means(hidden: Tensor, texts: Sequence[EncodedText]) -> list[np.ndarray]:
    return [part.float().mean(dim=0).numpy() for part in hidden.split(lengths_of(texts))]


def lengths_of(texts: Sequence[EncodedText]) -> list[int]:
    return [len(each.tokens) for each in texts]


def submit(scheduler: Scheduler, documents: Sequence[np.ndarray], output: Any) -> Request:
    return scheduler.submit([EncodedText(ids) for ids in documents], output)


def texts_of(number: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(f"w{n}" for n in rng.integers(0, 50, rng.integers(0, 60))) for _ in range(number)]


@pytest.fixture
def scheduler(small_bert: ModernBert) -> Iterator[Scheduler]:
    found = Scheduler(small_bert, budget_tokens=200)
    yield found
    found.close(5.0)


class Held:
    """Block the scheduler in the middle of a batch until the event is set."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.entered, self.go = threading.Event(), threading.Event()
        self.request = submit(scheduler, [np.array([1, 5, 2])], self.finish)
        assert self.entered.wait(10)

    def finish(self, hidden: Tensor, texts: Sequence[EncodedText]) -> list[Any]:
        self.entered.set()
        assert self.go.wait(10)
        return [None]


def test_many_clients_get_the_results_of_the_library(scheduler: Scheduler, small_bert: ModernBert) -> None:
    requests = [texts_of(number, seed) for seed, number in enumerate([1, 40, 3, 1, 17, 2] * 5)]
    asked = [submit(scheduler, small_bert.tokenizer.encode(texts), means) for texts in requests]
    for texts, request in zip(requests, asked, strict=True):
        found = np.stack(request.future.result(timeout=30))
        np.testing.assert_allclose(found, small_bert.embed(texts, normalize=False), atol=1e-5)
    assert scheduler.queued_tokens == 0 and scheduler.tokens_per_s > 0
    assert submit(scheduler, [], means).future.result(timeout=1) == []


def test_a_little_is_served_before_the_rest_of_much(scheduler: Scheduler) -> None:
    """A small request waits for at most two batches of a request of a hundred batches."""
    order: list[str] = []

    def noted(name: str) -> Any:
        def finish(hidden: Tensor, texts: Sequence[EncodedText]) -> list[None]:
            order.extend([name] * len(texts))
            return [None] * len(texts)

        return finish

    held = Held(scheduler)
    much = submit(scheduler, [np.full(100, 5)] * 200, noted("much"))
    little = [submit(scheduler, [np.full(20, 5)], noted("little")) for _ in range(3)]
    held.go.set()
    for request in (much, *little):
        request.future.result(timeout=30)
    assert [place for place, name in enumerate(order) if name == "little"][-1] <= 5
    assert order.count("much") == 200


def test_requests_of_disconnected_clients_are_dropped(scheduler: Scheduler) -> None:
    seen: list[int] = []
    held = Held(scheduler)
    left = submit(
        scheduler, [np.full(50, 5)] * 40, lambda hidden, texts: seen.extend(lengths_of(texts)) or [0] * len(texts)
    )
    stays = submit(scheduler, [np.full(50, 5)] * 2, lambda hidden, texts: lengths_of(texts))
    left.cancel()
    held.go.set()
    assert stays.future.result(timeout=10) == [50, 50]
    with pytest.raises(CancelledError):
        left.future.result(timeout=10)
    while scheduler.queued_tokens:
        time.sleep(0.01)
    assert seen == []


def test_too_much_is_refused_with_a_time_and_taken_again_later(small_bert: ModernBert) -> None:
    scheduler = Scheduler(small_bert, budget_tokens=100, max_queued_tokens=300)
    held = Held(scheduler)
    # A request is never refused for its size alone.
    whole = submit(scheduler, [np.full(100, 5)] * 50, means)
    with pytest.raises(Busy, match="try again in") as caught:
        submit(scheduler, [np.full(3, 5)], means)
    assert caught.value.retry_after_s >= 1
    held.go.set()
    assert len(whole.future.result(timeout=30)) == 50
    assert len(submit(scheduler, [np.full(3, 5)], means).future.result(timeout=10)) == 1
    scheduler.close(5.0)


def test_requests_that_would_wait_too_long_are_refused(small_bert: ModernBert) -> None:
    """The wait of a request is the tokens ahead of it, at the speed of the last batches."""
    scheduler = Scheduler(small_bert, budget_tokens=100, wait_s=2.2)
    scheduler._computed = (100.0, 1.0)
    held = Held(scheduler)
    taken = [submit(scheduler, [np.full(50, 5)], means) for _ in range(5)]
    with pytest.raises(Busy) as caught:
        for _ in range(3):
            taken.append(submit(scheduler, [np.full(50, 5)], means))
    assert len(taken) == 5, "two and a half seconds of others are too long"
    assert caught.value.retry_after_s == 1
    # A small request waits for as many tokens of a large request as it has itself.
    assert scheduler._tokens_ahead(10) == 250
    held.go.set()
    assert all(len(each.future.result(timeout=30)) == 1 for each in taken)
    scheduler.close(5.0)
    alone = Scheduler(small_bert, budget_tokens=100, wait_s=2.0)
    alone._computed = (100.0, 1.0)
    held = Held(alone)
    much = submit(alone, [np.full(100, 5)] * 50, means)
    little = submit(alone, [np.full(20, 5)], means)
    held.go.set()
    assert len(little.future.result(timeout=30)) == 1 and len(much.future.result(timeout=30)) == 50
    alone.close(5.0)


def test_batches_are_as_small_as_a_slow_machine_needs(small_bert: ModernBert) -> None:
    scheduler = Scheduler(small_bert, budget_tokens=4_000, batch_s=0.5)
    seen: list[int] = []
    held = Held(scheduler)
    scheduler._computed = (10_000.0, 10.0)  # a thousand tokens a second
    waiting = submit(
        scheduler, [np.full(90, 5)] * 30, lambda hidden, texts: seen.append(len(texts)) or [0] * len(texts)
    )
    held.go.set()
    waiting.future.result(timeout=30)
    assert seen[0] == 5, "half a second of them"
    scheduler.close(5.0)


def test_results_that_are_not_finite_are_an_error(scheduler: Scheduler) -> None:
    for bad in (np.array([1.0, np.nan]), (np.array([1]), np.array([np.inf]))):
        request = submit(scheduler, [np.full(3, 5)], lambda hidden, texts, bad=bad: [bad])
        with pytest.raises(ArithmeticError, match="not finite"):
            request.future.result(timeout=10)


def test_a_failure_is_reported_to_its_client_and_the_scheduler_continues(scheduler: Scheduler) -> None:
    held = Held(scheduler)

    def broken(hidden: Tensor, texts: Sequence[EncodedText]) -> list[Any]:
        raise ValueError("broken")

    bad = submit(scheduler, [np.full(90, 5)] * 9, broken)
    good = submit(scheduler, [np.full(9, 5)], means)
    for ids in ([1, 10**6, 2], [-1], []):
        with pytest.raises(InputError, match="text 0: has ids outside of 0 to 511, or none"):
            submit(scheduler, [np.array(ids, dtype=np.int64)], means)
    held.go.set()
    with pytest.raises(ValueError, match="broken"):
        bad.future.result(timeout=10)
    assert np.isfinite(good.future.result(timeout=10)[0]).all()
    while scheduler.queued_tokens:
        time.sleep(0.01)
    assert scheduler.is_alive


def test_equal_outputs_are_computed_together_and_failures_are_isolated(scheduler: Scheduler) -> None:
    groups: list[int] = []

    def picky(hidden: Tensor, texts: Sequence[EncodedText]) -> list[np.ndarray]:
        groups.append(len(texts))
        if 7 in lengths_of(texts):
            raise ValueError("seven is not wanted")
        return means(hidden, texts)

    held = Held(scheduler)
    asked = [submit(scheduler, [np.full(length, 5)], picky) for length in (3, 7, 4)]
    held.go.set()
    with pytest.raises(ValueError, match="seven"):
        asked[1].future.result(timeout=30)
    for request in (asked[0], asked[2]):
        assert np.isfinite(request.future.result(timeout=30)[0]).all()
    assert groups == [3, 1, 1, 1]


def test_a_failed_batch_is_computed_again_by_client(
    scheduler: Scheduler, small_bert: ModernBert, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = type(small_bert.encoder).forward

    def failing(self: Any, tokens: Tensor, *others: Any) -> Tensor:
        if 77 in tokens.tolist():
            raise RuntimeError("out of memory")
        return real(self, tokens, *others)

    monkeypatch.setattr(type(small_bert.encoder), "forward", failing)
    held = Held(scheduler)
    bad = submit(scheduler, [np.array([1, 77, 2])], means)
    good = [submit(scheduler, [np.array([1, 5, 2])], means) for _ in range(3)]
    held.go.set()
    with pytest.raises(RuntimeError, match="out of memory"):
        bad.future.result(timeout=10)
    assert all(len(each.future.result(timeout=10)) == 1 for each in good)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_clients_of_an_ended_scheduler_get_an_error(small_bert: ModernBert) -> None:
    scheduler = Scheduler(small_bert, batch_s=float("nan"))  # makes the budget of a batch NaN
    scheduler._computed = (1.0, 1.0)
    asked = submit(scheduler, [np.array([1, 5, 2])], means)
    with pytest.raises(Gone):
        asked.future.result(timeout=30)
    with pytest.raises(Gone):
        submit(scheduler, [np.array([1, 5, 2])], means)
    scheduler.close(5.0)
    assert not scheduler.is_alive


def test_closing_computes_the_queue_and_refuses_new_requests(small_bert: ModernBert) -> None:
    scheduler = Scheduler(small_bert, budget_tokens=100)
    held = Held(scheduler)
    waiting = submit(scheduler, [np.full(50, 5)] * 20, means)
    threading.Timer(0.2, held.go.set).start()
    scheduler.close(20.0)
    assert len(waiting.future.result(timeout=1)) == 20 and not scheduler.is_alive
    with pytest.raises(Gone, match="the server is closing"):
        submit(scheduler, [np.full(3, 5)], means)


def test_closing_fails_requests_that_take_too_long(small_bert: ModernBert) -> None:
    scheduler = Scheduler(small_bert, budget_tokens=100)
    held = Held(scheduler)
    waiting = submit(scheduler, [np.full(50, 5)] * 20, means)
    scheduler.close(0.1)
    with pytest.raises(Gone, match="the server has closed"):
        waiting.future.result(timeout=1)
    held.go.set()


def test_a_request_knows_how_long_it_took(scheduler: Scheduler, small_bert: ModernBert) -> None:
    held = Held(scheduler)
    request = submit(scheduler, small_bert.tokenizer.encode(["a text"]), means)
    time.sleep(0.1)
    held.go.set()
    request.future.result(timeout=10)
    assert request.queued_s >= 0.1 and request.computed_s > 0
    assert torch.is_inference_mode_enabled() is False
