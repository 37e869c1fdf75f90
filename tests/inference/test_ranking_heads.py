"""A head with one score ranks by it; a model with a head of labels does not compare vectors, nor does a route."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import modernbert
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
)

from modernbert import InputError, ModernBert
from modernbert.checkpoints.folder import ModelFolder
from modernbert.evaluation.mteb_encoder import MtebEncoder
from modernbert.tasks.task import start_classifier

pytestmark = pytest.mark.filterwarnings("ignore")
CPU: dict[str, str] = {"device": "cpu", "dtype": "float32", "engine": "torch"}
TEXTS = ["the capital of country 3", "x", "rivers, cities", "word " * 40, "a land"]
LABELS = {"classify": ["no", "yes", "maybe"], "multilabel": ["a", "b"], "tag": ["O", "B-x"], "choose": ["score"],
          "extract": ["start", "end"]}  # fmt: skip
REFUSED = "head for {} .* does not compare vectors. Use a model fine-tuned for the task embed, late or rerank"


@pytest.fixture(scope="module")
def plain(small_bert: ModernBert, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("heads") / "plain"
    small_bert.save(folder)
    return folder


@pytest.fixture
def of_transformers(plain: Path, tmp_path: Path) -> Callable[[str | None], Path]:
    """Have transformers write a folder with a head of one label, after a step of training with a `problem_type`."""

    def write(problem_type: str | None) -> Path:
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_pretrained(plain, num_labels=1, problem_type=problem_type)
        torch.nn.init.normal_(model.classifier.weight)
        model(input_ids=torch.tensor([[1, 2, 3]]), labels=torch.tensor([[0.5]]))
        model.save_pretrained(tmp_path / "model")
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (tmp_path / "model" / name).write_bytes((plain / name).read_bytes())
        return tmp_path / "model"

    return write


@pytest.fixture
def tuned(plain: Path, small_bert: ModernBert, tmp_path: Path) -> Callable[[str], Path]:
    def tuned(task: str) -> Path:
        model = start_classifier(ModelFolder(plain).load_model(), task, LABELS[task], seed=3)
        ModelFolder.save(tmp_path / task, model, small_bert.tokenizer, 1_000)
        return tmp_path / task

    return tuned


def scores_of(folder: Path) -> np.ndarray:
    """Return what transformers' head gives for the query and each text."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return np.array([float(model(**tokenizer("what", text, return_tensors="pt")).logits[0, 0]) for text in TEXTS])


def serve(bert: ModernBert) -> Any:
    pytest.importorskip("fastapi")
    from fastapi.testclient import TestClient

    from modernbert.serving.app import ServeSettings, make_app
    from modernbert.serving.request_guard import Limits
    from modernbert.serving.scheduler import Scheduler

    app = make_app(bert, Scheduler(bert, budget_tokens=300), ServeSettings("mine", Limits(log=False), warm_up=False))
    return TestClient(app, raise_server_exceptions=False)


