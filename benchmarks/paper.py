"""Print table 1 of the paper with scores measured here, and the commands that are still to be run.

    python -m benchmarks.paper results/

The folder has a folder per model, with `glue.json`, `single.json` (one vector per text), `in-domain.json` (the same,
fine-tuned on MLDR) and `late.json` (late interaction), as `modernbert evaluate` writes them. A column is shown only if
all its datasets are there.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.command import option, run_command
from benchmarks.paper_table import COLUMNS, PUBLISHED, Measured, missing_sets, score_of
from modernbert.console import open_console
from modernbert.errors import InputError
from modernbert.files import write_file

__all__ = ["PaperConfig", "run"]

_RETRIEVAL = ("single", "in-domain", "late")
_WRITTEN_BY = {
    "glue": "modernbert evaluate glue MODEL DATA --output {folder}",
    "single": "modernbert evaluate retrieval MODEL COLLECTION... --output {folder}/single.json",
    "in-domain": "modernbert evaluate retrieval MODEL_TUNED_ON_MLDR mldr --output {folder}/in-domain.json",
    "late": "modernbert evaluate retrieval LATE_MODEL COLLECTION... --output {folder}/late.json",
}


@dataclass
class PaperConfig:
    """Options."""

    results: Path
    out: Path | None = option(None, "JSON file for the scores.")


def run(config: PaperConfig) -> dict[str, Any]:
    """Print the table and the missing sets, write JSON to `config.out`, and return its content.

    Raises: InputError for a folder without models, or a file that is not a result of `modernbert evaluate`.
    """
    if not config.results.is_dir():
        raise InputError(f"{config.results}: found no such folder, expected one with a folder for each model")
    folders = sorted(path for path in config.results.iterdir() if path.is_dir())
    if not folders:
        raise InputError(f"{config.results}: found no folder in it, expected one for each model")
    measured = {folder.name: _measured(folder) for folder in folders}
    said = {
        name: {
            column.title: {"score": score_of(column, scores), "missing": missing_sets(column, scores)}
            for column in COLUMNS
        }
        for name, scores in measured.items()
    }
    console = open_console()
    console.print(_table(said))
    for folder in folders:
        for line in _missing(folder, measured[folder.name]):
            console.print(line)
    if config.out is not None:
        write_file(config.out, json.dumps(said, indent=2) + "\n")
    return said


def _measured(folder: Path) -> Measured:
    """Return all scores in the folder of a model: the best run of each GLUE task, nDCG@10 of each collection."""
    found: dict[tuple[str, str], float] = {}
    for name, of_task in _read(folder / "glue.json").items():
        found["glue", name] = _number(folder / "glue.json", of_task, "best")
    for kind in _RETRIEVAL:
        path = folder / f"{kind}.json"
        rows = _read(path).get("rows", [])
        if not isinstance(rows, list):
            raise InputError(f"{path}: found no results, expected a file of modernbert evaluate")
        for row in rows:
            if not isinstance(row, dict) or "collection" not in row:
                raise InputError(f"{path}: found a row without a collection")
            if row.get("system") != "BM25":
                found[kind, str(row["collection"]).lower()] = _number(path, row, "ndcg_10")
    return found


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise InputError(f"{path}: is not readable JSON ({error})") from None
    if not isinstance(said, dict):
        raise InputError(f"{path}: found no results, expected a file of modernbert evaluate")
    return said


def _number(path: Path, row: Any, key: str) -> float:
    value = row.get(key) if isinstance(row, dict) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= abs(value) <= 1:
        raise InputError(f"{path}: {key} is {value!r}, expected a score of 0 to 1")
    return float(value)


def _table(said: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Table:
    table = Table(title="table 1 of the paper: published, and measured here", title_justify="left")
    table.add_column("model")
    for column in COLUMNS:
        table.add_column(column.title, justify="right")
    for name, scores in PUBLISHED.items():
        table.add_row(name, *(f"{score:.1f}" for score in scores))
    table.add_section()
    for name, columns in said.items():
        cells = (columns[column.title]["score"] for column in COLUMNS)
        table.add_row(name, *("–" if score is None else f"{score:.1f}" for score in cells))
    return table


def _missing(folder: Path, measured: Measured) -> list[str]:
    """Return a line for each incomplete column: the missing sets, and the command that measures them."""
    lines = []
    for column in COLUMNS:
        gone = missing_sets(column, measured)
        if gone:
            there = (
                f"{len(column.sets) - len(gone)} of {len(column.sets)}; " if 1 < len(column.sets) > len(gone) else ""
            )
            command = _WRITTEN_BY[column.kind].format(folder=folder)
            lines.append(f"{folder.name}, {column.title}: {there}missing {', '.join(gone)} ({command})")
    return lines


if __name__ == "__main__":
    run_command(PaperConfig, run)
