"""`modernbert plan`: forecast the memory, speed and time of a pretraining run, and search for model shapes."""

import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from modernbert.batch import SequenceLengths
from modernbert.checkpoints.folder import ModelFolder
from modernbert.console import open_console
from modernbert.devices import choose_device, choose_precision
from modernbert.engines.registry import choose_engine
from modernbert.errors import InputError
from modernbert.hub_download import find_folder
from modernbert.model.config import ModelConfig
from modernbert.model.encoder import rope_angles
from modernbert.planning.cost_model import num_parameters, token_costs
from modernbert.planning.device_specs import GPUS, DeviceSpec, gpu_spec, measure_cpu
from modernbert.planning.forecast import (
    PUBLISHED_HOURS,
    PhaseForecast,
    TrainingSetup,
    forecast_phase,
    optimizer_seconds,
    seconds_per_token,
)
from modernbert.planning.plan_options import PlanConfig
from modernbert.planning.shape_search import Shape, best_shapes, candidate_shapes, tile_utilization
from modernbert.planning.step_timing import time_steps
from modernbert.training.pretraining_config import DataConfig, Phase, PretrainConfig, schedule_of

__all__ = ["PlanConfig", "run"]

# Documents of the training steps that are timed on this CPU.
_MEASURED_LENGTHS = (1024, 512, 256, 128, 64, 64)
# Phases of a forecast without a config.
_PHASES = {
    f"tokens_{length}": Phase(
        tokens=1_000_000_000, lr=1e-3, micro_batch_tokens=98_304, max_micro_batches=48, max_len=length
    )
    for length in (1024, 8192)
}


@dataclass
class _Plan:
    """The content of the JSON output."""

    parameters: int
    devices: dict[str, dict[str, Any]] = field(default_factory=dict)
    shapes: dict[str, Any] = field(default_factory=dict)


def run(config: PlanConfig) -> None:
    """Print a forecast for each device; an unknown device is reported after the others.

    Raises:
        InputError: The config cannot be run, or a device is unknown.
    """
    pretrain, model = _load(config)
    longest = max(phase.max_len for phase in pretrain.phases.values())
    if config.length is not None and config.length > longest:
        raise InputError(
            f"length: found {config.length:,}, expected at most {longest:,}, the maximum length of all phases"
        )
    plan = _Plan(num_parameters(model))
    console = open_console(stderr=config.json)
    console.print(f"{plan.parameters:,} parameters: {_shape_of(model)}")
    failures = []
    for name in config.device:
        try:
            plan.devices[name] = _plan_device(console, config, pretrain, model, name)
        except InputError as error:
            failures.append(str(error))
    if config.shapes and plan.devices:
        plan.shapes = _plan_shapes(console)
    if config.json and plan.devices:
        print(json.dumps(asdict(plan), indent=2))
    for failure in failures[:-1]:
        print(f"modernbert: {failure}", file=sys.stderr)
    if failures:
        raise InputError(failures[-1])


def _load(config: PlanConfig) -> tuple[PretrainConfig, ModelConfig]:
    """Return the config with phases, and the shape of its model."""
    config = replace(
        config,
        tokenizer=config.tokenizer or ".",
        data=DataConfig(config.data.sources or {"any": "."}, config.data.heldout or {"any": "."}),
        phases=config.phases or _PHASES,
    )
    config.check()
    fields = dict(config.model)
    if "preset" not in fields and config.init_from is not None:
        folder = Path(config.init_from)
        if not folder.exists():
            folder = find_folder(config.init_from, files=["config.json"])
        if not (folder / "config.json").exists():
            raise InputError(f"{folder}: has no config.json; pass the shape of the model (--model.preset base)")
        return config, ModelFolder(folder).config
    return config, ModelConfig.preset(str(fields.pop("preset", "base")), **fields)


