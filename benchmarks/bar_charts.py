"""Bars of what was measured: a panel a set, a bar a model or system, the deviation or range as a line on it.

In: numbers by panel and name. Out: a PNG file.
"""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["draw_bars"]

_SIDE_BY_SIDE = 4
_OURS, _OTHERS = "#c2410c", "#64748b"


def draw_bars(path: Path, panels: Mapping[str, Mapping[str, Sequence[float]]], units: Mapping[str, str]) -> bool:
    """Draw the mean of each name's numbers, with their deviation where there are several.

    `units` names the axis of each panel. This package's own stand out.
    Return False if matplotlib is not installed: what took hours to measure is not to fail for a picture of it.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    most = max(map(len, panels.values()))
    side_by_side = min(_SIDE_BY_SIDE, len(panels))
    rows = -(-len(panels) // side_by_side)
    figure = Figure(figsize=(1 + 4.2 * side_by_side, (1.5 + 0.28 * most) * rows), layout="constrained")
    axes = figure.subplots(rows, side_by_side, squeeze=False).flatten()
    for unused in axes[len(panels) :]:
        unused.remove()
    for axis, (title, bars) in zip(axes, panels.items(), strict=False):
        names = list(bars)[::-1]
        deviations = [statistics.stdev(bars[name]) if len(bars[name]) > 1 else 0.0 for name in names]
        colours = [_OURS if _is_ours(name) else _OTHERS for name in names]
        axis.barh(names, [statistics.mean(bars[name]) for name in names], xerr=deviations, color=colours)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel(units[title])
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
        axis.locator_params(axis="x", nbins=4)
        axis.set_xlim(left=0)
        axis.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}" if x >= 10 else f"{x:g}")
    figure.savefig(path, dpi=120)
    return True


def _is_ours(name: str) -> bool:
    return name.startswith("modernbert") and not name.endswith("-transformers")
