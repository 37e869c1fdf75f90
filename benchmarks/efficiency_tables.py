"""Write the efficiency tables of the documentation from the raw results in `records/`.

    python -m benchmarks.efficiency_tables [--check]

With `--check`, change nothing and exit with 1 if the page differs from the results.
"""

import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.ratios import ratios_to_the_best, value_of
from modernbert.console import spread

ROOT = Path(__file__).parent.parent
PAGE, RECORDS = ROOT / "docs" / "benchmarks.md", ROOT / "records"
RESULTS = RECORDS / "2026-11-25_efficiency"
# The newest records.
TRAINING = RECORDS / "2026-11-27_training" / "training.json"
GPU_TRAINING = RECORDS / "2026-11-27_gpu" / "gpu.json"
GPU_VECTORS = RECORDS / "2026-11-26_gpu" / "gpu.json"
GPU_BEGIN, GPU_END = "<!-- of a GPU, written by benchmarks/efficiency_tables.py -->", "<!-- the GPU until here -->"
BEGIN, END = "<!-- written by benchmarks/efficiency_tables.py -->", "<!-- until here -->"
SETS = {
    "short-mix": "short mix, tokens/s", "fixed-512": "512 tokens each, tokens/s",
    "single-8192": "one of 8,192, tokens/s",
    "latency-16": "16 tokens, ms", "latency-128": "128, ms", "latency-512": "512, ms",
}  # fmt: skip

Row = dict[str, Any]


def main() -> int:
    """Write the tables, or compare with `--check`; return the exit status."""
    text = PAGE.read_text()
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    written = f"{before}{BEGIN}\n{tables()}{END}{after}"
    before, rest = written.split(GPU_BEGIN)
    _, after = rest.split(GPU_END)
    of_gpu = f"{gpu_training(json.loads(GPU_TRAINING.read_text()))}\n{gpu_vectors(json.loads(GPU_VECTORS.read_text()))}"
    written = f"{before}{GPU_BEGIN}\n{of_gpu}{GPU_END}{after}"
    if "--check" in sys.argv:
        return int(written != text)
    PAGE.write_text(written)
    return 0


def tables() -> str:
    """Return the CPU tables."""
    rows = [
        {**row, "round": f"{path.name} {row['round']}"}
        for path in sorted(RESULTS.glob("serving*.json"))
        for row in json.loads(path.read_text())["rows"]
    ]
    rates = [row for path in sorted(RESULTS.glob("throughput-*.json")) for row in json.loads(path.read_text())["rows"]]
    trained = json.loads(TRAINING.read_text())["rows"]
    return f"{serving(rows)}\n{training(trained)}\n{throughput(rates)}"


def serving(rows: Sequence[Row]) -> str:
    """Return medians of every engine, and our speed-up over the best other one on each set."""
    engines = list(dict.fromkeys(row["engine"] for row in rows))
    lines = ["| vectors, base shape | " + " | ".join(SETS.values()) + " |", "| --- |" + " ---: |" * len(SETS)]
    for engine in engines:
        cells = [figure(name, value_of(rows, engine, name)) for name in SETS]
        lines.append(f"| {engine} | {' | '.join(cells)} |")
    best = {name: ratios_to_the_best(rows, name) for name in SETS}
    for title in next(iter(best.values())):
        lines.append(f"| **{title}** | {' | '.join(best[name][title] for name in SETS)} |")
    return "\n".join(lines) + "\n"