def _plan_device(
    console: Console, config: PlanConfig, pretrain: PretrainConfig, model: ModelConfig, name: str
) -> dict[str, Any]:
    if name == "cpu":
        dtype = choose_precision(pretrain.dtype, choose_device("cpu"))
        device, num_devices = _this_cpu(pretrain, dtype), 1
    else:
        dtype = torch.float32 if pretrain.dtype == "float32" else torch.bfloat16
        device, num_devices = gpu_spec(name, dtype), config.count
    setup = TrainingSetup(pretrain.recompute, num_devices if pretrain.distributed.sharding == "full" else 1, dtype)
    forecasts = {
        phase_name: forecast_phase(model, phase, schedule_of(phase), device, num_devices, config.length, setup)
        for phase_name, phase in pretrain.phases.items()
    }
    is_the_papers = device == gpu_spec("h100") and num_devices == 8 and config.length is None
    published = _published_hours(model, pretrain) if is_the_papers else None
    console.print(_table(f"{num_devices} x {device.name}", forecasts, published))
    if num_devices > 1:
        console.print(
            "without the time of communication between devices" + _HYBRID * (pretrain.distributed.sharding == "hybrid")
        )
    if not device.supports_dtype:
        console.print(
            f"{device.name} does not support bfloat16: the forecast is for float16, which `pretrain` does not use"
        )
    for phase_name, forecast in forecasts.items():
        shared = pretrain.phases[phase_name].max_micro_batches
        if (idle := -shared % num_devices) > 0:
            console.print(
                f"phases.{phase_name}.max_micro_batches: {shared:,} is not a multiple of {num_devices:,}; at the end "
                f"of each step {idle:,} of {num_devices:,} devices are idle"
            )
        if not forecast.fits:
            console.print(
                f"phases.{phase_name}.micro_batch_tokens: {forecast.micro_batch:,} tokens do not fit into the memory "
                f"of {device.name}, expected at most {forecast.largest_micro_batch:,}"
            )
    result: dict[str, Any] = {"device": asdict(device), "count": num_devices}
    result["phases"] = {phase_name: asdict(forecast) for phase_name, forecast in forecasts.items()}
    if name == "cpu":
        result["measured"] = _measure(console, pretrain, dtype, model, device)
    return result


def _table(title: str, forecasts: dict[str, PhaseForecast], published: Sequence[float] | None) -> Table:
    table = Table(title=title, title_justify="left")
    columns = ["phase", "tokens/document", "GFLOP/token, forward", "training", "MB moved/token, forward",
               "KB kept/token", "max tokens/micro-batch", "tokens/s", "hours", "device-hours"]  # fmt: skip
    for column in columns + (["published hours"] if published else []):
        table.add_column(column, justify="left" if column == "phase" else "right")
    for number, (name, each) in enumerate(forecasts.items()):
        row = [
            name, f"{each.length:,}", f"{each.costs.forward_flops / 1e9:.3f}", f"{each.costs.training_flops / 1e9:.3f}",
            f"{each.costs.forward_bytes / 1e6:.2f}", f"{each.costs.activation_bytes / 1e3:.0f}",
            f"{each.largest_micro_batch:,}", f"{each.tokens_per_s:,.0f}", _hours(each.hours),
            _hours(each.device_hours),
        ]  # fmt: skip
        table.add_row(*row, *([f"{published[number]:,.1f}"] if published else []))
    return table


def _hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 1000 else f"{hours:,.1f}" if hours >= 10 else f"{hours:.2f}"


def _published_hours(model: ModelConfig, pretrain: PretrainConfig) -> Sequence[float] | None:
    """Return the hours of the paper if this is one of its two runs; the first phase of large is divided in two here."""
    for name, hours in PUBLISHED_HOURS.items():
        sizes = [getattr(each, size) for each in (model, ModelConfig.preset(name)) for size in _SIZES]
        if sizes[: len(_SIZES)] != sizes[len(_SIZES) :]:
            continue
        tokens = [phase.tokens for phase in pretrain.phases.values()]
        if tokens[-2:] != [250_000_000_000, 50_000_000_000] or sum(tokens[:-2]) != 1_719_000_000_000:
            return None
        return [*(hours[0] * part / sum(tokens[:-2]) for part in tokens[:-2]), *hours[1:]]
    return None


