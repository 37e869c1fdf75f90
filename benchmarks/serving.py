"""Compare embedding speed on a CPU with transformers, sentence-transformers, ONNX Runtime and OpenVINO.

python -m benchmarks.serving --rounds 3
"""

import itertools
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.command import option, run_command
from benchmarks.process import in_new_process
from benchmarks.ratios import ratios_to_the_best
from benchmarks.real_lengths import real_lengths
from benchmarks.results import Results, used_options
from benchmarks.rounds import check_choices
from benchmarks.serving_engines import ENGINES, Engine, embed_all, load_engine, load_reference, make_folder
from modernbert.console import describe_machine, open_console, p50_and_p95, spread
from modernbert.devices import keep_freed_memory
from modernbert.errors import InputError
from modernbert.model.config import ModelConfig
from modernbert.planning.cost_model import token_costs
from modernbert.planning.device_specs import cpu_gemm_flops_per_s

__all__ = ["SETS", "ServingConfig", "run"]

SEED = 42
_FIRST_ID, _LAST_ID = 100, 3_999  # token ids that every vocabulary has
SETS = ("short-mix", "fixed-512", "single-8192", "latency-16", "latency-128", "latency-512")
_REAL = "real"
_BUDGETS = (2_048, 8_192)
# Minimum cosine similarity to the float32 reference; an engine below it is not timed. In int8 it is shown only.
_PARITY = 0.999


@dataclass
class ServingConfig:
    """Options."""

    engines: Sequence[str] = option((), "Engines to measure. Default: all.")
    sets: Sequence[str] = option((), "short-mix, fixed-512, single-8192, latency-16, latency-128, latency-512, real.")
    preset: str = option("base", "Shape of the model.")
    model: dict[str, Any] = field(default_factory=dict)
    tokens: int = option(8_192, "Tokens per set.")
    calls: int = option(30, "Calls per latency measurement.")
    rounds: int = option(3, "Passes over all engines.")
    texts: Sequence[str] = option((), "Files of text for the set `real`.")
    tokenizer: str | None = option(None, "Tokenizer for the set `real`.")
    out: Path | None = option(None, "Folder for a JSON file and an HTML page.")


@dataclass(frozen=True)
class _Work:
    engine: str
    sets: Mapping[str, Sequence[int]]
    """Lengths of the documents of each set."""
    folder: str
    calls: int
    expected: dict[str, np.ndarray] | None


def run(config: ServingConfig) -> None:
    """Compare each engine with float32, then time all in rounds; one that is not installed or wrong is left out.

    Raises: InputError for a wrong option, or if no engine can be measured.
    """
    check_choices(
        config.engines, list(ENGINES), "engines", tokens=config.tokens, calls=config.calls, rounds=config.rounds
    )
    check_choices(config.sets, [*SETS, _REAL], "sets")
    if (bool(config.texts) != bool(config.tokenizer)) or (_REAL in config.sets and not config.texts):
        raise InputError("sets: real needs texts and a tokenizer; one of them is missing")
    engines = list(dict.fromkeys(config.engines)) or list(ENGINES)
    sets = {name: _lengths(config, name) for name in config.sets or [*SETS, *([_REAL] if config.texts else [])]}
    shape = ModelConfig.preset(config.preset, **config.model)
    machine = describe_machine(torch.device("cpu"), _libraries(engines))
    results = Results(config.out, "serving", machine=machine, work=used_options(config, engines=engines, sets=[*sets]))
    console = open_console()
    console.print(f"{machine}; {config.preset}")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as workspace:
        folder = Path(workspace) / "model"
        make_folder(folder, shape)
        _measure_in_rounds(console, results, engines, sets, folder, config)
    rows = results.rows
    if not rows:
        raise InputError(f"bench: no engine could be measured ({results.absent[0]['reason']})")
    for name in sets:
        if mine := [row for row in rows if row["set"] == name]:
            console.print(_table(name, mine, shape))
            for title, ratio in ratios_to_the_best(mine, name).items():
                if ratio != "–":
                    console.print(f"speed-up, {title}: {ratio}")
    results.finish(console, *_panels(rows))


