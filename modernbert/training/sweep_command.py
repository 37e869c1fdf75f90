"""`modernbert sweep`: a fine-tuning config with several learning rates, weight decays, epochs and seeds."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from modernbert.files import write_file
from modernbert.training.sweep import Base, best_of, points_of, sweep

__all__ = ["SweepConfig", "run"]


@dataclass
class SweepConfig:
    """A fine-tuning config, whose `output` is the folder of the sweep, and the values to try; by default its own."""

    base: Base
    lrs: Sequence[float] = ()
    weight_decays: Sequence[float] = ()
    epochs: Sequence[int] = ()
    seeds: Sequence[int] = ()
    devices: Sequence[str] = ()


def run(config: SweepConfig) -> Path:
    """Run the points that are left, print a table, write `sweep.json`, and return the folder of the best model.

    Raises: InputError for inputs that cannot be trained on, or not be compared.
    """
    base = config.base
    points = points_of(
        config.lrs or [base.lr], config.weight_decays or [base.weight_decay], config.epochs or [base.epochs],
        config.seeds or [base.seed],
    )  # fmt: skip
    out = Path(base.output)
    results = sweep(base, out, points, config.devices or [base.device])
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
    Console(highlight=False, soft_wrap=True).print(table)
    folder = out / best.point.name / "model"
    print(f"model: {folder}")
    return folder
