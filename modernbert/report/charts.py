"""Draw the log of a pretraining run.

In: rows of `log.jsonl` and `timing.jsonl`. Out: SVG to be set into a page: text stays text, and colours are names of
the page's own (`var(--phase-1)`), so that one drawing serves the light and the dark scheme. Each chart comes wide and
narrow, since text that shrinks with the drawing cannot be read on a phone.
"""

import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from modernbert.errors import InputError

__all__ = ["read_rows", "speed_chart", "training_chart"]

Row = Mapping[str, Any]

# matplotlib wants colours, the page wants names: each name has a colour that stands for it until the SVG is written.
NAMES = {"ink": "#010101", "faint": "#020202", "grid": "#030303", "page": "#040404"}
PHASES = {"phase-1": "#050505", "phase-2": "#060606", "phase-3": "#070707"}
MAX_POINTS = 400


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read one JSON object a line; a last line that a killed run left unfinished is passed over.

    Raises: InputError if the file cannot be read, or another line is not a JSON object.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    rows = []
    for number, line in enumerate(lines[:-1], 1):
        try:
            rows.append(dict(json.loads(line)))
        except (ValueError, TypeError):
            raise InputError(f"{path}:{number}: expected a JSON object") from None
    return rows


def training_chart(log: Sequence[Row], *, narrow: bool = False) -> str:
    """Draw loss and learning rate over tokens, the phases shaded, the held-out scores marked; return SVG.

    Raises: InputError if there is no step among the rows, or matplotlib is not installed.
    """
    phases = _phases(log)
    scale, unit = _unit(max(row["tokens"] for row in log))
    with _figure(narrow, height=4.9, ratios=(3, 1)) as (figure, (top, bottom)):
        start, reach = 0.0, _reach(phases)
        labels = []
        for number, (name, rows) in enumerate(phases.items()):
            colour = _colour(number)
            tokens = np.array([row["tokens"] for row in rows]) / scale
            loss = np.array([row["loss"] for row in rows], dtype=float)
            for axes in (top, bottom):
                axes.axvspan(start, tokens[-1], color=colour, alpha=0.07, linewidth=0)
            top.plot(*_thin(tokens, loss), color=colour, linewidth=0.7, alpha=0.35)
            top.plot(*_thin(tokens, _smooth(loss, reach)), color=colour, linewidth=1.8)
            bottom.plot(*_thin(tokens, np.array([row["lr"] for row in rows])), color=colour, linewidth=1.8)
            labels.append((name, start, float(tokens[-1]), colour))
            start = float(tokens[-1])
        top.set_xlim(0, start)
        _mark_heldout(top, log, scale)
        _title(top, "Training loss, nats per masked token", _name_phases(top, labels))
        _title(bottom, "Learning rate")
        bottom.set_ylim(bottom=0)
        bottom.ticklabel_format(axis="y", style="sci", scilimits=(0, 0), useMathText=False)
        bottom.yaxis.get_offset_text().set_visible(False)
        bottom.yaxis.set_major_formatter(lambda value, _: f"{value:.0e}".replace("e-0", "e-") if value else "0")
        bottom.set_xlabel(f"{unit} tokens seen")
        return _svg(figure, "Training loss and learning rate over the tokens seen, by phase")


