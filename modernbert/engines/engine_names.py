"""The engines of this package, found by their file names `NAME_engine.py`, without importing torch."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from modernbert import engines

__all__ = ["EngineName", "engine_modules"]


def engine_modules() -> dict[str, str]:
    """Return the module of each engine by the name of the engine, in alphabetical order."""
    found = {}
    for folder in map(Path, engines.__path__):
        for path in folder.rglob("*_engine.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            found[path.stem.removesuffix("_engine")] = ".".join((engines.__name__, *parts))
    return dict(sorted(found.items()))


if TYPE_CHECKING:
    EngineName = str
else:
    EngineName = Literal[("auto", *engine_modules())]
"""A choice of engine."""
