"""A grid of fine-tuning runs over learning rates, weight decays, epochs and seeds; bad runs are stopped early.

The folder of a sweep has a run folder for each point. A sweep that is stopped and started again continues with the
points that are left. Each device has one run at a time.

Source: Golovin et al. 2017 (the median stopping rule of Vizier).
"""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path

from modernbert.config_files import resolve
from modernbert.devices import choose_device
from modernbert.errors import InputError, counted
from modernbert.files import remove_leftovers, try_delete, write_file
from modernbert.training.finetuning import FinetuneConfig, finetune
from modernbert.training.retriever_finetuning import RetrieverConfig, finetune_retriever
from modernbert.training.run_folder import check_run_folder
from modernbert.training.training_loop import Diverged
from modernbert.workers import WorkerPool

__all__ = ["Base", "Point", "Result", "best_of", "unfinished", "points_of", "sweep"]

Base = FinetuneConfig | RetrieverConfig
# Number of finished runs with which a run is compared.
_FEWEST = 3
_DIVERGED = "diverged.json"
# More than the rounding error of the epochs in the log.
_ROUNDED = 1e-4


@dataclass(frozen=True)
class Point:
    """The settings of one run."""

    lr: float
    weight_decay: float
    epochs: int
    seed: int

    @property
    def name(self) -> str:
        """Name of the run folder."""
        return f"lr{self.lr!r}-wd{self.weight_decay!r}-ep{self.epochs}-seed{self.seed}"


@dataclass(frozen=True)
class Result:
    """Result of a point: its best dev scores, and why it was stopped early, if it was."""

    point: Point
    metric: str
    scores: dict[str, float]
    stopped: str | None

    @property
    def score(self) -> float:
        """The score of the metric that selects the best run."""
        return self.scores[self.metric]


def points_of(
    lrs: Sequence[float], weight_decays: Sequence[float], epochs: Sequence[int], seeds: Sequence[int]
) -> list[Point]:
    """Return all combinations, seed by seed, so that a sweep that is stopped early has tried every setting.

    Raises: InputError for a value that is given twice.

    >>> [point.name for point in points_of([1e-5, 3e-5], [1e-6], [2], [0])]
    ['lr1e-05-wd1e-06-ep2-seed0', 'lr3e-05-wd1e-06-ep2-seed0']
    """
    for name, values in zip(Point.__annotations__, (lrs, weight_decays, epochs, seeds), strict=True):
        if len(set(values)) < len(values):
            raise InputError(f"sweep.{name}: found {', '.join(map(str, values))}, expected each value once")
    return [Point(lr, decay, number, seed) for seed, number, decay, lr in product(seeds, epochs, weight_decays, lrs)]


def sweep(base: Base, out: Path, points: Sequence[Point], devices: Sequence[str] = ("auto",)) -> list[Result]:
    """Run the points that are left, and keep the best model.

    Returns the results of all finished points of this config in the folder, including earlier sweeps. A point
    whose loss was not finite has none.

    Raises: InputError for invalid training data, missing dev rows, an unavailable device, or a folder with runs of
    another config or of other data.
    """
    if not base.dev:
        raise InputError("dev: found nothing, expected rows or collections to compare runs by")
    for device in devices:
        choose_device(device)
    for point in points:
        config = _config_of(base, out, point)
        config.check()
        check_run_folder(out / point.name, config)
    earlier, left = _earlier(base, out), unfinished(out, points)
    print(f"{out}: {counted(len(points), 'run')}, {len(points) - len(left)} done")
    everything = list(dict.fromkeys([*points, *earlier]))
    if finished := [point for point in everything if (out / point.name / "scores.json").exists()]:
        # Every start of a sweep does this, so that all its runs have the data of the first.
        _run(base, out, everything, devices[0], finished[0])
    if len(devices) > 1 and len(left) > 1:
        _run_on_devices(base, out, everything, left, devices)
    else:
        for point in left:
            _run(base, out, everything, devices[0], point)
    results = [result for point in everything if (result := _result(out, point)) is not None]
    if not results:
        raise InputError(f"{out}: every run ended with a loss that is not finite; a lower lr may help")
    _keep_best(out, results)
    return results