@pytest.mark.parametrize("problem_type", [None, "regression", "multi_label_classification"])
def test_a_head_of_one_label_ranks_by_its_score(
    of_transformers: Callable[[str | None], Path], problem_type: str | None
) -> None:
    folder = of_transformers(problem_type)
    # transformers writes it.
    written = json.loads((folder / "config.json").read_text())["problem_type"]
    assert written == (problem_type or "regression")
    logits = scores_of(folder)
    expected = logits if written == "regression" else 1 / (1 + np.exp(-logits))
    bert = ModernBert.load(folder, **CPU)
    found = bert.rerank("what", TEXTS)
    assert [each.index for each in found] == np.argsort(-logits, kind="stable").tolist()
    assert [each.score for each in found] == pytest.approx(sorted(expected, reverse=True), abs=1e-5)
    assert bert.rerank("what", TEXTS, top_k=2) == found[:2] and bert.rerank("what", []) == []
    done = modernbert("rerank", str(folder), "what", *TEXTS, "--json", "--device", "cpu", "--dtype", "float32")
    assert [json.loads(line)["index"] for line in done.stdout.splitlines()] == [each.index for each in found]
    with serve(bert) as client:
        body = {"query": "what", "texts": TEXTS}
        rows = client.post("/rerank", json=body).json()
        assert [row["index"] for row in rows] == [each.index for each in found]
        assert [row["score"] for row in rows] == pytest.approx([each.score for each in found], abs=1e-5)
        raw = client.post("/rerank", json=body | {"raw_scores": True}).json()
        assert [row["score"] for row in raw] == pytest.approx(sorted(logits, reverse=True), abs=1e-5)
        cohere = client.post("/v1/rerank", json={"query": "what", "documents": TEXTS}).json()["results"]
        assert [row["relevance_score"] for row in cohere] == pytest.approx([row["score"] for row in rows], abs=1e-6)
        info = client.get("/info").json()
        assert {"rerank", "predict"} <= set(info["answers"]) and info["scores"] != "cosine"
    with pytest.raises(InputError, match="does not compare vectors"):
        bert.similarity("what", TEXTS)


