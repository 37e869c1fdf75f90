"""Training examples of retrieval: queries with relevant and other passages, and the comparisons of a step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from modernbert.data.rows import Row
from modernbert.data.unused_columns import check_signals, is_negative, negatives_of
from modernbert.errors import InputError
from modernbert.tasks.task import RetrievalTask

__all__ = [
    "RetrievalExample",
    "examples_of_collection",
    "examples_of_ids",
    "examples_of_rows",
    "step_of",
    "share_positives",
]


@dataclass(frozen=True)
class RetrievalExample:
    """A query and its passages.

    Attributes:
        query: The query.
        positive: A passage that answers it.
        others: Hard negatives, or all other passages with a score.
        scores: A teacher's score of each passage, that of `positive` first.
        positives: All passages that answer the query; none of them is used as a negative.
    """

    query: str
    positive: str
    others: Sequence[str] = ()
    scores: np.ndarray | None = None
    positives: frozenset[str] = field(default_factory=frozenset)


def examples_of_rows(rows: Sequence[Row], task: RetrievalTask) -> list[RetrievalExample]:
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
        found.append(RetrievalExample(query, answer, others, scores, frozenset([answer])))
    return found


def examples_of_collection(
    queries: Mapping[str, str], documents: Mapping[str, str], judgments: Mapping[str, Mapping[str, int]]
) -> list[RetrievalExample]:
    """Make an example of each query and each document that answers it."""
    found = []
    for query, grades in judgments.items():
        fitting = [documents[key] for key, grade in grades.items() if grade > 0 and key in documents]
        found += [RetrievalExample(queries[query], each, positives=frozenset(fitting)) for each in fitting]
    return found


def examples_of_ids(
    rows: Sequence[Row], queries: Mapping[str, str], documents: Mapping[str, str], task: RetrievalTask
) -> list[RetrievalExample]:
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
        found.append(RetrievalExample(queries[str(query)], first, others, _scores(row, len(ids)), frozenset([first])))
    return found


def share_positives(examples: Sequence[RetrievalExample]) -> list[RetrievalExample]:
    """Give every example the positives of all examples with the same query, from any source.

    >>> [sorted(each.positives) for each in share_positives([RetrievalExample("q", "a"), RetrievalExample("q", "b")])]
    [['a', 'b'], ['a', 'b']]
    """
    answers: dict[str, set[str]] = {}
    for example in examples:
        answers.setdefault(example.query, set()).update(example.positives, [example.positive])
    fixed = {query: frozenset(texts) for query, texts in answers.items()}
    return [replace(example, positives=fixed[example.query]) for example in examples]


def step_of(examples: Sequence[RetrievalExample]) -> tuple[list[str], list[list[int]], list[tuple[int, int]]]:
    """Return the comparisons of a step.

    Returns:
        The passages of all examples, positives first; for each example the numbers of its passages; and pairs
        (example, passage) of passages that answer an example, too, but are another example's.

    >>> step_of([RetrievalExample("q", "a", ["x"]), RetrievalExample("r", "b")])[:2]
    (['a', 'b', 'x'], [[0, 2], [1]])
    """
    passages = [example.positive for example in examples]
    candidates = []
    for number, example in enumerate(examples):
        candidates.append([number, *range(len(passages), len(passages) + len(example.others))])
        passages.extend(example.others)
    known = [
        (number, place)
        for number, example in enumerate(examples)
        for place, passage in enumerate(passages)
        if place != number and (passage in example.positives or passage == example.positive)
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