def speed_chart(log: Sequence[Row], timing: Sequence[Row], *, narrow: bool = False) -> str:
    """Draw tokens per second and the fill of the batches over time; return SVG.

    Raises: InputError if no step has both a log row and a timing row, or matplotlib is not installed.
    """
    clock = {row["step"]: row for row in timing}
    phases = {name: [row for row in rows if row["step"] in clock] for name, rows in _phases(log).items()}
    phases = {name: rows for name, rows in phases.items() if rows}
    if not phases:
        raise InputError("timing.jsonl: found no step that log.jsonl has")
    elapsed = max(clock[row["step"]]["elapsed"] for rows in phases.values() for row in rows)
    divisor, unit = (60, "Minutes") if elapsed > 180 else (1, "Seconds")
    with _figure(narrow, height=3.9, ratios=(2, 1)) as (figure, (top, bottom)):
        start, reach = 0.0, _reach(phases)
        labels = []
        for number, (name, rows) in enumerate(phases.items()):
            colour = _colour(number)
            times = np.array([clock[row["step"]]["elapsed"] for row in rows]) / divisor
            speed = np.array([clock[row["step"]]["tokens_per_s"] for row in rows], dtype=float)
            fill = np.array([100 * row["fill"] for row in rows])
            for axes in (top, bottom):
                axes.axvspan(start, times[-1], color=colour, alpha=0.07, linewidth=0)
            top.plot(*_thin(times, speed), color=colour, linewidth=0.7, alpha=0.35)
            top.plot(*_thin(times, _smooth(speed, reach)), color=colour, linewidth=1.8)
            bottom.plot(*_thin(times, _smooth(fill, reach)), color=colour, linewidth=1.8)
            labels.append((name, start, float(times[-1]), colour))
            start = float(times[-1])
        top.set_xlim(0, start)
        top.set_ylim(bottom=0)
        top.yaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k" if value >= 1000 else f"{value:g}")
        lowest = min(100 * row["fill"] for rows in phases.values() for row in rows)
        bottom.set_ylim(min(lowest, 99.0) - 0.2, 100.1)
        bottom.yaxis.set_major_formatter(lambda value, _: f"{value:g} %")
        _title(top, "Tokens per second", _name_phases(top, labels))
        _title(bottom, "Fill of the token budget")
        bottom.set_xlabel(f"{unit} of training")
        return _svg(figure, "Tokens per second and fill of the batches over the time of training")


def _phases(log: Sequence[Row]) -> dict[str, list[Row]]:
    phases: dict[str, list[Row]] = {}
    for row in log:
        if row.get("kind") == "step":
            phases.setdefault(row["phase"], []).append(row)
    if not phases:
        raise InputError("log.jsonl: found no training step")
    return phases


@contextmanager
def _figure(narrow: bool, height: float, ratios: tuple[int, int]) -> Iterator[tuple[Any, Any]]:
    """Yield a figure of two panels over one axis, in a style that lasts as long as the block."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("charts need matplotlib: pip install 'modernbert[demo]'") from None
    ink, faint, grid = NAMES["ink"], NAMES["faint"], NAMES["grid"]
    style: dict[Any, Any] = {
        "svg.fonttype": "none", "svg.hashsalt": "modernbert", "font.size": 10, "text.color": ink,
        "axes.labelcolor": faint, "axes.labelsize": 10, "xtick.color": faint, "ytick.color": faint,
        "xtick.labelsize": 10, "ytick.labelsize": 10, "xtick.major.size": 0, "ytick.major.size": 0,
        "axes.edgecolor": grid, "axes.spines.left": False, "axes.spines.right": False, "axes.spines.top": False,
        "axes.grid": True, "axes.grid.axis": "y", "grid.color": grid, "grid.linewidth": 0.7, "axes.axisbelow": True,
        "path.simplify": True, "lines.solid_capstyle": "round", "lines.solid_joinstyle": "round",
        "axes.facecolor": "none", "figure.facecolor": "none", "savefig.facecolor": "none",
    }  # fmt: skip
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(4.7 if narrow else 9.6, height), layout="constrained")
        panels = figure.subplots(2, 1, sharex=True, height_ratios=ratios)
        for axes in panels:
            axes.locator_params(axis="x", nbins=5 if narrow else 9)
            axes.locator_params(axis="y", nbins=5 if axes is panels[0] else 3)
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        yield figure, panels


def _mark_heldout(axes: Any, log: Sequence[Row], scale: float) -> None:
    """Mark every held-out loss, and write out the last of each phase."""
    rows = [row for row in log if row.get("kind") == "heldout"]
    if not rows:
        return
    for row in rows:
        axes.plot(
            row["tokens"] / scale, row["loss"], "o", ms=6, color=NAMES["ink"], mec=NAMES["page"], mew=1.5,
            zorder=5, clip_on=False,
        )  # fmt: skip
    last = {row["phase"]: row for row in rows}
    for number, row in enumerate(last.values()):
        text = f"{row['loss']:.2f}" if number else f"held-out {row['loss']:.2f}"
        axes.annotate(
            text, (row["tokens"] / scale, row["loss"]), xytext=(-6, 9), textcoords="offset points",
            ha="right", fontweight="bold", zorder=6,
        )  # fmt: skip


def _name_phases(axes: Any, labels: Sequence[tuple[str, float, float, str]]) -> int:
    """Write the phases' names above their shades, in two rows where one would not hold them; return the height used."""
    axes.figure.draw_without_rendering()
    points = axes.get_window_extent().width * 72 / axes.figure.dpi / max(end for _, _, end, _ in labels)
    crowded = any((end - start) * points < 6.2 * len(name) for name, start, end, _ in labels)
    for number, (name, start, end, colour) in enumerate(labels):
        height = 15 if crowded and number % 2 else 3
        edge = crowded and number == len(labels) - 1
        axes.annotate(
            name, (end if edge else (start + end) / 2, 1), xycoords=("data", "axes fraction"), xytext=(0, height),
            textcoords="offset points", ha="right" if edge else "center", color=colour, fontweight="bold",
        )  # fmt: skip
    return 31 if crowded else 19