@pytest.mark.parametrize("task", LABELS)
def test_a_model_with_other_labels_compares_nothing(task: str, tuned: Callable[[str], Path]) -> None:
    bert = ModernBert.load(tuned(task), **CPU)
    calls: list[Callable[[], Any]] = [
        lambda: bert.rerank("what", TEXTS), lambda: bert.rerank("what", []), lambda: bert.similarity("what", TEXTS),
        lambda: bert.similarity("what", []), lambda: bert.embed_queries(TEXTS), lambda: bert.embed_documents(TEXTS),
        lambda: MtebEncoder(bert), lambda: bert.query_template, lambda: bert.document_template,
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(InputError, match=REFUSED.format(task)) as told:
            call()
        assert "\n" not in str(told.value)
    # embed stays allowed: only comparing such vectors is refused.
    assert bert.embed(TEXTS).shape == (5, 64)
    with serve(bert) as client:
        assert client.post("/embed", json={"inputs": TEXTS}).status_code == 200
        for path, body in (
            ("/rerank", {"query": "what", "texts": TEXTS}),
            ("/v1/rerank", {"query": "what", "documents": TEXTS}),
            ("/similarity", {"inputs": {"source_sentence": "what", "sentences": TEXTS}}),
            ("/embed", {"inputs": "what", "input_type": "query"}),
            ("/embed", {"inputs": "what", "prompt_name": "document"}),
            ("/embed_all", {"inputs": "what", "input_type": "query"}),
            ("/v1/embeddings", {"input": "what", "input_type": "query"}),
        ):
            answer = client.post(path, json=body)
            assert answer.status_code == 422 and "does not compare vectors" in answer.text, path


def test_commands_that_compare_refuse_a_model_with_labels(
    tuned: Callable[[str], Path], plain: Path, tmp_path: Path, write_collection: Callable[..., Path]
) -> None:
    folder, collection = tuned("classify"), write_collection(tmp_path / "collection")
    (tmp_path / "a.txt").write_text("a land of rivers")
    words = ("--device", "cpu", "--dtype", "float32")
    commands: list[tuple[str, ...]] = [
        ("rerank", str(folder), "what", *TEXTS),
        ("evaluate", "retrieval", str(folder), str(collection), "--output", str(tmp_path / "scores.json")),
    ]
    if pytest.importorskip("lancedb"):
        made = ["index", str(plain), "--input", str(tmp_path / "a.txt"), "--output", str(tmp_path / "i")]
        assert modernbert(*made, *words).returncode == 0
        commands += [
            ("index", str(folder), "--input", str(tmp_path / "a.txt"), "--output", str(tmp_path / "new")),
            ("evaluate", "retrieval", str(folder), str(collection), "--index", str(tmp_path / "vectors")),
            ("search", str(tmp_path / "i"), "land", "--rerank", str(folder)),
        ]
    for command in commands:
        done = modernbert(*command, *words)
        assert done.returncode == 2 and "does not compare vectors" in done.stderr, command
        assert "Traceback" not in done.stderr
    assert not any((tmp_path / name).exists() for name in ("new", "vectors", "scores.json"))


@pytest.fixture
def berts(small_bert: ModernBert, tmp_path: Path) -> dict[str, Path]:
    """BERTs that transformers wrote: a cross-encoder, a masked LM, and a model that extracts answers."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(vocab_size=512, num_labels=1, type_vocab_size=1, initializer_range=0.2, pad_token_id=3, **shape)
    kinds = {"cross": BertForSequenceClassification, "masked": BertForMaskedLM, "extracts": BertForQuestionAnswering}
    for name, kind in kinds.items():
        kind(config).save_pretrained(tmp_path / name)
        small_bert.tokenizer.save_folder(tmp_path / name, 512)
    return {name: tmp_path / name for name in kinds}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_cross_encoder_of_another_family_ranks_by_its_score(berts: dict[str, Path], dtype: str) -> None:
    logits = scores_of(berts["cross"])
    bert = ModernBert.load(berts["cross"], **CPU | {"dtype": dtype})
    found = bert.rerank("what", TEXTS)
    expected = sorted(1 / (1 + np.exp(-logits)), reverse=True)
    assert [each.score for each in found] == pytest.approx(expected, abs=1e-5 if dtype == "float32" else 0.02)
    alone = [bert.rerank("what", [TEXTS[each.index]])[0].score for each in found]
    assert [each.score for each in found] == pytest.approx(alone, abs=1e-5 if dtype == "float32" else 0.02)
    with serve(bert) as client:
        rows = client.post("/rerank", json={"query": "what", "texts": TEXTS}).json()
        assert [row["score"] for row in rows] == pytest.approx([each.score for each in found], abs=1e-5)
        pair = client.post("/predict", json={"inputs": [["what", TEXTS[0]]]}).json()
        assert pair[0][0]["score"] == pytest.approx(bert.rerank("what", TEXTS[:1])[0].score, abs=1e-5)
    with pytest.raises(InputError, match="expected a pair .text, other.: this model was trained on pairs"):
        bert.classify("a text")


def test_a_head_that_was_not_loaded_is_not_passed_over(
    berts: dict[str, Path], plain: Path, of_transformers: Callable[[str | None], Path]
) -> None:
    """Heads of tasks that other families or this package do not have; the encoder alone is loaded."""
    unknown = of_transformers(None)
    place = unknown / "config.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | {"problem_type": "ordinal_regression"}))
    with pytest.raises(InputError, match="^This model has no classification head"):
        ModernBert.load(berts["extracts"], **CPU).classify("a text")
    for folder in (berts["extracts"], unknown):
        bert = ModernBert.load(folder, **CPU)
        assert len(bert.embed(TEXTS)) == 5
        for call in (lambda bert: bert.rerank("what", TEXTS), lambda bert: bert.similarity("what", TEXTS)):
            with pytest.raises(InputError, match="For(SequenceClassification|QuestionAnswering), a head that was not"):
                call(bert)
    for folder in (berts["masked"], plain):
        assert len(ModernBert.load(folder, **CPU).rerank("what", TEXTS)) == 5


def test_a_prompt_of_a_cross_encoder_is_refused(of_transformers: Callable[[str | None], Path]) -> None:
    """sentence-transformers puts it before the texts of each pair."""
    folder = of_transformers(None)
    place = folder / "config_sentence_transformers.json"
    settings = {"model_type": "CrossEncoder", "prompts": {"web": "a page: "}, "default_prompt_name": None}
    place.write_text(json.dumps(settings))
    assert len(ModernBert.load(folder, **CPU).rerank("what", TEXTS)) == 5
    place.write_text(json.dumps(settings | {"default_prompt_name": "web"}))
    with pytest.raises(InputError, match=f"{place.name}: default_prompt_name is 'web', expected none"):
        ModernBert.load(folder, **CPU)
