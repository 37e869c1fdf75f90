"""The panels that show one run, or several on the same axes.

Values are drawn over the tokens seen, so runs with different batch sizes can be compared. A run has one color in all
panels. A panel without values is left out.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from modernbert.reporting.charts import Line, Panel, smooth
from modernbert.reporting.run_reader import Run

__all__ = [
    "dev_panels",
    "heldout_panels",
    "loss_panel",
    "optimizer_panels",
    "position_panels",
    "source_panels",
    "speed_panels",
]

Row = Mapping[str, Any]
Kind = tuple[str, int | None]
# Single steps are drawn behind running means only where lines are few.
_MAX_RUNS_WITH_STEPS = 3


def loss_panel(runs: Sequence[Run]) -> Panel:
    """Return the training loss with its running mean, the held-out loss as dots, and skipped steps and rollbacks."""
    unit = "" if any(run.is_finetuning for run in runs) else ", nats per masked token"
    panel = Panel(f"Training loss{unit}", marks=_phase_marks(runs))
    for number, run in enumerate(runs):
        tokens, losses = _arrays(*run.series("loss"))
        if len(runs) <= _MAX_RUNS_WITH_STEPS:
            panel.lines.append(Line(number, "raw", tokens, losses))
        panel.lines.append(Line(number, "mean", tokens, smooth(losses, run.reach)))
        for steps in run.abandoned:
            panel.lines.append(Line(number, "abandoned", *_points(steps, "loss")))
        scored = _arrays([row["tokens"] for row, _ in run.scores], [loss for _, loss in run.scores])
        panel.lines.append(Line(number, "dots", *scored, _last_of_phases(run) if len(runs) == 1 else ()))
        for kind, height in (("skipped", 0.03), ("rollback", 0.08)):
            tokens_then = [row["tokens"] for row in run.events if row["kind"] == kind]
            panel.lines.append(Line(number, kind, *_arrays(tokens_then, [height] * len(tokens_then))))
    return panel


def heldout_panels(runs: Sequence[Run]) -> list[Panel]:
    """Return the held-out loss of each source at each length."""
    kinds = _kinds(runs)
    return _filled(_scored(runs, _name_of(kind), "loss", partial(_of_kind, kind=kind)) for kind in kinds)


def dev_panels(runs: Sequence[Run]) -> list[Panel]:
    """Return each metric on the dev set."""
    names = dict.fromkeys(name for run in runs for name in run.metrics)
    return _filled(_scored(runs, name, name, lambda run: run.dev) for name in names)


def position_panels(runs: Sequence[Run]) -> list[Panel]:
    """Return the held-out loss by position in the document, at the first and at the last evaluation."""
    panels = []
    for kind in _kinds(runs):
        panel = Panel(_name_of(kind), x_label="Position in the document")
        for number, run in enumerate(runs):
            rows = [row for row in _of_kind(run, kind) if len(row.get("positions", {})) > 1]
            for style, row in (("first", rows[0]), ("last", rows[-1]), ("dots", rows[-1])) if rows else ():
                panel.lines.append(Line(number, style, *_by_position(row)))
        panels.append(panel)
    return _filled(panels)


def optimizer_panels(runs: Sequence[Run]) -> list[Panel]:
    """Return the learning rate, the gradient norm and the number of micro-batches of each step."""
    return _filled(
        [
            Panel("Learning rate", _measured(runs, "lr", smoothed=False), _format_rate, from_zero=True),
            Panel("Gradient norm", _measured(runs, "grad_norm"), is_log=True),
            Panel("Micro-batches per step", _measured(runs, "micro_batches", smoothed=False), from_zero=True),
        ]
    )


def speed_panels(runs: Sequence[Run]) -> list[Panel]:
    """Return the speed, the share of the device's peak, the memory, and how full the batches are."""
    return _filled(
        [
            Panel("Tokens per second", _measured(runs, "tokens_per_s", timing=True), _format_count, from_zero=True),
            Panel("Share of peak (MFU)", _measured(runs, "mfu", timing=True), _format_share, from_zero=True),
            Panel("Memory, GiB", _measured(runs, "memory_gib", timing=True), from_zero=True),
            Panel("Fill of the token budget", _measured(runs, "fill"), _format_share),
        ]
    )


