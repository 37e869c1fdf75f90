"""Where benches print: as wide as the terminal, and wide enough for a table where there is none."""

import sys

from rich.console import Console

__all__ = ["open_console"]

_WIDTH_OF_A_FILE = 200


def open_console(*, stderr: bool = False) -> Console:
    """Return a console that prints lines as they are, and tables whole."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else _WIDTH_OF_A_FILE
    return Console(stderr=stderr, width=width, highlight=False, soft_wrap=True, markup=False)