def _measure_in_rounds(
    console: Console, results: Results, engines: Sequence[str], sets: Mapping[str, Sequence[int]], folder: Path,
    config: ServingConfig,
) -> None:  # fmt: skip
    """Measure every engine once per round, on the sets on which it is correct."""
    setting, expected = in_new_process(_reference, _Work("", sets, str(folder), 0, None))
    if not setting.startswith("padded"):
        console.print(f"transformers is not installed: the reference is this package, {setting}")
    left = {engine: list(sets) for engine in engines}
    for number, engine in itertools.product(range(config.rounds), engines):
        if not left[engine]:
            continue
        work = _Work(engine, {name: sets[name] for name in left[engine]}, str(folder), config.calls, expected)
        try:
            found, wrong = in_new_process(_measure, work)
        except InputError as error:
            left[engine] = []
            results.miss(engine, None, str(error))
            console.print(f"{engine}: {error}")
            continue
        left[engine] = [name for name in work.sets if name not in wrong]
        for name, reason in wrong.items():
            results.miss(engine, name, reason)
            console.print(f"{engine}: {name}: {reason}")
        results.add(*({"round": number + 1, "engine": engine, **row} for row in found))
        if found:
            console.print(f"round {number + 1}, {engine}: {', '.join(map(_brief, found))}")


def _libraries(engines: Sequence[str]) -> list[str]:
    """Return the libraries of some engines; `transformers` is the reference."""
    others = ("sentence-transformers", "onnxruntime", "openvino")
    return ["transformers", *(name for name in others if any(engine.startswith(name) for engine in engines))]


