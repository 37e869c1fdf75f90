"""Where benches print: as wide as the terminal, and wide enough for a table where there is none."""

import statistics
import sys
from collections.abc import Sequence

from rich.console import Console

__all__ = ["open_console", "spread"]

_WIDTH_OF_A_FILE = 200


def open_console(*, stderr: bool = False) -> Console:
    """Return a console that prints lines as they are, and tables whole."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else _WIDTH_OF_A_FILE
    return Console(stderr=stderr, width=width, highlight=False, soft_wrap=True, markup=False)


def spread(ratios: Sequence[float]) -> str:
    """Write ratios of several rounds: their median, and from where to where they go.

    >>> spread([2.0, 1.0, 4.0])
    '2.00 (1.00 to 4.00)'
    """
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
