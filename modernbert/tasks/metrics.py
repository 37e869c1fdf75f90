"""Metrics of tasks with labels. Each is a function of predictions and labels that returns one number.

A task lists its metrics by name (`ClassifierTask.metrics`). Of a metric whose name ends in `error`, less is better; of
all others, more. Source: scikit-learn and scipy where they have a metric; spans are counted as CoNLL-2000 counts them.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from modernbert.extras import missing

__all__ = [
    "Metric",
    "TaggedTexts",
    "accuracy",
    "accuracy_at_half",
    "answer_f1",
    "average_precision",
    "binary_f1",
    "exact_answers",
    "exact_rows",
    "macro_f1",
    "matthews",
    "mean_correlation",
    "multilabel_macro_f1",
    "multilabel_micro_f1",
    "pearson",
    "roc_auc",
    "scores_of",
    "span_f1",
    "span_precision",
    "span_recall",
    "spearman",
    "squared_error",
    "tag_accuracy",
]

Metric = Callable[[Any, Any], float]
"""(predictions, labels) -> score"""

_ARTICLES = re.compile(r"\b(a|an|the)\b")


def scores_of(metrics: Mapping[str, Metric], found: Any, expected: Any) -> dict[str, float]:
    """Return every metric of predictions."""
    return {name: metric(found, expected) for name, metric in metrics.items()}


def accuracy(found: Int[np.ndarray, " N"], expected: Int[np.ndarray, " N"]) -> float:
    """Return the share of labels that are right.

    >>> accuracy(np.array([0, 1, 1, 0]), np.array([0, 1, 0, 0]))
    0.75
    """
    return float((found == expected).mean())


def matthews(found: Int[np.ndarray, " N"], expected: Int[np.ndarray, " N"]) -> float:
    """Return Matthews correlation; 0 where all predictions are the same."""
    return float(_sklearn().matthews_corrcoef(expected, found))


def macro_f1(found: Int[np.ndarray, " N"], expected: Int[np.ndarray, " N"]) -> float:
    """Return the mean F1 of all labels."""
    return float(_sklearn().f1_score(expected, found, average="macro", zero_division=0.0))


def binary_f1(found: Int[np.ndarray, " N"], expected: Int[np.ndarray, " N"]) -> float:
    """Return the F1 of the second of two labels."""
    return float(_sklearn().f1_score(expected, found, zero_division=0.0))


def multilabel_micro_f1(found: Bool[np.ndarray, "N labels"], expected: Bool[np.ndarray, "N labels"]) -> float:
    """Return the F1 over all labels of all rows."""
    # scikit-learn takes a single column for a choice of two labels, and counts its absence as a hit.
    hits, marked = _hits_and_marks(found, expected)
    return float(2 * hits.sum() / max(1, marked.sum()))


def multilabel_macro_f1(found: Bool[np.ndarray, "N labels"], expected: Bool[np.ndarray, "N labels"]) -> float:
    """Return the mean F1 of all labels."""
    hits, marked = _hits_and_marks(found, expected)
    return float(np.mean(2 * hits / np.maximum(1, marked)))


def exact_rows(found: Bool[np.ndarray, "N labels"], expected: Bool[np.ndarray, "N labels"]) -> float:
    """Return the share of rows with all and only the right labels.

    >>> exact_rows(np.array([[True, False]]), np.array([[True, True]]))
    0.0
    """
    return float((found == expected).all(axis=1).mean())


def pearson(found: Float[np.ndarray, " N"], expected: Float[np.ndarray, " N"]) -> float:
    """Return Pearson's correlation; 0 where one side is constant."""
    return float(_scipy_stats().pearsonr(found, expected).statistic) if _both_vary(found, expected) else 0.0


def spearman(found: Float[np.ndarray, " N"], expected: Float[np.ndarray, " N"]) -> float:
    """Return Spearman's rank correlation; 0 where one side is constant.

    >>> spearman(np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 9.0]))
    1.0
    """
    return float(_scipy_stats().spearmanr(found, expected).statistic) if _both_vary(found, expected) else 0.0


def mean_correlation(found: Float[np.ndarray, " N"], expected: Float[np.ndarray, " N"]) -> float:
    """Return the mean of Pearson's and Spearman's correlation."""
    return (pearson(found, expected) + spearman(found, expected)) / 2


def squared_error(found: Float[np.ndarray, " N"], expected: Float[np.ndarray, " N"]) -> float:
    """Return the mean squared error."""
    return float(np.square(found.astype(np.float64) - expected).mean())


