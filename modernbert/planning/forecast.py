"""How long a run takes on a device, before it is begun.

In: what a token costs and what a machine can do. Out: tokens a second, the largest micro-batch, hours. Products,
attention and passes over memory are taken one after the other: a device overlaps some of them, a program wastes some.
"""

from dataclasses import dataclass
from math import ceil

import torch

from modernbert.engines.linear_cross_entropy import CHUNK_ROWS, GPU_CHUNK_ROWS
from modernbert.model.config import ModelConfig
from modernbert.planning.costs import TokenCosts, num_parameters, token_costs
from modernbert.planning.device_specs import Machine
from modernbert.training.pretraining_config import Phase
from modernbert.training.schedules import Schedule

__all__ = ["PUBLISHED_HOURS", "PhaseForecast", "Way", "forecast_phase", "optimizer_seconds", "seconds_per_token"]

# Hours of training alone on 8 H100, phase by phase. Source: table 3 of the paper.
PUBLISHED_HOURS = {"base": (191.1, 36.3, 7.5), "large": (420.4, 75.1, 15.3)}

# A way back computes two products for one, and moves twice as much.
_TRAINING = 3
# Of a parameter, by the optimizer: gradient, weight and two moments read, the last three written, in float32.
_OPTIMIZER_BYTES = 7 * 4


@dataclass(frozen=True)
class PhaseForecast:
    """One phase on some devices of one kind.

    Units: tokens, tokens per second of all devices together, hours of the clock and of devices.
    """

    length: int
    costs: TokenCosts
    largest_micro_batch: int
    micro_batch: int
    tokens_per_s: float
    hours: float
    device_hours: float

    @property
    def fits(self) -> bool:
        """Whether a micro-batch of the config fits into a device."""
        return self.micro_batch <= self.largest_micro_batch


@dataclass(frozen=True)
class Way:
    """How a run is laid out: whether layers are gone through a second time, how many devices share the weights, and
    in what precision products are.
    """

    recompute: bool = False
    sharers: int = 1
    dtype: torch.dtype = torch.bfloat16


def seconds_per_token(costs: TokenCosts, machine: Machine, *, training: bool) -> float:
    """Return the time one device spends on a token, without the optimizer."""
    if not training:
        products = costs.matrix_flops / machine.products + costs.attention_flops / machine.attention
        return products + costs.moved_forward / machine.bandwidth
    attention = _TRAINING * costs.attention_flops
    products = (costs.training_flops - attention) / machine.products + attention / machine.attention
    return products + _TRAINING * costs.moved_forward / machine.bandwidth


def optimizer_seconds(model: ModelConfig, machine: Machine) -> float:
    """Return the time of one step of the optimizer."""
    return _OPTIMIZER_BYTES * num_parameters(model) / machine.bandwidth


def forecast_phase(
    model: ModelConfig, phase: Phase, schedule: Schedule, machine: Machine, num_devices: int,
    length: int | None = None, way: Way = Way(),
) -> PhaseForecast:  # fmt: skip
    """Forecast one phase whose documents all have `length` tokens, by default the longest that the phase takes."""
    length = min(length or phase.max_len, phase.max_len)
    costs = token_costs(model, [length], phase.mask_rate, recompute=way.recompute, dtype=way.dtype)
    step_tokens = phase.micro_batch_tokens * phase.max_micro_batches
    chunk_rows = GPU_CHUNK_ROWS if machine.multiprocessors else CHUNK_ROWS
    held_anyway = costs.held_anyway / way.sharers + costs.held_of_logits * chunk_rows
    # Every device steps for all, on its part of the tokens.
    optimizer = optimizer_seconds(model, machine) / step_tokens
    seconds = seconds_per_token(costs, machine, training=True)
    if way.recompute:
        seconds += seconds_per_token(costs, machine, training=False)
    # Micro-batches are what devices share: all wait for those that have one more.
    rounds = ceil(phase.max_micro_batches / num_devices)
    seconds = seconds * rounds / phase.max_micro_batches + optimizer
    tokens = schedule.plan(schedule.num_steps).tokens_before
    return PhaseForecast(
        length=length,
        costs=costs,
        largest_micro_batch=max(0, int((machine.memory - held_anyway) / costs.held_in_training)),
        micro_batch=phase.micro_batch_tokens,
        tokens_per_s=1 / seconds,
        hours=tokens * seconds / 3600,
        device_hours=tokens * seconds / 3600 * num_devices,
    )
