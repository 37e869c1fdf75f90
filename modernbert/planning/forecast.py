"""Forecast the speed, memory and time of a pretraining phase on a device.

The times of GEMMs, attention and memory traffic are added: a device overlaps some of them, and a program wastes some.
"""

from dataclasses import dataclass
from math import ceil

import torch

from modernbert.engines.linear_cross_entropy import CHUNK_ROWS, GPU_CHUNK_ROWS
from modernbert.model.config import ModelConfig
from modernbert.planning.cost_model import TokenCosts, num_parameters, token_costs
from modernbert.planning.device_specs import DeviceSpec
from modernbert.training.pretraining_config import Phase
from modernbert.training.schedules import Schedule

__all__ = [
    "PUBLISHED_HOURS",
    "PhaseForecast",
    "TrainingSetup",
    "forecast_phase",
    "optimizer_seconds",
    "seconds_per_token",
]

# Hours of each phase on 8 H100, training only. Source: table 3 of the paper.
PUBLISHED_HOURS = {"base": (191.1, 36.3, 7.5), "large": (420.4, 75.1, 15.3)}

# A backward pass computes two GEMMs for one of the forward pass, and moves twice as many bytes.
_FORWARD_AND_BACKWARD = 3
# Bytes per parameter of an optimizer step: reads gradient, weight and two moments, writes the last three, in float32.
_OPTIMIZER_BYTES = 7 * 4


@dataclass(frozen=True)
class PhaseForecast:
    """Forecast of one phase on devices of one kind.

    Units: tokens; tokens per second of all devices together; hours of wall time; hours summed over devices.
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
        """Whether a micro-batch of the config fits into the memory of a device."""
        return self.micro_batch <= self.largest_micro_batch


@dataclass(frozen=True)
class TrainingSetup:
    """Settings of a run that change its memory and speed."""

    recompute: bool = False
    """Activation checkpointing: each layer is computed again in the backward pass."""
    num_shards: int = 1
    """Number of devices that the training state is sharded over."""
    dtype: torch.dtype = torch.bfloat16
    """Precision of GEMMs."""


def seconds_per_token(costs: TokenCosts, device: DeviceSpec, *, training: bool) -> float:
    """Return the seconds that one device spends on a token, without the optimizer."""
    if not training:
        compute = costs.gemm_flops / device.gemm_flops_per_s + costs.attention_flops / device.attention_flops_per_s
        return compute + costs.forward_bytes / device.bandwidth
    attention = _FORWARD_AND_BACKWARD * costs.attention_flops
    gemms = costs.training_flops - attention
    compute = gemms / device.gemm_flops_per_s + attention / device.attention_flops_per_s
    return compute + _FORWARD_AND_BACKWARD * costs.forward_bytes / device.bandwidth


def optimizer_seconds(model: ModelConfig, device: DeviceSpec) -> float:
    """Return the seconds of one optimizer step."""
    return _OPTIMIZER_BYTES * num_parameters(model) / device.bandwidth


def forecast_phase(
    model: ModelConfig, phase: Phase, schedule: Schedule, device: DeviceSpec, num_devices: int,
    length: int | None = None, setup: TrainingSetup = TrainingSetup(),
) -> PhaseForecast:  # fmt: skip
    """Forecast one phase whose documents all have `length` tokens, by default the maximum length of the phase."""
    length = min(length or phase.max_len, phase.max_len)
    costs = token_costs(model, [length], phase.mask_rate, recompute=setup.recompute, dtype=setup.dtype)
    step_tokens = phase.micro_batch_tokens * phase.max_micro_batches
    chunk_rows = GPU_CHUNK_ROWS if device.multiprocessors else CHUNK_ROWS
    fixed_bytes = costs.state_bytes / setup.num_shards + costs.logit_bytes * chunk_rows
    # Every device updates all weights, whatever its share of the tokens.
    optimizer = optimizer_seconds(model, device) / step_tokens
    seconds = seconds_per_token(costs, device, training=True)
    if setup.recompute:
        seconds += seconds_per_token(costs, device, training=False)
    # Micro-batches are divided among the devices, and all devices wait for the slowest one.
    rounds = ceil(phase.max_micro_batches / num_devices)
    seconds = seconds * rounds / phase.max_micro_batches + optimizer
    tokens = schedule.plan(schedule.num_steps).tokens_before
    return PhaseForecast(
        length=length,
        costs=costs,
        largest_micro_batch=max(0, int((device.memory - fixed_bytes) / costs.activation_bytes)),
        micro_batch=phase.micro_batch_tokens,
        tokens_per_s=1 / seconds,
        hours=tokens * seconds / 3600,
        device_hours=tokens * seconds / 3600 * num_devices,
    )
