"""Options of `modernbert bench`."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Le

from modernbert.common_options import Compute, ModelRevision

__all__ = ["BenchConfig", "SetName"]

SetName = Literal["short-fixed", "short-variable", "long-fixed", "long-variable"]
Count = Annotated[int, Ge(1), Le(1_000_000)]


@dataclass(frozen=True)
class BenchConfig(ModelRevision, Compute):
    """Measure the speed, latency and peak memory of a model on this machine."""

    model: str
    """Model folder, or name of a model on the Hub."""
    _: KW_ONLY
    sets: Sequence[SetName] = ("short-fixed", "short-variable", "long-fixed", "long-variable")
    """Lengths of the documents: 512 or 8,192 tokens each (fixed), or about 256 or 4,096 (variable)."""
    documents: Count | None = None
    """Documents per set; by default 16 short or 2 long ones on a CPU, 1,024 or 32 on a GPU."""
    runs: Count = 3
    """Passes over each set, after a warm-up."""
    calls: Count = 30
    """Calls with one text, for the latency."""
    output: Path | None = None
    """JSON file for the results. Without it, they are only printed."""
    overwrite: bool = False
    """Replace the file of --output if it exists."""