def _lengths(config: ServingConfig, name: str) -> list[int]:
    """Return lengths: log-normal with a median of 60 tokens and at most 512, equal ones, or the lengths of real texts.

    Raises: InputError if the texts cannot be read.
    """
    if name == _REAL:
        found = real_lengths(list(config.texts), str(config.tokenizer), max(2, config.tokens // 64), longest=8192)
        kept = [length for length, total in zip(found, np.cumsum(found), strict=True) if total <= config.tokens]
        if not kept:
            raise InputError(f"texts: found none within {config.tokens:,} tokens, expected some, or more --tokens")
        return kept
    if name == "short-mix":
        drawn = np.random.default_rng(SEED).lognormal(np.log(60), 0.9, max(2, config.tokens // 80))
        return [int(length) for length in np.clip(drawn, 4, 512)]
    length = int(name.rsplit("-")[-1])
    return [length] * (1 if name.startswith(("single", "latency")) else max(1, config.tokens // length))


def _documents(lengths: Sequence[int]) -> list[np.ndarray]:
    random = np.random.default_rng(SEED)
    # Zipf's law: with uniform ids, the mean over thousands of tokens is so small that bfloat16 rounding dominates it.
    shares = 1 / np.arange(1, _LAST_ID - _FIRST_ID + 2)
    ids = np.arange(_FIRST_ID, _LAST_ID + 1)
    return [random.choice(ids, length, p=shares / shares.sum()) for length in lengths]


def _reference(work: _Work) -> tuple[str, dict[str, np.ndarray]]:
    """Return the setting of the reference, and its vectors of each set."""
    engine = load_reference(Path(work.folder), Path(work.folder).parent)
    found = {name: embed_all(engine, _documents(lengths), _BUDGETS[1]) for name, lengths in work.sets.items()}
    return engine.setting, found


def _measure(work: _Work) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Check and time one engine in this process, and measure the GEMM speed.

    Return a row for each set, and the reason for each set without one.
    """
    assert work.expected is not None
    keep_freed_memory()  # as this package does, for all engines
    engine = load_engine(work.engine, Path(work.folder), Path(work.folder).parent)
    rows, wrong = [], {}
    for name, lengths in work.sets.items():
        documents = _documents(lengths)
        cosine = _least_cosine(embed_all(engine, documents, _BUDGETS[1]), work.expected[name])
        if not cosine >= (0 if engine.dtype == torch.int8 else _PARITY):  # also if it is NaN
            wrong[name] = f"cosine to float32 is {cosine:.4f}, expected at least {_PARITY}"
            continue
        # torch has no fast GEMM in int8 to compare with.
        flops = None if engine.dtype == torch.int8 else cpu_gemm_flops_per_s(engine.dtype)
        timed = _latency if name.startswith("latency") else _rate
        rows.append({"set": name, "setting": engine.setting, "cosine": cosine, "lengths": [*map(len, documents)],
                     "gemm_flops_per_s": flops,
                     **timed(engine, documents, work.calls)})  # fmt: skip
    return rows, wrong


def _rate(engine: Engine, documents: list[np.ndarray], calls: int) -> dict[str, Any]:
    """Return tokens per second with the best of several token budgets, of two passes."""
    budgets = _BUDGETS if len(documents) > 1 else _BUDGETS[:1]
    tried = {budget: _seconds(engine, documents, budget) for budget in budgets}
    budget = min(tried, key=tried.__getitem__)
    seconds = min(tried[budget], _seconds(engine, documents, budget))
    return {"tokens_per_s": sum(map(len, documents)) / seconds, "budget": budget}


def _latency(engine: Engine, documents: list[np.ndarray], calls: int) -> dict[str, Any]:
    for _ in range(3):
        _seconds(engine, documents, _BUDGETS[0])
    return p50_and_p95([_seconds(engine, documents, _BUDGETS[0]) for _ in range(calls)])


def _seconds(engine: Engine, documents: list[np.ndarray], budget: int) -> float:
    begun = time.perf_counter()
    embed_all(engine, documents, budget)
    return time.perf_counter() - begun


def _least_cosine(found: np.ndarray, expected: np.ndarray) -> float:
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    return float(((found * expected).sum(axis=1) / norms).min())


def _brief(row: dict[str, Any]) -> str:
    return f"{row['set']} " + (f"{row['p50_ms']:.1f} ms" if "p50_ms" in row else f"{row['tokens_per_s']:,.0f} tokens/s")


def _table(name: str, rows: Sequence[dict[str, Any]], shape: ModelConfig) -> Table:
    """Return the table of one set, with the speed-up of the first engine over each, by round."""
    is_latency = name.startswith("latency")
    table = Table(title=name, title_justify="left")
    columns = ["p50 ms", "p95 ms"] if is_latency else ["tokens/s", "of GEMM speed"]
    for column in ("engine", "setting", *columns, "min cosine", f"speed-up of {rows[0]['engine']}"):
        table.add_column(column, justify="left" if column in ("engine", "setting") else "right")
    by_engine: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_engine.setdefault(row["engine"], []).append(row)
    first = next(iter(by_engine.values()))
    flops = token_costs(shape, first[0]["lengths"]).forward_flops
    for engine, mine in by_engine.items():
        if is_latency:
            ratios = [b["p50_ms"] / a["p50_ms"] for a, b in zip(first, mine, strict=False)]
            shown = [f"{statistics.median(row[key] for row in mine):.2f}" for key in ("p50_ms", "p95_ms")]
        else:
            ratios = [a["tokens_per_s"] / b["tokens_per_s"] for a, b in zip(first, mine, strict=False)]
            shares = [row["tokens_per_s"] * flops / speed for row in mine if (speed := row["gemm_flops_per_s"])]
            share = f"{statistics.median(shares):.0%}" if shares else "–"
            shown = [f"{statistics.median(row['tokens_per_s'] for row in mine):,.0f}", share]
        table.add_row(engine, mine[0]["setting"], *shown, f"{min(row['cosine'] for row in mine):.5f}", spread(ratios))
    return table


def _panels(rows: Sequence[dict[str, Any]]) -> tuple[dict[str, dict[str, list[float]]], dict[str, str]]:
    """Return the values of each engine with a panel for each set, and the unit of each panel."""
    panels: dict[str, dict[str, list[float]]] = {}
    units: dict[str, str] = {}
    for row in rows:
        panel, is_latency = panels.setdefault(row["set"], {}), "p50_ms" in row
        panel.setdefault(row["engine"], []).append(row["p50_ms"] if is_latency else row["tokens_per_s"])
        units[row["set"]] = "median milliseconds, lower is better" if is_latency else "tokens per second"
    return panels, units


if __name__ == "__main__":
    run_command(ServingConfig, run)
