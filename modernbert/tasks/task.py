"""The base class of fine-tuning tasks, and the registry that finds a task by its name."""

import pkgutil
from collections.abc import Sequence
from importlib import import_module
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from modernbert import tasks
from modernbert.errors import InputError

__all__ = ["Answers", "Task", "find_task", "known_tasks", "register"]

Answers = Literal["labels", "ranking", "spans", "vectors", "none"]
"""What a model of a task answers: labels of a text, ranks of documents, labeled spans, vectors, or nothing yet."""


class Task:
    """A fine-tuning task. One file of this package defines it and calls `register`; no other file names it."""

    name: ClassVar[str]
    """Name on the command line and in `Classifier.task`."""
    answers: ClassVar[Answers] = "labels"
    gives_probabilities: ClassVar[bool] = True
    """Whether `activate` returns probabilities. A regression returns its own scale."""

    def activate(self, logits: Float[Tensor, "*N labels"]) -> Float[Tensor, "*N labels"]:
        """Turn logits into the numbers that users see."""
        raise NotImplementedError(f"task {self.name} has no scores of labels")

    def label_scores(
        self, labels: Sequence[str], logits: Float[Tensor, "N labels"], *, raw: bool = False
    ) -> list[dict[str, float]]:
        """Return each text's scores by label, the highest first: activated, or the logits if `raw`."""
        scores = logits if raw else self.activate(logits)
        found = [dict(zip(labels, row, strict=True)) for row in scores.tolist()]
        return [dict(sorted(row.items(), key=lambda item: -item[1])) for row in found]


_REGISTERED: dict[str, Task] = {}


def register(task: Task) -> None:
    """Make a task known by its name.

    Raises: ValueError if another task has this name.
    """
    known = _REGISTERED.get(task.name)
    if known is not None and type(known) is not type(task):
        raise ValueError(f"task {task.name!r}: registered by {type(known).__name__} and {type(task).__name__}")
    _REGISTERED[task.name] = task


def known_tasks() -> dict[str, Task]:
    """Return all tasks by name, in alphabetical order: those of this package and those that `register` was given."""
    for module in pkgutil.iter_modules(tasks.__path__):
        import_module(f"{tasks.__name__}.{module.name}")
    return dict(sorted(_REGISTERED.items()))


def find_task(name: str) -> Task:
    """Return the task of a name.

    Raises: InputError listing all tasks, for an unknown name.
    """
    if name not in _REGISTERED and name not in known_tasks():
        raise InputError(f"task: found {name!r}, expected {', '.join(known_tasks())}")
    return _REGISTERED[name]
