"""Ratios between engines of the serving benchmark, by round."""

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from modernbert.console import spread

__all__ = ["is_float32", "measure", "ratio", "ratios_to_the_best", "value_of"]

Row = dict[str, Any]


def ratios_to_the_best(rows: Sequence[Row], name: str) -> dict[str, str]:
    """Return the speed-up over the best other engine on one set, in any precision and in float32."""
    engines = list(dict.fromkeys(row["engine"] for row in rows))
    others = [engine for engine in engines if not engine.startswith("modernbert")]
    float32 = [engine for engine in others if is_float32(rows, engine)]
    return {
        "modernbert to the best other": ratio(rows, "modernbert", others, name),
        "modernbert-float32 to the best other in float32": ratio(rows, "modernbert-float32", float32, name),
    }


def value_of(rows: Sequence[Row], engine: str, name: str) -> float | None:
    """Return the median of an engine on a set; None without rows."""
    found = [measure(row) for row in rows if (row["engine"], row["set"]) == (engine, name)]
    return statistics.median(found) if found else None


def measure(row: Row) -> float:
    """Return the latency in milliseconds, if measured, else tokens per second."""
    return float(row.get("p50_ms") or row["tokens_per_s"])


def is_float32(rows: Sequence[Row], engine: str) -> bool:
    """Return whether an engine computes in float32."""
    return any("float32" in row["setting"] for row in rows if row["engine"] == engine)


def ratio(rows: Sequence[Row], ours: str, others: Iterable[str], name: str) -> str:
    """Return the speed-up of our engine over the other one with the best median, by round."""
    is_time = name.startswith("latency")
    values = {other: value for other in others if (value := value_of(rows, other, name)) is not None}
    if not values or value_of(rows, ours, name) is None:
        return "–"
    best = (min if is_time else max)(values, key=values.__getitem__)
    rounds = [
        {row["round"]: measure(row) for row in rows if (row["engine"], row["set"]) == (engine, name)}
        for engine in (ours, best)
    ]
    both = [(rounds[0][number], rounds[1][number]) for number in rounds[0] if number in rounds[1]]
    ratios = [(b / a if is_time else a / b) for a, b in both]
    return f"{spread(ratios)}, {best}"