def source_panels(runs: Sequence[Run]) -> list[Panel]:
    """Return the number of epochs over each source."""
    names = dict.fromkeys(name for run in runs for row in run.steps[-1:] for name in row.get("epochs", {}))
    names |= dict.fromkeys(name for run in runs for row in run.steps for name in row.get("epochs", {}))
    panels = []
    for name in names:
        panel = Panel(name, from_zero=True)
        for number, run in enumerate(runs):
            rows = [row for row in run.steps if name in row.get("epochs", {})]
            points = _arrays([row["tokens"] for row in rows], [row["epochs"][name] for row in rows])
            panel.lines.append(Line(number, "mean", *points))
        panels.append(panel)
    return _filled(panels)


def _scored(runs: Sequence[Run], title: str, name: str, rows_of: Callable[[Run], Sequence[Row]]) -> Panel:
    """Return a panel of a field of the rows of an evaluation, as dots on a line."""
    panel = Panel(title)
    for number, run in enumerate(runs):
        points = _points(rows_of(run), name)
        panel.lines.extend([Line(number, "mean", *points), Line(number, "dots", *points)])
    return panel


def _measured(runs: Sequence[Run], name: str, *, timing: bool = False, smoothed: bool = True) -> list[Line]:
    """Return the lines of a field of the steps; where it scatters, as a running mean."""
    lines = []
    for number, run in enumerate(runs):
        tokens, values = _arrays(*(run.timing(name) if timing else run.series(name)))
        if smoothed and len(runs) <= _MAX_RUNS_WITH_STEPS:
            lines.append(Line(number, "raw", tokens, values))
        lines.append(Line(number, "mean", tokens, smooth(values, run.reach) if smoothed else values))
    return lines


def _kinds(runs: Sequence[Run]) -> list[Kind]:
    """Return each pair of source and length, with the lengths of one source together."""
    found = dict.fromkeys((row.get("source", ""), row.get("max_len")) for run in runs for row in run.heldout)
    sources = list(dict.fromkeys(source for source, _ in found))
    return sorted(found, key=lambda kind: (sources.index(kind[0]), kind[1] or 0))


def _of_kind(run: Run, kind: Kind) -> list[Row]:
    return [row for row in run.heldout if (row.get("source", ""), row.get("max_len")) == kind]


def _name_of(kind: Kind) -> str:
    source, max_len = kind
    return f"{source or 'all sources'}, {max_len:,} tokens" if max_len else source or "all sources"


def _by_position(row: Row) -> tuple[np.ndarray, np.ndarray]:
    """Return the middle of each range of positions, and the loss there."""
    losses = {name: score["loss"] for name, score in row["positions"].items() if score["loss"] is not None}
    middles = [sum(map(int, name.split("-"))) // 2 for name in losses]
    return _arrays(middles, list(losses.values()))


def _phase_marks(runs: Sequence[Run]) -> dict[float, str]:
    """Return where phases end, each once; for a single run of several phases, where they begin and their names."""
    ends = [
        (float(row["tokens"]), str(after.get("phase", "")))
        for run in runs
        for row, after in zip(run.steps, run.steps[1:], strict=False)
        if row.get("phase") != after.get("phase")
    ]
    if len(runs) > 1 or not ends:
        return dict.fromkeys((at for at, _ in ends), "")
    return {0.0: str(runs[0].steps[0].get("phase", "")), **dict(ends)}


def _last_of_phases(run: Run) -> list[str]:
    """Return a label for each held-out score: the loss at the last one of each phase."""
    last = {row.get("phase"): number for number, (row, _) in enumerate(run.scores)}
    first = min(last.values(), default=0)
    labels = [f"{loss:.2f}" if number in last.values() else "" for number, (_, loss) in enumerate(run.scores)]
    return [f"held-out {label}" if number == first else label for number, label in enumerate(labels)]


def _filled(panels: Iterable[Panel]) -> list[Panel]:
    return [panel for panel in panels if any(len(line.x) for line in panel.lines)]


def _points(rows: Sequence[Row], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens and the values of the rows that have a field."""
    known = [row for row in rows if row.get(name) is not None]
    return _arrays([row["tokens"] for row in known], [row[name] for row in known])


def _arrays(x: Sequence[int | float], y: Sequence[int | float]) -> tuple[np.ndarray, np.ndarray]:
    return np.array(x, dtype=float), np.array(y, dtype=float)


def _format_rate(value: float) -> str:
    return f"{value:.1e}".replace("e-0", "e-").replace(".0e", "e") if value else "0"


def _format_count(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def _format_share(value: float) -> str:
    return f"{100 * value:g} %"
