"""A cache of the Hub, as its client leaves it behind for models that were downloaded before."""

from collections.abc import Callable
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def add_to_cache(cache: Path, name: str, write: Callable[[Path], object]) -> Path:
    """Let a function write a model folder into the cache under a name, and return the folder."""
    kept = cache / f"models--{name.replace('/', '--')}"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text(COMMIT)
    (kept / "snapshots").mkdir()
    write(kept / "snapshots" / COMMIT)
    return kept / "snapshots" / COMMIT
