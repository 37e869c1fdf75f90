"""Options of `modernbert demo`."""

from dataclasses import dataclass
from pathlib import Path

__all__ = ["DemoConfig"]


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Pretrain and fine-tune a small ModernBERT on text found on this machine, and write a page about it."""

    output: Path | None = None
    """Folder for all files; by default runs/demo, or runs/demo-quick with --quick."""
    quick: bool = False
    """Finish in about a minute, with less text and training."""
