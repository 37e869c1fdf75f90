"""`modernbert bench`: speed, latency and memory of a model on this machine.

A batch has as many tokens as a call of `ModernBert.embed`. Tokenization is not included.
"""

import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from rich.table import Table

from modernbert.batch import Batch, batch_by_size
from modernbert.console import describe_machine, open_console, p50_and_p95
from modernbert.devices import dtype_name, peak_memory, restart_peak
from modernbert.files import check_target, write_file
from modernbert.hub_download import at_revision
from modernbert.inference.modernbert import ModernBert
from modernbert.model.heads import pool
from modernbert.planning.bench_options import BenchConfig
from modernbert.planning.length_sets import random_documents, set_documents

__all__ = ["BenchResult", "LatencyRow", "SpeedRow", "bench"]

_LATENCY_LENGTHS = (16, 128, 512)


@dataclass(frozen=True)
class SpeedRow:
    """Speed and memory on one set. Units: tokens per second of each pass, bytes."""

    set: str
    num_documents: int
    num_tokens: int
    tokens_per_s: list[float]
    peak_memory: int


@dataclass(frozen=True)
class LatencyRow:
    """Latency of one text, in milliseconds."""

    num_tokens: int
    p50_ms: float
    p95_ms: float


@dataclass(frozen=True)
class BenchResult:
    """The results of a model on a machine; `skipped` are sets with documents that are too long for it."""

    model: str
    machine: str
    dtype: str
    engine: str
    speed: list[SpeedRow]
    latency: list[LatencyRow]
    skipped: Sequence[str]


def bench(config: BenchConfig) -> BenchResult:
    """Measure a model, print tables, and write `config.output`.

    Raises:
        InputError: The model cannot be loaded, or the file cannot be written.
    """
    check_target(config.output, overwrite=config.overwrite)
    bert = ModernBert.load(
        config.model, revision=config.revision, device=config.device, dtype=config.dtype, engine=config.engine
    )
    console = open_console()
    on_gpu = bert.device.type == "cuda"
    sizes = {"short": 1_024, "long": 32} if on_gpu else {"short": 16, "long": 2}
    speed, skipped = [], []
    for name in dict.fromkeys(config.sets):
        documents = set_documents(name, config.documents or sizes[name.split("-")[0]])
        if max(map(len, documents)) > bert.max_length:
            skipped.append(name)
            continue
        speed.append(_measure_speed(bert, name, documents, config.runs))
    lengths = [length for length in _LATENCY_LENGTHS if length <= bert.max_length]
    engine = getattr(bert.model.encoder, "engine", None)
    result = BenchResult(
        at_revision(config.model, config.revision),
        describe_machine(bert.device),
        dtype_name(next(bert.model.parameters()).dtype),
        "transformers" if engine is None else engine.name,
        speed,
        [_measure_latency(bert, length, config.calls) for length in lengths],
        skipped,
    )
    console.print(f"{result.model}: {result.dtype}, engine {result.engine}; {result.machine}")
    for table in _tables(result):
        console.print(table)
    if skipped:
        console.print(f"skipped: {', '.join(skipped)}: the model takes texts of at most {bert.max_length:,} tokens")
    if config.output is not None:
        write_file(config.output, json.dumps(asdict(result), indent=2) + "\n")
    return result


def _measure_speed(bert: ModernBert, name: str, documents: Sequence[np.ndarray], runs: int) -> SpeedRow:
    batches = list(batch_by_size(documents, bert.budget_tokens, len))
    _seconds(bert, batches)  # kernels are compiled and chosen on the first pass
    restart_peak(bert.device)
    num_tokens = sum(map(len, documents))
    speeds = [num_tokens / _seconds(bert, batches) for _ in range(runs)]
    return SpeedRow(name, len(documents), num_tokens, speeds, peak_memory(bert.device))


def _measure_latency(bert: ModernBert, length: int, calls: int) -> LatencyRow:
    batch = [random_documents([length])]
    for _ in range(3):
        _seconds(bert, batch)
    return LatencyRow(length, **p50_and_p95([_seconds(bert, batch) for _ in range(calls)]))


@torch.inference_mode()
def _seconds(bert: ModernBert, batches: Sequence[Sequence[np.ndarray]]) -> float:
    """Return the seconds until the vectors of all batches are in the memory of the host."""
    started = time.perf_counter()
    for documents in batches:
        ids = [document % bert.model.vocab_size for document in documents]  # small vocabularies
        batch = Batch.from_documents(ids).to(bert.device)
        pool(bert.model.encode(batch).float(), batch.layout, "mean").cpu()
    return time.perf_counter() - started


def _tables(result: BenchResult) -> list[Table]:
    speed = Table("set", title="Speed and peak memory", title_justify="left")
    for column in ("documents", "tokens", "tokens/s", "±", "peak MiB"):
        speed.add_column(column, justify="right")
    for row in result.speed:
        deviation = statistics.stdev(row.tokens_per_s) if len(row.tokens_per_s) > 1 else 0.0
        numbers = (statistics.mean(row.tokens_per_s), deviation, row.peak_memory / 2**20)
        speed.add_row(
            row.set, f"{row.num_documents:,}", f"{row.num_tokens:,}", *(f"{number:,.0f}" for number in numbers)
        )
    latency = Table(title="Latency of one text", title_justify="left")
    for column in ("tokens", "p50 ms", "p95 ms"):
        latency.add_column(column, justify="right")
    for each in result.latency:
        latency.add_row(f"{each.num_tokens:,}", f"{each.p50_ms:.2f}", f"{each.p95_ms:.2f}")
    return [table for table, rows in ((speed, result.speed), (latency, result.latency)) if rows]
