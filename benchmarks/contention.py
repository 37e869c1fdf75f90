"""Measure the latency of one text while other programs use the same cores.

Every measurement is a new process, since a slow one may be slow for its whole life.

python -m benchmarks.contention --rounds 10 --out build/bench
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table

from benchmarks.command import option, run_command
from benchmarks.process import in_new_process
from benchmarks.results import Results, used_options
from benchmarks.rounds import check_choices, measure_in_rounds
from benchmarks.serving_engines import ENGINES, load_engine, make_folder
from modernbert.console import describe_machine, open_console
from modernbert.devices import limit_threads
from modernbert.model.config import ModelConfig

__all__ = ["ContentionConfig", "run"]

_ALONE = "alone"
_LOOP = "while True: pass"
_IMPORTS = """
import subprocess, sys
while True: subprocess.run([sys.executable, "-c", "import torch"])
"""
_GEMM = """
import os, torch
os.nice(10)
torch.set_num_threads(2)
matrix = torch.randn(2048, 2048)
while True: matrix @ matrix
"""
_NEIGHBORS = {
    _ALONE: [],
    "one loop": [_LOOP],
    "two loops": [_LOOP] * 2,
    "three imports of torch": [_IMPORTS] * 3,
    "a GEMM of lower priority": [_GEMM],
}
_LENGTHS = 16, 128
_WARM_UP = 5


@dataclass
class ContentionConfig:
    """Options."""

    engines: Sequence[str] = option((), "Engines to measure. Default: modernbert and openvino-bfloat16.")
    neighbors: Sequence[str] = option((), "Programs beside it, besides none. Default: all.")
    preset: str = option("base", "Shape of the model, with random weights.")
    calls: int = option(60, "Texts per measurement of one length.")
    rounds: int = option(10, "New processes per engine and neighbor.")
    out: Path | None = option(None, "Folder for a JSON file and an HTML page.")


@dataclass(frozen=True)
class _Row:
    """Milliseconds of one text, in one process."""

    engine: str
    latency: dict[str, float]


@dataclass(frozen=True)
class _Work:
    engine: str
    folder: Path
    workspace: Path
    calls: int
    vocab_size: int


def run(config: ContentionConfig) -> None:
    """Measure all engines beside all neighbors, and print latencies as ratios to the median of those alone.

    Raises: modernbert.errors.InputError for a wrong option.
    """
    engines = list(dict.fromkeys(config.engines)) or ["modernbert", "openvino-bfloat16"]
    check_choices(engines, list(ENGINES), "engines", rounds=config.rounds, calls=config.calls)
    check_choices(config.neighbors, list(_NEIGHBORS), "neighbors")
    neighbors = list(dict.fromkeys([_ALONE, *(config.neighbors or _NEIGHBORS)]))
    shape = ModelConfig.preset(config.preset)
    limit_threads()
    console, machine = open_console(), describe_machine(torch.device("cpu"), ())
    console.print(machine)
    work = used_options(config, engines=engines, neighbors=neighbors)
    results = Results(config.out, "contention", machine=machine, work=work)
    with tempfile.TemporaryDirectory() as workspace:
        folder = Path(workspace) / "model"
        make_folder(folder, shape)

        def measure_beside(neighbor: str) -> dict[str, list[_Row]]:
            def measure(engine: str, number: int) -> _Row:
                asked = _Work(engine, folder, Path(workspace), config.calls, shape.vocab_size)
                with _running(neighbor):
                    return in_new_process(_measure, asked)

            return measure_in_rounds(console, engines, config.rounds, measure, _brief, results, set=neighbor)[0]

        found = {neighbor: measure_beside(neighbor) for neighbor in neighbors}
    console.print(_table(found))
    panels = _panels(results.rows)
    results.finish(console, panels, dict.fromkeys(panels, "milliseconds"))


@contextmanager
def _running(neighbor: str) -> Iterator[None]:
    programs = [
        subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL, start_new_session=True)
        for code in _NEIGHBORS[neighbor]
    ]
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()


def _measure(work: _Work) -> _Row:
    limit_threads()
    engine = load_engine(work.engine, work.folder, work.workspace)
    generator = np.random.default_rng(0)
    latency = {}
    for length in _LENGTHS:
        texts = generator.integers(0, work.vocab_size, (_WARM_UP + work.calls, length), dtype=np.int64)
        seconds = []
        for text in texts:
            start = time.perf_counter()
            engine.embed([text])
            seconds.append(time.perf_counter() - start)
        measured = np.array(seconds[_WARM_UP:]) * 1e3
        for percent in (50, 95):
            latency[f"{length} tokens, p{percent}"] = float(np.percentile(measured, percent))
    return _Row(work.engine, latency)


def _brief(row: _Row) -> str:
    return ", ".join(f"{name} {value:.1f} ms" for name, value in row.latency.items())


def _table(found: dict[str, dict[str, list[_Row]]]) -> Table:
    """Return, for each engine and neighbor, the median and the worst process as ratios to the median alone."""
    table = Table(title="ratio to the latency alone: median process, worst process", title_justify="left")
    names = [f"{length} tokens, p{percent}" for length in _LENGTHS for percent in (50, 95)]
    for column in ("engine", "beside", *names):
        table.add_column(column)
    for engine in found[_ALONE]:
        alone = {name: statistics.median(row.latency[name] for row in found[_ALONE][engine]) for name in names}
        for neighbor, rows in found.items():
            cells = []
            for name in names if engine in rows else ():
                values = [row.latency[name] for row in rows[engine]]
                base = alone[name.replace("p95", "p50")]
                cells.append(f"{statistics.median(values) / base:.2f}, {max(values) / base:.2f} ({max(values):.1f} ms)")
            table.add_row(engine, neighbor, *cells)
    return table


def _panels(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, list[float]]]:
    panels: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        for name, value in row["latency"].items():
            panels.setdefault(name, {}).setdefault(f"{row['engine']}, {row['set']}", []).append(value)
    return panels


if __name__ == "__main__":
    run_command(ContentionConfig, run)
