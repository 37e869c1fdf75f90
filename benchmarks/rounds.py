"""Systems measured in turn, round after round, so that a machine that changes its pace changes it for all.

In: names and a way to measure each. Out: what was measured, and why some were not.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

from rich.console import Console

from benchmarks.results import Results
from modernbert.errors import InputError

__all__ = ["MOST", "check_choices", "measure_in_turn"]

MOST = 100_000_000
"""Tokens, documents or whatever else is counted: what is beyond ends no day, or for want of memory."""

Row = TypeVar("Row", bound=Any)


def check_choices(names: Sequence[str], known: Sequence[str], key: str, **numbers: int) -> None:
    """Check names, and numbers that count something.

    Raises: InputError naming the field.
    """
    for name, number in numbers.items():
        if number < 1:
            raise InputError(f"{name}: found {number}, expected at least 1")
        if number > MOST:
            raise InputError(f"{name}: found {number:,}, expected at most {MOST:,}")
    for name in names:
        if name not in known:
            raise InputError(f"{key}: found {name!r}, expected {', '.join(known)}")


def measure_in_turn(
    console: Console,
    names: Sequence[str],
    rounds: int,
    measure: Callable[[str, int], Row],
    brief: Callable[[Row], str],
    results: Results,
) -> tuple[dict[str, list[Row]], dict[str, str]]:
    """Return the rows of every name, one a round, and for those that cannot be measured the reason.

    Rows, which are dataclasses, and reasons go to `results` as they come. `measure(name, number)` is given the
    round, counted from 0.
    """
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
                results.miss(name, None, str(error))
                console.print(f"{name}: {error}")
                continue
            rows.setdefault(name, []).append(row)
            results.add({"round": number + 1, **asdict(row)})
            console.print(f"round {number + 1}, {name}: {brief(row)}")
    return rows, absent
