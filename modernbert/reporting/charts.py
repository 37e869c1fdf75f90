"""Draw charts as SVG for an HTML page: panels of lines, and panels of bars.

Text stays text, and colors are CSS variables of the page (`var(--run-1)`), so one drawing serves the light and the dark
color scheme.
"""

import io
import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from modernbert.extras import missing

__all__ = ["RUN_COLORS", "BarPanel", "Line", "Panel", "dash_of", "draw_bars", "draw_lines", "smooth"]

# matplotlib needs colors and the page needs names: each name has a placeholder color until the SVG is written.
_COLORS = {"ink": "#010101", "faint": "#020202", "grid": "#030303", "page": "#040404"}
RUN_COLORS = {f"run-{number}": f"#0{number}0{number}08" for number in range(1, 9)}
"""CSS variable -> placeholder color; a ninth run takes the first color with other dashes."""
_DASHES: tuple[Any, ...] = ("solid", (0, (4, 1.5)), (0, (1, 1.5)), (0, (6, 1.5, 1, 1.5)))
_MAX_POINTS = 400


@dataclass(frozen=True)
class Line:
    """The values of one run in one panel.

    `style` is `mean`, `raw`, `dots`, `first`, `last`, `abandoned`, `skipped` or `rollback`. `labels` are written beside
    the points; an empty one is not.
    """

    run: int
    style: str
    x: np.ndarray
    y: np.ndarray
    labels: Sequence[str] = ()


@dataclass(frozen=True)
class Panel:
    """A small chart of lines; `x_label` names its x axis, by default the number of tokens."""

    title: str
    lines: list[Line] = field(default_factory=list)
    format_y: Callable[[float], str] = "{:g}".format
    x_label: str = ""
    from_zero: bool = False
    is_log: bool = False
    marks: Mapping[float, str] = field(default_factory=dict)
    """Positions of vertical lines, in tokens, with a name above each or ``."""


@dataclass(frozen=True)
class BarPanel:
    """A small chart of horizontal bars: the mean of the values of each name, with their standard deviation."""

    title: str
    unit: str
    bars: Mapping[str, Sequence[float]]
    highlighted: frozenset[str] = frozenset()
    """Names whose bars have another color."""


def draw_lines(panels: Sequence[Panel], title: str, *, narrow: bool, height: float = 2.3) -> str:
    """Draw panels side by side, or one below the other for a phone; return SVG.

    Raises:
        InputError: matplotlib is not installed.
    """
    of_tokens = [line.x.max() for panel in panels if not panel.x_label for line in panel.lines if len(line.x)]
    num_tokens = max([1.0, *of_tokens])
    with _panels(len(panels), title, narrow, height) as (places, svg, num_columns):
        for axes, panel in zip(places, panels, strict=True):
            scale, unit = (1.0, "") if panel.x_label else _unit_of(int(num_tokens))
            axes.set_xlabel(panel.x_label or f"{unit} tokens seen")
            _draw_panel(axes, panel, scale)
            axes.set_xlim(0, None if panel.x_label else num_tokens / scale)
            axes.locator_params(axis="x", nbins=9 if num_columns == 1 and not narrow else 5)
    return svg[0]


def draw_bars(panels: Sequence[BarPanel], title: str, *, narrow: bool) -> str:
    """Draw panels of horizontal bars; return SVG.

    Raises:
        InputError: matplotlib is not installed.
    """
    height = 1.1 + 0.28 * max(len(panel.bars) for panel in panels)
    with _panels(len(panels), title, narrow, height) as (places, svg, _):
        for axes, panel in zip(places, panels, strict=True):
            names = list(panel.bars)[::-1]
            errors = [statistics.stdev(panel.bars[name]) if len(panel.bars[name]) > 1 else 0.0 for name in names]
            colors = [RUN_COLORS["run-2" if name in panel.highlighted else "run-8"] for name in names]
            axes.barh(
                names, [statistics.mean(panel.bars[name]) for name in names], xerr=errors, color=colors,
                ecolor=_COLORS["ink"],
            )  # fmt: skip
            axes.set_title(panel.title, loc="left", fontsize=10, fontweight="bold")
            axes.set_xlabel(panel.unit)
            axes.grid(visible=False)
            axes.locator_params(axis="x", nbins=4)
            axes.set_xlim(left=0)
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 10 else f"{value:g}")
    return svg[0]


