"""How every chart of a page is drawn.

In: figures of matplotlib. Out: SVG to be set into a page: text stays text, and colours are names of the page's own
(`var(--phase-1)`), so that one drawing serves the light and the dark scheme. A file of its own because the charts of
one run and those of several share nothing else.
"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from modernbert.extras import missing

__all__ = ["NAMES", "PHASES", "RUNS", "add_title", "as_svg", "new_figure", "smooth", "thin", "unit_of"]

# matplotlib wants colours, the page wants names: each name has a colour that stands for it until the SVG is written.
NAMES = {"ink": "#010101", "faint": "#020202", "grid": "#030303", "page": "#040404"}
PHASES = {"phase-1": "#050505", "phase-2": "#060606", "phase-3": "#070707"}
RUNS = {f"run-{number}": f"#0{number}0{number}08" for number in range(1, 9)}
MAX_POINTS = 400


@contextmanager
def new_figure(narrow: bool, height: float) -> Iterator[Any]:
    """Yield an empty figure for a page or a phone, in a style that lasts as long as the block.

    Units: inches, as matplotlib has them.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise missing("report", "matplotlib") from None
    ink, faint, grid = NAMES["ink"], NAMES["faint"], NAMES["grid"]
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
    with matplotlib.rc_context(style):
        yield Figure(figsize=(4.7 if narrow else 9.6, height), layout="constrained")


def add_title(axes: Any, title: str, height: int = 4) -> None:
    """Write a panel's title above its left edge, `height` points up."""
    axes.annotate(
        title, (0, 1), xycoords="axes fraction", xytext=(0, height), textcoords="offset points", fontweight="bold"
    )


def unit_of(most: int) -> tuple[float, str]:
    """Return the size and the name of the unit that large numbers of tokens are written in.

    >>> unit_of(5_000_000)
    (1000000.0, 'Million')
    """
    sizes = ((1e9, "Billion"), (1e6, "Million"), (1e3, "Thousand"))
    return next(((size, name) for size, name in sizes if most >= 2 * size), (1.0, "Number of"))


def smooth(values: np.ndarray, reach: int) -> np.ndarray:
    """Average each value with up to `reach` neighbours on either side."""
    sums = np.concatenate(([0.0], np.cumsum(values)))
    middle = np.arange(len(values))
    first, last = np.maximum(middle - reach, 0), np.minimum(middle + reach + 1, len(values))
    return (sums[last] - sums[first]) / (last - first)


def thin(across: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Average neighbours, so that a long run draws no more points than can be seen."""
    if len(values) <= MAX_POINTS:
        return across, values
    groups = np.array_split(np.arange(len(values)), MAX_POINTS)
    return tuple(np.array([array[group].mean() for group in groups]) for array in (across, values))  # type: ignore[return-value]


def as_svg(figure: Any, title: str) -> str:
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
    for name, colour in (NAMES | PHASES | RUNS).items():
        svg = svg.replace(colour, f"var(--{name})")
    box = re.search(r'viewBox="[^"]*"', svg)
    body = svg[svg.index(">") + 1 :]
    return f'<svg {box[0] if box else ""} role="img" xmlns="http://www.w3.org/2000/svg"><title>{title}</title>{body}'
