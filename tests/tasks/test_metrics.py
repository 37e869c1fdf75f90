"""Metrics against the libraries that define them, or worked out by hand."""

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from modernbert.data.words import spans_from_tags
from modernbert.tasks.classification import Classification
from modernbert.tasks.cross_encoder import CrossEncoder
from modernbert.tasks.metrics import TaggedTexts, exact_answers, scores_of
from modernbert.tasks.multilabel import Multilabel
from modernbert.tasks.regression import Regression
from modernbert.tasks.tagging import Tagging


def test_label_scores_by_hand() -> None:
    """7 right of 10; one label has 3 hits, 1 false alarm, 2 misses."""
    expected = np.array([1, 1, 1, 1, 1, 0, 0, 0, 0, 0])
    found = np.array([1, 1, 1, 0, 0, 1, 0, 0, 0, 0])
    scores = scores_of(Classification.metrics, found, expected)
    assert scores["accuracy"] == 0.7
    assert scores["f1"] == pytest.approx(6 / 9)
    assert scores["matthews"] == pytest.approx((3 * 4 - 1 * 2) / np.sqrt(4 * 5 * 5 * 6))
    assert scores["macro_f1"] == pytest.approx((6 / 9 + 8 / 11) / 2)


def test_a_model_that_says_one_thing_has_no_correlation() -> None:
    assert scores_of(Classification.metrics, np.zeros(4, int), np.array([0, 1, 0, 1]))["matthews"] == 0.0
    scores = scores_of(Regression.metrics, np.ones(4), np.arange(4.0))
    assert scores["pearson"] == scores["spearman"] == 0.0 and scores["squared_error"] == 1.5


def test_multilabel_scores_are_those_of_scikit_learn_and_one_label_is_no_choice_of_two() -> None:
    rng = np.random.default_rng(0)
    found, expected = rng.random((40, 5)) < 0.3, rng.random((40, 5)) < 0.4
    found[:, 4] = expected[:, 4] = False
    scores = scores_of(Multilabel.metrics, found, expected)
    for average in ("micro", "macro"):
        theirs = metrics.f1_score(expected, found, average=average, zero_division=0.0)
        assert scores[f"{average}_f1"] == pytest.approx(theirs)
    # Found once of four times, and once where it is not; rightly absent of all the others.
    one, other = np.zeros((100, 1), bool), np.zeros((100, 1), bool)
    one[[0, 9]] = other[:4] = True
    assert scores_of(Multilabel.metrics, one, other) == {"micro_f1": 2 / 6, "macro_f1": 2 / 6, "exact": 0.96}
    nothing = scores_of(Multilabel.metrics, other & one[::-1], other & False)
    assert nothing["micro_f1"] == 0.0, "nothing is there to be found"


def test_number_scores_are_those_of_scipy() -> None:
    rng = np.random.default_rng(0)
    found, expected = rng.normal(size=50), rng.integers(0, 5, 50).astype(float)
    scores = scores_of(Regression.metrics, found, expected)
    assert scores["pearson"] == pytest.approx(np.corrcoef(found, expected)[0, 1])
    ranks = [stats.rankdata(each) for each in (found, expected)]
    assert scores["spearman"] == pytest.approx(np.corrcoef(*ranks)[0, 1])


def test_pair_scores_rank_by_chance() -> None:
    expected = np.array([1.0, 0.0, 1.0, 0.0])
    scores = scores_of(CrossEncoder.metrics, np.array([0.9, 0.8, 0.7, 0.1]), expected)
    assert scores["average_precision"] == pytest.approx((1 + 2 / 3) / 2)
    assert scores["roc_auc"] == metrics.roc_auc_score(expected, [0.9, 0.8, 0.7, 0.1]) == 0.75
    assert scores["accuracy"] == 0.75


def test_an_article_is_one_beside_any_punctuation() -> None:
    """Words are matched by the regular expression of the script."""
    assert exact_answers(["the—end", "“A” man", "anthem"], [["—end"], ["“the” man"], ["them"]]) == 2 / 3


def test_tag_scores_count_whole_spans() -> None:
    """Two of three guessed spans are among four."""
    expected = [["B-x", "I-x", "O", "B-y"], ["B-x", "O", "B-y", "O"]]
    found = [["B-x", "I-x", "O", "B-x"], ["B-x", "O", "O", "O"]]
    both = [TaggedTexts(tags, [spans_from_tags(each) for each in tags]) for tags in (found, expected)]
    scores = scores_of(Tagging.metrics, *both)
    assert scores["span_precision"] == pytest.approx(2 / 3) and scores["span_recall"] == 0.5
    assert scores["span_f1"] == pytest.approx(2 * 2 / 7) and scores["accuracy"] == 0.75
