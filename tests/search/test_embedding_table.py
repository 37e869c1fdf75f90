"""The table of embeddings: the results of exact search, resumed writes, and refusal of another source."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from modernbert import ModernBert
from modernbert.data.beir import Collection, read_collection
from modernbert.errors import InputError
from modernbert.evaluation import retrieval_eval as retrieval
from modernbert.evaluation.evaluate_retrieval import RetrievalConfig, run
from modernbert.evaluation.retrieval_eval import rank_by_index, rank_by_model
from modernbert.inference.exact_search import search_tokens, search_vectors
from modernbert.search.embedding_table import EmbeddingTable

pytest.importorskip("lancedb")


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    drawn = rng.normal(size=shape)
    return (drawn / np.linalg.norm(drawn, axis=-1, keepdims=True)).astype(np.float32)


@pytest.fixture
def collection(tmp_path: Path, write_collection: Callable[..., Path]) -> Collection:
    return read_collection(write_collection(tmp_path / "made-up"))


def test_a_table_finds_the_results_of_exact_search(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    queries, passages = unit(rng, 7, 16), unit(rng, 100, 16)
    one = EmbeddingTable(tmp_path / "one", {}, 16, late=False)
    for part in (passages[:30], passages[30:]):
        one.add(part)
    for found, exact in zip(one.search(queries, 10), search_vectors(queries, passages, 10), strict=True):
        np.testing.assert_allclose(found, exact, rtol=1e-5)
    ragged = [unit(rng, n, 8) for n in rng.integers(1, 30, 40)]
    asked = [unit(rng, n, 8) for n in (1, 5, 32)]
    late = EmbeddingTable(tmp_path / "late", {}, 8, late=True)
    for block in (ragged[:3], ragged[3:]):
        late.add(block)
    for found, exact in zip(late.search(asked, 5), search_tokens(asked, ragged, 5), strict=True):
        np.testing.assert_allclose(found, exact, rtol=1e-5)
    assert len(EmbeddingTable(tmp_path / "late", {}, 8, late=True)) == 40


def test_a_table_of_another_source_is_refused(tmp_path: Path) -> None:
    EmbeddingTable(tmp_path / "i", {"model": "a"}, 8, late=False).add(unit(np.random.default_rng(0), 3, 8))
    assert len(EmbeddingTable(tmp_path / "i", {"model": "a", "dtype": "float32"}, 8, late=False)) == 3, (
        "of an earlier version"
    )
    for about, width, late, said in (
        ({"model": "b"}, 8, False, "was made with other model; choose another folder"),
        ({"model": "a"}, 16, False, "vectors of another width or kind"),
        ({"model": "a"}, 8, True, "vectors of another width or kind"),
    ):
        with pytest.raises(InputError, match=said):
            EmbeddingTable(tmp_path / "i", about, width, late)
    with pytest.raises(InputError, match="found 0 documents"):
        EmbeddingTable(tmp_path / "empty", {}, 8, late=False).search(np.ones((1, 8), np.float32), 3)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file: cannot be used as an index"):
        EmbeddingTable(tmp_path / "file", {}, 8, late=False)


@pytest.mark.parametrize("pooling", ["mean", "tokens"])
def test_a_collection_is_embedded_once_and_resumed(
    pooling: str, collection: Collection, small_bert: ModernBert, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = replace(small_bert.vectors, pooling=pooling, document_length=10)
    bert = ModernBert(small_bert.tokenizer, small_bert.model, vectors=vectors)
    expected = rank_by_model(bert)(collection, 10)
    monkeypatch.setattr(retrieval, "_BLOCK_CHARACTERS", 300)
    embed, seen = bert.embed_documents, []

    def counted(texts: list[str]) -> object:
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(len(texts))
        return embed(texts)

    monkeypatch.setattr(bert, "embed_documents", counted)
    rank = rank_by_index(bert, "m", tmp_path / "kept")
    with pytest.raises(KeyboardInterrupt):
        rank(collection, 10)
    seen.append(-1)
    scores, numbers, num_truncated = rank(collection, 10)
    again, same, cut = rank(collection, 10)
    assert -1 not in seen[:2] and sum(seen) + 1 == len(collection.documents), "each document once"
    np.testing.assert_array_equal(numbers, same)
    np.testing.assert_allclose(scores, again)
    np.testing.assert_allclose(scores, expected[0], rtol=1e-4)
    np.testing.assert_array_equal(numbers, expected[1])
    assert num_truncated == cut == expected[2] > 0
    with pytest.raises(InputError, match="other model"):
        rank_by_index(bert, "another", tmp_path / "kept")(collection, 10)


def test_the_command_keeps_vectors_and_refuses_other_settings(
    small_bert: ModernBert, tmp_path: Path, write_collection: Callable[..., Path]
) -> None:
    folder = write_collection(tmp_path / "made-up")
    small_bert.save(tmp_path / "model")
    config = RetrievalConfig(
        str(tmp_path / "model"), [str(folder)], device="cpu", index=tmp_path / "kept", output=tmp_path / "r.json",
        overwrite=True,
    )  # fmt: skip
    first = run(config)
    again = run(config)
    assert {**again[0], "seconds": 0} == {**first[0], "seconds": 0}
    assert json.loads((tmp_path / "r.json").read_text())["rows"] == again
    with pytest.raises(InputError, match="other settings"):
        run(replace(config, document_length=8))
