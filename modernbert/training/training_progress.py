"""What a person sees while a run goes on: a bar on a terminal, a line every few seconds elsewhere.

In: the state of the run after each step. Out: text on standard error. A file of its own because the loop should not
know who is watching.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

__all__ = ["Report", "show_progress"]

Report = Callable[[str, int, int, float, float], None]
"""(phase, step, tokens of the run so far, loss, tokens per second)"""


@contextmanager
def show_progress(num_steps: int, num_tokens: int, done_tokens: int, *, interval_s: float = 10.0) -> Iterator[Report]:
    """Yield the function to call after each step, given the steps and tokens of the whole run."""
    console = Console(stderr=True)
    if console.is_terminal:
        with _bar(console) as progress:
            task = progress.add_task("", total=num_tokens, completed=done_tokens, text="starting")
            yield _bar_report(progress, task, num_steps)
    else:
        yield _line_report(num_steps, num_tokens, done_tokens, interval_s)


def _bar(console: Console) -> Progress:
    columns = (TextColumn("{task.fields[text]}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
    return Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=console, speed_estimate_period=120)


def _bar_report(progress: Progress, task: TaskID, num_steps: int) -> Report:
    def report(phase: str, step: int, tokens: int, loss: float, tokens_per_s: float) -> None:
        text = f"{phase}  step {step:,}/{num_steps:,}  loss {loss:.3f}  {tokens_per_s:,.0f} tokens/s"
        progress.update(task, completed=tokens, text=text)

    return report


def _line_report(num_steps: int, num_tokens: int, done_tokens: int, interval_s: float) -> Report:
    begun = last = time.monotonic()

    def report(phase: str, step: int, tokens: int, loss: float, tokens_per_s: float) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < interval_s and step != num_steps:
            return
        last = now
        left_s = max(0, num_tokens - tokens) * (now - begun) / (tokens - done_tokens)
        state = f"{phase}  step {step:,}/{num_steps:,}  loss {loss:.3f}  {tokens_per_s:,.0f} tokens/s"
        print(f"{state}  {left_s:,.0f} s left", file=sys.stderr, flush=True)

    return report
