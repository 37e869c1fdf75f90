"""Training examples of retrieval: queries with relevant and other passages, and the comparisons of a step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from modernbert.data.labeled_rows import Row
from modernbert.data.unused_columns import check_signals, is_negative, negatives_of
from modernbert.errors import InputError
from modernbert.tasks.task import RetrievalTask

__all__ = [
    "Question",
    "questions_of_collection",
    "questions_of_ids",
    "questions_of_rows",
    "step_of",
    "with_answers_shared",
]


@dataclass(frozen=True)
class Question:
    """A query and its passages.

    Attributes:
        query: The query.
        answer: A passage that answers it.
        others: Hard negatives, or all other passages with a score.
        scores: A teacher's score of each passage, that of `answer` first.
        answers: All passages that answer the query; none of them is used as a negative.
    """

    query: str
    answer: str
    others: Sequence[str] = ()
    scores: np.ndarray | None = None
    answers: frozenset[str] = field(default_factory=frozenset)


def questions_of_rows(rows: Sequence[Row], task: RetrievalTask) -> list[Question]:
    """Read `query`, `positive`, and if present `negative`, `negative_1`, ... or `negatives`, and `scores`.

    Raises: InputError naming the row, for an empty text, a wrong number of scores, or another column that looks like
    something to learn from.
    """
    negatives = {name for row in rows for name in row.values if is_negative(name)}
    check_signals(
        rows, task.name, task.signals, ["query", "positive", *sorted({"negative", "negatives"} | negatives), "scores"]
    )
    has_scores = [row.values.get("scores") is not None for row in rows]
    found = []
    for row, scored in zip(rows, has_scores, strict=True):
        if scored != has_scores[0]:
            raise InputError(f"{row.origin}: {'has' if scored else 'has no'} scores, the first row has it otherwise")
        query, answer, others = row.text("query"), row.text("positive"), negatives_of(row)
        scores = _scores(row, 1 + len(others)) if scored else None
        found.append(Question(query, answer, others, scores, frozenset([answer])))
    return found


def questions_of_collection(
    queries: Mapping[str, str], documents: Mapping[str, str], judgments: Mapping[str, Mapping[str, int]]
) -> list[Question]:
    """Make a question of each query and each document that answers it."""
    found = []
    for query, grades in judgments.items():
        fitting = [documents[key] for key, grade in grades.items() if grade > 0 and key in documents]
        found += [Question(queries[query], each, answers=frozenset(fitting)) for each in fitting]
    return found


def questions_of_ids(
    rows: Sequence[Row], queries: Mapping[str, str], documents: Mapping[str, str], task: RetrievalTask
) -> list[Question]:
    """Read `query_id`, `document_ids` and a teacher's `scores` of rows that name the texts of a collection.

    Raises: InputError naming the row, for an unknown id, a wrong number of scores, or another column that looks like
    something to learn from.
    """
    check_signals(rows, task.name, task.signals, ["query_id", "document_ids", "scores"], by_ids=True)
    found = []
    for row in rows:
        query, ids = row.value("query_id"), row.value("document_ids")
        if isinstance(ids, str) or not isinstance(ids, Sequence) or not ids:
            raise InputError(f"{row.origin}: document_ids is {str(ids)[:60]!r}, expected a list of ids")
        for key, known, name in ((query, queries, "queries"), *((each, documents, "documents") for each in ids)):
            if str(key) not in known:
                raise InputError(f"{row.origin}: found the id {str(key)!r}, which the {name} have not")
        first, *others = (documents[str(key)] for key in ids)
        found.append(Question(queries[str(query)], first, others, _scores(row, len(ids)), frozenset([first])))
    return found


def with_answers_shared(questions: Sequence[Question]) -> list[Question]:
    """Give every question the answers of all questions with the same query, from any source.

    >>> [sorted(each.answers) for each in with_answers_shared([Question("q", "a"), Question("q", "b")])]
    [['a', 'b'], ['a', 'b']]
    """
    answers: dict[str, set[str]] = {}
    for question in questions:
        answers.setdefault(question.query, set()).update(question.answers, [question.answer])
    fixed = {query: frozenset(texts) for query, texts in answers.items()}
    return [replace(question, answers=fixed[question.query]) for question in questions]


def step_of(questions: Sequence[Question]) -> tuple[list[str], list[list[int]], list[tuple[int, int]]]:
    """Return what a step compares.

    Returns:
        The passages of all questions, answers first; for each question the numbers of its own passages; and pairs
        (question, passage) of passages that answer a question, too, but are another question's.

    >>> step_of([Question("q", "a", ["x"]), Question("r", "b")])[:2]
    (['a', 'b', 'x'], [[0, 2], [1]])
    """
    passages = [question.answer for question in questions]
    candidates = []
    for number, question in enumerate(questions):
        candidates.append([number, *range(len(passages), len(passages) + len(question.others))])
        passages.extend(question.others)
    known = [
        (number, place)
        for number, question in enumerate(questions)
        for place, passage in enumerate(passages)
        if place != number and (passage in question.answers or passage == question.answer)
    ]
    return passages, candidates, known


def _scores(row: Row, number: int) -> np.ndarray:
    written = row.value("scores")
    try:
        scores = np.asarray(written, dtype=np.float32)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{row.origin}: scores is {str(written)[:60]!r}, expected numbers") from None
    if scores.shape != (number,) or not np.isfinite(scores).all():
        raise InputError(
            f"{row.origin}: found {scores.size} scores, expected {number} finite ones, the positive's first"
        )
    if number < 2:
        raise InputError(f"{row.origin}: has scores of one passage, expected at least two to compare")
    return scores
