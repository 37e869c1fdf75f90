"""What a person sees while a corpus is read: a bar on a terminal, a line every few seconds elsewhere.

In: the tally that the reader fills. Out: text on standard error. A file of its own because readers and writers should
not know who is watching.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from modernbert.data.corpus import Document, Tally

__all__ = ["Show", "show_reading", "watched"]

Show = Callable[[str], None]
"""Called with what was made so far, as often as one likes."""


@contextmanager
def show_reading(label: str, tally: Tally, total_bytes: int, *, interval_s: float = 5.0) -> Iterator[Show]:
    """Yield the function that shows how far the reading is, given the bytes on disk to be read in all."""
    console = Console(stderr=True)
    begun = time.monotonic()

    def text(state: str) -> str:
        speed = tally.bytes / 1e6 / (time.monotonic() - begun)
        return f"{label}  {tally.documents:,} documents  {speed:,.1f} MB/s  {state}".rstrip()

    def line(state: str) -> None:
        share = min(1.0, tally.stored_bytes / max(1, total_bytes))
        left = f"  {(time.monotonic() - begun) * (1 - share) / share:,.0f} s left" if share else ""
        print(f"{text(state)}  {share:.0%}{left}", file=sys.stderr, flush=True)

    if not console.is_terminal:
        yield _throttled(line, interval_s)
        return
    columns = (TextColumn("{task.description}"), BarColumn(20), TextColumn("{task.percentage:>3.0f} %"))
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task(label, total=total_bytes)
        yield _throttled(
            lambda state: progress.update(task, completed=tally.stored_bytes, description=text(state)), 0.1
        )
        progress.update(task, completed=tally.stored_bytes)


def watched(documents: Iterable[Document], show: Show) -> Iterator[Document]:
    """Pass documents on, and show that they went by."""
    for document in documents:
        show("")
        yield document


def _throttled(show: Show, interval_s: float) -> Show:
    last = time.monotonic()
    state = ""

    def throttled(new_state: str) -> None:
        nonlocal last, state
        state = new_state or state
        if time.monotonic() - last >= interval_s:
            last = time.monotonic()
            show(state)

    return throttled
