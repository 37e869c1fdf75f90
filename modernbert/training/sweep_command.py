"""`modernbert sweep`: a fine-tuning config with several learning rates, weight decays, epochs and seeds."""

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from rich.table import Table

from modernbert.console import open_console
from modernbert.errors import InputError
from modernbert.files import write_file
from modernbert.options import default_of
from modernbert.training.command_options import FinetuneSweepConfig, RetrieverSweepConfig
from modernbert.training.finetuning_config import FinetuneConfig
from modernbert.training.retriever_config import RetrieverConfig
from modernbert.training.sweep import best_of, points_of, sweep

__all__ = ["run"]


def run(config: FinetuneSweepConfig | RetrieverSweepConfig) -> Path:
    """Run the points that are left, print a table, write `sweep.json`, and return the folder of the best model.

    Raises: InputError for inputs that cannot be trained on, or not be compared.
    """
    grid = config.sweep
    schema: Any = RetrieverConfig if isinstance(config, RetrieverConfig) else FinetuneConfig
    base = schema(**{each.name: getattr(config, each.name) for each in fields(schema)})
    for option in fields(schema):
        if getattr(grid, option.name, ()) and getattr(base, option.name) != default_of(option):
            raise InputError(f"{option.name}: has no effect beside `sweep.{option.name}`; give one of them")
    points = points_of(
        grid.lr or [base.lr], grid.weight_decay or [base.weight_decay], grid.epochs or [base.epochs],
        grid.seed or [base.seed],
    )  # fmt: skip
    out = Path(base.output)
    results = sweep(base, out, points, grid.device or [base.device])
    rows = [{**asdict(each.point), **each.scores, "stopped": each.stopped} for each in results]
    best = best_of(results)
    write_file(
        out / "sweep.json", json.dumps({"metric": best.metric, "best": best.point.name, "runs": rows}, indent=2) + "\n"
    )
    table = Table("lr", "weight decay", "epochs", "seed", best.metric, "")
    for each in sorted(results, key=lambda result: result.score, reverse=not best.metric.endswith("error")):
        point = each.point
        note = "best" if each is best else "stopped early" if each.stopped else ""
        table.add_row(
            f"{point.lr:g}", f"{point.weight_decay:g}", str(point.epochs), str(point.seed), f"{each.score:.4f}", note
        )
    open_console().print(table)
    folder = out / best.point.name / "model"
    print(f"model: {folder}")
    return folder
