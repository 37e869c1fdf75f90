"""What a person sees while a corpus is read: a bar on a terminal, a line every few seconds elsewhere.

In: the tally that the reader fills. Out: text on standard error. A file of its own because readers and writers should
not know who is watching.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from modernbert.text.corpus import Document, Tally

__all__ = ["Show", "show_reading", "watched"]

Show = Callable[[str], None]
"""Called with what was made so far, as often as one likes."""


@contextmanager
def show_reading(label: str, tally: Tally, total_bytes: int, *, interval_s: float = 5.0) -> Iterator[Show]:
    """Yield the function that shows how far the reading is, given the bytes on disk to be read in all."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _throttled(_line(label, tally, total_bytes), interval_s)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task(label, total=total_bytes)

        def update(state: str) -> None:
            text = f"{label}  {tally.documents:,} documents  {state}".rstrip()
            progress.update(task, completed=tally.stored_bytes, description=text)

        yield _throttled(update, 0.1)
        update("")


def watched(documents: Iterable[Document], show: Show) -> Iterator[Document]:
    """Pass documents on, and show that they went by."""
    for document in documents:
        show("")
        yield document


def _line(label: str, tally: Tally, total_bytes: int) -> Show:
    begun = time.monotonic()

    def show(state: str) -> None:
        seconds = time.monotonic() - begun
        share = min(1.0, tally.stored_bytes / max(1, total_bytes))
        parts = [f"{label}  {share:.0%}", f"{tally.documents:,} documents", f"{tally.bytes / 1e6 / seconds:,.1f} MB/s"]
        if share > 0:
            parts.append(f"{seconds * (1 - share) / share:,.0f} s left")
        print("  ".join([*parts, state]).rstrip(), file=sys.stderr, flush=True)

    return show


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
