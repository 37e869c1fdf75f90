"""What a person sees while many texts are embedded: a bar on a terminal, a line every few seconds elsewhere.

In: how many texts are done. Out: text on standard error.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["Show", "show_texts"]

Show = Callable[[int, int], None]
"""(texts done in all, tokens since the last call)"""

_INTERVAL_S = 10.0


@contextmanager
def show_texts(total: int | None, wanted: bool) -> Iterator[Show]:
    """Yield the function to call after each batch; it shows nothing unless that is wanted. `total` may be unknown."""
    if not wanted:
        yield lambda done, tokens: None
    elif not sys.stderr.isatty():
        yield _lines(total)
    else:
        # Here, not above: whoever embeds from Python waits for none of it.
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("embedding", total=total)
            yield lambda done, tokens: bar.update(task, completed=done)


def _lines(total: int | None) -> Show:
    begun = last = time.monotonic()
    num_tokens = 0

    def show(done: int, tokens: int) -> None:
        nonlocal last, num_tokens
        num_tokens += tokens
        now = time.monotonic()
        if now - last < _INTERVAL_S:
            return
        last = now
        of_all = left = ""
        if total is not None:
            of_all, left = f" of {total:,}", f"  {(now - begun) * (total - done) / done:,.0f} s left"
        speed = f"  {num_tokens / (now - begun):,.0f} tokens/s" if num_tokens else ""
        print(f"{done:,}{of_all} texts{speed}{left}", file=sys.stderr, flush=True)

    return show
