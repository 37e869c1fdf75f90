"""`modernbert evaluate glue`: fine-tune a model on the tasks of GLUE and compare it with the published scores.

Each setting and seed has a run folder. RTE, MRPC and STS-B start from the best model of MNLI if that is among the
tasks. Scores are of the dev rows, which also choose the settings. The best score is therefore too high, as in the
paper; the table has the median over seeds, too.
"""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from modernbert.config_files import resolve
from modernbert.console import open_console
from modernbert.errors import InputError
from modernbert.files import new_folder, write_file
from modernbert.hub_download import at_revision
from modernbert.training.command_options import GlueConfig
from modernbert.training.finetuning import FinetuneConfig, check_inputs
from modernbert.training.glue_tasks import DECAYS, PUBLISHED, RATES, TASKS, GlueTask, config_of, tasks_in
from modernbert.training.sweep import Point, Result, best_of, points_of, sweep, unfinished

__all__ = ["GlueConfig", "run"]

_MNLI_START = "mnli-start"


def run(config: GlueConfig) -> dict[str, Any]:
    """Fine-tune and score on each task, print a table, write `glue.json`, and return its content.

    Raises: InputError for a task that is not in the folder, or rows that cannot be used.
    """
    config = replace(config, model=at_revision(config.model, config.revision), revision=None)
    there = tasks_in(config.data)
    for name in config.tasks:
        if name not in there:
            raise InputError(f"tasks: found {name!r}, expected {', '.join(there)}")
    tasks = [name for name in there if not config.tasks or name in config.tasks]
    # MNLI first: others start from its model.
    tasks.sort(key=lambda name: TASKS[name].after_mnli)
    base = FinetuneConfig(
        model=config.model,
        max_len=config.max_len,
        cut=True,
        patience=config.patience,
        dtype=config.dtype,
    )
    configs = {name: config_of(name, config.data, base) for name in tasks}
    said = _earlier(config)
    start = config.output / _MNLI_START
    after_mnli = "mnli" in {*configs, *said}
    for name, each in configs.items():
        if TASKS[name].after_mnli and after_mnli:
            each.model = str(start)
            _check_start(config.output / name, each.model)
    if len(configs) > 1:
        # Errors in the rows of a task are reported before hours are spent on earlier tasks.
        for name, each in configs.items():
            if unfinished(config.output / name, _points(config, TASKS[name])):
                check_inputs(replace(each, model=config.model, output=str(config.output / name)))
    for name, each in configs.items():
        if each.model == str(start) and not start.exists():
            _keep_start(config.output / "mnli" / said["mnli"]["best_run"] / "model", start)
        results = sweep(each, config.output / name, _points(config, TASKS[name]), config.device)
        said[name] = _summary(results) | {"model": config.model, "started_from": each.model}
        write_file(config.output / "glue.json", json.dumps(said, indent=2) + "\n")
    _show(config.model, said)
    return said


def _earlier(config: GlueConfig) -> dict[str, Any]:
    """Return the results of an earlier call for this model."""
    path = config.output / "glue.json"
    try:
        found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return {name: each for name, each in found.items() if name in TASKS and each["model"] == config.model}
    except (AttributeError, ValueError, TypeError, KeyError):
        raise InputError(f"{path}: is not readable as results; remove it, the runs beside it stay") from None


def _points(config: GlueConfig, task: GlueTask) -> list[Point]:
    lr, decay, epochs = task.chosen
    chosen = config.grid == "chosen"
    return points_of(
        config.lrs or ((lr,) if chosen else RATES), config.weight_decays or ((decay,) if chosen else DECAYS),
        config.epochs or ((epochs,) if chosen else task.epochs), config.seeds,
    )  # fmt: skip


def _check_start(folder: Path, start: str) -> None:
    """Check that earlier runs of a task started from MNLI's model, too.

    Raises: InputError naming the run that did not.
    """
    for path in sorted(folder.glob("lr*/config.yaml")):
        found = resolve(FinetuneConfig, {}, path).model
        if found != start:
            raise InputError(
                f"{path.parent}: was started from {found}, but with MNLI among the tasks it starts from {start}; "
                "choose another `output`"
            )


def _keep_start(model: Path, start: Path) -> None:
    """Copy the best model of MNLI: later runs of MNLI do not change what other tasks started from."""
    with new_folder(start) as partial:
        for path in model.iterdir():
            (partial / path.name).write_bytes(path.read_bytes())


def _summary(results: Sequence[Result]) -> dict[str, Any]:
    """Return the best run, and the setting with the best median over its seeds."""
    by_setting: dict[tuple[float, float, int], list[float]] = {}
    for result in results:
        point = result.point
        by_setting.setdefault((point.lr, point.weight_decay, point.epochs), []).append(result.score)
    setting, scores = max(by_setting.items(), key=lambda item: statistics.median(item[1]))
    best = best_of(results)
    return {
        "metric": best.metric, "best": best.score, "best_run": best.point.name, "median": statistics.median(scores),
        "setting": dict(zip(("lr", "weight_decay", "epochs"), setting, strict=True)), "seeds": scores,
        "runs": [{**asdict(result.point), **result.scores, "stopped": result.stopped} for result in results],
    }  # fmt: skip


def _show(model: str, said: dict[str, Any]) -> None:
    # `Text`, since a path may have brackets, which rich would read as markup.
    title = Text(f"dev scores of {model}; others as the paper has them")
    table = Table(title=title, title_justify="left")
    table.add_column("model")
    for name, task in TASKS.items():
        table.add_column(f"{name}\n{task.metric}", justify="right")
    for which, row in (("best", "best run"), ("median", "median of seeds")):
        cells = [f"{100 * said[name][which]:.1f}" if name in said else "" for name in TASKS]
        table.add_row(row, *cells)
    table.add_section()
    for other, scores in PUBLISHED.items():
        table.add_row(other, *(f"{score:.1f}" for score in scores))
    open_console().print(table)
