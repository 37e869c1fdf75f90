"""Measure the paper's efficiency table on this machine: tokens per second, largest batch, peak memory.

python -m benchmarks.throughput --rounds 3 --out build/bench
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table

from benchmarks.command import option, run_command
from benchmarks.peers import MODELS
from benchmarks.real_lengths import real_documents
from benchmarks.results import Results, used_options
from benchmarks.rounds import MAX_COUNT, check_choices, measure_in_rounds
from benchmarks.throughput_row import Row, Work, measure
from modernbert.console import describe_machine, open_console
from modernbert.devices import choose_device, choose_precision, dtype_name
from modernbert.errors import InputError
from modernbert.planning.length_sets import LENGTH_SETS, set_documents

__all__ = ["ThroughputConfig", "run"]

# As published: 8,192 documents, ten runs. On a CPU, as many that a row takes seconds.
_DOCUMENTS, _RUNS = 8_192, 10
_CPU_DOCUMENTS, _CPU_RUNS = {"short": 16, "long": 2, "real": 64}, 3
_CPU_BATCH = {"short": 8, "long": 1, "real": 16}
_REAL = "real"
_OURS = {"modernbert-base", "modernbert-large"}


@dataclass
class ThroughputConfig:
    """Options; defaults depend on the device and are printed."""

    models: Sequence[str] = option((), "Models to measure. Default: all that suit the device.")
    sets: Sequence[str] = option((), "short-fixed, short-variable, long-fixed, long-variable, real.")
    documents: int | None = option(None, "Documents per set.")
    batch: int | None = option(None, "Documents per batch.")
    runs: int | None = option(None, "Passes over a set per measurement.")
    rounds: int = option(1, "Passes over the table, one model after another.")
    texts: Sequence[str] = option((), "Files of text for the set `real`.")
    tokenizer: str | None = option(None, "Tokenizer for the set `real`.")
    device: str = option("auto", "auto, cpu, cuda, cuda:N.")
    dtypes: Sequence[str] = option((), "float32, bfloat16.")
    out: Path | None = option(None, "Folder for a JSON file and an HTML page.")


def run(config: ThroughputConfig) -> None:
    """Measure all rows; a row that cannot be measured is reported and left out.

    Raises: InputError for a wrong option, or if no row can be measured.
    """
    device = choose_device(config.device)
    models, sets, dtypes = _choices(config, device)
    documents = {name: _documents(config, name, device) for name in sets}
    runs = config.runs or (_RUNS if device.type == "cuda" else _CPU_RUNS)
    machine = describe_machine(device, () if set(models) <= _OURS else ("transformers",))
    numbers = {name: len(texts) for name, texts in documents.items()}
    batches = {name: _batch(config, name, device) for name in sets}
    work = used_options(
        config, models=models, sets=sets, documents=numbers, batch=batches, runs=runs, device=str(device), dtypes=dtypes
    )
    results = Results(config.out, "throughput", machine=machine, work=work, documents=numbers)
    console = open_console()
    console.print(machine)
    reduced = any(len(texts) < _DOCUMENTS for texts in documents.values()) or runs < _RUNS
    if reduced:
        sizes = ", ".join(f"{name} {len(texts):,}" for name, texts in documents.items())
        console.print(f"reduced from the paper's {_DOCUMENTS:,} documents and {_RUNS} runs: {sizes}; {runs} runs")
    for dtype in dtypes:
        for set_name, texts in documents.items():

            def measure_round(
                model: str, number: int, texts: list[np.ndarray] = texts, set_name: str = set_name, dtype: str = dtype
            ) -> Row:
                return measure(Work(model, texts, batches[set_name], runs, str(device), dtype, number == 0))

            place = {"set": set_name, "dtype": dtype, "batch": batches[set_name]}
            found, _ = measure_in_rounds(console, models, config.rounds, measure_round, _brief, results, **place)
            if found:
                console.print(_table(f"{set_name}, {dtype}", found))
    if not results.rows:
        raise InputError(f"bench: no row could be measured ({results.absent[0]['reason']})")
    panels = _panels(results.rows)
    results.finish(console, panels, dict.fromkeys(panels, "real tokens per second"))


def _choices(config: ThroughputConfig, device: torch.device) -> tuple[list[str], list[str], list[str]]:
    """Return models, sets and precisions.

    Raises: InputError for an unknown name.
    """
    numbers = {"documents": config.documents, "batch": config.batch, "runs": config.runs, "rounds": config.rounds}
    given = {key: number for key, number in numbers.items() if number is not None}
    check_choices(config.models, list(MODELS), "models", **given)
    check_choices(config.sets, [*LENGTH_SETS, _REAL], "sets")
    if (bool(config.texts) != bool(config.tokenizer)) or (_REAL in config.sets and not config.texts):
        raise InputError("sets: real needs texts and a tokenizer; one of them is missing")
    bases = [name for name in MODELS if "large" not in name]
    models = list(dict.fromkeys(config.models)) or (list(MODELS) if device.type == "cuda" else bases)
    sets = list(dict.fromkeys(config.sets)) or [*LENGTH_SETS, *([_REAL] if config.texts else [])]
    for name in sets:
        most = MAX_COUNT // (LENGTH_SETS[name].mean if name in LENGTH_SETS else 1)
        if config.documents is not None and config.documents > most:
            raise InputError(f"documents: found {config.documents:,}, expected at most {most:,} of {name}")
    named = list(dict.fromkeys(config.dtypes)) or [dtype_name(choose_precision("auto", device))]
    for name in named:
        choose_precision(name, device, "dtype")
    return models, sets, named


def _kind(set_name: str) -> str:
    return set_name.split("-")[0]


def _documents(config: ThroughputConfig, name: str, device: torch.device) -> list[np.ndarray]:
    number = config.documents or (_DOCUMENTS if device.type == "cuda" else _CPU_DOCUMENTS[_kind(name)])
    if name == _REAL:
        return real_documents(list(config.texts), str(config.tokenizer), number, longest=8192)
    return set_documents(name, number)


def _batch(config: ThroughputConfig, name: str, device: torch.device) -> int:
    paper = LENGTH_SETS[name].batch if name in LENGTH_SETS else 128
    return config.batch or (paper if device.type == "cuda" else _CPU_BATCH[_kind(name)])


def _brief(row: Row) -> str:
    return f"{row.mean:,.0f} tokens/s"


def _table(title: str, found: dict[str, list[Row]]) -> Table:
    """Return the table of one set; speed-ups are of the first model over each, by round."""
    table = Table(title=title, title_justify="left")
    name, first = next(iter(found.items()))
    for column in ("model", "M parameters", "setting", "tokens/s", "±", "largest batch", "peak MiB",
                   f"speed-up of {name}"):  # fmt: skip
        table.add_column(column, justify="left" if column in ("model", "setting") else "right")
    for model, rows in found.items():
        rates = [rate for row in rows for rate in row.tokens_per_s]
        ratios = [mine.mean / other.mean for mine, other in zip(first, rows, strict=False)]
        spread = f" ({min(ratios):.2f} to {max(ratios):.2f})" if len(ratios) > 1 else ""
        largest = rows[0].largest_batch
        table.add_row(
            model, f"{rows[0].num_parameters / 1e6:.0f}", rows[0].setting, f"{statistics.mean(rates):,.0f}",
            f"{statistics.stdev(rates) if len(rates) > 1 else 0:,.0f}", "" if largest is None else f"{largest:,}",
            f"{max(row.peak_memory for row in rows) / 2**20:,.0f}",
            f"{statistics.median(ratios):.2f}{spread}",
        )  # fmt: skip
    return table


def _panels(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """Return tokens per second of each model, with a panel for each set and precision."""
    panels: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        panel = panels.setdefault(f"{row['set']}, {row['dtype']}", {})
        panel.setdefault(row["model"], []).extend(row["tokens_per_s"])
    return panels


if __name__ == "__main__":
    run_command(ThroughputConfig, run)
