"""A thread that computes the texts of all clients in shared batches, in fair order.

Texts of all requests are concatenated, so a batch has no padding and its memory does not depend on one request. The
size of batches and of the queue bounds the time that a request waits for others.

Source: Goyal et al. 1997 (start-time fair queueing), with tokens in place of time: a large request waits for small
ones, and no request waits forever.
"""

import heapq
import math
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modernbert.batch import Batch
from modernbert.errors import InputError
from modernbert.inference.modernbert import ModernBert
from modernbert.inference.outputs import Output, is_finite
from modernbert.tokenizer.input_templates import EncodedText

__all__ = ["Busy", "Gone", "Request", "Scheduler"]

# Weight of the earlier batches in the running average of the speed.
_DECAY = 0.8
# Fewer tokens do not keep even a slow processor busy.
_MIN_BATCH = 256


class Busy(Exception):
    """The queue is full; `retry_after_s` says when to try again."""

    def __init__(self, seconds: float) -> None:
        self.retry_after_s = max(1, math.ceil(seconds))
        super().__init__(f"too many tokens are waiting, try again in {self.retry_after_s} s")


class Gone(Exception):
    """The scheduler has closed, or the client no longer waits for the answer."""


@dataclass
class Request:
    """The texts of one request; `future` holds an answer for each, in order."""

    texts: Sequence[EncodedText]
    output: Output
    future: "Future[list[Any]]" = field(default_factory=Future)
    queued_s: float = 0.0
    """Seconds before its first batch."""
    computed_s: float = 0.0
    """Seconds that its batches took."""
    num_tokens: int = field(init=False)
    _answers: list[Any] = field(default_factory=list)
    _next: int = 0
    _done_tokens: int = 0
    _arrived: float = field(default_factory=time.monotonic)
    _turn: float = 0.0

    def __post_init__(self) -> None:
        self.num_tokens = sum(len(each.tokens) for each in self.texts)

    def cancel(self) -> None:
        """Stop computing the rest of the request."""
        self.future.cancel()


