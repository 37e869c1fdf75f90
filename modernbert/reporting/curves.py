"""Draw several runs on the same axes.

In: runs. Out: SVG, a panel for each thing that was measured, over the tokens seen, so that runs with other batches
compare. A run has one colour throughout; what no run has measured has no panel.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from modernbert.reporting.drawing import NAMES, RUNS, as_svg, new_figure, smooth, thin, unit_of
from modernbert.reporting.run_reader import Run

__all__ = [
    "dash_of",
    "dev_panels",
    "draw",
    "heldout_panels",
    "loss_panel",
    "position_panels",
    "source_panels",
    "step_panels",
]

Row = Mapping[str, Any]
Kind = tuple[str, int | None]
# Colours come again from the ninth run on, with other strokes.
DASHES = ("solid", (0, (4, 1.5)), (0, (1, 1.5)), (0, (6, 1.5, 1, 1.5)))


@dataclass(frozen=True)
class Line:
    """Hold what is drawn of one run in one panel.

    `style` is `mean`, `raw`, `dots`, `first`, `last`, `abandoned`, `skipped` or `rollback`.
    """

    run: int
    style: str
    across: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class Panel:
    """Hold one small chart; `across` names its axis, by default the tokens seen."""

    title: str
    lines: list[Line] = field(default_factory=list)
    write: Callable[[float], str] = "{:g}".format
    across: str = ""
    from_zero: bool = False
    is_log: bool = False
    marks: tuple[float, ...] = ()
    """Where a thin line stands upright, in tokens."""


def loss_panel(runs: Sequence[Run]) -> Panel:
    """Return the training loss with its running mean, the held-out loss as dots, and what happened on the way."""
    unit = "" if any(run.is_tuning for run in runs) else ", nats per masked token"
    panel = Panel(f"Training loss{unit}", marks=_phase_ends(runs))
    for number, run in enumerate(runs):
        tokens, losses = _arrays(run.series("loss"))
        if len(runs) <= 3:
            panel.lines.append(Line(number, "raw", tokens, losses))
        panel.lines.append(Line(number, "mean", tokens, smooth(losses, run.reach)))
        for piece in run.abandoned:
            rows = [row for row in piece if row.get("loss") is not None]
            panel.lines.append(
                Line(number, "abandoned", *_arrays(([row["tokens"] for row in rows], [row["loss"] for row in rows])))
            )
        scored = [(row["tokens"], loss) for row, loss in run.scores]
        panel.lines.append(Line(number, "dots", *_arrays(([at for at, _ in scored], [loss for _, loss in scored]))))
        for kind, height in (("skipped", 0.03), ("rollback", 0.08)):
            at = [row["tokens"] for row in run.events if row["kind"] == kind]
            panel.lines.append(Line(number, kind, *_arrays((at, [height] * len(at)))))
    return panel


def heldout_panels(runs: Sequence[Run]) -> list[Panel]:
    """Return the held-out loss of each source at each length."""
    panels = []
    for kind in _kinds(runs):
        panel = Panel(_name_of(kind))
        for number, run in enumerate(runs):
            rows = [row for row in _of_kind(run, kind) if row.get("loss") is not None]
            points = _arrays(([row["tokens"] for row in rows], [row["loss"] for row in rows]))
            panel.lines.append(Line(number, "mean", *points))
            panel.lines.append(Line(number, "dots", *points))
        panels.append(panel)
    return _filled(panels)


def dev_panels(runs: Sequence[Run]) -> list[Panel]:
    """Return each score on dev rows."""
    panels = []
    for name in dict.fromkeys(name for run in runs for name in run.metrics):
        panel = Panel(name)
        for number, run in enumerate(runs):
            rows = [row for row in run.dev if row.get(name) is not None]
            points = _arrays(([row["tokens"] for row in rows], [row[name] for row in rows]))
            panel.lines.extend([Line(number, "mean", *points), Line(number, "dots", *points)])
        panels.append(panel)
    return _filled(panels)


def position_panels(runs: Sequence[Run]) -> list[Panel]:
    """Return the held-out loss by the place in the document, as it was first scored and as it was last."""
    panels = []
    for kind in _kinds(runs):
        panel = Panel(_name_of(kind), across="Position in the document")
        for number, run in enumerate(runs):
            rows = [row for row in _of_kind(run, kind) if len(row.get("positions", {})) > 1]
            for style, row in (("first", rows[0]), ("last", rows[-1])) if rows else ():
                points = _arrays(_by_position(row))
                panel.lines.append(Line(number, style, *points))
                if style == "last":
                    panel.lines.append(Line(number, "dots", *points))
        panels.append(panel)
    return _filled(panels)


def step_panels(runs: Sequence[Run]) -> tuple[list[Panel], list[Panel]]:
    """Return how the runs were led (rate, gradient, batch), and how fast they went."""
    led = [
        _measured(runs, Panel("Learning rate", write=_short, from_zero=True), "lr"),
        _measured(runs, Panel("Gradient norm", is_log=True), "grad_norm", reach=True),
        _measured(runs, Panel("Micro-batches a step", from_zero=True), "micro_batches"),
    ]
    speed = [
        _measured(runs, Panel("Tokens per second", write=_thousands, from_zero=True), "tokens_per_s", timing=True),
        _measured(runs, Panel("Share of peak (MFU)", write=_percent, from_zero=True), "mfu", timing=True),
        _measured(runs, Panel("Memory, GiB", from_zero=True), "memory_gib", timing=True),
        _measured(runs, Panel("Fill of the token budget", write=_percent), "fill", reach=True),
    ]
    return _filled(led), _filled(speed)


def source_panels(runs: Sequence[Run]) -> list[Panel]:
    """Return how often each source was gone through."""
    names = dict.fromkeys(name for run in runs for row in run.steps[-1:] for name in row.get("epochs", {}))
    names |= dict.fromkeys(name for run in runs for row in run.steps for name in row.get("epochs", {}))
    panels = []
    for name in names:
        panel = Panel(name, from_zero=True)
        for number, run in enumerate(runs):
            rows = [row for row in run.steps if name in row.get("epochs", {})]
            points = _arrays(([row["tokens"] for row in rows], [row["epochs"][name] for row in rows]))
            panel.lines.append(Line(number, "mean", *points))
        panels.append(panel)
    return _filled(panels)


def draw(panels: Sequence[Panel], title: str, *, narrow: bool, height: float = 2.3) -> str:
    """Draw panels side by side, or one below the other for a phone; return SVG.

    Raises: InputError if matplotlib is not installed.
    """
    across = 1 if narrow else 2 if len(panels) in (2, 4) else min(3, len(panels))
    down = -(-len(panels) // across)
    over_tokens = [panel for panel in panels if not panel.across]
    reach = max((line.across.max() for panel in over_tokens for line in panel.lines if len(line.across)), default=1.0)
    with new_figure(narrow, height * down) as figure:
        places = figure.subplots(down, across, squeeze=False).flatten()
        for axes, panel in zip(places, panels, strict=False):
            scale, unit = (1.0, panel.across) if panel.across else unit_of(int(reach))
            axes.set_xlabel(unit if panel.across else f"{unit} tokens seen")
            _draw_panel(axes, panel, scale)
            axes.set_xlim(0, None if panel.across else max(reach, 1) / scale)
            axes.locator_params(axis="x", nbins=9 if across == 1 and not narrow else 5)
        for axes in places[len(panels) :]:
            axes.set_visible(False)
        return as_svg(figure, title)


def dash_of(run: int) -> str:
    """Return the strokes of a run's lines as SVG has them.

    >>> dash_of(0), dash_of(8)
    ('none', '8 3')
    """
    stroke = DASHES[run // len(RUNS) % len(DASHES)]
    return "none" if isinstance(stroke, str) else " ".join(f"{2 * length:g}" for length in stroke[1])


def _draw_panel(axes: Any, panel: Panel, scale: float) -> None:
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.4g}")
    if panel.is_log:
        _log_axis(axes)
    for mark in panel.marks:
        axes.axvline(mark / scale, color=NAMES["grid"], linewidth=1.0, zorder=1)
    for line in panel.lines:
        if len(line.across):
            _draw_line(axes, line, scale)
    axes.yaxis.set_major_formatter(lambda value, _: panel.write(float(value)))
    if panel.from_zero:
        axes.set_ylim(bottom=0)
    if not panel.is_log:
        axes.locator_params(axis="y", nbins=5)
    axes.set_title(panel.title, loc="left", fontsize=10, fontweight="bold")


def _draw_line(axes: Any, line: Line, scale: float) -> None:
    colour = list(RUNS.values())[line.run % len(RUNS)]
    stroke: Any = DASHES[line.run // len(RUNS) % len(DASHES)]
    across, values = line.across / scale, line.values
    marker = {"ms": 5.5, "mec": NAMES["page"], "mew": 1.2, "clip_on": False, "zorder": 5, "color": colour}
    if line.style == "raw":
        axes.plot(*thin(across, values), color=colour, linewidth=0.7, alpha=0.3)
    elif line.style in ("mean", "last") and len(across) > 1:
        axes.plot(*thin(across, values), color=colour, linewidth=1.8, linestyle=stroke)
    elif line.style in ("dots", "mean", "last"):
        axes.plot(*thin(across, values), "o", **marker)
    elif line.style == "first":
        axes.plot(across, values, "o", **marker | {"mfc": NAMES["page"], "mec": colour})
        axes.plot(across, values, color=colour, linewidth=0.9, linestyle=(0, (2, 2)))
    elif line.style == "abandoned":
        axes.plot(*thin(across, values), color=colour, linewidth=1.1, linestyle=(0, (1, 1.5)))
    else:
        shape = "x" if line.style == "skipped" else "<"
        marker |= {"ms": 6.5, "mec": colour, "mew": 1.6}
        axes.plot(across, values, shape, transform=axes.get_xaxis_transform(), **marker)


def _log_axis(axes: Any) -> None:
    """Label 1, 2 and 5 of each power of ten: a gradient norm may stay within one."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=6))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _measured(runs: Sequence[Run], panel: Panel, name: str, *, timing: bool = False, reach: bool = False) -> Panel:
    """Return the panel with a field of each run; where it scatters, as a running mean."""
    lines = []
    for number, run in enumerate(runs):
        tokens, values = _arrays(run.timing(name) if timing else run.series(name))
        scatters = timing or reach
        if scatters and len(runs) <= 3:
            lines.append(Line(number, "raw", tokens, values))
        lines.append(Line(number, "mean", tokens, smooth(values, run.reach) if scatters else values))
    return replace(panel, lines=lines)


