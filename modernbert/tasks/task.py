"""The base classes of fine-tuning tasks, and the registry that finds a task by its name.

A task is one file of this package: a subclass of `ClassifierTask` or `RetrievalTask`, and a call of `register`.
"""

import pkgutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from re import Pattern
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
from jaxtyping import Float
from torch import Tensor

from modernbert import tasks
from modernbert.data.rows import Row
from modernbert.data.unused_columns import NEGATIVE, POSITIVE, SAMPLE_WEIGHT, SCORE, SECOND_TEXT
from modernbert.errors import InputError
from modernbert.model.heads import Classifier, new_classifier
from modernbert.model.interface import HeadSpec, Model
from modernbert.tasks.columns import Columns
from modernbert.tasks.examples import Examples, RowEncoder
from modernbert.tasks.head_losses import HeadLoss
from modernbert.tasks.metrics import Metric

__all__ = [
    "Answers",
    "ClassifierTask",
    "Predictions",
    "RetrievalTask",
    "Task",
    "classifier_task",
    "find_task",
    "known_tasks",
    "register",
    "retrieval_task",
    "start_classifier",
    "task_of_config",
]

Answers = Literal["labels", "ranking", "spans", "vectors", "none"]
"""The kind of a model's answers: labels of a text, ranks of documents, labeled spans, vectors, or none yet."""


class Task:
    """A fine-tuning task."""

    name: ClassVar[str]
    """Name on the command line and in `Classifier.task`."""
    answers: ClassVar[Answers]
    gives_probabilities: ClassVar[bool] = True
    """Whether `activate` returns probabilities."""
    signals: ClassVar[tuple[Pattern[str], ...]]
    """Names of columns that look like something to learn from. Such a column is an error, unless the task reads it."""

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


class RetrievalTask(Task):
    """A task that learns to embed queries and documents, from queries with relevant and other documents."""

    answers = "vectors"
    signals = (NEGATIVE, POSITIVE, SCORE)
    per_token: ClassVar[bool] = False
    """Whether a text has one vector per token, compared by MaxSim."""
    default_temperature: ClassVar[float] = 0.05
    """Divisor of the scores in the loss."""


@dataclass(frozen=True)
class Predictions:
    """The predictions of a model for the rows of a split.

    Attributes:
        found: The predictions, as the metrics of the task take them.
        expected: The labels, as the metrics take them.
        rows: For each row the JSON value that `predictions.jsonl` shows.
    """

    found: Any
    expected: Any
    rows: list[Any]


class ClassifierTask(Task):
    """A task that learns the scores of a linear layer on documents or tokens, from rows with labels.

    The defaults suit a task with one score for each text or pair of texts. A task with several scores, or with
    labels of tokens, overrides more.
    """

    answers: ClassVar[Answers] = "labels"
    signals: ClassVar[tuple[Pattern[str], ...]] = (SECOND_TEXT, SAMPLE_WEIGHT)
    column_fields: ClassVar[tuple[str, ...]] = ("text", "pair", "label")
    """Fields of `Columns` that the task reads."""
    metrics: ClassVar[Mapping[str, Metric]]
    """Metrics by name; the first decides which weights are kept."""
    libraries: ClassVar[tuple[str, ...]] = ()
    """Optional libraries that the metrics import."""

    scores_tokens: ClassVar[bool] = False
    """Whether the head scores tokens, not documents."""
    reads_pairs: ClassVar[bool] = False
    """Whether the head always scores pairs of texts."""
    ranks_pairs: ClassVar[bool] = False
    """Whether pairs are ranked by the score, if the head has a single one."""
    has_classes: ClassVar[bool] = False
    """Whether each label is one of several classes, which `class_weights` can weigh."""

    model_class: ClassVar[type[Classifier]] = Classifier
    """The class of the model: encoder and head."""
    head: ClassVar[str] = "SequenceClassification"
    """Name of the head in the Hugging Face classes: `ModernBertFor...`, `AutoModelFor...`."""
    problem_type: ClassVar[str | None] = None
    """The `problem_type` of config.json."""
    is_published: ClassVar[bool] = False
    """Whether `head` and `problem_type` identify the task. Otherwise config.json also has the name of the task."""
    fixed_labels: ClassVar[tuple[str, ...] | None] = None
    """The labels of every model of the task, whatever its config.json says."""
    output_names: ClassVar[tuple[str, ...]] = ("logits",)
    """Names of the outputs of an exported model; with several, each is one column of the scores."""
    other_families: ClassVar[bool] = True
    """Whether models of other families can be fine-tuned."""

    @property
    def architecture(self) -> str:
        """The entry of `architectures` in config.json."""
        return f"ModernBertFor{self.head}"

    @property
    def head_spec(self) -> HeadSpec:
        """The settings of a model's head for the task."""
        return HeadSpec(self.name, self.scores_tokens, self.reads_pairs, self.ranks_pairs)

    def columns_read(self, columns: Columns) -> list[str]:
        """Return the names of the columns that are read."""
        return [name for field in self.column_fields if (name := getattr(columns, field)) is not None]

    def signals_beside(self, columns: Columns) -> tuple[Pattern[str], ...]:
        """Return the `signals` that count, given the names of the columns."""
        return self.signals

    def check_columns(self, columns: Columns) -> None:
        """Check the names of the columns.

        Raises: InputError for a name that the task does not read, or one that is missing.
        """
        for field, default in vars(Columns()).items():
            found = getattr(columns, field)
            if found != default and field not in self.column_fields:
                raise InputError(
                    f"columns.{field}: found {found!r}, but {self.name} reads {', '.join(self.column_fields)}"
                )

    def prepare(self, rows: Sequence[Row], columns: Columns) -> list[Row]:
        """Return the rows to learn from, if they differ from the rows of the files."""
        return list(rows)

    def labels(self, rows: Sequence[Row], columns: Columns) -> list[str]:
        """Return the names of the scores, from the training rows.

        Raises: InputError naming a row without a label, or if the labels of all rows are the same.
        """
        return list(self.fixed_labels or ("score",))

    def check_rows(self, rows: Sequence[Row], columns: Columns) -> None:
        """Check the labels of all rows of a split at once.

        Raises: InputError naming a row, if its label was withheld.
        """

    def target(self, row: Row, columns: Columns, numbers: Mapping[str, int]) -> np.ndarray:
        """Return the label of a row as an array with one row, as the loss and `predict` take it.

        Args:
            row: A row.
            columns: Names of the columns.
            numbers: The labels of `labels` with their numbers.

        Raises: InputError naming the row, for a label that no training row has.
        """
        raise NotImplementedError

    def examples(self, rows: Sequence[Row], labels: Sequence[str], encoder: RowEncoder) -> Examples:
        """Return the examples of a split.

        Raises: InputError naming the row, for a label that does not fit, an empty text, or one that is too long.
        """
        self.check_rows(rows, encoder.columns)
        numbers = {name: number for number, name in enumerate(labels)}
        return encoder.documents(rows, [self.target(row, encoder.columns, numbers) for row in rows])

    def loss(self, class_weights: Float[Tensor, " labels"] | None) -> HeadLoss:
        """Return the loss; `class_weights` is None for a task without classes."""
        raise NotImplementedError

    def metrics_of(self, labels: Sequence[str], splits: Iterable[Examples]) -> dict[str, Metric]:
        """Return the metrics that these labels and examples have."""
        return dict(self.metrics)

    def deciding_metrics(self, metrics: Mapping[str, Metric], labels: Sequence[str]) -> tuple[str, ...]:
        """Return the names of the metrics that can decide which weights are kept, the default one first."""
        return tuple(metrics)

    def predict(self, logits: Float[np.ndarray, "M labels"], examples: Examples, labels: Sequence[str]) -> Predictions:
        """Turn the logits of a split into predictions."""
        raise NotImplementedError


