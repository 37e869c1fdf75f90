"""Compare steps of masked-LM training with `transformers` and its Trainer.

python -m benchmarks.training_steps --rounds 3
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.command import option, run_command
from benchmarks.results import Results, used_options
from benchmarks.rounds import MAX_COUNT, check_choices, measure_in_rounds
from benchmarks.training_systems import SYSTEMS, TrainingRow, TrainingWork, measure_training, mixed_lengths
from modernbert.console import describe_machine, open_console, spread
from modernbert.devices import choose_device, choose_precision, dtype_name
from modernbert.errors import InputError
from modernbert.model.config import ModelConfig
from modernbert.planning.device_specs import cpu_gemm_flops_per_s
from modernbert.training.flops import peak_flops

__all__ = ["TrainingConfig", "run"]


@dataclass
class TrainingConfig:
    """Options."""

    systems: Sequence[str] = option((), "modernbert, trainer, trainer-best, trainer-concatenated. Default: all.")
    preset: str = option("base", "Shape of the model.")
    model: dict[str, Any] = field(default_factory=dict)
    tokens: int | None = option(None, "Real tokens per step.")
    longest: int = option(1024, "Tokens of the longest document.")
    steps: int = option(5, "Timed steps.")
    rounds: int = option(3, "Passes over all systems.")
    device: str = option("auto", "auto, cpu, cuda, cuda:N.")
    dtype: str = option("auto", "auto, float32, bfloat16.")
    out: Path | None = option(None, "Folder for a JSON file and an HTML page.")


def run(config: TrainingConfig) -> None:
    """Measure all systems in rounds; a system that cannot be measured is reported and left out.

    Raises: InputError for a wrong option, or if no system can be measured.
    """
    systems = list(dict.fromkeys(config.systems)) or list(SYSTEMS)
    check_choices(
        systems, SYSTEMS, "systems", steps=config.steps, rounds=config.rounds,
        tokens=1 if config.tokens is None else config.tokens,
    )  # fmt: skip
    if config.longest < 16:
        raise InputError(f"longest: found {config.longest}, expected at least 16 tokens")
    device = choose_device(config.device)
    dtype = choose_precision(config.dtype, device, "dtype")
    shape = ModelConfig.preset(config.preset, **config.model)
    tokens = config.tokens or (98_304 if device.type == "cuda" else 8_192)
    if tokens * config.steps > MAX_COUNT:
        raise InputError(f"steps: found {config.steps:,} of {tokens:,} tokens, expected at most {MAX_COUNT:,} in all")
    lengths = mixed_lengths(tokens, config.longest)
    precision = dtype_name(dtype)
    machine = describe_machine(device, ("transformers", "accelerate"))
    work = used_options(config, systems=systems, tokens=tokens, device=str(device), dtype=precision)
    results = Results(config.out, "training", machine=machine, work=work, lengths=lengths)
    console = open_console()
    console.print(
        f"{machine}; {config.preset}, {precision}, {tokens:,} tokens per step in {len(lengths)} documents of "
        f"{min(lengths)} to {max(lengths):,}"
    )

    def measure(system: str, number: int) -> TrainingRow:
        return measure_training(TrainingWork(system, shape, lengths, config.steps, str(device), precision, seed=number))

    rows, absent = measure_in_rounds(console, systems, config.rounds, measure, _brief, results)
    if not rows:
        raise InputError(f"bench: no system could be measured ({next(iter(absent.values()))})")
    peak = cpu_gemm_flops_per_s(dtype) if device.type == "cpu" else peak_flops(device, dtype)
    console.print(_table(rows, peak))
    panels = {
        "speed": {system: [row.tokens_per_s for row in mine] for system, mine in rows.items()},
        "memory": {system: [row.peak_memory / 2**30 for row in mine] for system, mine in rows.items()},
    }
    results.finish(console, panels, {"speed": "real tokens per second", "memory": "peak GiB, lower is better"})


def _brief(row: TrainingRow) -> str:
    return f"{row.tokens_per_s:,.0f} tokens/s, {row.peak_memory / 2**30:.2f} GiB"


def _table(rows: Mapping[str, Sequence[TrainingRow]], peak: float | None) -> Table:
    """Return medians, and ratios of the first system to each, by round.

    `peak` is the published peak of the GPU, or the measured GEMM speed of this CPU, in operations per second.
    """
    table = Table()
    leading, first = next(iter(rows.items()))
    for column in ("system", "setting", "real tokens/s", "GiB", "TFLOP/s", "of peak", "share of real tokens",
                   f"speed-up of {leading}", "relative memory"):  # fmt: skip
        table.add_column(column, justify="left" if column in ("system", "setting") else "right")
    for name, mine in rows.items():
        speeds = [a.tokens_per_s / b.tokens_per_s for a, b in zip(first, mine, strict=False)]
        sizes = [a.peak_memory / b.peak_memory for a, b in zip(first, mine, strict=False)]
        flops = statistics.median(row.flops_per_s for row in mine)
        table.add_row(
            name, mine[0].setting, f"{statistics.median(row.tokens_per_s for row in mine):,.0f}",
            f"{statistics.median(row.peak_memory for row in mine) / 2**30:.2f}", f"{flops / 1e12:.3f}",
            "" if peak is None else f"{flops / peak:.1%}", f"{mine[0].real_share:.1%}", spread(speeds), spread(sizes),
        )  # fmt: skip
    return table


if __name__ == "__main__":
    run_command(TrainingConfig, run)
