"""mteb's scores are the same with `MtebEncoder` as with sentence-transformers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from modernbert import ModernBert
from modernbert.checkpoints.folder import ModelFolder
from modernbert.errors import InputError
from modernbert.evaluation.mteb_encoder import MtebEncoder
from modernbert.inference.sentence_transformers_module import sentence_transformer
from modernbert.model.embedding_config import EmbeddingConfig

mteb = pytest.importorskip("mteb")
pytestmark = pytest.mark.filterwarnings("ignore")

TEXTS = [f"The capital of country {n} is city {n * 7}, in a land of {n % 11} rivers." for n in range(60)]
LABELS = [n % 2 for n in range(60)]


def of(task: str, splits: dict[str, list[dict[str, Any]]]) -> Any:
    """Return a task of mteb with other data."""
    from datasets import Dataset

    base = type(mteb.get_task(task))
    metadata = mteb.get_task(task).metadata.model_copy(
        update={"name": "MadeUp", "eval_splits": ["test"], "eval_langs": ["eng-Latn"]}
    )

    def load_data(self: Any, **_: Any) -> None:
        self.dataset = {split: Dataset.from_list(rows) for split, rows in splits.items()}
        self.data_loaded = True

    made = type("MadeUp", (base,), {"metadata": metadata, "load_data": load_data, "n_experiments": 2})
    return made()


def rows(numbers: range) -> list[dict[str, Any]]:
    return [{"text": TEXTS[n], "label": LABELS[n]} for n in numbers]


PAIRS = [{"sentence1": TEXTS[n], "sentence2": TEXTS[(n * 7 + 3) % 60]} for n in range(60)]
TASKS: dict[str, Callable[[], Any]] = {
    "STS": lambda: of("STS12", {"test": [pair | {"score": float(n % 5)} for n, pair in enumerate(PAIRS)]}),
    "Classification": lambda: of("Banking77Classification", {"train": rows(range(40)), "test": rows(range(40, 60))}),
    "PairClassification": lambda: of(
        "SprintDuplicateQuestions", {"test": [pair | {"labels": n % 2} for n, pair in enumerate(PAIRS)]}
    ),
    "Clustering": lambda: of(
        "TwentyNewsgroupsClustering.v2",
        {"test": [{"sentences": row["text"], "labels": row["label"]} for row in rows(range(60))]},
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, small_bert: ModernBert) -> Path:
    place = tmp_path_factory.mktemp("mteb")
    small_bert.save(place / "plain")
    model: Any = ModelFolder(place / "plain").load_model()

    vectors = EmbeddingConfig(query_prompt="ask: ", document_prompt="read: ", document_length=20)
    ModelFolder.save(place / "model", model.model, small_bert.tokenizer, 1_000, vectors=vectors)
    return place / "model"


def scores_of(model: Any, task: Any) -> dict[str, float]:
    result = mteb.evaluate(model, task, cache=None, show_progress_bar=False, co2_tracker=False).task_results[0]
    (found,) = result.scores["test"]
    return {key: value for key, value in found.items() if isinstance(value, float)}


@pytest.mark.parametrize("kind", TASKS)
def test_scores_are_those_of_sentence_transformers(kind: str, folder: Path) -> None:
    theirs = scores_of(SentenceTransformer(str(folder), device="cpu"), TASKS[kind]())
    bert = ModernBert.load(folder, device="cpu", dtype="float32", engine="torch")
    ours = scores_of(MtebEncoder(bert), TASKS[kind]())
    assert ours and ours.keys() == theirs.keys()
    for name, score in theirs.items():
        assert ours[name] == pytest.approx(score, abs=1e-3), name


def test_a_model_inside_sentence_transformers_is_judged_by_mteb_as_it_is(folder: Path) -> None:
    models = (
        sentence_transformer(folder, device="cpu", dtype="float32"),
        SentenceTransformer(str(folder), device="cpu"),
    )
    inside, theirs = (scores_of(model, TASKS["STS"]()) for model in models)
    assert inside == pytest.approx(theirs, abs=1e-3)


def test_prompts_are_those_of_queries_documents_or_none(folder: Path) -> None:
    bert = ModernBert.load(folder, device="cpu", dtype="float32", engine="torch")
    encoder = MtebEncoder(bert)
    about: dict[str, Any] = {
        "task_metadata": mteb.get_task("STS12").metadata,
        "hf_split": "test",
        "hf_subset": "default",
    }
    batches = [{"text": TEXTS[:2]}, {"text": TEXTS[2:3]}]
    kinds = mteb.types.PromptType
    np.testing.assert_array_equal(
        encoder.encode(batches, prompt_type=kinds.query, **about), bert.embed_queries(TEXTS[:3]).vectors
    )
    np.testing.assert_array_equal(
        encoder.encode(batches, prompt_type=kinds.document, **about), bert.embed_documents(TEXTS[:3]).vectors
    )
    # With a prompt before them, the folder's limit of 20 tokens cuts all; texts that are neither have no prompt.
    num_truncated = encoder.num_truncated
    plain = encoder.encode(batches, **about)
    assert encoder.num_truncated == num_truncated == 6
    np.testing.assert_allclose(plain, bert.embed(TEXTS[:3], prompt="", overflow="error"), atol=1e-6)
    assert np.abs(plain - encoder.encode(batches, prompt_type=kinds.document, **about)).max() > 0.01
    with pytest.raises(InputError, match="STS12: has image, expected text"):
        encoder.encode([{"image": ["x"]}], **about)
    late = ModernBert(bert.tokenizer, bert.model, vectors=EmbeddingConfig(pooling="tokens"))
    with pytest.raises(InputError, match="a vector per token"):
        MtebEncoder(late)
