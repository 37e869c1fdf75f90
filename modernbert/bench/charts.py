"""Bars of what was measured: a panel a set, a bar a model or system, the deviation or range as a line on it.

In: numbers by panel and name. Out: a PNG file.
"""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from modernbert.errors import InputError

__all__ = ["draw_bars"]

_OURS, _OTHERS = "#c2410c", "#64748b"


def draw_bars(path: Path, panels: Mapping[str, Mapping[str, Sequence[float]]], units: Mapping[str, str]) -> None:
    """Draw the mean of each name's numbers, with their deviation where there are several.

    `units` names the axis of each panel. This package's own stand out.
    Raises: InputError if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError(f"{path.name}: needs matplotlib, pip install 'modernbert[report]'") from None
    most = max(map(len, panels.values()))
    figure = Figure(figsize=(1 + 4.2 * len(panels), 1.5 + 0.28 * most), layout="constrained")
    for axis, (title, bars) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        names = list(bars)[::-1]
        deviations = [statistics.stdev(bars[name]) if len(bars[name]) > 1 else 0.0 for name in names]
        colours = [_OURS if _is_ours(name) else _OTHERS for name in names]
        axis.barh(names, [statistics.mean(bars[name]) for name in names], xerr=deviations, color=colours)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel(units[title])
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    figure.savefig(path, dpi=120)


def _is_ours(name: str) -> bool:
    return name.startswith("modernbert") and not name.endswith("-transformers")
