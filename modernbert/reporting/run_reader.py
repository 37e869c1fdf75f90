"""Read the log, timing, config and scores of a run folder, finished or not, into a `Run`.

After a rollback, the later row of a step counts; the earlier ones are kept as abandoned.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean, median
from typing import Any

import yaml

from modernbert.errors import InputError
from modernbert.training.run_log import read_log

__all__ = ["Run", "mean_heldout", "read_run"]

Row = Mapping[str, Any]
# Fields of a row of dev scores that are not metrics.
_NOT_METRICS = ("kind", "step", "tokens")


@dataclass(frozen=True)
class Run:
    """One run: rows in the order of steps, and the config with dots between levels."""

    name: str
    steps: Sequence[Row]
    heldout: Sequence[Row]
    abandoned: Sequence[Sequence[Row]]
    """Sequences of steps that a rollback undid."""
    events: Sequence[Row]
    """Skipped steps and rollbacks, each with the `tokens` seen by then."""
    clock: Mapping[int, Row]
    """Step -> its row of `timing.jsonl`."""
    start: Row
    """The row that the run logged when it last started; empty in older runs."""
    config: Mapping[str, Any]
    is_finished: bool
    dev: Sequence[Row] = ()
    """Scores on the dev set, each with the `tokens` seen by then."""
    result: Mapping[str, Any] = field(default_factory=dict)
    """The content of `scores.json`, which a finished fine-tuning run writes."""
    is_finetuning: bool = False
    """Whether this is a fine-tuning run, whose steps have no phase."""

    @property
    def tokens(self) -> int:
        """Tokens trained on so far."""
        return max((row["tokens"] for row in self.steps), default=0)

    @property
    def elapsed_s(self) -> float:
        """Seconds of training so far, over all starts."""
        if any("elapsed" in row for row in self.clock.values()):
            return float(max(row.get("elapsed", 0.0) for row in self.clock.values()))
        return float(sum(row.get("seconds", 0.0) for row in self.clock.values()))

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics on the dev set, first the one that selects the checkpoint."""
        names = list(dict.fromkeys(name for row in self.dev for name in row if name not in _NOT_METRICS))
        deciding = next(
            (name for name in (self.result.get("metric"), self.config.get("metric")) if name in names), None
        )
        return sorted(names, key=lambda name: name != deciding)

    @property
    def best_dev(self) -> tuple[int, float] | None:
        """The step with the best score on the dev set, and the score."""
        name = next(iter(self.metrics), "")
        scored = [(row["step"], float(row[name])) for row in self.dev if row.get(name) is not None]
        sign = -1 if name.endswith("error") else 1
        return max(scored, key=lambda pair: sign * pair[1], default=None)

    @property
    def reach(self) -> int:
        """Steps on either side that a running mean includes."""
        return max(1, len(self.steps) // 60)

    @property
    def final_loss(self) -> float | None:
        """The last value of the running mean of the training loss."""
        _, losses = self.series("loss")
        return fmean(losses[-self.reach - 1 :]) if losses else None

    @cached_property
    def scores(self) -> list[tuple[Row, float]]:
        """The mean held-out loss of each evaluation; see `mean_heldout`."""
        return mean_heldout(self.heldout)

    def series(self, field: str) -> tuple[list[int], list[float]]:
        """Return tokens and values of the steps that have a field."""
        rows = [row for row in self.steps if row.get(field) is not None]
        return [row["tokens"] for row in rows], [float(row[field]) for row in rows]

    def timing(self, field: str) -> tuple[list[int], list[float]]:
        """Return tokens and values of the steps whose timing has a field."""
        rows = [(row["tokens"], self.clock.get(row["step"], {}).get(field)) for row in self.steps]
        known = [(tokens, float(value)) for tokens, value in rows if value is not None]
        return [tokens for tokens, _ in known], [value for _, value in known]

    def typical(self, field: str) -> float | None:
        """Return the median of a field of the timing: a slow start or a pause does not change it."""
        values = self.timing(field)[1]
        return median(values) if values else None

    def count(self, kind: str) -> int:
        """Count events of a kind: `skipped`, `rollback`."""
        return sum(row["kind"] == kind for row in self.events)


def read_run(folder: Path, name: str) -> Run:
    """Read the folder of a run that is to be shown as `name`; a last line that is still being written is left out.

    Raises:
        InputError: The folder is not that of a run, or one of its files is damaged.
    """
    if not (folder / "log.jsonl").is_file():
        raise InputError(f"{folder}: is not the folder of a run, expected log.jsonl in it")
    timing = read_log(folder, "timing") if (folder / "timing.jsonl").exists() else []
    log = read_log(folder)
    steps, heldout, abandoned, events = _sort_rows(log)
    config, result = _read_config(folder / "config.yaml"), _read_result(folder / "scores.json")
    # Fine-tuning writes the model before the scores; a sweep deletes the models of all runs but its best.
    is_finetuning = "task" in config or bool(result)
    return Run(
        name=name,
        steps=steps,
        heldout=heldout,
        abandoned=abandoned,
        events=events,
        clock={row["step"]: row for row in timing if "step" in row},
        start=next((row for row in reversed(timing) if row.get("kind") == "start"), {}),
        config=config,
        is_finished=bool(result) if is_finetuning else (folder / "model").is_dir(),
        dev=_dev_of(log, steps),
        result=result,
        is_finetuning=is_finetuning or any("phase" not in row for row in steps),
    )


def _sort_rows(log: Sequence[Row]) -> tuple[list[Row], list[Row], list[list[Row]], list[Row]]:
    """Split the rows of a log into steps, held-out scores, abandoned sequences of steps, and events."""
    steps: list[Row] = []
    heldout: list[Row] = []
    abandoned: list[list[Row]] = []
    events: list[Row] = []
    for row in log:
        kind = row.get("kind")
        if kind in ("skipped", "rollback"):
            events.append({**row, "tokens": steps[-1]["tokens"] if steps else 0})
        elif kind == "heldout":
            heldout.append(row)
        # A rollback names the step to return to; a step that comes again implies it.
        last = row["to_step"] if kind == "rollback" else row["step"] - 1 if kind == "step" else None
        if last is not None and steps and steps[-1]["step"] > last:
            abandoned.append([step for step in steps if step["step"] > last])
            steps = [step for step in steps if step["step"] <= last]
        if last is not None and heldout and heldout[-1]["step"] > last:
            heldout = [score for score in heldout if score["step"] <= last]
        if kind == "step":
            steps.append(row)
    return steps, heldout, abandoned, events


def _dev_of(log: Sequence[Row], steps: Sequence[Row]) -> list[Row]:
    """Return the scores on the dev set, one per step, with the tokens seen by then."""
    tokens = {row["step"]: row["tokens"] for row in steps}
    scored = {row["step"]: row for row in log if row.get("kind") == "dev" and row.get("step") in tokens}
    return [{**row, "tokens": tokens[step]} for step, row in sorted(scored.items())]


def mean_heldout(heldout: Sequence[Row]) -> list[tuple[Row, float]]:
    """Return the mean loss over all sources at the first length of each evaluation, with its last row.

    An evaluation with a loss that is not finite is left out.
    """
    first = heldout[0].get("max_len") if heldout else None
    scored: dict[int, list[Row]] = {}
    for row in heldout:
        if row.get("max_len") == first:
            # Where one phase ends and the next begins, a step is evaluated twice; the later counts.
            same = [other for other in scored.get(row["step"], []) if other.get("source") != row.get("source")]
            scored[row["step"]] = [*same, row]
    finite = [rows for _, rows in sorted(scored.items()) if all(row.get("loss") is not None for row in rows)]
    return [(rows[-1], _weighted(rows)) for rows in finite]


def _weighted(rows: Sequence[Row]) -> float:
    weights = [row.get("masked") or 1 for row in rows]
    return sum(row["loss"] * weight for row, weight in zip(rows, weights, strict=True)) / sum(weights)


def _read_result(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda _: None))
    except (OSError, ValueError, TypeError):
        raise InputError(f"{path}: cannot be read as JSON") from None


def _read_config(path: Path) -> dict[str, Any]:
    """Read a config without its schema, so that runs of other versions can be compared."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, yaml.YAMLError):
        raise InputError(f"{path}: cannot be read as YAML") from None
    return _flat(tree) if isinstance(tree, Mapping) else {}


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        inner = isinstance(value, Mapping) and value
        flat |= _flat(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return flat
