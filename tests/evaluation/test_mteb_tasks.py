"""mteb's protocol: a task run through it is scored as the same collection is here."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.paper_table import BEIR, COLUMNS
from modernbert import ModernBert
from modernbert.data.beir import Collection, read_collection
from modernbert.errors import InputError
from modernbert.evaluation.evaluate_retrieval import RetrievalConfig, run
from modernbert.evaluation.mteb_tasks import MtebSearch, run_task, tasks_of
from modernbert.evaluation.retrieval_eval import rank_by_model, rank_by_words, score_collection

mteb = pytest.importorskip("mteb")
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def collection(tmp_path: Path, write_collection: Callable[..., Path]) -> Collection:
    return read_collection(write_collection(tmp_path / "made-up"))


@pytest.fixture
def task(collection: Collection) -> Any:
    """Return a task of mteb with the texts of the collection, in two languages."""
    from datasets import Dataset
    from mteb.abstasks.retrieval import AbsTaskRetrieval

    languages = {"en": ["eng-Latn"], "de": ["deu-Latn"]}
    changes = {"name": "MadeUp", "eval_splits": ["dev", "test"], "eval_langs": languages}

    class MadeUp(AbsTaskRetrieval):  # type: ignore[misc]
        metadata = mteb.get_task("SciFact").metadata.model_copy(update=changes)

        def load_data(self, **_: Any) -> None:
            split = {
                "corpus": Dataset.from_list([{"id": key, "text": text} for key, text in collection.documents.items()]),
                "queries": Dataset.from_list([{"id": key, "text": text} for key, text in collection.queries.items()]),
                "relevant_docs": collection.judgments,
                "top_ranked": None,
            }
            self.dataset = {subset: {"test": dict(split)} for subset in self.hf_subsets}
            self.data_loaded = True

    return MadeUp()


@pytest.mark.parametrize("pooling", ["mean", "tokens"])
def test_a_task_of_mteb_scores_as_the_folder_does(
    pooling: str, collection: Collection, task: Any, small_bert: ModernBert
) -> None:
    vectors = replace(small_bert.vectors, pooling=pooling, document_length=12)
    bert = ModernBert(small_bert.tokenizer, small_bert.model, vectors=vectors)
    for rank in (rank_by_model(bert), rank_by_words):
        here = score_collection(collection, rank)
        english, german = run_task("made-up", task, "test", rank)
        assert (english.collection, german.collection, english.split) == ("made-up-en", "made-up-de", "test")
        assert english.scores.ndcg_10 == pytest.approx(here.ndcg_10, abs=1e-4)
        assert english.scores.mrr_10 == pytest.approx(here.mrr_10, abs=1e-4)
        assert english.scores.recall_100 == pytest.approx(here.recall_100, abs=1e-4)
        assert english.scores.num_truncated == here.num_truncated
        assert (english.num_queries, english.num_documents) == (len(collection.queries), len(collection.documents))


def test_reranking_returns_given_documents_only(collection: Collection) -> None:
    search = MtebSearch(rank_by_words)
    search.index(
        [{"id": key, "text": text, "title": None} for key, text in collection.documents.items()],
        task_metadata=mteb.get_task("SciFact").metadata,
    )  # fmt: skip
    queries = [{"id": key, "text": text} for key, text in collection.queries.items()]
    given = {key: ["d3", "d7"] for key in collection.queries}
    found = search.search(queries, hf_split="test", hf_subset="default", top_k=1, top_ranked=given)
    assert all(set(scores) == {"d3", "d7"} for scores in found.values())
    found = search.search(queries, hf_split="test", hf_subset="default", top_k=4)
    assert all(len(scores) == 4 for scores in found.values())


def test_the_papers_sets_are_tasks_by_the_names_of_its_table() -> None:
    names = set(tasks_of("beir"))
    assert len(names) == 14 + 12 and set(BEIR) - {"cqadupstack"} <= names and "cqadupstack-gis" in names
    for column in COLUMNS:
        for name in column.sets:
            if column.kind != "glue":
                assert all(found.startswith(name) for found in tasks_of(name))
    (mldr,) = tasks_of("MLDR").values()
    assert mldr.hf_subsets == ["en"]
    assert list(tasks_of("CosQA")) == ["cosqa"]
    assert list(tasks_of("MultiLongDocRetrieval:de")) == ["multilongdoc-de"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("SciFakt", "mteb:SciFakt: .* Did you mean: 'SciFact'"),
        ("MultiLongDocRetrieval:xx", "mteb:MultiLongDocRetrieval:xx: No subsets"),
        ("STSBenchmark", "is a task of STS, expected one of retrieval"),
    ],
)
def test_unknown_mteb_tasks_are_refused_before_a_model_is_loaded(name: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        run(RetrievalConfig(str(tmp_path / "no-model"), [f"mteb:{name}"]))