def _title(axes: Any, title: str, height: int = 4) -> None:
    axes.annotate(
        title, (0, 1), xycoords="axes fraction", xytext=(0, height), textcoords="offset points", fontweight="bold"
    )


def _colour(number: int) -> str:
    return list(PHASES.values())[number % len(PHASES)]


def _unit(most: int) -> tuple[float, str]:
    sizes = ((1e9, "Billion"), (1e6, "Million"), (1e3, "Thousand"))
    return next(((size, name) for size, name in sizes if most >= 2 * size), (1.0, "Number of"))


def _smooth(values: np.ndarray, reach: int) -> np.ndarray:
    """Average each value with up to `reach` neighbours on either side."""
    sums = np.concatenate(([0.0], np.cumsum(values)))
    middle = np.arange(len(values))
    first, last = np.maximum(middle - reach, 0), np.minimum(middle + reach + 1, len(values))
    return (sums[last] - sums[first]) / (last - first)


def _reach(phases: Mapping[str, Sequence[Row]]) -> int:
    return max(1, sum(map(len, phases.values())) // 60)


def _thin(across: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Average neighbours, so that a long run draws no more points than can be seen."""
    if len(values) <= MAX_POINTS:
        return across, values
    groups = np.array_split(np.arange(len(values)), MAX_POINTS)
    return tuple(np.array([array[group].mean() for group in groups]) for array in (across, values))  # type: ignore[return-value]


def _svg(figure: Any, title: str) -> str:
    """Write a figure as SVG that takes its fonts, colours and size from the page around it."""
    target = io.StringIO()
    figure.savefig(target, format="svg", metadata={"Date": None, "Creator": None})
    svg = target.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style[^>]*>.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r" font-family: [^;\"]*;", "", svg)
    svg = re.sub(r"font: ([0-9]+ |bold )?([0-9.]+px) [^;\"]*", r"font-weight: \1; font-size: \2", svg)
    svg = svg.replace("font-weight: ;", "")
    for name, colour in (NAMES | PHASES).items():
        svg = svg.replace(colour, f"var(--{name})")
    box = re.search(r'viewBox="[^"]*"', svg)
    body = svg[svg.index(">") + 1 :]
    return f'<svg {box[0] if box else ""} role="img" xmlns="http://www.w3.org/2000/svg"><title>{title}</title>{body}'
