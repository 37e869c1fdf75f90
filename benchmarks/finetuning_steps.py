"""Compare steps of fine-tuning a classifier with `transformers` and its Trainer.

python -m benchmarks.finetuning_steps --rounds 3
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.command import option, run_command
from benchmarks.finetuning_systems import SETS, SYSTEMS, FinetuningRow, FinetuningWork, measure_finetuning
from benchmarks.results import Results, used_options
from benchmarks.rounds import MAX_COUNT, check_choices, measure_in_rounds
from modernbert.console import describe_machine, open_console, spread
from modernbert.devices import choose_device, choose_precision, dtype_name
from modernbert.errors import InputError
from modernbert.model.config import ModelConfig

__all__ = ["FinetuningConfig", "run"]


@dataclass
class FinetuningConfig:
    """Options."""

    systems: Sequence[str] = option((), "modernbert, trainer, trainer-best. Default: all.")
    sets: Sequence[str] = option((), "Datasets whose text lengths are used: cola, sst2, stsb, banking77. Default: all.")
    preset: str = option("base", "Shape of the model.")
    model: dict[str, Any] = field(default_factory=dict)
    batch: int = option(32, "Rows per step.")
    steps: int = option(20, "Timed steps.")
    rounds: int = option(3, "Passes over all systems.")
    device: str = option("auto", "auto, cpu, cuda, cuda:N.")
    dtype: str = option("auto", "auto, float32, bfloat16.")
    out: Path | None = option(None, "Folder for a JSON file and an HTML page.")


def run(config: FinetuningConfig) -> None:
    """Measure all systems on each set, in rounds; a system that cannot be measured is reported and left out.

    Raises: InputError for a wrong option, or if no system can be measured.
    """
    systems = list(dict.fromkeys(config.systems)) or list(SYSTEMS)
    sets = list(dict.fromkeys(config.sets)) or list(SETS)
    check_choices(systems, SYSTEMS, "systems", batch=config.batch, steps=config.steps, rounds=config.rounds)
    if config.batch * config.steps > MAX_COUNT // 100:
        raise InputError(
            f"batch: found {config.batch:,} in {config.steps:,} steps, expected at most {MAX_COUNT // 100:,} in all"
        )
    check_choices(sets, list(SETS), "sets")
    device = choose_device(config.device)
    dtype = dtype_name(choose_precision(config.dtype, device, "dtype"))
    shape = ModelConfig.preset(config.preset, **config.model)
    machine = describe_machine(device, ("transformers", "accelerate"))
    work = used_options(config, systems=systems, sets=sets, device=str(device), dtype=dtype)
    results = Results(config.out, "finetuning", machine=machine, work=work, batch=config.batch)
    console = open_console()
    console.print(f"{machine}; {config.preset}, {dtype}, {config.batch} rows per step")
    absent: dict[str, str] = {}
    panels: dict[str, dict[str, list[float]]] = {}
    for name in sets:

        def measure(system: str, number: int, name: str = name) -> FinetuningRow:
            work = FinetuningWork(system, shape, name, config.batch, config.steps, str(device), dtype, seed=number)
            return measure_finetuning(work)

        left = [system for system in systems if system not in absent]
        rows, gone = measure_in_rounds(console, left, config.rounds, measure, _brief, results)
        absent.update(gone)
        if rows:
            console.print(_table(name, rows))
            panels[name] = {system: [row.tokens_per_s for row in mine] for system, mine in rows.items()}
    if not results.rows:
        raise InputError(f"bench: no system could be measured ({next(iter(absent.values()))})")
    results.finish(console, panels, dict.fromkeys(panels, "real tokens per second"))


def _brief(row: FinetuningRow) -> str:
    return f"{row.set}, {row.tokens_per_s:,.0f} tokens/s, {row.peak_memory / 2**30:.2f} GiB"


def _table(name: str, rows: Mapping[str, Sequence[FinetuningRow]]) -> Table:
    """Return medians on one set, and the speed of the first system divided by that of each, by round."""
    table = Table(title=name, title_justify="left")
    leading, first = next(iter(rows.items()))
    for column in ("system", "setting", "real tokens/s", "GiB", "share of real tokens", f"speed-up of {leading}"):
        table.add_column(column, justify="left" if column in ("system", "setting") else "right")
    for system, mine in rows.items():
        table.add_row(
            system, mine[0].setting, f"{statistics.median(row.tokens_per_s for row in mine):,.0f}",
            f"{statistics.median(row.peak_memory for row in mine) / 2**30:.2f}", f"{mine[0].real_share:.1%}",
            spread([a.tokens_per_s / b.tokens_per_s for a, b in zip(first, mine, strict=False)]),
        )  # fmt: skip
    return table


if __name__ == "__main__":
    run_command(FinetuningConfig, run)