def training(rows: Sequence[Row]) -> str:
    """Return tokens per second and memory of each system, and our ratios to it."""
    lines = [
        "| training step, base, mixed lengths | tokens/s | peak GiB | ours, times as fast | ours, of its memory |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    by_system: dict[str, list[Row]] = {}
    for row in rows:
        by_system.setdefault(row["system"], []).append(row)
    first = by_system["modernbert"]
    for system, mine in by_system.items():
        speeds = [a["tokens_per_s"] / b["tokens_per_s"] for a, b in zip(first, mine, strict=True)]
        sizes = [a["peak_memory"] / b["peak_memory"] for a, b in zip(first, mine, strict=True)]
        rate = statistics.median(row["tokens_per_s"] for row in mine)
        memory = statistics.median(row["peak_memory"] for row in mine) / 2**30
        ratios = ("", "") if system == "modernbert" else (spread(speeds), spread(sizes))
        lines.append(f"| {system} | {rate:,.0f} | {memory:.2f} | {ratios[0]} | {ratios[1]} |")
    return "\n".join(lines) + "\n"


def throughput(rows: Sequence[Row]) -> str:
    """Return tokens per second of every model on every set, and its memory at two lengths."""
    columns = {
        "512 fixed": ("short-fixed", "bfloat16"), "512 variable": ("short-variable", "bfloat16"),
        "8,192 fixed": ("long-fixed", "bfloat16"), "8,192 variable": ("long-variable", "bfloat16"),
        "abstracts": ("real", "bfloat16"), "512 variable, float32": ("short-variable", "float32"),
    }  # fmt: skip
    peaks = {"peak MiB at 512": "memory-short", "at 8,192": "memory-long"}
    lines = ["| bfloat16, tokens/s | " + " | ".join([*columns, *peaks]) + " |"]
    lines.append("| --- |" + " ---: |" * (len(columns) + len(peaks)))
    for model in dict.fromkeys(row["model"] for row in rows):
        cells = []
        for place in columns.values():
            found = [each for row in rows if (row["set"], row["dtype"]) == place and row["model"] == model
                     for each in row["tokens_per_s"]]  # fmt: skip
            cells.append(f"{statistics.mean(found):,.0f}" if found else "–")
        for name in peaks.values():
            measured = json.loads((RESULTS / f"{name}.json").read_text())["rows"]
            held = [row["peak_memory"] / 2**20 for row in measured if row["model"] == model]
            cells.append(f"{held[0]:,.0f}" if held else "–")
        lines.append(f"| {model} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def gpu_training(result: dict[str, Any]) -> str:
    """Return the training speed on a GPU by shape and length."""
    lines = ["| training, tokens/s | | of peak | KB a token |", "| --- | ---: | ---: | ---: |"]
    for row in result["training"]:
        is_compiled = "compiled" in (row.get("engine") or row["backend"])
        name = f"{row['train']}, {row['length']:,} tokens{', compiled layers' if is_compiled else ''}"
        lines.append(
            f"| {name} | {row['tokens_per_s']:,} | {100 * row['mfu']:.1f} % | {row['bytes_per_token'] / 1000:,.0f} |"
        )
    return "\n".join(lines) + "\n"


def gpu_vectors(result: dict[str, Any]) -> str:
    """Return the median speed of all models on a GPU, and the latency."""
    sets = ("short-fixed", "short-variable", "long-fixed", "long-variable")
    head = ["vectors, tokens/s", "512 fixed", "512 variable", "8,192 fixed", "8,192 variable"]
    head += [f"one text of {length}, ms" for length in (16, 128, 512)]
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    for model in dict.fromkeys(row["infer"] for row in result["inference"]):
        mine = [row for row in result["inference"] if row["infer"] == model]
        runs = {row["set"]: row.get("runs") for row in mine if "set" in row}
        # The first record has latencies in a list of their own.
        waits = {row["length"]: row["p50_ms"] for row in result.get("latency", ()) if row["latency"] == model}
        waits |= {row["one_text_of"]: row["p50_ms"] for row in mine if "p50_ms" in row}
        cells = [f"{statistics.median(runs[name]):,.0f}" if runs.get(name) else "–" for name in sets]
        cells += [f"{waits[length]:.1f}" if length in waits else "–" for length in (16, 128, 512)]
        lines.append(f"| {model} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def figure(name: str, value: float | None) -> str:
    """Format one cell."""
    if value is None:
        return "–"
    return f"{value:.1f}" if name.startswith("latency") else f"{value:,.0f}"


if __name__ == "__main__":
    sys.exit(main())