_HYBRID = "; memory as if each device held all weights"
_SIZES = ("num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size")


def _shape_of(model: ModelConfig) -> str:
    return (
        f"{model.num_hidden_layers} layers, hidden size {model.hidden_size:,}, intermediate size "
        f"{model.intermediate_size:,}, vocabulary {model.vocab_size:,}"
    )


def _this_cpu(pretrain: PretrainConfig, dtype: torch.dtype) -> DeviceSpec:
    cpu = choose_device("cpu")
    base = ModelConfig.preset("base")
    layout = SequenceLengths.from_lengths([1024] * 4)
    engine = choose_engine(pretrain.engine, cpu, dtype, base)
    attend = engine.plan_attention(layout, None, rope_angles(layout.positions, 64, 1e4), dtype)
    return measure_cpu(dtype, attend, 4 * sum(length**2 for length in layout.lengths) * base.hidden_size)


def _measure(
    console: Console, pretrain: PretrainConfig, dtype: torch.dtype, model: ModelConfig, device: DeviceSpec
) -> dict[str, Any]:
    """Time training steps on this CPU, and compare them with the forecast."""
    cpu = choose_device("cpu")
    engine = choose_engine(pretrain.engine, cpu, dtype, model)
    _, *seconds = time_steps(model, _MEASURED_LENGTHS, device=cpu, dtype=dtype, engine=engine, num_steps=3)
    num_tokens = sum(_MEASURED_LENGTHS)
    measured = num_tokens / statistics.median(seconds)
    costs = token_costs(model, _MEASURED_LENGTHS, dtype=dtype)
    # The optimizer step is divided by the tokens of this small step.
    optimizer = optimizer_seconds(model, device) / num_tokens
    forecast = 1 / (seconds_per_token(costs, device, training=True) + optimizer)
    console.print(
        f"measured here, {num_tokens:,} tokens per step in documents of {min(_MEASURED_LENGTHS)} to "
        f"{max(_MEASURED_LENGTHS):,}: {measured:,.0f} tokens/s, forecast {forecast:,.0f} "
        f"({forecast / measured:.2f} times)"
    )
    return {"tokens_per_s": measured, "forecast": forecast, "tokens": num_tokens, "seconds": seconds}


def _plan_shapes(console: Console) -> dict[str, Any]:
    """Print the shapes of the sizes of base and large with the best tile utilization, and the ranks of those two."""
    result = {}
    for name in ("base", "large"):
        config = ModelConfig.preset(name)
        own = Shape(config.num_hidden_layers, config.hidden_size, config.intermediate_size)
        own_share = tile_utilization(own)
        shares = {shape: tile_utilization(shape) for shape in candidate_shapes(own.num_parameters)}
        as_deep = [share for shape, share in shares.items() if shape.num_layers >= own.num_layers]
        rank, rank_as_deep = (1 + sum(share > own_share for share in each) for each in (shares.values(), as_deep))
        best = best_shapes(own.num_parameters)
        title = f"shapes of {own.num_parameters / 1e6:.0f} M parameters, within 2 %"
        table = Table(title=title, title_justify="left")
        for column in ("layers", "hidden size", "intermediate size", "M parameters", "tile utilization"):
            table.add_column(column, justify="right")
        for shape, share in [*best, (own, own_share)]:
            sizes = (shape.num_layers, shape.hidden_size, shape.intermediate_size, f"{shape.num_parameters / 1e6:.1f}")
            table.add_row(*map(str, sizes), f"{share:.4f}", style="bold" if shape == own else None)
        console.print(table)
        console.print(
            f"{name}, the last row: rank {rank:,} of {len(shares):,} on {', '.join(GPUS)}; "
            f"of those at least as deep, rank {rank_as_deep:,} of {len(as_deep):,}"
        )
        result[name] = {
            "rank": rank, "of": len(shares), "rank_of_as_deep": rank_as_deep, "tile_utilization": own_share,
            "best": [{**asdict(shape), "tile_utilization": share} for shape, share in best],
        }  # fmt: skip
    return result
