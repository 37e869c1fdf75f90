"""Options of `modernbert bench`."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Literal

__all__ = ["BenchConfig", "SetName"]

SetName = Literal["short-fixed", "short-variable", "long-fixed", "long-variable"]


@dataclass(frozen=True)
class BenchConfig:
    """Measure the speed, latency and memory of a model on this machine."""

    model: str
    """Model folder, or name of a model on the Hub."""
    _: KW_ONLY
    sets: Sequence[SetName] = ("short-fixed", "short-variable", "long-fixed", "long-variable")
    """Lengths of the documents: 512 or 8,192 tokens each (fixed), or about 256 or 4,096 (variable)."""
    documents: int | None = None
    """Documents per set; default: 16 short or 2 long ones on a CPU, 1,024 or 32 on a GPU."""
    runs: int = 3
    """Passes over each set, after a warm-up."""
    calls: int = 30
    """Calls with one text, for the latency."""
    device: str = "auto"
    """Device: auto, cpu, cuda or cuda:N."""
    dtype: str = "auto"
    """Data type of the computation: auto, float32 or bfloat16."""
    engine: str = "auto"
    """Implementation of the encoder; auto: the fastest that supports the device."""
    output: Path | None = None
    """JSON file for the results."""
