"""Schedules without state: learning rate and number of micro-batches as functions of the step.

Tokens are nominal, micro-batches times their token budget, so the schedule does not depend on the data.
"""

from dataclasses import dataclass
from math import sqrt
from typing import Protocol, runtime_checkable

__all__ = ["Plans", "Schedule", "StepPlan"]


@dataclass(frozen=True)
class StepPlan:
    """Learning rate, number of micro-batches and tokens so far of one step."""

    num_micro_batches: int
    lr: float
    tokens_before: int


@runtime_checkable
class Plans(Protocol):
    """A schedule: the number of steps, and the plan of each."""

    @property
    def num_steps(self) -> int:
        """Number of steps."""

    def plan(self, step: int) -> StepPlan:
        """Return the plan of a step, counted from 0."""


@dataclass(frozen=True)
class Schedule:
    """The schedule of one phase: a trapezoidal learning rate, and a batch size that grows.

    The learning rate rises linearly from 0 over the first `warmup_tokens`, is flat at `peak_lr`, and falls over the
    last `decay_tokens` as 1 - sqrt(t) to `lr_floor` times its peak. The batch grows to `max_micro_batches` over
    `batch_warmup_tokens`, from `batch_growth` micro-batches in increments of `batch_growth`; each size lasts the same
    number of steps.

    Source: section 2.2.1 and appendix A.2 of the paper (trapezoidal schedule, 1-sqrt decay, batch-size warm-up).
    """

    tokens: int
    micro_batch_tokens: int
    peak_lr: float
    warmup_tokens: int = 0
    decay_tokens: int = 0
    lr_floor: float = 0.001
    max_micro_batches: int = 1
    batch_warmup_tokens: int = 0
    batch_growth: int = 1

    @property
    def num_sizes(self) -> int:
        """Number of batch sizes, the largest included."""
        return self.max_micro_batches // self.batch_growth

    @property
    def steps_per_size(self) -> int:
        """Number of steps that each batch size below the largest lasts."""
        num_micro_batches = self.batch_growth * self.num_sizes * (self.num_sizes - 1) // 2
        if num_micro_batches == 0:
            return 0
        return round(self.batch_warmup_tokens / (num_micro_batches * self.micro_batch_tokens))

    @property
    def num_steps(self) -> int:
        """Number of whole steps that fit into the phase's tokens.

        >>> Schedule(tokens=1000, micro_batch_tokens=100, peak_lr=1e-3, max_micro_batches=3).num_steps
        3
        """
        num_micro_batches = self.tokens // self.micro_batch_tokens
        num_steps = 0
        for size in range(self.batch_growth, self.max_micro_batches, self.batch_growth):
            steps = min(self.steps_per_size, num_micro_batches // size)
            num_steps += steps
            num_micro_batches -= steps * size
            if steps < self.steps_per_size:
                return num_steps
        return num_steps + num_micro_batches // self.max_micro_batches

    def learning_rate(self, tokens: int) -> float:
        """Return the learning rate after so many tokens of the phase.

        >>> Schedule(tokens=100, micro_batch_tokens=1, peak_lr=1.0, decay_tokens=100).learning_rate(25)
        0.5005
        """
        rise = min(1.0, tokens / self.warmup_tokens) if self.warmup_tokens else 1.0
        past = tokens - (self.tokens - self.decay_tokens)
        if past <= 0:
            return self.peak_lr * rise
        fall = 1 - sqrt(min(1.0, past / self.decay_tokens))
        return self.peak_lr * rise * (self.lr_floor + (1 - self.lr_floor) * fall)

    def plan(self, step: int) -> StepPlan:
        """Return the plan of a step of the phase, counted from 0."""
        warm_steps = self.steps_per_size * (self.num_sizes - 1)
        if step < warm_steps:
            full_sizes, rest = divmod(step, self.steps_per_size)
            size = (full_sizes + 1) * self.batch_growth
        else:
            full_sizes, rest = self.num_sizes - 1, step - warm_steps
            size = self.max_micro_batches
        before = self.batch_growth * self.steps_per_size * full_sizes * (full_sizes + 1) // 2 + rest * size
        tokens_before = before * self.micro_batch_tokens
        return StepPlan(size, self.learning_rate(tokens_before), tokens_before)
