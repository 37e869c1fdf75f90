"""The one training loop: micro-batches -> a step.

In: a model, a loss, batches on the CPU, a schedule. Out: updated weights, and the figures of each step. Pretraining and
every kind of tuning run through here; what differs between them is the loss.

A step's gradient is the sum over all rows of all its micro-batches, divided once by their number, so that the way a
step is cut into micro-batches does not change it.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import nn

from modernbert.batch import Batch, SequenceLengths, to_device_async
from modernbert.devices import autocast
from modernbert.errors import InputError
from modernbert.training.distributed import ALONE, World, local, settle, syncing
from modernbert.training.losses import masked_lm_rows
from modernbert.training.optimizers import StableAdamW, grad_norm
from modernbert.training.schedules import Plans, StepPlan

__all__ = ["Diverged", "HeldoutScore", "Judge", "StepResult", "derive_seed", "evaluate", "train", "train_step"]

Judge = Callable[[float, float], str | None]
"""(loss, gradient norm) -> why a step must not be taken, or None"""

# Held-out scores by position: up to here, then each time twice as far.
FIRST_POSITIONS = 1024


@dataclass(frozen=True)
class StepResult:
    """Report one step: mean loss a row, norm of the whole gradient, rows with a loss, tokens.

    `skipped` says why the weights were left as they were, if they were.
    """

    loss: float
    grad_norm: float
    num_rows: int
    num_tokens: int
    skipped: str | None = None


@dataclass(frozen=True)
class HeldoutScore:
    """Report a pass over held-out text, as means over its masked tokens.

    `by_position` has (loss, masked tokens) for each range of positions in a document, from its first to its last.
    """

    loss: float
    accuracy: float
    num_rows: int
    by_position: dict[tuple[int, int], tuple[float, int]]

    @property
    def perplexity(self) -> float:
        """Exponential of the loss; infinity beyond what a float holds."""
        try:
            return math.exp(self.loss)
        except OverflowError:
            return math.inf


class Diverged(InputError):
    """Say that a loss or a gradient is not finite."""


def must_be_finite(loss: float, norm: float) -> str | None:
    """Refuse to train on with numbers that are none.

    Raises: Diverged for a loss or gradient that is not finite.
    """
    if math.isfinite(loss) and math.isfinite(norm):
        return None
    raise Diverged(
        f"loss {loss} and gradient norm {norm}, expected finite numbers; nothing of this step was saved, "
        "a lower lr may help"
    )


def train(
    objective: nn.Module,
    optimizer: StableAdamW,
    schedule: Plans,
    batches: Iterator[Batch | None],
    *,
    seed: int,
    device: torch.device,
    dtype: torch.dtype,
    first_step: int = 0,
    judge: Judge = must_be_finite,
    world: World = ALONE,
) -> Iterator[tuple[StepPlan, StepResult]]:
    """Run the steps of a schedule from `first_step` on, and yield each when it is done.

    `objective(batch)` returns the sum of a loss and its number of rows. When a step is yielded, exactly its
    micro-batches have been taken from `batches`; None stands for one that another process trains on. Dropout is a
    function of the seed, the step and the micro-batch, so a run that begins at `first_step` repeats one that came to
    it.

    Raises: InputError naming the step, by default if the loss or the gradient is not finite; see `judge`.
    """
    objective.train()
    for step in range(first_step, schedule.num_steps):
        plan = schedule.plan(step)
        micro_batches = [next(batches) for _ in range(plan.num_micro_batches)]
        step_seed = derive_seed(seed, step)
        try:
            result = train_step(
                objective, micro_batches, optimizer, plan.lr,
                seed=step_seed, device=device, dtype=dtype, judge=judge, world=world,
            )  # fmt: skip
        except InputError as error:
            raise type(error)(f"step {step + 1}: {error}") from None
        yield plan, result


def train_step(
    objective: nn.Module,
    micro_batches: Sequence[Batch | None],
    optimizer: StableAdamW,
    lr: float,
    *,
    seed: int,
    device: torch.device,
    dtype: torch.dtype,
    judge: Judge = must_be_finite,
    world: World = ALONE,
) -> StepResult:
    """Take one step on the mean loss over all rows of some micro-batches, in all processes together.

    All processes see the same loss and gradient norm, so they judge alike.
    """
    optimizer.zero_grad(set_to_none=True)
    loss = torch.zeros((), dtype=torch.float64, device=device)
    counted = torch.zeros(2, dtype=torch.float64)  # rows and tokens: known here, without asking the device
    ours = [(number, batch) for number, batch in enumerate(micro_batches) if batch is not None]
    # All processes go through the model equally often, since they exchange weights or gradients on the way.
    ours += [(len(micro_batches), _nothing())] * (-(-len(micro_batches) // world.size) - len(ours))
    for place, (number, batch) in enumerate(ours):
        torch.manual_seed(derive_seed(seed, number))
        with syncing(objective, is_last=place == len(ours) - 1):
            with autocast(device, dtype):
                part, count = objective(batch.to(device))
            part.backward()
        loss += part.detach()
        counted += torch.tensor([count, batch.num_tokens if number < len(micro_batches) else 0])
    loss_sum, num_rows, num_tokens = world.sum(torch.cat([loss[None], to_device_async(counted, device)])).unbind()
    gradients = [local(parameter.grad) for parameter in objective.parameters() if parameter.grad is not None]
    # What processes exchange is the mean over them; the sum is asked for.
    torch._foreach_div_(gradients, num_rows.clamp(min=1) / world.size)
    norm = grad_norm(objective.parameters(), world.sum_shards if world.mesh else None)
    # The only wait for the device in a step.
    mean, size, rows, tokens = torch.stack([loss_sum / num_rows.clamp(min=1), norm, num_rows, num_tokens]).tolist()
    skipped = judge(mean, size)
    if skipped is None:
        for group in optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        optimizer.step()
    return StepResult(mean, size, int(rows), int(tokens), skipped)


def evaluate(
    objective: nn.Module,
    batches: Iterable[Batch],
    *,
    device: torch.device,
    dtype: torch.dtype,
    world: World = ALONE,
) -> HeldoutScore:
    """Score masked-token prediction on held-out batches, without dropout; the processes share them.

    Raises: InputError if no token is masked in any of them.
    """
    training = objective.training
    objective.eval()
    # For each range of positions the sum of losses, of correct guesses, of rows.
    sums = torch.zeros(32, 3, dtype=torch.float64, device=device)
    bounds = torch.tensor([FIRST_POSITIONS * 2**n for n in range(31)], device=device)
    left = iter(batches)
    while group := list(islice(left, world.size)):
        batch = (group[world.rank] if world.rank < len(group) else _nothing()).to(device)
        with torch.no_grad(), autocast(device, dtype):
            losses, correct = objective(batch, masked_lm_rows)
        if batch.label_positions is not None:
            ranges = torch.bucketize(batch.layout.positions[batch.label_positions], bounds, right=True)
            sums.index_add_(0, ranges, torch.stack([losses, correct, torch.ones_like(losses)], dim=1).double())
    settle(objective)
    objective.train(training)
    rows: list[list[float]] = world.sum(sums).tolist()
    loss, accuracy, num_rows = (sum(column) for column in zip(*rows, strict=True))
    if num_rows == 0:
        raise InputError("held-out text: found no masked token, expected more text or a higher mask rate")
    starts = [0] + [FIRST_POSITIONS * 2**n for n in range(32)]
    by_position = {
        (starts[n], starts[n + 1] - 1): (row[0] / row[2], int(row[2])) for n, row in enumerate(rows) if row[2]
    }
    return HeldoutScore(loss / num_rows, accuracy / num_rows, int(num_rows), by_position)


def _nothing() -> Batch:
    """Return a batch without a masked row: its loss is 0, and so are its gradients."""
    nothing = torch.zeros(0, dtype=torch.int64)
    return Batch(torch.zeros(2, dtype=torch.int64), SequenceLengths.from_lengths([2]), nothing, nothing)


def derive_seed(*parts: int) -> int:
    """Mix numbers into one seed; neighbouring numbers give unrelated seeds.

    >>> derive_seed(17, 0) == derive_seed(17, 0), derive_seed(17, 0) == derive_seed(17, 1)
    (True, False)
    """
    return int(np.random.SeedSequence(parts).generate_state(1)[0])
