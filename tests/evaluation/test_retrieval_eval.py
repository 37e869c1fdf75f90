"""Collections, exact search, and the scores that come of them."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import pytrec_eval
from commands import modernbert

from modernbert import ModernBert
from modernbert.data.beir import read_collection
from modernbert.data.hard_negatives import hard_negatives
from modernbert.errors import InputError
from modernbert.evaluation import retrieval_eval as retrieval
from modernbert.evaluation.retrieval_eval import rank_by_model, rank_by_words, score_collection
from modernbert.inference import exact_search as search
from modernbert.inference.exact_search import search_tokens, search_vectors
from modernbert.model.embedding_config import EmbeddingConfig


@pytest.fixture
def folder(tmp_path: Path, write_collection: Callable[..., Path]) -> Path:
    return write_collection(tmp_path / "made-up")


def test_scores_are_those_of_trec_eval(folder: Path, small_bert: ModernBert) -> None:
    collection = read_collection(folder)
    for rank in (rank_by_model(small_bert), rank_by_words):
        found = score_collection(collection, rank)
        scores, numbers, _ = rank(collection, 100)
        names = list(collection.documents)
        run = {
            query: {names[n]: float(s) for n, s in zip(row, score, strict=True)}
            for query, row, score in zip(collection.queries, numbers, scores, strict=True)
        }
        evaluator = pytrec_eval.RelevanceEvaluator(collection.judgments, {"ndcg_cut.10", "recall.100"})
        theirs = evaluator.evaluate(run)
        assert found.ndcg_10 == pytest.approx(np.mean([each["ndcg_cut_10"] for each in theirs.values()]))
        assert found.recall_100 == pytest.approx(np.mean([each["recall_100"] for each in theirs.values()]))
    assert found.ndcg_10 > 0.9, "words that are there are found by words"


@pytest.mark.parametrize("pooling", ["mean", "tokens"])
def test_documents_in_blocks_are_ranked_as_all_at_once(
    pooling: str, folder: Path, small_bert: ModernBert, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection = read_collection(folder)
    bert = ModernBert(
        small_bert.tokenizer, small_bert.model, vectors=EmbeddingConfig(pooling=pooling, document_length=8)
    )
    scores, numbers, num_truncated = rank_by_model(bert)(collection, 10)
    monkeypatch.setattr(retrieval, "_BLOCK_CHARACTERS", 200)
    again, same, cut = rank_by_model(bert)(collection, 10)
    np.testing.assert_array_equal(same, numbers)
    np.testing.assert_allclose(again, scores, rtol=1e-4)
    assert cut == num_truncated > 0


def test_a_collection_has_a_name_from_within_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert read_collection(Path(".")).name == read_collection(folder).name == "made-up"


def test_queries_and_documents_without_judgments_or_text_are_counted(folder: Path) -> None:
    collection = read_collection(folder)
    assert (collection.num_unjudged, collection.num_empty) == (1, 1)
    assert len(collection.documents) == 30 and len(collection.queries) == 8
    assert collection.documents["d3"].startswith("Title 3\nw")


def test_search_in_blocks_equals_sorting_all(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    queries = rng.normal(size=(7, 16)).astype(np.float32)
    passages = rng.normal(size=(100, 16)).astype(np.float32)
    passages[40] = passages[3]
    whole = queries @ passages.T
    for block in (1, 7, 100, 1000):
        scores, numbers = search_vectors(queries, passages, 10, block_rows=block)
        np.testing.assert_array_equal(numbers, np.argsort(-whole, axis=1, kind="stable")[:, :10])
        np.testing.assert_allclose(scores, -np.sort(-whole, axis=1)[:, :10], rtol=1e-5)
    assert search_vectors(queries, passages[:4], 10)[1].shape == (7, 4)
    scores, numbers = search_vectors(queries, iter([passages[:30], passages[30:30], passages[30:]]), 10)
    np.testing.assert_array_equal(numbers, np.argsort(-whole, axis=1, kind="stable")[:, :10])
    ragged = [rng.normal(size=(n, 8)).astype(np.float32) for n in rng.integers(1, 30, 40)]
    asked = [rng.normal(size=(n, 8)).astype(np.float32) for n in (1, 5, 32)]
    brute = np.array([[(q @ p.T).max(axis=1).sum() for p in ragged] for q in asked])
    for tokens, cells in ((16_384, 2**24), (40, 200), (1, 1)):
        monkeypatch.setattr(search, "_BLOCK_TOKENS", tokens)
        monkeypatch.setattr(search, "_BLOCK_CELLS", cells)
        scores, numbers = search_tokens(asked, ragged, 5)
        np.testing.assert_array_equal(numbers, np.argsort(-brute, axis=1)[:, :5])
        np.testing.assert_allclose(scores, -np.sort(-brute, axis=1)[:, :5], rtol=1e-5)


def test_search_refuses_vectors_without_an_order() -> None:
    good = np.ones((2, 3), np.float32)
    bad = np.full((2, 3), np.nan, np.float32)
    for call, said in (
        (lambda: search_vectors(good, bad, 1), "passages: has a vector that is not finite"),
        (lambda: search_vectors(good, good[:0], 1), "passages: found none"),
        (lambda: search_vectors(good, good, 0), "k: found 0"),
        (lambda: search_tokens([good], [good, good[:0]], 1), "passage 1: has no vector"),
    ):
        with pytest.raises(InputError, match=said):
            call()


def test_hard_negatives_share_words_and_answer_nothing(folder: Path) -> None:
    collection = read_collection(folder)
    queries = list(collection.queries.values())
    answers = [frozenset(collection.documents[d] for d in grades) for grades in collection.judgments.values()]
    mined = hard_negatives(queries, answers, list(collection.documents.values()), 3, rank_by_words)
    for query, fits, others in zip(queries, answers, mined, strict=True):
        assert len(others) == 3 and not fits & set(others)
        assert set(query.split()) & set(others[0].split())


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\nq0\tx\t1\n", r"test.tsv:2: found the id 'x', which corpus"),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\nx\td0\t1\n", r"test.tsv:2: found the id 'x', which queries"),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\nq0\td0\tmuch\n", r"test.tsv:2: score is 'much'"),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\nq0\td0\t0.5\n", "test.tsv:2: score is 0.5, expected a whole"),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\nq0\td0\t1\nq0\td0\t0\n", "test.tsv:3: .* have two scores"),
        ("queries.jsonl", '{"_id": null, "text": "a"}\n', "queries.jsonl:1: _id is None"),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\nq0\td0\t0\n", "no query of the split 'test' has a relevant"),
        ("qrels/test.tsv", "a\tb\nq0\td0\n", r"test.tsv:2: no column 'query-id'"),
        ("queries.jsonl", '{"_id": "q0", "text": "a"}\n{"_id": "q0", "text": "b"}\n', "'q0' occurs twice"),
        ("queries.jsonl", '{"_id": "q0", "text": ""}\n', "queries.jsonl:1: text is empty"),
        ("queries.jsonl", '{"text": "a"}\n', "queries.jsonl:1: no column '_id'"),
        ("queries.jsonl", '{"_id": "q0", "text": "\\ud800"}\n', "queries.jsonl:1: text contains an invalid Unicode"),
        ("queries.jsonl", '{"_id": "\\ud800", "text": "a"}\n', "queries.jsonl:1: _id contains an invalid Unicode"),
    ],
)
def test_files_that_do_not_fit_together_are_named(name: str, content: str, said: str, folder: Path) -> None:
    (folder / name).write_text(content)
    with pytest.raises(InputError, match=said):
        read_collection(folder)


def test_a_split_that_is_not_there_names_those_that_are(folder: Path) -> None:
    with pytest.raises(InputError, match="dev.tsv: no such file.*found the splits test, train"):
        read_collection(folder, "dev")
    with pytest.raises(InputError, match="nowhere: no such folder"):
        read_collection(folder / "nowhere")
    judged = read_collection(folder).judgments
    (folder / "qrels" / "test.tsv").rename(folder / "qrels.tsv")
    (folder / "qrels" / "train.tsv").unlink()
    (folder / "qrels").rmdir()
    assert read_collection(folder).judgments == read_collection(folder, "dev", usual="dev").judgments == judged
    with pytest.raises(InputError, match="qrels.tsv: has one set of judgments, expected the split 'dev'"):
        read_collection(folder, "dev")


def test_the_command_prints_a_table_and_writes_json(folder: Path, tmp_path: Path, small_bert: ModernBert) -> None:
    small_bert.save(tmp_path / "model")
    words = ["evaluate", "retrieval", str(tmp_path / "model"), str(folder)]
    out = str(tmp_path / "r.json")
    done = modernbert(*words, "--bm25", "--document-length", "8", "--device", "cpu", "--output", out)
    assert done.returncode == 0, done.stderr
    assert "BM25" in done.stdout
    rows = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert [row["system"] for row in rows] == [str(tmp_path / "model"), "BM25"]
    assert rows[0]["num_truncated"] == 30, "documents are longer than eight tokens"
    done = modernbert(*words, "--split", "dev")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
