"""How well labels, numbers and tags were predicted.

In: what a model said and what was expected. Out: named scores. A file of its own because ranking has other metrics.
Source: scikit-learn and scipy for what they have; spans are counted as CoNLL-2000 counts them.
"""

import re
import string
from collections import Counter
from collections.abc import Hashable, Sequence, Set

import numpy as np
from jaxtyping import Bool, Float, Int

from modernbert.data.words import spans_of
from modernbert.extras import missing

__all__ = [
    "LIBRARIES",
    "METRICS",
    "answer_scores",
    "label_scores",
    "multilabel_scores",
    "number_scores",
    "pair_scores",
    "tag_scores",
]

METRICS = {
    "classify": ("accuracy", "matthews", "macro_f1", "f1"),
    "multilabel": ("micro_f1", "macro_f1", "exact"),
    "regress": ("correlation", "pearson", "spearman", "squared_error"),
    "rerank": ("average_precision", "roc_auc", "accuracy"),
    "choose": ("accuracy",),
    "extract": ("f1", "exact"),
    "tag": ("span_f1", "span_precision", "span_recall", "accuracy"),
}
"""Of each task, the one that decides by default first."""

LIBRARIES = {"classify": ("sklearn",), "regress": ("scipy",), "rerank": ("sklearn", "scipy")}
"""Of each task, the optional libraries that its scores need; of others none."""


_ARTICLES = re.compile(r"\b(a|an|the)\b")


def label_scores(found: Int[np.ndarray, " N"], expected: Int[np.ndarray, " N"]) -> dict[str, float]:
    """Return accuracy, Matthews correlation, macro F1, and of two labels the F1 of the second.

    >>> label_scores(np.array([0, 1, 1, 0]), np.array([0, 1, 0, 0]))["accuracy"]
    0.75
    """
    metrics = _metrics()
    scores = {
        "accuracy": float((found == expected).mean()),
        "matthews": float(metrics.matthews_corrcoef(expected, found)),
        "macro_f1": float(metrics.f1_score(expected, found, average="macro", zero_division=0.0)),
    }
    if max(found.max(), expected.max()) < 2:
        scores["f1"] = float(metrics.f1_score(expected, found, zero_division=0.0))
    return scores


def multilabel_scores(found: Bool[np.ndarray, "N labels"], expected: Bool[np.ndarray, "N labels"]) -> dict[str, float]:
    """Return F1 over all labels and its mean over labels, and the share of rows with just the right labels.

    >>> multilabel_scores(np.array([[True, False]]), np.array([[True, True]]))["exact"]
    0.0
    """
    # Counted here: a single column would be taken by scikit-learn for a choice between two labels, as good when absent.
    hits, marked = (found & expected).sum(axis=0), found.sum(axis=0) + expected.sum(axis=0)
    return {
        "micro_f1": float(2 * hits.sum() / max(1, marked.sum())),
        "macro_f1": float(np.mean(2 * hits / np.maximum(1, marked))),
        "exact": float((found == expected).all(axis=1).mean()),
    }


def number_scores(found: Float[np.ndarray, " N"], expected: Float[np.ndarray, " N"]) -> dict[str, float]:
    """Return Pearson's and Spearman's correlation and their mean, 0 where one side does not vary; the squared error.

    >>> number_scores(np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 9.0]))["spearman"]
    1.0
    """
    try:
        from scipy import stats
    except ImportError:
        raise missing("scores", "scipy") from None

    varies = found.std() > 0 and expected.std() > 0
    pearson = float(stats.pearsonr(found, expected).statistic) if varies else 0.0
    spearman = float(stats.spearmanr(found, expected).statistic) if varies else 0.0
    error = float(np.square(found.astype(np.float64) - expected).mean())
    return {
        "correlation": (pearson + spearman) / 2, "pearson": pearson, "spearman": spearman, "squared_error": error
    }  # fmt: skip


def pair_scores(chances: Float[np.ndarray, " N"], expected: Float[np.ndarray, " N"]) -> dict[str, float]:
    """Return how well chances rank pairs that fit above others: labels are 0 and 1."""
    metrics = _metrics()
    both = len(np.unique(expected)) == 2
    return {
        "average_precision": float(metrics.average_precision_score(expected, chances)) if expected.any() else 0.0,
        "roc_auc": float(metrics.roc_auc_score(expected, chances)) if both else 0.0,
        "accuracy": float(((chances > 0.5) == expected).mean()),
    }


def answer_scores(found: Sequence[str], expected: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return the share of answers that are exact, and the mean F1 of their words, each with the best right answer.

    Case, punctuation and articles do not count; "" is right where no answer is. Source: the SQuAD evaluation script.

    >>> answer_scores(["The cat!", "a b"], [["cat"], ["b c", "d"]])
    {'exact': 0.5, 'f1': 0.8333333333333333}
    """
    exact, overlap = [], []
    for guess, answers in zip(found, expected, strict=True):
        said, right = _words(guess), [_words(answer) for answer in answers or [""]]
        exact.append(max(said == words for words in right))
        overlap.append(max(_word_f1(said, words) for words in right))
    return {"exact": float(np.mean(exact)), "f1": float(np.mean(overlap))}


def _words(text: str) -> list[str]:
    plain = "".join(character for character in text.lower() if character not in string.punctuation)
    return _ARTICLES.sub(" ", plain).split()


def _word_f1(found: list[str], expected: list[str]) -> float:
    if not found or not expected:
        return float(found == expected)
    shared = sum((Counter(found) & Counter(expected)).values())
    return 2 * shared / (len(found) + len(expected))


def tag_scores(
    found: Sequence[Sequence[str]],
    expected: Sequence[Sequence[str]],
    spans: tuple[Sequence[Set[Hashable]], Sequence[Set[Hashable]]] | None = None,
) -> dict[str, float]:
    """Return the share of words with the right tag, and precision, recall and F1 of whole spans, exact at both ends.

    `spans` are the spans of each row, found and expected, where tags of words cannot mark them all as they were given.

    >>> tag_scores([["B-a", "I-a", "O"]], [["B-a", "O", "B-a"]])["span_f1"]
    0.0
    """
    pairs = [(a, b) for one, other in zip(found, expected, strict=True) for a, b in zip(one, other, strict=True)]
    by_row = spans if spans is not None else ([spans_of(tags) for tags in found], [spans_of(tags) for tags in expected])
    right = sum(len(mine & theirs) for mine, theirs in zip(*by_row, strict=True))
    guessed, wanted = (sum(map(len, side)) for side in by_row)
    return {
        "span_f1": 2 * right / (guessed + wanted) if guessed + wanted else 0.0,
        "span_precision": right / guessed if guessed else 0.0,
        "span_recall": right / wanted if wanted else 0.0,
        "accuracy": sum(a == b for a, b in pairs) / len(pairs),
    }


def _metrics():  # type: ignore[no-untyped-def]
    try:
        from sklearn import metrics
    except ImportError:
        raise missing("scores", "sklearn") from None
    return metrics
