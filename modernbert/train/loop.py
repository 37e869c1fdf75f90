"""The one training loop: micro-batches -> a step.

In: a model, a loss, batches on the CPU, a schedule. Out: updated weights, and the figures of each step. Pretraining and
every kind of tuning run through here; what differs between them is the loss.

A step's gradient is the sum over all rows of all its micro-batches, divided once by their number, so that the way a
step is cut into micro-batches does not change it.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from modernbert.device import autocast
from modernbert.errors import InputError
from modernbert.ragged import Batch
from modernbert.train.losses import masked_lm_scores
from modernbert.train.optim import StableAdamW, grad_norm
from modernbert.train.schedule import Schedule, StepPlan

__all__ = ["HeldoutScore", "Loss", "StepResult", "derive_seed", "evaluate", "train", "train_step"]

Loss = Callable[[nn.Module, Batch], tuple[Tensor, int]]


@dataclass(frozen=True)
class StepResult:
    """Report one step: mean loss a row, norm of the whole gradient, rows with a loss, tokens."""

    loss: float
    grad_norm: float
    num_rows: int
    num_tokens: int


@dataclass(frozen=True)
class HeldoutScore:
    """Report a pass over held-out text, as means over its masked tokens."""

    loss: float
    accuracy: float
    num_rows: int

    @property
    def perplexity(self) -> float:
        """Exponential of the loss."""
        return math.exp(self.loss)


def train(
    model: nn.Module,
    loss: Loss,
    optimizer: StableAdamW,
    schedule: Schedule,
    batches: Iterator[Batch],
    *,
    seed: int,
    device: torch.device,
    dtype: torch.dtype,
    first_step: int = 0,
) -> Iterator[tuple[StepPlan, StepResult]]:
    """Run the steps of a schedule from `first_step` on, and yield each when it is done.

    When a step is yielded, exactly its micro-batches have been taken from `batches`. Dropout is a function of the seed,
    the step and the micro-batch, so a run that begins at `first_step` repeats one that came to it.

    Raises: InputError naming the step if the loss or the gradient is not finite.
    """
    model.train()
    for step in range(first_step, schedule.num_steps):
        plan = schedule.plan(step)
        micro_batches = [next(batches) for _ in range(plan.num_micro_batches)]
        step_seed = derive_seed(seed, step)
        result = train_step(model, loss, micro_batches, optimizer, plan.lr, seed=step_seed, device=device, dtype=dtype)
        if not (math.isfinite(result.loss) and math.isfinite(result.grad_norm)):
            raise InputError(
                f"step {step + 1}: loss {result.loss} and gradient norm {result.grad_norm}, expected finite numbers; "
                "nothing of this step was saved, a lower lr may help"
            )
        yield plan, result


def train_step(
    model: nn.Module,
    loss: Loss,
    micro_batches: Sequence[Batch],
    optimizer: StableAdamW,
    lr: float,
    *,
    seed: int,
    device: torch.device,
    dtype: torch.dtype,
) -> StepResult:
    """Take one step on the mean loss over all rows of some micro-batches."""
    optimizer.zero_grad(set_to_none=True)
    loss_sum = torch.zeros((), dtype=torch.float64, device=device)
    num_rows = 0
    for number, batch in enumerate(micro_batches):
        torch.manual_seed(derive_seed(seed, number))
        with autocast(device, dtype):
            part, count = loss(model, batch.to(device))
        part.backward()  # type: ignore[no-untyped-call]
        loss_sum += part.detach()
        num_rows += count
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    torch._foreach_div_(gradients, float(max(num_rows, 1)))
    norm = grad_norm(model.parameters())
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    # The only wait for the device in a step, after all its work is queued.
    mean, size = torch.stack([loss_sum / max(num_rows, 1), norm.double()]).tolist()
    return StepResult(mean, size, num_rows, sum(batch.num_tokens for batch in micro_batches))


def evaluate(model: nn.Module, batches: Iterable[Batch], *, device: torch.device, dtype: torch.dtype) -> HeldoutScore:
    """Score masked-token prediction on held-out batches, without dropout.

    Raises: InputError if no token is masked in any of them.
    """
    training = model.training
    model.eval()
    sums = torch.zeros(2, dtype=torch.float64, device=device)
    num_rows = 0
    for batch in batches:
        with autocast(device, dtype):
            loss_sum, num_correct, count = masked_lm_scores(model, batch.to(device))
        sums += torch.stack([loss_sum, num_correct])
        num_rows += count
    model.train(training)
    if num_rows == 0:
        raise InputError("held-out text: found no masked token, expected more text or a higher mask rate")
    loss, accuracy = (sums / num_rows).tolist()
    return HeldoutScore(loss, accuracy, num_rows)


def derive_seed(*parts: int) -> int:
    """Mix numbers into one seed; neighbouring numbers give unrelated seeds.

    >>> derive_seed(17, 0) == derive_seed(17, 0), derive_seed(17, 0) == derive_seed(17, 1)
    (True, False)
    """
    return int(np.random.SeedSequence(parts).generate_state(1)[0])
