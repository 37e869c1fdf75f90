"""Progress on standard error: a bar on a terminal, a line every few seconds elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["ShowStep", "Update", "show_progress", "show_steps", "show_texts"]

Update = Callable[[int, str | Callable[[], str]], None]
"""(amount done in all, text or a function that returns it); the function is called only when the text is shown"""

ShowStep = Callable[[str, int, int, float, float], None]
"""(phase, step, tokens done in all, loss, tokens per second)"""

_BAR_INTERVAL_S = 0.1


@contextmanager
def show_progress(
    total: int | None, *, start: int = 0, interval_s: float = 10.0, keep: bool = True
) -> Iterator[Update]:
    """Show the progress of a task, until the end of the `with` block.

    Args:
        total: The amount of work in any unit, or None if it is unknown.
        start: The amount that was done before.
        interval_s: Seconds between two lines where standard error is not a terminal.
        keep: Whether the final state is always shown, and stays on a terminal.
    """
    if not sys.stderr.isatty():
        yield from _throttled(_line_printer(total, start), interval_s, keep)
        return
    # Imported here, to be loaded only for a terminal.
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(20), TaskProgressColumn())
    console = Console(stderr=True)
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=not keep, speed_estimate_period=120
    ) as bar:
        task = bar.add_task("", total=total, completed=start)  # type: ignore[arg-type]
        yield from _throttled(
            lambda done, text: bar.update(task, completed=done, description=text), _BAR_INTERVAL_S, keep
        )


@contextmanager
def show_texts(total: int | None, wanted: bool = True) -> Iterator[Callable[[int, int], None]]:
    """Show how many texts are embedded; call the result with (texts done in all, tokens since the last call)."""
    if not wanted:
        yield lambda done, tokens: None
        return
    started, num_tokens = time.monotonic(), 0
    of_all = "" if total is None else f" of {total:,}"
    with show_progress(total, keep=False) as update:

        def show(done: int, tokens: int) -> None:
            nonlocal num_tokens
            num_tokens += tokens
            update(done, lambda: f"{done:,}{of_all} texts{_per_second(num_tokens, started)}")

        yield show


@contextmanager
def show_steps(num_steps: int, num_tokens: int, done_tokens: int) -> Iterator[ShowStep]:
    """Show the steps of training, given the steps and tokens of the whole run and the tokens done before."""
    with show_progress(num_tokens, start=done_tokens) as update:

        def show(phase: str, step: int, tokens: int, loss: float, tokens_per_s: float) -> None:
            update(tokens, f"{phase}  step {step:,}/{num_steps:,}  loss {loss:.3f}  {tokens_per_s:,.0f} tokens/s")

        yield show


def _throttled(show: Callable[[int, str], None], interval_s: float, keep: bool) -> Iterator[Update]:
    last = time.monotonic()
    pending: tuple[int, str | Callable[[], str]] | None = None

    def update(done: int, text: str | Callable[[], str]) -> None:
        nonlocal last, pending
        pending = done, text
        if time.monotonic() - last >= interval_s:
            last = time.monotonic()
            flush()

    def flush() -> None:
        nonlocal pending
        if pending is not None:
            done, text = pending
            show(done, text if isinstance(text, str) else text())
            pending = None

    yield update
    if keep:
        flush()


def _line_printer(total: int | None, start: int) -> Callable[[int, str], None]:
    started = time.monotonic()

    def show(done: int, text: str) -> None:
        share = ""
        if total:
            share = f"  {min(1.0, done / total):.0%}"
        if total and done > start:
            share += f"  {max(0.0, total - done) * (time.monotonic() - started) / (done - start):,.0f} s left"
        print(f"{text}{share}", file=sys.stderr, flush=True)

    return show


def _per_second(num_tokens: int, started: float) -> str:
    return f"  {num_tokens / (time.monotonic() - started):,.0f} tokens/s" if num_tokens else ""
