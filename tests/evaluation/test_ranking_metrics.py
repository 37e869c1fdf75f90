import math

import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st

from modernbert.evaluation.ranking_metrics import mean_over_queries, mrr_at, ndcg_at, rank_ids, recall_at

IDS = st.sampled_from([f"d{number}" for number in range(30)])
# Few distinct scores, so that ties are the rule.
SCORES = st.dictionaries(IDS, st.integers(0, 5).map(lambda score: score / 2), min_size=1)
GRADES = st.dictionaries(IDS, st.integers(0, 3), min_size=1).filter(lambda grades: max(grades.values()) > 0)


@settings(max_examples=300, deadline=None)
@given(scores=SCORES, grades=GRADES, k=st.sampled_from([1, 5, 10, 100]))
def test_every_metric_equals_trec_eval_on_graded_judgments_and_ties(
    scores: dict[str, float], grades: dict[str, int], k: int
) -> None:
    ranked = rank_ids(scores)
    judge = pytrec_eval.RelevanceEvaluator({"q": grades}, {f"ndcg_cut.{k}", f"recall.{k}", "recip_rank"})
    truth = judge.evaluate({"q": scores})["q"]
    assert ndcg_at(k, ranked, grades) == pytest.approx(truth[f"ndcg_cut_{k}"], abs=1e-9)
    assert recall_at(k, ranked, grades) == pytest.approx(truth[f"recall_{k}"], abs=1e-9)
    cut = judge.evaluate({"q": {name: scores[name] for name in ranked[:k]}})["q"]["recip_rank"]
    assert mrr_at(k, ranked, grades) == pytest.approx(cut, abs=1e-9)


def test_means_leave_out_queries_without_a_relevant_judgment_and_count_unanswered_ones() -> None:
    judgments = {"right": {"a": 1}, "unanswered": {"a": 1}, "nothing relevant": {"a": 0}, "empty": {}}
    assert mean_over_queries(ndcg_at, 10, {"right": ["a", "b"], "nothing relevant": ["a"]}, judgments) == 0.5
    assert math.isnan(mean_over_queries(ndcg_at, 10, {}, {"empty": {}}))
