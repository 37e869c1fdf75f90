"""`extract`: the words of a passage that answer a question (SQuAD)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from modernbert.data.labeled_rows import Row
from modernbert.errors import InputError
from modernbert.tasks.examples import Columns, Example, Examples, fit
from modernbert.tasks.task import Task, register
from modernbert.tokenizer.tokenizer import Tokenizer

__all__ = ["Passage", "QuestionAnswering", "answer_in", "qa_examples"]

# Tokens of the longest answer that is looked for.
LONGEST_ANSWER = 64


class QuestionAnswering(Task):
    """Find the first and the last token of the answer."""

    name = "extract"
    answers = "none"


@dataclass(frozen=True)
class Passage:
    """Hold a passage, the characters of it that each token of its example stands for, and all right answers.

    None is right where the passage does not answer the question.
    """

    text: str
    places: np.ndarray
    answers: tuple[str, ...]


def qa_examples(
    rows: Sequence[Row], tokenizer: Tokenizer, columns: Columns, longest: int, *, cut: bool
) -> tuple[Examples, list[Passage]]:
    """Make an example of each row: question, passage, and the first right answer's first and last token.

    A question that its passage does not answer has the first token, [CLS], for both; so has one whose answer was cut
    off.

    Raises: InputError naming the row, for an answer that is not where it is said to be, or a text that is too long.
    """
    if len(rows) > 1 and not any(_answers(row, columns.answers, row.text(columns.pair or "context")) for row in rows):
        raise InputError(
            f"{rows[0].origin}: {columns.answers} has no answer here nor in any other row, as where they were "
            "withheld; choose a split with answers"
        )
    examples, passages = Examples(), []
    for row in rows:
        question, passage = row.text(columns.text), row.text(columns.pair or "context")
        answers = _answers(row, columns.answers, passage)
        ((tokens, places),) = tokenizer.encode_located([(question, passage)])
        kept = fit(row, tokens, tokenizer, longest, cut, examples)
        if kept is not tokens:
            behind = tokenizer.num_special[1]
            places = np.concatenate([places[: longest - behind], places[len(places) - behind :]])
        label = (0, 0)
        if answers:
            begin, text = answers[0]
            inside = np.flatnonzero((places[:, 0] < begin + len(text)) & (places[:, 1] > begin))
            if len(inside) and places[inside[-1], 1] >= begin + len(text):
                label = (int(inside[0]), int(inside[-1]))
            else:
                examples.num_words_cut += 1
        examples.items.append(Example(kept, np.array([label])))
        examples.origins.append(row.origin)
        passages.append(Passage(passage, places, tuple(text for _, text in answers)))
    return examples, passages


def answer_in(passage: Passage, scores: np.ndarray) -> str:
    """Return the words of a passage that score best as first and last token [T, 2] together; "" where [CLS] does.

    >>> places = np.array([[-1, -1], [0, 3], [3, 8]])
    >>> answer_in(Passage("the city", places, ()), np.array([[0.0, 0.0], [1.0, 0.0], [3.0, 4.0]]))
    'city'
    """
    inside = np.flatnonzero(passage.places[:, 0] >= 0)
    best, found = scores[0].sum(), (0, 0)
    for first in inside:
        last = inside[(inside >= first) & (inside < first + LONGEST_ANSWER)]
        place = int(last[scores[last, 1].argmax()])
        score = scores[first, 0] + scores[place, 1]
        if score > best:
            best, found = score, (int(first), place)
    if found == (0, 0):
        return ""
    return passage.text[passage.places[found[0], 0] : passage.places[found[1], 1]].strip()


def _answers(row: Row, column: str, passage: str) -> list[tuple[int, str]]:
    """Return (first character, text) of each answer."""
    found: Any = row.value(column)
    try:
        starts, texts = found["answer_start"], found["text"]
        answers = [(int(start), str(text)) for start, text in zip(starts, texts, strict=True)]
    except (TypeError, KeyError, ValueError, OverflowError):
        raise InputError(
            f"{row.origin}: {column} is {str(found)[:60]}, expected answer_start and text, lists"
        ) from None
    for start, text in answers:
        if not text or start < 0 or passage[start : start + len(text)] != text:
            raise InputError(f"{row.origin}: {text!r} does not stand at character {start:,} of the passage")
    return answers


register(QuestionAnswering())