def unfinished(out: Path, points: Sequence[Point]) -> list[Point]:
    """Return the points that no sweep in this folder has finished."""
    return [point for point in points if not _is_done(out / point.name)]


def _is_done(folder: Path) -> bool:
    return (folder / "scores.json").exists() or (folder / _DIVERGED).exists()


def _earlier(base: Base, out: Path) -> list[Point]:
    """Return the points that earlier sweeps in the folder have finished.

    Raises: InputError for a run of another config, whose scores are not comparable.
    """
    found = []
    for path in sorted(out.glob("lr*/config.yaml")):
        config = resolve(type(base), {}, path)
        point = Point(config.lr, config.weight_decay, config.epochs, config.seed)
        check_run_folder(path.parent, _config_of(base, out, point))
        if _is_done(path.parent):
            found.append(point)
    return found


def _run_on_devices(
    base: Base, out: Path, points: Sequence[Point], left: Sequence[Point], devices: Sequence[str]
) -> None:
    """Run the points in one process per device, which takes the next point when one is finished."""
    with WorkerPool(devices, str) as pool:
        # All are submitted at once, so that no run waits for the one before it.
        for _ in pool.map(partial(_run, base, out, points), left, ahead=len(left)):
            pass


def _run(base: Base, out: Path, points: Sequence[Point], device: str, point: Point) -> None:
    config = replace(_config_of(base, out, point), device=device)
    print(f"{point.name}:", flush=True)

    def stop_rule(epochs: float, best: float) -> str | None:
        """Stop a run whose best score is below the median of the mean scores of other runs up to that point."""
        share = epochs / point.epochs
        means = [mean for other in points if other != point and (mean := _mean_until(out, other, share)) is not None]
        if len(means) >= _FEWEST and share < 1 and best < statistics.median(means):
            return f"best {best:.4f} is below the median {statistics.median(means):.4f} of {len(means)} runs"
        return None

    try:
        if isinstance(config, RetrieverConfig):
            finetune_retriever(config, stop_rule)
        else:
            finetune(config, stop_rule)
    except Diverged as error:
        print(f"{point.name}: stopped, {error}", flush=True)
        write_file(out / point.name / _DIVERGED, json.dumps({"error": str(error)}) + "\n")


def _config_of(base: Base, out: Path, point: Point) -> Base:
    return replace(
        base, output=str(out / point.name), lr=point.lr, weight_decay=point.weight_decay, epochs=point.epochs,
        seed=point.seed,
    )  # fmt: skip


def _mean_until(out: Path, point: Point, share: float) -> float | None:
    """Return the mean score of a finished run in the first share of its epochs, more being better."""
    folder = out / point.name
    result = _result(out, point)
    if result is None:
        return None
    metric = result.metric
    sign = -1 if metric.endswith("error") else 1
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    epochs = {row["step"]: row["epoch"] for row in rows if row["kind"] == "step"}
    until = share * point.epochs + _ROUNDED
    found = [sign * row[metric] for row in rows if row["kind"] == "dev" and epochs[row["step"]] <= until]
    return statistics.mean(found) if found else None


def _result(out: Path, point: Point) -> Result | None:
    """Return the result of a point; None if its loss was not finite.

    Raises: InputError for a file that is damaged.
    """
    path = out / point.name / "scores.json"
    if not path.exists():
        return None
    try:
        written = json.loads(path.read_text())
        return Result(point, written["metric"], written["dev"], written["stopped"])
    except (ValueError, TypeError, KeyError):
        raise InputError(f"{path}: is not readable as scores; remove its folder to run it again") from None


def best_of(results: Sequence[Result]) -> Result:
    """Return the result with the best score on dev."""
    sign = -1 if results[0].metric.endswith("error") else 1
    return max(results, key=lambda result: sign * result.score)


def _keep_best(out: Path, results: Sequence[Result]) -> None:
    best = best_of(results).point
    for result in results:
        if result.point != best:
            for name in ("model", "checkpoints"):
                remove_leftovers(out / result.point.name / name)
                if (folder := out / result.point.name / name).exists():
                    try_delete(folder)
