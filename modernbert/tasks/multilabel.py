"""`multilabel`: any number of labels for each text or pair of texts."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from modernbert.data.rows import Row
from modernbert.data.unused_columns import LABELS, SAMPLE_WEIGHT, SECOND_TEXT
from modernbert.errors import InputError
from modernbert.tasks.columns import Columns
from modernbert.tasks.examples import Examples, check_not_withheld
from modernbert.tasks.head_losses import HeadLoss, bce_loss
from modernbert.tasks.metrics import exact_rows, multilabel_macro_f1, multilabel_micro_f1
from modernbert.tasks.task import ClassifierTask, Predictions, register

__all__ = ["Multilabel"]


class Multilabel(ClassifierTask):
    """Decide each label on its own."""

    name = "multilabel"
    problem_type = "multi_label_classification"
    is_published = True
    signals = (SECOND_TEXT, LABELS, SAMPLE_WEIGHT)
    ranks_pairs = True
    metrics = {"micro_f1": multilabel_micro_f1, "macro_f1": multilabel_macro_f1, "exact": exact_rows}

    def labels(self, rows: Sequence[Row], columns: Columns) -> list[str]:
        """Return all labels of the rows, in alphabetical order.

        Raises: InputError if no row has one.
        """
        of_rows = [_labels_of(row, columns.label) for row in rows]
        check_not_withheld(rows, columns.label, of_rows)
        found = {name for of_row in of_rows for name in of_row}
        if not found:
            raise InputError(f"{columns.label}: no row has a label, expected at least one")
        return sorted(found)

    def check_rows(self, rows: Sequence[Row], columns: Columns) -> None:
        """Refuse a split without any label.

        Raises: InputError naming the first row.
        """
        if len(rows) > 1 and not any(_labels_of(row, columns.label) for row in rows):
            raise InputError(
                f"{rows[0].origin}: {columns.label} has no label here nor in any other row, as where they were "
                "withheld; choose a split with labels"
            )

    def target(self, row: Row, columns: Columns, numbers: Mapping[str, int]) -> np.ndarray:
        """Return 1 for each label that the row has, else 0.

        Raises: InputError naming the row, for a label that no training row has.
        """
        found = np.zeros((1, len(numbers)), dtype=np.float32)
        for name in _labels_of(row, columns.label):
            if name not in numbers:
                raise InputError(f"{row.origin}: {columns.label} has {name!r}, which no training row has")
            found[0, numbers[name]] = 1
        return found

    def loss(self, class_weights: Tensor | None) -> HeadLoss:
        """Return the binary cross entropy."""
        return bce_loss

    def predict(self, logits: np.ndarray, examples: Examples, labels: Sequence[str]) -> Predictions:
        """Predict the labels whose probability is above 0.5."""
        found = logits > 0
        expected = np.concatenate([each.labels for each in examples.items]) > 0
        return Predictions(found, expected, [[labels[number] for number in row.nonzero()[0]] for row in found])

    def activate(self, logits: Tensor) -> Tensor:
        """Return the probability of each label, independent of the others."""
        return torch.sigmoid(logits)


def _labels_of(row: Row, column: str) -> list[str]:
    """Return the labels of a row, from a list or from text with commas between them."""
    found = row.value(column)
    if isinstance(found, str):
        found = [name.strip() for name in found.split(",")] if found.strip() else []
    is_list = isinstance(found, list) and all(type(name) in (str, int) and str(name).strip() for name in found)
    if not is_list or len(set(map(str, found))) < len(found):
        raise InputError(f"{row.origin}: {column} is {str(found)[:60]!r}, expected a list of different labels")
    row.check_labels(column, *map(str, found))
    return [str(name) for name in found]


register(Multilabel())
