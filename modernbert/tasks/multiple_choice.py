"""`choose`: the right continuation of a text among several."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from modernbert.data.rows import Row
from modernbert.data.unused_columns import TARGET
from modernbert.errors import InputError
from modernbert.tasks.columns import Columns
from modernbert.tasks.examples import Example, Examples, RowEncoder, texts_of
from modernbert.tasks.head_losses import HeadLoss, multiple_choice_loss
from modernbert.tasks.metrics import accuracy
from modernbert.tasks.task import ClassifierTask, Predictions, register

__all__ = ["MultipleChoice"]


class MultipleChoice(ClassifierTask):
    """Score each choice with one logit and compare the choices of a question."""

    name = "choose"
    answers = "none"
    head = "MultipleChoice"
    is_published = True
    fixed_labels = ("score",)
    other_families = False
    reads_pairs = True
    column_fields = ("text", "choices", "label")
    signals = (TARGET,)
    metrics = {"accuracy": accuracy}

    def examples(self, rows: Sequence[Row], labels: Sequence[str], encoder: RowEncoder) -> Examples:
        """Return an example for each row: a document for each choice, with the label (row, 1 if it is right, else 0).

        Raises: InputError naming the row, for fewer than two choices, a label that names none of them, an empty text,
        or one that is too long.
        """
        examples, columns = Examples(), encoder.columns
        for number, row in enumerate(rows):
            choices, right = _choices_of(row, columns)
            pairs = [(row.text(columns.text), choice) for choice in choices]
            for tokens in encoder.tokenizer.encode_pairs(pairs):
                encoder.fit(row, tokens, examples)
            documents = encoder.tokenizer.encode_pairs(pairs, encoder.max_length)
            targets = np.array([[number, int(place == right)] for place in range(len(choices))])
            lengths = tuple(len(each) for each in documents)
            examples.add(row, Example(np.concatenate(documents), targets, lengths=lengths))
        return examples

    def loss(self, class_weights: Tensor | None) -> HeadLoss:
        """Return the cross entropy over the choices of a question."""
        return multiple_choice_loss

    def predict(self, logits: np.ndarray, examples: Examples, labels: Sequence[str]) -> Predictions:
        """Predict the number of the choice with the highest score."""
        ends = np.cumsum([len(each.labels) for each in examples.items])[:-1]
        guesses = [int(each.argmax()) for each in np.split(logits[:, 0], ends)]
        right = [int(each.labels[:, 1].argmax()) for each in examples.items]
        return Predictions(np.array(guesses), np.array(right), guesses)


def _choices_of(row: Row, columns: Columns) -> tuple[list[str], float]:
    """Return the choices of a row and the number of the right one."""
    choices = texts_of(row, columns.choices)
    if len(choices) < 2 or not all(choice.strip() for choice in choices):
        raise InputError(f"{row.origin}: {columns.choices} has {len(choices)} texts, expected two or more, none empty")
    right = row.number(columns.label)
    if right not in range(len(choices)):
        raise InputError(f"{row.origin}: {columns.label} is {right:g}, expected 0 to {len(choices) - 1}")
    return choices, right


register(MultipleChoice())
