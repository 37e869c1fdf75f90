"""Output of benchmarks: a console as wide as the terminal or a table, the machine, and summaries of timings."""

import platform
import statistics
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from modernbert.devices import name_of

__all__ = ["describe_machine", "open_console", "p50_and_p95", "processor_name", "spread"]

_WIDTH_OF_A_FILE = 200


def open_console(*, stderr: bool = False) -> Console:
    """Return a console that prints lines as they are, and tables whole."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else _WIDTH_OF_A_FILE
    return Console(stderr=stderr, width=width, highlight=False, soft_wrap=True, markup=False)


def describe_machine(device: torch.device, libraries: Iterable[str] = ()) -> str:
    """Return the device, CPU threads, system, and versions of torch and of other libraries that are installed."""
    parts = [name_of(device)]
    if device.type == "cpu":
        parts += [processor_name(), f"{torch.get_num_threads()} threads"]
    parts += [platform.platform(), f"torch {torch.__version__}"]
    for library in libraries:
        with suppress(PackageNotFoundError):
            parts.append(f"{library} {version(library)}")
    return ", ".join(filter(None, parts))


def processor_name() -> str:
    """Return the model name of the processor, if the system has it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def spread(ratios: Sequence[float]) -> str:
    """Format ratios of several rounds: their median and range.

    >>> spread([2.0, 1.0, 4.0])
    '2.00 (1.00 to 4.00)'
    """
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def p50_and_p95(seconds: Sequence[float]) -> dict[str, float]:
    """Return the median and the 95th percentile of durations, linearly interpolated, in milliseconds.

    >>> p50_and_p95([0.003, 0.001])
    {'p50_ms': 2.0, 'p95_ms': 2.9}
    """
    p50, p95 = np.percentile(1e3 * np.asarray(seconds), (50, 95))
    return {"p50_ms": round(float(p50), 6), "p95_ms": round(float(p95), 6)}