def average_precision(chances: Float[np.ndarray, " N"], expected: Float[np.ndarray, " N"]) -> float:
    """Return the average precision of pairs with label 1, ranked by their probability; 0 if there is none."""
    return float(_sklearn().average_precision_score(expected, chances)) if expected.any() else 0.0


def roc_auc(chances: Float[np.ndarray, " N"], expected: Float[np.ndarray, " N"]) -> float:
    """Return the share of (relevant, irrelevant) pairs in the right order; 0 if all labels are the same."""
    return float(_sklearn().roc_auc_score(expected, chances)) if len(np.unique(expected)) == 2 else 0.0


def accuracy_at_half(chances: Float[np.ndarray, " N"], expected: Float[np.ndarray, " N"]) -> float:
    """Return the share of pairs whose probability is on the right side of 0.5."""
    return float(((chances > 0.5) == expected).mean())


def exact_answers(found: Sequence[str], expected: Sequence[Sequence[str]]) -> float:
    """Return the share of answers that are exactly one of the right ones.

    Case, punctuation and articles do not count; "" is right where there is no answer. Source: the SQuAD evaluation
    script.

    >>> exact_answers(["The cat!", "a b"], [["cat"], ["b c", "d"]])
    0.5
    """
    rows = _answer_words(found, expected)
    return float(np.mean([max(said == words for words in right) for said, right in rows]))


def answer_f1(found: Sequence[str], expected: Sequence[Sequence[str]]) -> float:
    """Return the mean F1 of the words of answers, each with the right answer that fits best.

    >>> answer_f1(["The cat!", "a b"], [["cat"], ["b c", "d"]])
    0.8333333333333333
    """
    rows = _answer_words(found, expected)
    return float(np.mean([max(_word_f1(said, words) for words in right) for said, right in rows]))


@dataclass(frozen=True)
class TaggedTexts:
    """The tags of each text's words, and the spans of each text."""

    tags: Sequence[Sequence[str]]
    spans: Sequence[Set[Hashable]]


def span_f1(found: TaggedTexts, expected: TaggedTexts) -> float:
    """Return the F1 of whole spans: start, end and label are right."""
    right, guessed, wanted = _span_counts(found, expected)
    return 2 * right / (guessed + wanted) if guessed + wanted else 0.0


def span_precision(found: TaggedTexts, expected: TaggedTexts) -> float:
    """Return the share of predicted spans that are right."""
    right, guessed, _ = _span_counts(found, expected)
    return right / guessed if guessed else 0.0


def span_recall(found: TaggedTexts, expected: TaggedTexts) -> float:
    """Return the share of expected spans that were predicted."""
    right, _, wanted = _span_counts(found, expected)
    return right / wanted if wanted else 0.0


def tag_accuracy(found: TaggedTexts, expected: TaggedTexts) -> float:
    """Return the share of words with the right tag."""
    rows = zip(found.tags, expected.tags, strict=True)
    pairs = [pair for one, other in rows for pair in zip(one, other, strict=True)]
    return sum(a == b for a, b in pairs) / len(pairs)


def _hits_and_marks(found: np.ndarray, expected: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return (found & expected).sum(axis=0), found.sum(axis=0) + expected.sum(axis=0)


def _both_vary(found: np.ndarray, expected: np.ndarray) -> bool:
    return bool(found.std() > 0 and expected.std() > 0)


def _answer_words(found: Sequence[str], expected: Sequence[Sequence[str]]) -> list[tuple[list[str], list[list[str]]]]:
    rows = zip(found, expected, strict=True)
    return [(_words(guess), [_words(answer) for answer in answers or [""]]) for guess, answers in rows]


def _words(text: str) -> list[str]:
    plain = "".join(character for character in text.lower() if character not in string.punctuation)
    return _ARTICLES.sub(" ", plain).split()


def _word_f1(found: list[str], expected: list[str]) -> float:
    if not found or not expected:
        return float(found == expected)
    shared = sum((Counter(found) & Counter(expected)).values())
    return 2 * shared / (len(found) + len(expected))


def _span_counts(found: TaggedTexts, expected: TaggedTexts) -> tuple[int, int, int]:
    """Return the number of right, predicted and expected spans."""
    right = sum(len(mine & theirs) for mine, theirs in zip(found.spans, expected.spans, strict=True))
    return right, sum(map(len, found.spans)), sum(map(len, expected.spans))


def _sklearn() -> Any:
    try:
        from sklearn import metrics
    except ImportError:
        raise missing("scores", "sklearn") from None
    return metrics


def _scipy_stats() -> Any:
    try:
        from scipy import stats
    except ImportError:
        raise missing("scores", "scipy") from None
    return stats
