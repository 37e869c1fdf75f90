"""`classify`: one of several labels for each text or pair of texts."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from modernbert.data.rows import Row
from modernbert.data.unused_columns import LABELS, SAMPLE_WEIGHT, SECOND_TEXT
from modernbert.errors import InputError
from modernbert.tasks.columns import Columns
from modernbert.tasks.examples import Examples, check_not_withheld, label_of
from modernbert.tasks.head_losses import HeadLoss, cross_entropy_loss
from modernbert.tasks.metrics import Metric, accuracy, binary_f1, macro_f1, matthews
from modernbert.tasks.task import ClassifierTask, Predictions, register

__all__ = ["Classification"]


class Classification(ClassifierTask):
    """Choose one label for each text."""

    name = "classify"
    problem_type = "single_label_classification"
    is_published = True
    signals = (SECOND_TEXT, LABELS, SAMPLE_WEIGHT)
    has_classes = True
    metrics = {"accuracy": accuracy, "matthews": matthews, "macro_f1": macro_f1, "f1": binary_f1}
    libraries = ("sklearn",)

    def labels(self, rows: Sequence[Row], columns: Columns) -> list[str]:
        """Return the labels of the rows: numbers in their order if all are numbers, else in alphabetical order.

        Raises: InputError if a row has none, or all have the same.
        """
        of_rows = [[label_of(row, columns.label)] for row in rows]
        check_not_withheld(rows, columns.label, of_rows)
        found = {name for (name,) in of_rows}
        if len(found) < 2:
            raise InputError(f"{columns.label}: every row is {next(iter(found))!r}, expected at least two labels")
        return sorted(found, key=int) if all(name.isdecimal() for name in found) else sorted(found)

    def target(self, row: Row, columns: Columns, numbers: Mapping[str, int]) -> np.ndarray:
        """Return the number of the row's label.

        Raises: InputError naming the row, for a label that no training row has.
        """
        name = label_of(row, columns.label)
        if name not in numbers:
            check_not_withheld([row], columns.label, [[name]])
            raise InputError(f"{row.origin}: {columns.label} is {name!r}, which no training row has")
        return np.array([numbers[name]])

    def loss(self, class_weights: Tensor | None) -> HeadLoss:
        """Return the cross entropy."""
        return cross_entropy_loss(class_weights)

    def metrics_of(self, labels: Sequence[str], splits: Iterable[Examples]) -> dict[str, Metric]:
        """Return all metrics; F1 is that of the second of two labels."""
        return {name: metric for name, metric in self.metrics.items() if name != "f1" or len(labels) == 2}

    def predict(self, logits: np.ndarray, examples: Examples, labels: Sequence[str]) -> Predictions:
        """Predict the label with the highest score."""
        best = logits.argmax(axis=1)
        expected = np.concatenate([each.labels for each in examples.items])
        return Predictions(best, expected, [labels[number] for number in best])

    def activate(self, logits: Tensor) -> Tensor:
        """Return the probability of each label; they sum to 1."""
        return torch.softmax(logits, dim=-1)


register(Classification())
