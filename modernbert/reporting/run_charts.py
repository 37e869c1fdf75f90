"""Draw the log of a pretraining run.

In: rows of `log.jsonl` and `timing.jsonl`. Out: SVG to be set into a page: text stays text, and colours are names of
the page's own (`var(--phase-1)`), so that one drawing serves the light and the dark scheme. Each chart comes wide and
narrow, since text that shrinks with the drawing cannot be read on a phone.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from modernbert.errors import InputError
from modernbert.reporting.drawing import NAMES, PHASES, add_title, as_svg, new_figure, smooth, thin, unit_of

__all__ = ["read_rows", "speed_chart", "training_chart"]

Row = Mapping[str, Any]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read one JSON object a line; a last line that a killed run left unfinished is passed over.

    Raises: InputError if the file cannot be read, or another line is not a JSON object.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    rows = []
    for number, line in enumerate(lines[:-1], 1):
        try:
            # Older logs have NaN, which is not JSON, where there is nothing now.
            rows.append(dict(json.loads(line, parse_constant=lambda _: None)))
        except (ValueError, TypeError):
            raise InputError(f"{path}:{number}: expected a JSON object") from None
    return rows


def training_chart(log: Sequence[Row], *, narrow: bool = False) -> str:
    """Draw loss and learning rate over tokens, the phases shaded, the held-out scores marked; return SVG.

    Raises: InputError if there is no step among the rows, or matplotlib is not installed.
    """
    phases = _phases(log)
    scale, unit = unit_of(max(row["tokens"] for row in log))
    with _figure(narrow, height=4.9, ratios=(3, 1)) as (figure, (top, bottom)):
        start, reach = 0.0, _reach(phases)
        labels = []
        for number, (name, rows) in enumerate(phases.items()):
            colour = _colour(number)
            tokens = np.array([row["tokens"] for row in rows]) / scale
            loss = np.array([row["loss"] for row in rows], dtype=float)
            for axes in (top, bottom):
                axes.axvspan(start, tokens[-1], color=colour, alpha=0.07, linewidth=0)
            top.plot(*thin(tokens, loss), color=colour, linewidth=0.7, alpha=0.35)
            top.plot(*thin(tokens, smooth(loss, reach)), color=colour, linewidth=1.8)
            bottom.plot(*thin(tokens, np.array([row["lr"] for row in rows])), color=colour, linewidth=1.8)
            labels.append((name, start, float(tokens[-1]), colour))
            start = float(tokens[-1])
        top.set_xlim(0, start)
        _mark_heldout(top, log, scale)
        add_title(top, "Training loss, nats per masked token", _name_phases(top, labels))
        add_title(bottom, "Learning rate")
        bottom.set_ylim(bottom=0)
        bottom.ticklabel_format(axis="y", style="sci", scilimits=(0, 0), useMathText=False)
        bottom.yaxis.get_offset_text().set_visible(False)
        bottom.yaxis.set_major_formatter(lambda value, _: f"{value:.0e}".replace("e-0", "e-") if value else "0")
        bottom.set_xlabel(f"{unit} tokens seen")
        return as_svg(figure, "Training loss and learning rate over the tokens seen, by phase")


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
            top.plot(*thin(times, speed), color=colour, linewidth=0.7, alpha=0.35)
            top.plot(*thin(times, smooth(speed, reach)), color=colour, linewidth=1.8)
            bottom.plot(*thin(times, smooth(fill, reach)), color=colour, linewidth=1.8)
            labels.append((name, start, float(times[-1]), colour))
            start = float(times[-1])
        top.set_xlim(0, start)
        top.set_ylim(bottom=0)
        top.yaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k" if value >= 1000 else f"{value:g}")
        lowest = min(100 * row["fill"] for rows in phases.values() for row in rows)
        bottom.set_ylim(min(lowest, 99.0) - 0.2, 100.1)
        bottom.yaxis.set_major_formatter(lambda value, _: f"{value:g} %")
        add_title(top, "Tokens per second", _name_phases(top, labels))
        add_title(bottom, "Fill of the token budget")
        bottom.set_xlabel(f"{unit} of training")
        return as_svg(figure, "Tokens per second and fill of the batches over the time of training")


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
    """Yield a figure of two panels over one axis."""
    with new_figure(narrow, height) as figure:
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


def _colour(number: int) -> str:
    return list(PHASES.values())[number % len(PHASES)]


def _reach(phases: Mapping[str, Sequence[Row]]) -> int:
    return max(1, sum(map(len, phases.values())) // 60)