def _kinds(runs: Sequence[Run]) -> list[Kind]:
    """Return each pair of source and length, lengths of one source together."""
    found = dict.fromkeys((row.get("source", ""), row.get("max_len")) for run in runs for row in run.heldout)
    sources = list(dict.fromkeys(source for source, _ in found))
    return sorted(found, key=lambda kind: (sources.index(kind[0]), kind[1] or 0))


def _of_kind(run: Run, kind: Kind) -> list[Row]:
    return [row for row in run.heldout if (row.get("source", ""), row.get("max_len")) == kind]


def _name_of(kind: Kind) -> str:
    source, max_len = kind
    return f"{source or 'all sources'}, {max_len:,} tokens" if max_len else source or "all sources"


def _by_position(row: Row) -> tuple[list[int], list[float]]:
    """Return the middle of each range of positions, and the loss there."""
    losses = {name: score["loss"] for name, score in row["positions"].items() if score["loss"] is not None}
    ranges = {tuple(map(int, name.split("-"))): loss for name, loss in losses.items()}
    return [sum(ends) // 2 for ends in ranges], [float(loss) for loss in ranges.values()]


def _phase_ends(runs: Sequence[Run]) -> tuple[float, ...]:
    """Return where phases change; each once, for runs that change together."""
    ends = [
        float(row["tokens"])
        for run in runs
        for row, after in zip(run.steps, run.steps[1:], strict=False)
        if row.get("phase") != after.get("phase")
    ]
    return tuple(dict.fromkeys(ends))


def _filled(panels: Iterable[Panel]) -> list[Panel]:
    return [panel for panel in panels if any(len(line.across) for line in panel.lines)]


def _arrays(series: tuple[Sequence[int], Sequence[float]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array(series[0], dtype=float), np.array(series[1], dtype=float)


def _short(value: float) -> str:
    return f"{value:.1e}".replace("e-0", "e-").replace(".0e", "e") if value else "0"


def _thousands(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def _percent(value: float) -> str:
    return f"{100 * value:g} %"