class Scheduler:
    """A model behind a fair queue."""

    def __init__(
        self,
        bert: ModernBert,
        budget_tokens: int = 4_096,
        max_queued_tokens: int = 1_000_000,
        *,
        wait_s: float = math.inf,
        batch_s: float = 0.5,
    ) -> None:
        """Start the thread.

        Args:
            bert: The model.
            budget_tokens: The most tokens of a batch; a longer text is computed alone.
            max_queued_tokens: Refuse requests while so many tokens wait.
            wait_s: Refuse a request that would wait longer for others.
            batch_s: The most seconds of a batch, at the speed of the last ones.
        """
        self.bert = bert
        self.budget_tokens, self.max_queued_tokens = budget_tokens, max_queued_tokens
        self.wait_s, self.batch_s = wait_s, batch_s
        self.queued_tokens = 0
        self.last_batch_tokens = 0
        self._computed = (0.0, 0.0)
        self._until = 0.0
        self._is_first = True
        self._turn = 0.0
        self._number = 0
        self._waiting: list[tuple[float, int, Request]] = []
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="scheduler", daemon=True)
        self._thread.start()

    @property
    def tokens_per_s(self) -> float:
        """Speed of the last batches; 0 before the second one, since the first includes one-time work."""
        tokens, seconds = self._computed
        return tokens / seconds if seconds else 0.0

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def check_capacity(self, num_tokens: int) -> None:
        """Check that a request of about so many tokens would be accepted now.

        Raises:
            Busy: It would be refused.
        """
        with self._changed:
            self._check_capacity(num_tokens)

    def submit(self, texts: Sequence[EncodedText], output: Output) -> Request:
        """Queue a request.

        Raises:
            Busy: The queue is full.
            Gone: The scheduler is closing.
            InputError: Token ids are invalid.
        """
        request = Request(texts, output)
        for number, text in enumerate(texts):
            ids = text.tokens
            if not len(ids) or ids.min() < 0 or ids.max() >= self.bert.tokenizer.vocab_size:
                raise InputError(
                    f"text {number}: has ids outside of 0 to {self.bert.tokenizer.vocab_size - 1}, or none"
                )
        if not texts:
            request.future.set_result([])
            return request
        with self._changed:
            if self._closing:
                raise Gone("the server is closing")
            self._check_capacity(request.num_tokens)
            self.queued_tokens += request.num_tokens
            request._turn = self._turn
            self._push(request)
            self._changed.notify()
        return request

    def close(self, drain_s: float = 30.0) -> None:
        """Accept no more requests, compute the queue for at most `drain_s` seconds, and fail the rest."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(drain_s)
        with self._changed:
            self._give_up()

    def _check_capacity(self, num_tokens: int) -> None:
        speed = self.tokens_per_s
        if self.queued_tokens >= self.max_queued_tokens:
            raise Busy(self.queued_tokens / (speed or 1_000))
        if not speed:
            return
        # The current batch comes first.
        wait_s = max(0.0, self._until - time.monotonic()) + self._tokens_ahead(num_tokens) / speed
        if wait_s > self.wait_s:
            raise Busy(wait_s - self.wait_s)

    def _tokens_ahead(self, num_tokens: int) -> int:
        """Return how many queued tokens are computed before the end of a new request of so many tokens."""
        end = self._turn + num_tokens
        ahead = 0
        for turn, _, other in self._waiting:
            if turn < end and not other.future.done():
                # By fairness, another request gets as far as the new one, and at least through its next text.
                text = len(other.texts[other._next].tokens)
                ahead += max(text, min(other.num_tokens - other._done_tokens, round(end - turn)))
        return ahead

    def _push(self, request: Request) -> None:
        self._number += 1
        heapq.heappush(self._waiting, (request._turn, self._number, request))

    def _work(self) -> None:
        try:
            self._serve()
        finally:
            # Clients must not wait forever, even if an error ended the thread.
            with self._changed:
                self._closing = True
                self._give_up()

    def _give_up(self) -> None:
        for _, _, request in self._waiting:
            _fail(request, Gone("the server has closed"))
        self._waiting.clear()

    def _serve(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._closing:
                    self._changed.wait()
                if not self._waiting:
                    return
                batch = self._take()
            if batch:
                self._compute(batch)

    def _take(self) -> list[tuple[Request, list[EncodedText]]]:
        """Fill a batch, one text after another from the request with the fewest tokens so far; drop cancelled ones."""
        taken: dict[int, tuple[Request, list[EncodedText]]] = {}
        num_tokens = 0
        soon = round(self.tokens_per_s * self.batch_s) or self.budget_tokens
        budget = min(self.budget_tokens, max(_MIN_BATCH, soon))
        while self._waiting:
            turn, _, request = self._waiting[0]
            if request.future.done():
                heapq.heappop(self._waiting)
                self.queued_tokens -= request.num_tokens - request._done_tokens
                continue
            text = request.texts[request._next]
            if num_tokens and num_tokens + len(text.tokens) > budget:
                break
            heapq.heappop(self._waiting)
            if request._next == 0:
                request.queued_s = time.monotonic() - request._arrived
            num_tokens += len(text.tokens)
            self._turn = turn
            request._turn = turn + len(text.tokens)
            request._next += 1
            request._done_tokens += len(text.tokens)
            taken.setdefault(id(request), (request, []))[1].append(text)
            if request._next < len(request.texts):
                self._push(request)
        self.queued_tokens -= num_tokens
        self.last_batch_tokens = num_tokens
        self._until = time.monotonic() + (num_tokens / self.tokens_per_s if self.tokens_per_s else 0.0)
        return list(taken.values())

    def _answer(self, group: Sequence[tuple[Request, list[EncodedText]]], output: Output, hidden: Tensor) -> None:
        """Make the same output of the hidden states [T, D] of several requests."""
        try:
            answers = iter(_answers_of(output, hidden, [each for _, texts in group for each in texts]))
            for request, texts in group:
                request._answers.extend(islice(answers, len(texts)))
        except Exception as error:
            if len(group) == 1:
                return _fail(group[0][0], error)
            parts = hidden.split([sum(len(each.tokens) for each in texts) for _, texts in group])
            for alone, part in zip(group, parts, strict=True):
                self._answer([alone], output, part)

    def _compute(self, batch: Sequence[tuple[Request, list[EncodedText]]]) -> None:
        """Run the encoder once over the texts of several requests, then make the output of each."""
        started = time.monotonic()
        try:
            documents = Batch.from_documents([each.tokens for _, texts in batch for each in texts])
            with torch.inference_mode():
                hidden = self.bert.model.encode(documents.to(self.bert.device))
        except Exception as error:  # the thread survives any failure and reports it to the clients
            if len(batch) == 1:
                return _fail(batch[0][0], error)
            # One request must not make others fail.
            for alone in batch:
                self._compute([alone])
            return
        begin = 0
        for output, some in groupby(batch, key=lambda each: each[0].output):
            group = list(some)
            end = begin + sum(len(each.tokens) for _, texts in group for each in texts)
            self._answer(group, output, hidden[begin:end])
            begin = end
        seconds = time.monotonic() - started
        if not self._is_first:
            tokens_so_far, seconds_so_far = self._computed
            self._computed = _DECAY * tokens_so_far + documents.num_tokens, _DECAY * seconds_so_far + seconds
        self._is_first = False
        for request, _ in batch:
            request.computed_s += seconds
            if len(request._answers) == len(request.texts):
                # The client may leave at any moment.
                with suppress(InvalidStateError):
                    request.future.set_result(request._answers)


def _answers_of(output: Output, hidden: Tensor, texts: Sequence[EncodedText]) -> Sequence[Any] | np.ndarray:
    """Return an answer for each text; raise an ArithmeticError if numbers are not finite."""
    if not torch.isfinite(hidden).all():
        raise ArithmeticError("the model's hidden states are not finite")
    with torch.inference_mode():
        answers = output(hidden, texts)
    if not is_finite(answers):
        raise ArithmeticError("the answers are not finite")
    return answers


def _fail(request: Request, error: Exception) -> None:
    """Report an error to a client; the rest of its request is dropped when its turn comes."""
    with suppress(InvalidStateError):
        request.future.set_exception(error)