_REGISTERED: dict[str, Task] = {}
_Kind = TypeVar("_Kind", bound=Task)


def register(task: Task) -> None:
    """Make a task known by its name.

    Raises: ValueError if another task has its name, or its `head` and `problem_type` in config.json.
    """
    for known in _REGISTERED.values():
        if type(known) is type(task):
            continue
        if known.name == task.name:
            raise ValueError(f"task {task.name!r}: registered by {type(known).__name__} and {type(task).__name__}")
        if _published_as(known) is not None and _published_as(known) == _published_as(task):
            raise ValueError(f"task {task.name!r}: has head and problem_type of {known.name!r}; set is_published=False")
    _REGISTERED[task.name] = task


def known_tasks() -> dict[str, Task]:
    """Return all tasks by name, in alphabetical order, from this package and from calls of `register`."""
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


def classifier_task(name: str) -> ClassifierTask:
    """Return the task of a fine-tuned head.

    Raises: InputError for an unknown name, or that of a task without such a head.
    """
    return _find(name, ClassifierTask)


def retrieval_task(name: str) -> RetrievalTask:
    """Return the task of a retriever.

    Raises: InputError for an unknown name, or that of another task.
    """
    return _find(name, RetrievalTask)


def start_classifier(model: Model, task: str, labels: Sequence[str], seed: int) -> Classifier:
    """Return a classifier for a task, with the encoder of a model; see `model.heads.new_classifier`.

    Raises: InputError for an unknown task, or labels that are not different.
    """
    found = classifier_task(task)
    return new_classifier(model, found.head_spec, labels, seed, found.model_class)


def task_of_config(architectures: Sequence[str], problem_type: str | None, num_labels: int) -> ClassifierTask | None:
    """Return the task that a published config.json is for, if this package has it."""
    published = [task for task in known_tasks().values() if isinstance(task, ClassifierTask) and task.is_published]
    named = [task for task in published if any(str(each).endswith(f"For{task.head}") for each in architectures)]
    # `problem_type` distinguishes tasks of documents. In configs of other tasks it means nothing.
    if len(named) <= 1:
        return named[0] if named else None
    if problem_type is not None:
        return next((task for task in named if task.problem_type == problem_type), None)
    # Older configs have none: a reranker has one score, a classifier several.
    return classifier_task("rerank" if num_labels == 1 else "classify")


def _find(name: str, kind: type[_Kind]) -> _Kind:
    task = find_task(name)
    if not isinstance(task, kind):
        known = ", ".join(name for name, each in known_tasks().items() if isinstance(each, kind))
        raise InputError(f"task: found {name!r}, expected {known}")
    return task


def _published_as(task: Task) -> tuple[str, str | None] | None:
    return (task.head, task.problem_type) if isinstance(task, ClassifierTask) and task.is_published else None
