"""Measure systems in rounds, so that changes of the machine's speed affect all of them."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

from rich.console import Console

from benchmarks.results import Results
from modernbert.errors import InputError

__all__ = ["MAX_COUNT", "check_choices", "measure_in_rounds"]

MAX_COUNT = 100_000_000
"""Upper bound of all counts: tokens, documents, steps."""

Row = TypeVar("Row", bound=Any)


def check_choices(names: Sequence[str], known: Sequence[str], key: str, **numbers: int) -> None:
    """Check names and counts. Raises: InputError naming the field."""
    for name, number in numbers.items():
        if number < 1:
            raise InputError(f"{name}: found {number}, expected at least 1")
        if number > MAX_COUNT:
            raise InputError(f"{name}: found {number:,}, expected at most {MAX_COUNT:,}")
    for name in names:
        if name not in known:
            raise InputError(f"{key}: found {name!r}, expected {', '.join(known)}")


def measure_in_rounds(
    console: Console,
    names: Sequence[str],
    rounds: int,
    measure: Callable[[str, int], Row],
    brief: Callable[[Row], str],
    results: Results,
    **fields: Any,
) -> tuple[dict[str, list[Row]], dict[str, str]]:
    """Return the rows of each name, one per round, and the reason for each name that cannot be measured.

    `measure(name, number)` measures in a round, counted from 0. Rows (dataclasses) and reasons are added to `results`,
    with `fields` such as `set` and `dtype`.
    """
    dtype = {"dtype": fields["dtype"]} if "dtype" in fields else {}
    place = "".join(f" {word} {fields[key]}" for key, word in (("set", "on"), ("dtype", "in")) if key in fields)
    rows: dict[str, list[Row]] = {}
    absent: dict[str, str] = {}
    for number in range(rounds):
        for name in names:
            if name in absent:
                continue
            try:
                row = measure(name, number)
            except InputError as error:
                absent[name] = str(error)
                results.miss(name, fields.get("set"), str(error), **dtype)
                console.print(f"{name}{place}: {error}")
                continue
            rows.setdefault(name, []).append(row)
            results.add({**fields, "round": number + 1, **asdict(row)})
            console.print(f"round {number + 1}, {name}: {brief(row)}")
    return rows, absent
