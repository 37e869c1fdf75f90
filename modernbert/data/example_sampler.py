"""The order and the micro-batches of fine-tuning examples, a function of the seed and the step."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from modernbert.batch import batch_by_size

__all__ = ["ExampleSampler"]


@dataclass(frozen=True)
class ExampleSampler:
    """The steps of `epochs` passes over the examples, `batch` of them per step, in a new order each pass.

    The last step of a pass has the remaining examples.
    """

    lengths: Sequence[int]
    batch: int
    epochs: int
    seed: int
    budget_tokens: int

    @property
    def steps_per_epoch(self) -> int:
        """Number of steps of one pass."""
        return -(-len(self.lengths) // self.batch)

    @property
    def num_steps(self) -> int:
        """Number of all steps."""
        return self.epochs * self.steps_per_epoch

    def micro_batches(self, step: int) -> list[list[int]]:
        """Return the examples of a step in micro-batches of at most `budget_tokens`, or of one example.

        >>> ExampleSampler([3, 3, 3, 9], batch=4, epochs=1, seed=0, budget_tokens=8).micro_batches(0)
        [[2, 0], [1], [3]]
        """
        epoch, place = divmod(step, self.steps_per_epoch)
        order = _order(self.seed, epoch, len(self.lengths))
        numbers = order[place * self.batch : (place + 1) * self.batch].tolist()
        return list(batch_by_size(numbers, self.budget_tokens, lambda number: self.lengths[number]))


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, number: int) -> np.ndarray:
    # SeedSequence, because neighboring seeds must give unrelated orders.
    return np.random.default_rng(np.random.SeedSequence((seed, epoch))).permutation(number)
