"""`extract`: the words of a passage that answer a question (SQuAD)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from modernbert.data.rows import Row
from modernbert.data.unused_columns import TARGET
from modernbert.errors import InputError
from modernbert.tasks.columns import Columns
from modernbert.tasks.examples import Example, Examples, RowEncoder
from modernbert.tasks.head_losses import HeadLoss, span_loss
from modernbert.tasks.metrics import answer_f1, exact_answers
from modernbert.tasks.task import ClassifierTask, Predictions, register

__all__ = ["Passage", "QuestionAnswering", "QuestionAnsweringExamples", "answer_in"]

_MAX_ANSWER_TOKENS = 64


@dataclass(frozen=True)
class Passage:
    """A passage, the range of its characters for each token of its example, and all right answers."""

    text: str
    places: np.ndarray
    answers: tuple[str, ...]
    """Empty where the passage does not answer the question."""


@dataclass
class QuestionAnsweringExamples(Examples):
    """Examples of questions and passages."""

    passages: list[Passage] = field(default_factory=list)
    num_answers_cut: int = 0
    """Answers that were cut off with the end of their passage."""

    def losses(self) -> list[tuple[int, str]]:
        """Return how much was lost, each as a number and its description."""
        return [*super().losses(), (self.num_answers_cut, "words cut off with them")]


class QuestionAnswering(ClassifierTask):
    """Find the first and the last token of the answer."""

    name = "extract"
    answers = "none"
    head = "QuestionAnswering"
    is_published = True
    fixed_labels = ("start", "end")
    output_names = ("start_logits", "end_logits")
    other_families = False
    scores_tokens = True
    reads_pairs = True
    column_fields = ("text", "pair", "answers")
    signals = (TARGET,)
    metrics = {"f1": answer_f1, "exact": exact_answers}

    def columns_read(self, columns: Columns) -> list[str]:
        """Return the names of the columns that are read; that of the passage is `context` by default."""
        return super().columns_read(columns) + ([] if columns.pair else [_passage_column(columns)])

    def check_rows(self, rows: Sequence[Row], columns: Columns) -> None:
        """Refuse a split without any answer.

        Raises: InputError naming the first row.
        """
        if len(rows) > 1 and not any(_answers_of(row, columns) for row in rows):
            raise InputError(
                f"{rows[0].origin}: {columns.answers} has no answer here nor in any other row, as where they were "
                "withheld; choose a split with answers"
            )

    def examples(self, rows: Sequence[Row], labels: Sequence[str], encoder: RowEncoder) -> QuestionAnsweringExamples:
        """Return an example for each row: question, passage, and the first and last token of the first right answer.

        A question that its passage does not answer has the first token, [CLS], for both; so has one whose answer was
        cut off.

        Raises: InputError naming the row, for an answer that is not where it is said to be, or a text that is too long.
        """
        columns, examples = encoder.columns, QuestionAnsweringExamples()
        self.check_rows(rows, columns)
        for row in rows:
            question, passage = row.text(columns.text), row.text(_passage_column(columns))
            answers = _answers_of(row, columns)
            ((tokens, places),) = encoder.tokenizer.encode_pairs_with_offsets([(question, passage)])
            kept = encoder.fit(row, tokens, examples)
            if kept is not tokens:
                behind = encoder.tokenizer.num_special[1]
                places = np.concatenate([places[: encoder.max_length - behind], places[len(places) - behind :]])
            target = _tokens_of(answers[0], places) if answers else (0, 0)
            examples.num_answers_cut += target is None
            examples.add(row, Example(kept, np.array([target or (0, 0)])))
            examples.passages.append(Passage(passage, places, tuple(text for _, text in answers)))
        return examples

    def loss(self, class_weights: Tensor | None) -> HeadLoss:
        """Return the cross entropy of first and last token."""
        return span_loss

    def predict(self, logits: np.ndarray, examples: Examples, labels: Sequence[str]) -> Predictions:
        """Predict the answer of each question, or "" where none scores best."""
        assert isinstance(examples, QuestionAnsweringExamples)
        ends = np.cumsum([len(each.tokens) for each in examples.items])[:-1]
        parts = zip(examples.passages, np.split(logits, ends), strict=True)
        answers = [answer_in(passage, scores) for passage, scores in parts]
        return Predictions(answers, [each.answers for each in examples.passages], answers)


def answer_in(passage: Passage, scores: np.ndarray) -> str:
    """Return the words of a passage that score best as first and last token [T, 2] together; "" where [CLS] does.

    >>> places = np.array([[-1, -1], [0, 3], [3, 8]])
    >>> answer_in(Passage("the city", places, ()), np.array([[0.0, 0.0], [1.0, 0.0], [3.0, 4.0]]))
    'city'
    """
    inside = np.flatnonzero(passage.places[:, 0] >= 0)
    best, found = scores[0].sum(), (0, 0)
    for first in inside:
        last = inside[(inside >= first) & (inside < first + _MAX_ANSWER_TOKENS)]
        place = int(last[scores[last, 1].argmax()])
        score = scores[first, 0] + scores[place, 1]
        if score > best:
            best, found = score, (int(first), place)
    if found == (0, 0):
        return ""
    return passage.text[passage.places[found[0], 0] : passage.places[found[1], 1]].strip()


def _tokens_of(answer: tuple[int, str], places: np.ndarray) -> tuple[int, int] | None:
    """Return the first and last token of an answer; None if a part of it was cut off."""
    begin, text = answer
    inside = np.flatnonzero((places[:, 0] < begin + len(text)) & (places[:, 1] > begin))
    if not len(inside) or places[inside[-1], 1] < begin + len(text):
        return None
    return int(inside[0]), int(inside[-1])


def _passage_column(columns: Columns) -> str:
    return columns.pair or "context"


def _answers_of(row: Row, columns: Columns) -> list[tuple[int, str]]:
    """Return (first character, text) of each answer."""
    passage = row.text(_passage_column(columns))
    found: Any = row.value(columns.answers)
    try:
        starts, texts = found["answer_start"], found["text"]
        answers = [(int(start), str(text)) for start, text in zip(starts, texts, strict=True)]
    except (TypeError, KeyError, ValueError, OverflowError):
        raise InputError(
            f"{row.origin}: {columns.answers} is {str(found)[:60]}, expected answer_start and text, lists"
        ) from None
    for start, text in answers:
        if not text or start < 0 or passage[start : start + len(text)] != text:
            raise InputError(f"{row.origin}: {text!r} does not stand at character {start:,} of the passage")
    return answers


register(QuestionAnswering())