def dash_of(run: int) -> str:
    """Return the dashes of a run's lines in SVG's notation.

    >>> dash_of(0), dash_of(8)
    ('none', '8 3')
    """
    dash = _DASHES[run // len(RUN_COLORS) % len(_DASHES)]
    return "none" if isinstance(dash, str) else " ".join(f"{2 * length:g}" for length in dash[1])


def smooth(values: np.ndarray, reach: int) -> np.ndarray:
    """Average each value with up to `reach` neighbors on either side."""
    sums = np.concatenate(([0.0], np.cumsum(values)))
    middle = np.arange(len(values))
    first, last = np.maximum(middle - reach, 0), np.minimum(middle + reach + 1, len(values))
    return (sums[last] - sums[first]) / (last - first)


@contextmanager
def _panels(number: int, title: str, narrow: bool, height: float) -> Iterator[tuple[list[Any], list[str], int]]:
    """Yield the axes of a figure of some panels, a list that receives its SVG, and the number of columns."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise missing("report", "matplotlib") from None
    ink, faint, grid = _COLORS["ink"], _COLORS["faint"], _COLORS["grid"]
    style: dict[Any, Any] = {
        "svg.fonttype": "none", "svg.hashsalt": "modernbert", "font.size": 10, "text.color": ink,
        "axes.labelcolor": faint, "axes.labelsize": 10, "xtick.color": faint, "ytick.color": faint,
        "xtick.labelsize": 10, "ytick.labelsize": 10, "xtick.major.size": 0, "ytick.major.size": 0,
        "ytick.minor.size": 0, "axes.edgecolor": grid, "axes.spines.left": False, "axes.spines.right": False,
        "axes.spines.top": False, "axes.grid": True, "axes.grid.axis": "y", "grid.color": grid, "grid.linewidth": 0.7,
        "axes.axisbelow": True, "path.simplify": True, "lines.solid_capstyle": "round",
        "lines.solid_joinstyle": "round", "axes.facecolor": "none", "figure.facecolor": "none",
        "savefig.facecolor": "none", "text.parse_math": False,
    }  # fmt: skip
    num_columns = 1 if narrow else 2 if number in (2, 4) else min(3, number)
    num_rows = -(-number // num_columns)
    svg: list[str] = []
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(4.7 if narrow else 9.6, height * num_rows), layout="constrained")
        places = list(figure.subplots(num_rows, num_columns, squeeze=False).flatten())
        for axes in places[number:]:
            axes.set_visible(False)
        yield places[:number], svg, num_columns
        svg.append(_as_svg(figure, title))


def _draw_panel(axes: Any, panel: Panel, scale: float) -> None:
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.4g}")
    if panel.is_log:
        _log_axis(axes)
    for number, (at, name) in enumerate(panel.marks.items()):
        axes.axvline(at / scale, color=_COLORS["grid"], linewidth=1.0, zorder=1)
        axes.annotate(
            name, (at / scale, 1), xycoords=("data", "axes fraction"), xytext=(2, 15 if number % 2 else 3),
            textcoords="offset points", color=_COLORS["faint"], annotation_clip=False,
        )  # fmt: skip
    for line in panel.lines:
        if len(line.x):
            _draw_line(axes, line, scale)
    axes.yaxis.set_major_formatter(lambda value, _: panel.format_y(float(value)))
    if panel.from_zero:
        axes.set_ylim(bottom=0)
    if not panel.is_log:
        axes.locator_params(axis="y", nbins=5)
    axes.set_title(panel.title, loc="left", fontsize=10, fontweight="bold", pad=30 if any(panel.marks.values()) else 6)


def _draw_line(axes: Any, line: Line, scale: float) -> None:
    color = list(RUN_COLORS.values())[line.run % len(RUN_COLORS)]
    dash = _DASHES[line.run // len(RUN_COLORS) % len(_DASHES)]
    x, y = line.x / scale, line.y
    marker = {"ms": 5.5, "mec": _COLORS["page"], "mew": 1.2, "clip_on": False, "zorder": 5, "color": color}
    if line.style == "raw":
        axes.plot(*_thin(x, y), color=color, linewidth=0.7, alpha=0.3)
    elif line.style in ("mean", "last") and len(x) > 1:
        axes.plot(*_thin(x, y), color=color, linewidth=1.8, linestyle=dash)
    elif line.style in ("dots", "mean", "last"):
        axes.plot(*_thin(x, y), "o", **marker)
    elif line.style == "first":
        axes.plot(x, y, "o", **marker | {"mfc": _COLORS["page"], "mec": color})
        axes.plot(x, y, color=color, linewidth=0.9, linestyle=(0, (2, 2)))
    elif line.style == "abandoned":
        axes.plot(*_thin(x, y), color=color, linewidth=1.1, linestyle=(0, (1, 1.5)))
    else:
        marker |= {"ms": 6.5, "mec": color, "mew": 1.6}
        axes.plot(x, y, "x" if line.style == "skipped" else "<", transform=axes.get_xaxis_transform(), **marker)
    for at, value, label in zip(x, y, line.labels, strict=False):
        axes.annotate(
            label, (at, value), xytext=(-6, 9), textcoords="offset points", ha="right", fontweight="bold", zorder=6
        )


def _log_axis(axes: Any) -> None:
    """Label 1, 2 and 5 of each power of ten: a gradient norm may stay within one."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=6))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _unit_of(number: int) -> tuple[float, str]:
    """Return the size and the name of the unit for numbers up to this one.

    >>> _unit_of(5_000_000)
    (1000000.0, 'Million')
    """
    sizes = ((1e9, "Billion"), (1e6, "Million"), (1e3, "Thousand"))
    return next(((size, name) for size, name in sizes if number >= 2 * size), (1.0, "Number of"))


def _thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Average neighbors, so that a long run draws no more points than a screen shows."""
    if len(y) <= _MAX_POINTS:
        return x, y
    groups = np.array_split(np.arange(len(y)), _MAX_POINTS)
    return np.array([x[group].mean() for group in groups]), np.array([y[group].mean() for group in groups])


def _as_svg(figure: Any, title: str) -> str:
    """Write a figure as SVG that takes its fonts, colors and size from the page around it."""
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
    for name, color in (_COLORS | RUN_COLORS).items():
        svg = svg.replace(color, f"var(--{name})")
    box = re.search(r'viewBox="[^"]*"', svg)
    body = svg[svg.index(">") + 1 :]
    return f'<svg {box[0] if box else ""} role="img" xmlns="http://www.w3.org/2000/svg"><title>{title}</title>{body}'
