"""`rerank`: how well a document answers a query, for reranking search results."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from modernbert.data.rows import Row
from modernbert.data.unused_columns import NEGATIVE, POSITIVE, SCORE, is_negative, negatives_of
from modernbert.errors import InputError
from modernbert.tasks.columns import Columns
from modernbert.tasks.examples import Examples
from modernbert.tasks.head_losses import HeadLoss, bce_loss
from modernbert.tasks.metrics import Metric, accuracy_at_half, average_precision, roc_auc
from modernbert.tasks.regression import Regression
from modernbert.tasks.task import Predictions, register

__all__ = ["CrossEncoder"]


class CrossEncoder(Regression):
    """Score pairs of query and document from 0 to 1, with the binary cross entropy as the loss."""

    name = "rerank"
    answers = "ranking"
    problem_type = None
    signals = (NEGATIVE, POSITIVE, SCORE)
    reads_pairs = True
    gives_probabilities = True
    metrics = {"average_precision": average_precision, "roc_auc": roc_auc, "accuracy": accuracy_at_half}
    libraries = ("sklearn", "scipy")

    def check_columns(self, columns: Columns) -> None:
        """Check the names of the columns; that of the documents has no default.

        Raises: InputError for a name that the task does not read, or without one of the documents.
        """
        if columns.pair is None:
            raise InputError("columns.pair: found none, expected the column of the texts that are ranked")
        super().check_columns(columns)

    def prepare(self, rows: Sequence[Row], columns: Columns) -> list[Row]:
        """Make pairs of rows with negatives and no label: 1 for the text of `columns.pair`, 0 for each negative.

        Raises: InputError naming the row, for one with both, or an empty text.
        """
        found: list[Row] = []
        pair = columns.pair or "positive"
        for row in rows:
            negatives = negatives_of(row)
            if not negatives:
                found.append(row)
                continue
            if row.values.get(columns.label) is not None:
                raise InputError(f"{row.origin}: found {columns.label} and negatives, expected one of them")
            others = {key: value for key, value in row.values.items() if not is_negative(key)}
            for text, label in ((row.text(pair), 1), *((text, 0) for text in negatives)):
                found.append(Row(others | {pair: text, columns.label: label}, row.origin))
        return found

    def target(self, row: Row, columns: Columns, numbers: Mapping[str, int]) -> np.ndarray:
        """Return the label: 0, 1, or a grade between them.

        Raises: InputError naming the row, for another number.
        """
        label = super().target(row, columns, numbers)
        if not 0 <= label[0] <= 1:
            raise InputError(f"{row.origin}: the label of a pair is {label[0]:g}, expected 0 to 1")
        return label

    def loss(self, class_weights: Tensor | None) -> HeadLoss:
        """Return the binary cross entropy."""
        return bce_loss

    def metrics_of(self, labels: Sequence[str], splits: Iterable[Examples]) -> dict[str, Metric]:
        """Return metrics of ranking, or of regression if some labels are grades between 0 and 1."""
        is_graded = any(example.labels[0] not in (0, 1) for examples in splits for example in examples.items)
        return dict(Regression.metrics if is_graded else self.metrics)

    def predict(self, logits: np.ndarray, examples: Examples, labels: Sequence[str]) -> Predictions:
        """Predict the probability that the document answers the query."""
        chances = 1 / (1 + np.exp(-logits[:, 0]))
        return Predictions(chances, np.concatenate([each.labels for each in examples.items]), chances.tolist())

    def activate(self, logits: Tensor) -> Tensor:
        """Return the probability that the document answers the query."""
        return torch.sigmoid(logits)


register(CrossEncoder())
