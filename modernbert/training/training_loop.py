"""The training step, the loop over the steps of a schedule, and the evaluation of masked-language-model loss.

The gradient of a step is the sum over all rows of all its micro-batches, divided once by the number of rows. How a step
is divided into micro-batches, and among processes, does not change it.
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
from modernbert.training.distributed import SINGLE_PROCESS, World, gradient_sync, local_shard, reshard
from modernbert.training.losses import masked_lm_rows
from modernbert.training.optimizers import Optimizer, grad_norm
from modernbert.training.schedules import Plans, StepPlan

__all__ = [
    "Diverged",
    "HeldoutScore",
    "StepFilter",
    "StepResult",
    "derive_seed",
    "evaluate",
    "must_be_finite",
    "train",
    "train_step",
]

StepFilter = Callable[[float, float], str | None]
"""(loss, gradient norm) -> why a step must be skipped, or None"""

# End of the first range of positions for which held-out scores are reported; each further range is twice as long.
FIRST_POSITIONS = 1024


@dataclass(frozen=True)
class StepResult:
    """Results of one step: mean loss of a row, norm of the whole gradient, rows with a loss, tokens.

    `skipped` is the reason why the weights were not updated, if they were not.
    """

    loss: float
    grad_norm: float
    num_rows: int
    num_tokens: int
    skipped: str | None = None


@dataclass(frozen=True)
class HeldoutScore:
    """Scores on held-out text, as means over its masked tokens.

    `by_position` has (loss, masked tokens) for each range (first, last) of positions in a document.
    """

    loss: float
    accuracy: float
    num_rows: int
    by_position: dict[tuple[int, int], tuple[float, int]]

    @property
    def perplexity(self) -> float:
        """Exponential of the loss; infinity where a float overflows."""
        try:
            return math.exp(self.loss)
        except OverflowError:
            return math.inf


class Diverged(InputError):
    """A loss or a gradient is not finite."""


def must_be_finite(loss: float, norm: float) -> str | None:
    """Return None for a finite loss and gradient. Raises: Diverged for any other."""
    if math.isfinite(loss) and math.isfinite(norm):
        return None
    raise Diverged(
        f"loss {loss} and gradient norm {norm}, expected finite numbers; nothing of this step was saved, "
        "a lower lr may help"
    )


def train(
    objective: nn.Module,
    optimizer: Optimizer,
    schedule: Plans,
    batches: Iterator[Batch | None],
    *,
    seed: int,
    device: torch.device,
    dtype: torch.dtype,
    first_step: int = 0,
    step_filter: StepFilter = must_be_finite,
    world: World = SINGLE_PROCESS,
    filler: Batch | None = None,
) -> Iterator[tuple[StepPlan, StepResult]]:
    """Run the steps of a schedule, starting at `first_step`, and yield each when it is done.

    When a step is yielded, exactly its micro-batches have been taken from `batches`. Dropout is a function of the seed,
    the step and the micro-batch, so a run that starts at `first_step` repeats a run that reached it.

    Args:
        objective: Returns the sum of a loss and its number of rows for a batch.
        optimizer: Its learning rates are set in each step.
        schedule: Number of steps, and learning rate and number of micro-batches of each.
        batches: Micro-batches on the CPU; None for one that another process trains on.
        seed: Seed of dropout.
        device: Where to compute.
        dtype: Data type of the matrix products.
        first_step: Number of steps done before.
        step_filter: Decides which steps are skipped, or raises an error.
        world: The processes of the run.
        filler: Batch for a process that has no micro-batch in a step; its loss counts 0.

    Raises: InputError naming the step, by default if the loss or the gradient is not finite.
    """
    objective.train()
    for step in range(first_step, schedule.num_steps):
        plan = schedule.plan(step)
        micro_batches = [next(batches) for _ in range(plan.num_micro_batches)]
        step_seed = derive_seed(seed, step)
        try:
            result = train_step(
                objective, micro_batches, optimizer, plan.lr,
                seed=step_seed, device=device, dtype=dtype, step_filter=step_filter,
                world=world, filler=filler,
            )  # fmt: skip
        except InputError as error:
            raise type(error)(f"step {step + 1}: {error}") from None
        yield plan, result


def train_step(
    objective: nn.Module,
    micro_batches: Sequence[Batch | None],
    optimizer: Optimizer,
    lr: float,
    *,
    seed: int,
    device: torch.device,
    dtype: torch.dtype,
    step_filter: StepFilter = must_be_finite,
    world: World = SINGLE_PROCESS,
    filler: Batch | None = None,
) -> StepResult:
    """Take one step on the mean loss of all rows of its micro-batches, in all processes together; see `train`.

    All processes see the same loss and gradient norm, and so skip the same steps.
    """
    optimizer.zero_grad(set_to_none=True)
    loss = torch.zeros((), dtype=torch.float64, device=device)
    counted = torch.zeros(2, dtype=torch.float64)  # rows and tokens: known without waiting for the device
    ours = [(number, batch) for number, batch in enumerate(micro_batches) if batch is not None]
    # All processes run the model equally often, since each forward and backward pass exchanges weights or gradients.
    ours += [(len(micro_batches), filler or _batch_without_labels())] * (
        -(-len(micro_batches) // world.size) - len(ours)
    )
    for place, (number, batch) in enumerate(ours):
        torch.manual_seed(derive_seed(seed, number))
        with gradient_sync(objective, is_last=place == len(ours) - 1):
            with autocast(device, dtype):
                part, count = objective(batch.to(device))
            if number == len(micro_batches):
                part, count = part * 0.0, 0
            part.backward()
        loss += part.detach()
        counted += torch.tensor([count, batch.num_tokens if number < len(micro_batches) else 0])
    loss_sum, num_rows, num_tokens = world.sum(torch.cat([loss[None], to_device_async(counted, device)])).unbind()
    gradients = [local_shard(parameter.grad) for parameter in objective.parameters() if parameter.grad is not None]
    # Processes exchange the mean of their gradients; the loss is a sum.
    torch._foreach_div_(gradients, num_rows.clamp(min=1) / world.size)
    norm = grad_norm(objective.parameters(), world.sum_shards if world.mesh else None)
    # The only synchronization with the device in a step.
    mean, size, rows, tokens = torch.stack([loss_sum / num_rows.clamp(min=1), norm, num_rows, num_tokens]).tolist()
    skipped = step_filter(mean, size)
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
    world: World = SINGLE_PROCESS,
) -> HeldoutScore:
    """Score masked-token prediction on held-out batches, without dropout; the batches are divided among the processes.

    Raises: InputError if no token is masked in any of them.
    """
    training = objective.training
    objective.eval()
    # For each range of positions: the sum of losses, the number of correct guesses, the number of rows.
    sums = torch.zeros(32, 3, dtype=torch.float64, device=device)
    bounds = torch.tensor([FIRST_POSITIONS * 2**n for n in range(31)], device=device)
    left = iter(batches)
    while group := list(islice(left, world.size)):
        batch = (group[world.rank] if world.rank < len(group) else _batch_without_labels()).to(device)
        with torch.no_grad(), autocast(device, dtype):
            losses, correct = objective(batch, masked_lm_rows)
        if batch.label_positions is not None:
            ranges = torch.bucketize(batch.layout.positions[batch.label_positions], bounds, right=True)
            sums.index_add_(0, ranges, torch.stack([losses, correct, torch.ones_like(losses)], dim=1).double())
    reshard(objective)
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


def _batch_without_labels() -> Batch:
    """Return a batch without a masked row, whose masked-language-model loss is 0."""
    nothing = torch.zeros(0, dtype=torch.int64)
    return Batch(torch.zeros(2, dtype=torch.int64), SequenceLengths.from_lengths([2]), nothing, nothing)


def derive_seed(*parts: int) -> int:
    """Mix numbers into one seed; adjacent numbers give unrelated seeds.

    >>> derive_seed(17, 0) == derive_seed(17, 0), derive_seed(17, 0) == derive_seed(17, 1)
    (True, False)
    """
    return int(np.random.SeedSequence(parts).generate_state(1)[0])
