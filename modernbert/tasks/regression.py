"""`regress`: a number for each text or pair of texts."""

from collections.abc import Mapping, Sequence
from re import Pattern
from typing import ClassVar

import numpy as np
from torch import Tensor

from modernbert.data.rows import Row
from modernbert.data.unused_columns import SAMPLE_WEIGHT, SECOND_TEXT, TARGET
from modernbert.errors import InputError
from modernbert.tasks.columns import Columns
from modernbert.tasks.examples import Examples
from modernbert.tasks.head_losses import HeadLoss, mse_loss
from modernbert.tasks.metrics import mean_correlation, pearson, spearman, squared_error
from modernbert.tasks.task import ClassifierTask, Predictions, register

__all__ = ["Regression"]


class Regression(ClassifierTask):
    """Predict a number, with the mean squared error as the loss."""

    name = "regress"
    problem_type: ClassVar[str | None] = "regression"
    is_published = True
    signals = (SECOND_TEXT, TARGET, SAMPLE_WEIGHT)
    ranks_pairs = True
    gives_probabilities = False
    metrics = {
        "correlation": mean_correlation, "pearson": pearson, "spearman": spearman, "squared_error": squared_error,
    }  # fmt: skip
    libraries: ClassVar[tuple[str, ...]] = ("scipy",)

    def signals_beside(self, columns: Columns) -> tuple[Pattern[str], ...]:
        """Return all signals; a column that is named as the label makes other labels and scores irrelevant."""
        is_named = Columns().label not in self.columns_read(columns)
        return tuple(each for each in self.signals if not (each is TARGET and is_named))

    def check_rows(self, rows: Sequence[Row], columns: Columns) -> None:
        """Refuse a split whose labels are all -1.

        Raises: InputError naming the first row.
        """
        if len(rows) > 1 and all(row.number(columns.label) == -1 for row in rows):
            raise InputError(
                f"{rows[0].origin}: {columns.label} is -1 here and in every other row, the mark of labels that "
                "were withheld; choose a split with labels"
            )

    def target(self, row: Row, columns: Columns, numbers: Mapping[str, int]) -> np.ndarray:
        """Return the label as a number.

        Raises: InputError naming the row, for a label that is no finite number.
        """
        return np.array([row.number(columns.label)], dtype=np.float32)

    def loss(self, class_weights: Tensor | None) -> HeadLoss:
        """Return the squared error."""
        return mse_loss

    def predict(self, logits: np.ndarray, examples: Examples, labels: Sequence[str]) -> Predictions:
        """Predict the score."""
        expected = np.concatenate([each.labels for each in examples.items])
        return Predictions(logits[:, 0], expected, logits[:, 0].tolist())

    def activate(self, logits: Tensor) -> Tensor:
        """Return the logits: they are the predicted numbers."""
        return logits


register(Regression())
