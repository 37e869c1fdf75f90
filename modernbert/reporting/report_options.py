"""Options of `modernbert report`."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

__all__ = ["ReportConfig"]


@dataclass(frozen=True)
class ReportConfig:
    """Write an HTML page about a run, or about several side by side."""

    runs: Sequence[Path]
    """Folders of runs of pretraining or fine-tuning, finished or not."""
    _: KW_ONLY
    output: Path | None = None
    """HTML file; by default report.html in the folder of the run, or in this folder if there are several runs."""
