"""The server: the library's results with the fields of other servers, refusals with reasons, and graceful shutdown."""

import base64
import concurrent.futures
import hashlib
import json
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from commands import modernbert

from modernbert import InputError, ModernBert
from modernbert.checkpoints.folder import ModelFolder
from modernbert.model.embedding_config import EmbeddingConfig
from modernbert.tasks.task import start_classifier

pytest.importorskip("fastapi")
from fastapi.testclient import TestClient  # noqa: E402
from pydantic import ValidationError  # noqa: E402
from served import Served  # noqa: E402

from modernbert.serving.app import ServeSettings, make_app  # noqa: E402
from modernbert.serving.request_guard import Limits  # noqa: E402
from modernbert.serving.scheduler import Scheduler  # noqa: E402
from modernbert.serving.schemas import EmbedIn  # noqa: E402
from modernbert.serving.serve import ServeConfig, _listen, run  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
TEXTS = ["The capital of France.", "x", "word " * 90, "naïve ✓"]
Open = Callable[..., TestClient]


@pytest.fixture(scope="module")
def folder(small_bert: ModernBert, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("serve") / "model"
    small_bert.save(path)
    return path


@pytest.fixture
def open_app() -> Iterator[Open]:
    """Serve a model in this process, with limits."""
    clients: list[TestClient] = []

    def open_app(bert: ModernBert, **limits: Any) -> TestClient:
        scheduler = Scheduler(bert, budget_tokens=300, max_queued_tokens=limits.pop("queue", 100_000))
        app = make_app(bert, scheduler, ServeSettings("mine", Limits(log=False, **limits)))
        client = TestClient(app, raise_server_exceptions=False)
        clients.append(client.__enter__())
        return client

    yield open_app
    for client in clients:
        client.__exit__(None, None, None)


def tuned(folder: Path, task: str, labels: list[str], tmp_path: Path, bert: ModernBert) -> ModernBert:
    model = start_classifier(ModelFolder(folder).load_model(), task, labels, seed=3)
    ModelFolder.save(tmp_path / task, model, bert.tokenizer, 1_000)
    return ModernBert.load(tmp_path / task, device="cpu", dtype="float32", engine="torch")


def test_vectors_are_those_of_the_library(open_app: Open, small_bert: ModernBert) -> None:
    client, vectors = open_app(small_bert), small_bert.embed(TEXTS)
    found = client.post("/embed", json={"inputs": TEXTS})
    np.testing.assert_allclose(found.json(), vectors, atol=1e-5)
    tokens = small_bert.count_tokens(TEXTS)
    assert int(found.headers["x-compute-tokens"]) == sum(tokens)
    np.testing.assert_allclose(client.post("/embed", json={"inputs": TEXTS[0]}).json(), vectors[:1], atol=1e-5)
    raw = client.post("/embed", json={"inputs": TEXTS, "normalize": False, "dimensions": 8}).json()
    np.testing.assert_allclose(raw, small_bert.embed(TEXTS, normalize=False)[:, :8], atol=1e-5)
    every = client.post("/embed_all", json={"inputs": TEXTS}).json()
    for mine, expected in zip(every, small_bert.embed_tokens(TEXTS), strict=True):
        np.testing.assert_allclose(mine, expected, atol=1e-4)
    answer = client.post("/v1/embeddings", json={"input": TEXTS, "model": "any"}).json()
    np.testing.assert_allclose([row["embedding"] for row in answer["data"]], vectors, atol=1e-5)
    assert answer["usage"] == {"prompt_tokens": sum(tokens), "total_tokens": sum(tokens)} and answer["model"] == "any"
    packed = client.post("/v1/embeddings", json={"input": TEXTS[0], "encoding_format": "base64"}).json()
    row = np.frombuffer(base64.b64decode(packed["data"][0]["embedding"]), "<f4")
    np.testing.assert_allclose(row, vectors[0], atol=1e-5)
    ids = [small_bert.tokenizer.encode([text], special=False)[0].tolist() for text in TEXTS]
    np.testing.assert_allclose(client.post("/embed", json={"inputs": ids}).json(), vectors, atol=1e-5)
    np.testing.assert_allclose(client.post("/embed", json={"inputs": ids[0]}).json(), vectors[:1], atol=1e-5)
    alike = client.post("/similarity", json={"inputs": {"source_sentence": TEXTS[0], "sentences": TEXTS}}).json()
    np.testing.assert_allclose(alike, small_bert.similarity(TEXTS[0], TEXTS)[0], atol=1e-5)


def test_ids_with_special_tokens_are_taken_as_they_are(open_app: Open, small_bert: ModernBert) -> None:
    client, vectors, tokenizer = open_app(small_bert), small_bert.embed(TEXTS), small_bert.tokenizer
    whole = [ids.tolist() for ids in tokenizer.encode(TEXTS)]
    assert all(ids[0] == tokenizer.cls_id and ids[-1] == tokenizer.sep_id for ids in whole)
    # Completeness is decided for each row.
    mixed = [ids[1:-1] if number % 2 else ids for number, ids in enumerate(whole)]
    for path in ("/", "/embed"):
        for rows in (whole, mixed):
            found = client.post(path, json={"inputs": rows})
            np.testing.assert_allclose(found.json(), vectors, atol=1e-5)
            assert int(found.headers["x-compute-tokens"]) == sum(map(len, whole))
        np.testing.assert_allclose(client.post(path, json={"inputs": whole[0]}).json(), vectors[:1], atol=1e-5)
    for path in ("/v1/embeddings", "/embeddings"):
        answer = client.post(path, json={"input": whole}).json()
        np.testing.assert_allclose([row["embedding"] for row in answer["data"]], vectors, atol=1e-5)
        assert answer["usage"]["prompt_tokens"] == sum(map(len, whole))
    for path in ("/embed_all", "/embed_multi"):
        for mine, expected in zip(
            client.post(path, json={"inputs": whole}).json(), small_bert.embed_tokens(TEXTS), strict=True
        ):
            np.testing.assert_allclose(mine, expected, atol=1e-4)
    # A pair is complete, too; a row with one of the special tokens is not.
    (pair,) = tokenizer.encode_pairs([("a land", "a river")])
    rows = client.post("/embed_all", json={"inputs": [pair.tolist(), whole[0][:-1]]}).json()
    assert [len(row) for row in rows] == [len(pair), len(whole[0]) + 1]
    long = tokenizer.encode(["word " * 2_000])[0].tolist()
    cut = client.post("/embed", json={"inputs": long, "truncate": True}).json()
    np.testing.assert_allclose(cut, small_bert.embed("word " * 2_000, overflow="truncate"), atol=1e-5)


def test_vectors_come_in_fewer_bytes(open_app: Open, small_bert: ModernBert) -> None:
    client = open_app(small_bert)
    for precision in ("float32", "float16", "int8", "binary"):
        expected = small_bert.embed(TEXTS, precision=precision)
        body = {"input": TEXTS, "precision": precision}
        rows = [row["embedding"] for row in client.post("/v1/embeddings", json=body).json()["data"]]
        as_bytes = client.post("/v1/embeddings", json=body | {"encoding_format": "base64"}).json()["data"]
        read = [np.frombuffer(base64.b64decode(row["embedding"]), expected.dtype) for row in as_bytes]
        for found in (np.array(rows), np.stack(read).astype(np.float64)):
            # The last bit of a vector may differ, and so may its rounded value.
            np.testing.assert_allclose(found, expected.astype(np.float64), atol=1 if precision == "int8" else 1e-3)
    every = client.post("/embed_multi", json={"inputs": TEXTS, "encoding_format": "base64"}).json()
    for one, expected in zip(every, small_bert.embed_tokens(TEXTS), strict=True):
        mine = np.frombuffer(base64.b64decode(one["data"]), one["dtype"]).reshape(one["shape"])
        np.testing.assert_allclose(mine, expected, atol=1e-4)


def test_late_interaction_is_that_of_the_library(open_app: Open, small_bert: ModernBert) -> None:
    """Queries are expanded, markers precede texts, and skipped tokens of documents have no vector."""
    torch.manual_seed(1)
    vectors = EmbeddingConfig("tokens", "[unused0] ", "[unused1] ", 16, 40, True, ["."])
    projection = torch.nn.Linear(64, 24, bias=False)
    late = ModernBert(small_bert.tokenizer, small_bert.model, vectors=vectors, projection=projection)
    client = open_app(late)
    texts = [TEXTS[0], "x", "two rivers. one city."]
    for kind, expected in (("query", late.embed_queries(texts)), ("document", late.embed_documents(texts))):
        found = client.post("/embed_multi", json={"inputs": texts, "input_type": kind}).json()
        assert [len(rows) for rows in found] == [len(rows) for rows in expected.vectors]
        for mine, theirs in zip(found, expected.vectors, strict=True):
            np.testing.assert_allclose(mine, theirs, atol=1e-5)
    alike = client.post("/similarity", json={"inputs": {"source_sentence": TEXTS[0], "sentences": texts}}).json()
    np.testing.assert_allclose(alike, late.similarity(TEXTS[0], texts)[0], atol=1e-5)
    ranked = client.post("/rerank", json={"query": TEXTS[0], "texts": texts}).json()
    assert [row["index"] for row in ranked] == [each.index for each in late.rerank(TEXTS[0], texts)]
    long = client.post("/embed_multi", json={"inputs": "word " * 60, "input_type": "document"})
    said = 'expected at most 40; send "truncate": true to cut it'
    assert long.status_code == 422 and said in long.json()["error"]
    cut = client.post("/embed_multi", json={"inputs": "word " * 60, "input_type": "document", "truncate": True}).json()
    np.testing.assert_allclose(cut[0], late.embed_documents(["word " * 60]).vectors[0], atol=1e-5)


def test_vectors_are_as_short_as_the_folder_says(open_app: Open, small_bert: ModernBert) -> None:
    short = ModernBert(small_bert.tokenizer, small_bert.model, vectors=EmbeddingConfig(truncate_dim=16))
    client, vectors = open_app(short), short.embed(TEXTS)
    assert vectors.shape[1] == 16
    np.testing.assert_allclose(client.post("/embed", json={"inputs": TEXTS}).json(), vectors, atol=1e-5)
    alike = client.post("/similarity", json={"inputs": {"source_sentence": TEXTS[0], "sentences": TEXTS}}).json()
    np.testing.assert_allclose(alike, short.similarity(TEXTS[0], TEXTS)[0], atol=1e-5)
    assert client.post("/embed", json={"inputs": "a", "dimensions": 17}).status_code == 422


def test_queries_get_the_prompt_they_were_tuned_with(open_app: Open, small_bert: ModernBert) -> None:
    tuned = ModernBert(
        small_bert.tokenizer, small_bert.model, vectors=EmbeddingConfig("cls", "ask: ", "know: ", 30, 50)
    )
    client = open_app(tuned)
    for asked in ({"input_type": "query"}, {"prompt_name": "query"}, {"input_type": "search_query"}):
        found = client.post("/embed", json={"inputs": TEXTS[:2], **asked}).json()
        np.testing.assert_allclose(found, tuned.embed_queries(TEXTS[:2]).vectors, atol=1e-5)
    openai = client.post("/v1/embeddings", json={"input": TEXTS[:2], "input_type": "passage"}).json()["data"]
    np.testing.assert_allclose(
        [row["embedding"] for row in openai], tuned.embed_documents(TEXTS[:2]).vectors, atol=1e-5
    )


def test_ranks_labels_spans_and_masks_are_those_of_the_library(
    open_app: Open, small_bert: ModernBert, folder: Path, tmp_path: Path
) -> None:
    ranker = tuned(folder, "rerank", ["score"], tmp_path, small_bert)
    expected = ranker.rerank("what", TEXTS)
    found = open_app(ranker).post("/rerank", json={"query": "what", "texts": TEXTS, "return_text": True}).json()
    assert [row["index"] for row in found] == [each.index for each in expected]
    np.testing.assert_allclose([row["score"] for row in found], [each.score for each in expected], atol=1e-5)
    assert [row["text"] for row in found] == [TEXTS[row["index"]] for row in found]
    cohere = open_app(ranker).post("/v1/rerank", json={"query": "what", "documents": TEXTS, "top_n": 2}).json()
    assert [row["index"] for row in cohere["results"]] == [row["index"] for row in found[:2]]
    by_vectors = open_app(small_bert).post("/rerank", json={"query": "what", "texts": TEXTS}).json()
    assert [row["index"] for row in by_vectors] == [each.index for each in small_bert.rerank("what", TEXTS)]

    labels = tuned(folder, "classify", ["no", "yes", "maybe"], tmp_path, small_bert)
    client = open_app(labels)
    rows = client.post("/predict", json={"inputs": [[text] for text in TEXTS]}).json()
    for row, known in zip(rows, labels.classify(TEXTS), strict=True):
        assert {each["label"]: each["score"] for each in row} == pytest.approx(known, abs=1e-5)
    alone = client.post("/predict", json={"inputs": TEXTS[0]}).json()
    assert [each["score"] for each in alone] == pytest.approx([each["score"] for each in rows[0]], abs=1e-5)
    # A text without a word is a text; no texts are none.
    assert len(client.post("/predict", json={"inputs": ""}).json()) == 3
    assert client.post("/predict", json={"inputs": []}).json() == []
    pair = client.post("/predict", json={"inputs": ["one", "two"]}).json()
    assert {each["label"]: each["score"] for each in pair} == pytest.approx(labels.classify(("one", "two")), abs=1e-5)
    assert client.get("/info").json()["model_type"]["classifier"]["id2label"]["1"] == "yes"

    tagger = tuned(folder, "tag", ["O", "B-x", "I-x"], tmp_path, small_bert)
    tagged = [*TEXTS, "彼は東京に住むx"]
    spans = open_app(tagger).post("/predict", json={"inputs": [[text] for text in tagged]}).json()
    for row, known_spans, text in zip(spans, tagger.tag(tagged), tagged, strict=True):
        assert [(span["start"], span["end"], span["label"]) for span in row] == [
            (span.start, span.end, span.label) for span in known_spans  # type: ignore[union-attr]
        ]  # fmt: skip
        assert all(text[span["start"] : span["end"]] == span["text"] for span in row)

    reader = tuned(folder, "extract", ["start", "end"], tmp_path, small_bert)
    refused = open_app(reader).post("/predict", json={"inputs": "a"})
    assert refused.status_code == 422 and "a head for extract, which is not served" in refused.json()["error"]

    masked = "The [MASK] of France is [MASK]."
    client = open_app(small_bert)
    filled = client.post("/fill-mask", json={"inputs": masked, "top_k": 3}).json()
    one = client.post("/fill-mask", json={"inputs": ["a [MASK]", masked], "parameters": {"top_k": 3}}).json()
    assert [each["token"] for each in one[0]] == [
        each.token for each in small_bert.fill_mask("a [MASK]", 3)[0]  # type: ignore[union-attr]
    ]  # fmt: skip
    assert [[each["token"] for each in mask] for mask in one[1]] == [
        [each["token"] for each in mask] for mask in filled
    ]
    assert [[each["token"] for each in mask] for mask in filled] == [
        [guess.token for guess in mask] for mask in small_bert.fill_mask(masked, 3)  # type: ignore[union-attr]
    ]  # fmt: skip


def test_scores_of_many_texts_and_labels_are_bounded(
    open_app: Open, small_bert: ModernBert, folder: Path, tmp_path: Path
) -> None:
    labels = tuned(folder, "classify", [f"label {n}" for n in range(70)], tmp_path, small_bert)
    client = open_app(labels)
    rows = client.post("/predict", json={"inputs": [[text] for text in TEXTS * 20]}).json()
    for row, known in zip(rows, labels.classify(TEXTS) * 20, strict=True):
        assert {each["label"]: each["score"] for each in row} == pytest.approx(known, abs=1e-5)
    refused = client.post("/predict", json={"inputs": [["x"]] * 16_000})
    assert refused.status_code == 422 and "16,000 texts with scores of 70 labels each" in refused.json()["error"]


def test_tokens_there_and_back(open_app: Open, small_bert: ModernBert) -> None:
    client = open_app(small_bert)
    for text, row in zip(TEXTS, client.post("/tokenize", json={"inputs": TEXTS}).json(), strict=True):
        assert [each["id"] for each in row] == small_bert.tokenizer.encode([text])[0].tolist()
        assert row[0]["special"] and row[-1]["special"] and not any(each["special"] for each in row[1:-1])
        assert all(each["text"] == text[each["start"] : each["stop"]] for each in row if not each["special"])
        ids = [each["id"] for each in row]
        assert client.post("/decode", json={"ids": ids}).json() == [small_bert.tokenizer.decode(ids, special=False)]


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("/embed", {"inputs": ["a", "word " * 2_000]}, 422, r"text 1: has [\d,]+ tokens, expected at most 1,000"),
        ("/embed", {"inputs": "a", "dimensions": 65}, 422, "dimensions: found 65, expected 1 to 64"),
        ("/embed", {"inputs": "a", "dimensions": 10**9}, 422, "dimensions: found 1000000000, expected 1 to 64"),
        ("/embed", {"inputs": "a", "prompt_name": "x"}, 422, "prompt_name: found 'x', expected one of query"),
        ("/embed", {"inputs": [[5, 512]]}, 422, "text 0: has ids outside of 0 to 511"),
        (
            "/embed",
            {"inputs": [5, 6], "input_type": "query"},
            422,
            "inputs: found ids, expected texts: ids have no place",
        ),
        (
            "/embed",
            {"inputs": "a", "input_type": "query", "prompt_name": "document"},
            422,
            "input_type: found 'query' bes",
        ),
        (
            "/embed",
            {"inputs": "a", "truncation_direction": "Left"},
            422,
            "truncation_direction: Input should be 'Right'",
        ),
        (
            "/embed",
            {"inputs": "a", "precision": "binary", "dimensions": 12},
            422,
            "precision: found binary for 12 compon",
        ),
        ("/embed", {"inputs": "word " * 2_000}, 422, "expected at most 1,000; send ..truncate..: true to cut it"),
        ("/embed", {"inputs": [[-1]]}, 422, "inputs"),
        ("/embed", {"inputs": 3}, 422, "inputs"),
        ("/embed", {}, 422, "inputs: Field required"),
        ("/embed", {"inputs": "a \ud800"}, 422, "text 0: unpaired surrogate"),
        ("/predict", {"inputs": "a"}, 422, "this model has no classification head"),
        ("/fill-mask", {"inputs": ["a"]}, 422, r"text 0: has no \[MASK\]"),
        ("/decode", {"ids": [512]}, 422, "ids: found one outside of 0 to 511"),
        ("/embed", {"inputs": ["a"] * 16_385}, 422, "inputs: List should have at most 16384 items"),
        ("/embed", {"inputs": [None, "a"]}, 422, "inputs.0: Input should be a valid string"),
        ("/embed_all", {"inputs": "a", "dimensions": 65}, 422, "dimensions: found 65, expected 1 to 64"),
        (
            "/embed_all",
            {"inputs": ["word " * 90] * 2_000},
            422,
            "vectors of 64 numbers to make, expected at",
        ),
        ("/tokenize", {"inputs": "word " * 200_000}, 422, "inputs: found more than 131,072 tokens"),
        ("/fill-mask", {"inputs": ["[MASK] " * 200] * 9, "top_k": 100}, 422, "found 180,000 guesses to make"),
        ("/fill-mask", {"inputs": "[MASK] " * 2_000}, 422, "a text with masks is not cut"),
        ("/rerank", {"query": "word " * 2_000, "texts": ["a"]}, 422, "the query: has"),
        ("/v1/embeddings", {"input": "a", "model": "\ud800"}, 422, "model"),
        ("/v1/rerank", {"query": "a", "documents": ["a"], "model": "\ud800"}, 422, "model"),
        ("/nowhere", {}, 404, ""),
    ],
)
def test_invalid_requests_have_a_status_and_a_reason(
    path: str, body: dict[str, Any], status: int, said: str, open_app: Open, small_bert: ModernBert
) -> None:
    client = open_app(small_bert)
    found = client.post(path, content=json.dumps(body), headers={"content-type": "application/json"})
    assert found.status_code == status and re.search(said, json.dumps(found.json()))
    canary = client.post("/embed", json={"inputs": "x"}).json()
    np.testing.assert_allclose(canary, small_bert.embed("x"), atol=1e-5)


def test_a_long_text_is_truncated_on_request(open_app: Open, small_bert: ModernBert) -> None:
    long = "word " * 2_000
    client, cut = open_app(small_bert), small_bert.embed([long], overflow="truncate")
    found = client.post("/embed", json={"inputs": long, "truncate": True}).json()
    np.testing.assert_allclose(found, cut, atol=1e-5)
    (row,) = client.post("/v1/embeddings", json={"input": long, "truncate": True}).json()["data"]
    np.testing.assert_allclose([row["embedding"]], cut, atol=1e-5)


def test_broken_bodies_are_refused(open_app: Open, small_bert: ModernBert) -> None:
    client = open_app(small_bert, max_bytes=20_000)
    headers = {"content-type": "application/json"}
    said = client.post("/embed", content=b'{"inputs": }', headers=headers)
    assert said.status_code == 400 and said.json()["error"].startswith("the body is not JSON: ")
    said = client.post(
        "/embed", content=b'{"inputs": "a"}', headers={"content-type": "application/x-www-form-urlencoded"}
    )
    assert said.status_code == 422 and "expected the header content-type: application/json" in said.json()["error"]
    for content in (b"{", b"", b"\xff\xfe", b"[" * 9_000, b'{"inputs": NaN}', b'{"inputs": [["a"', b"null", b"[1]"):
        found = client.post("/embed", content=content, headers=headers)
        assert found.status_code in (400, 422), (content[:20], found.status_code)
    found = client.post("/embed", json={"inputs": "a" * 30_000})
    assert found.status_code == 413 and "more than 20,000 bytes" in found.json()["error"]
    # Without a content length, an oversized body is detected while it arrives.
    found = client.post("/embed", content=(b" " * 1_000 for _ in range(30)), headers=headers)
    assert found.status_code == 413
    assert client.post("/embed", json={"inputs": "a"}).status_code == 200


def test_a_key_is_required(open_app: Open, small_bert: ModernBert) -> None:
    client = open_app(small_bert, api_key="secret")
    assert client.post("/embed", json={"inputs": "a"}).status_code == 401
    for key, status in (("secret", 200), ("secre", 401), ("é", 401)):
        headers = {"Authorization": f"Bearer {key}".encode()}
        assert client.post("/embed", json={"inputs": "a"}, headers=headers).status_code == status
    lower = client.post("/embed", json={"inputs": "a"}, headers={"authorization": "bearer secret"})
    assert lower.status_code == 200
    assert client.get("/info").headers["www-authenticate"] == "Bearer"
    for path in ("/health", "/ready"):
        assert client.get(path).status_code == client.head(path).status_code == 200


def test_an_empty_key_is_refused(folder: Path) -> None:
    """An empty key is an error, not a server without a key."""
    for wrong, said in (({"api_key": ""}, "api_key: is empty"), ({"host": ""}, "host: is empty")):
        with pytest.raises(InputError, match=said):
            run(ServeConfig(str(folder), **wrong))
    done = modernbert("serve", str(folder), "--port", "0", MODERNBERT_API_KEY="")
    assert done.returncode == 2 and "--api-key: is empty" in done.stderr


def test_health_checks_are_never_refused_and_refusals_are_counted_by_path(
    open_app: Open, small_bert: ModernBert
) -> None:
    client = open_app(small_bert, max_requests=0)
    assert client.post("/embed", json={"inputs": "a"}).status_code == 429
    assert 'modernbert_requests_total{path="/embed",status="429"} 1.0' in client.get("/metrics").text


def test_internal_errors_are_reported_and_counted(open_app: Open, small_bert: ModernBert) -> None:
    client = open_app(small_bert)

    @client.app.get("/v1/boom")  # type: ignore[attr-defined]
    async def boom() -> None:
        raise KeyError("a mistake")

    answer = client.get("/v1/boom")
    assert answer.status_code == 500 and answer.json()["error"]["message"].endswith("(KeyError)")
    assert 'modernbert_requests_total{path="other",status="500"} 1.0' in client.get("/metrics").text


def test_a_list_that_is_wrong_is_looked_at_no_further() -> None:
    for wrong in ([-1] * 1_000, [None] * 1_000, ["a", *[1.5] * 1_000], [[-1]] * 1_000):
        with pytest.raises(ValidationError) as found:
            EmbedIn(inputs=wrong)  # type: ignore[arg-type]
        assert found.value.error_count() <= 8


def test_the_api_page_asks_no_other_server(open_app: Open, small_bert: ModernBert) -> None:
    client = open_app(small_bert)
    page = client.get("/docs")
    assets = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(assets) == 3 and all(client.get(f"/{name}").status_code == 200 for name in assets)
    assert "url: 'openapi.json'" in page.text and "//" not in " ".join(assets)
    (script,) = re.findall("<script>(.*?)</script>", page.text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'") and f"script-src 'self' 'sha256-{digest}';" in policy
    assert "unsafe" not in policy


def test_too_much_is_refused_with_a_time(open_app: Open, small_bert: ModernBert) -> None:
    client = open_app(small_bert, queue=1_000)
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        bodies = [{"inputs": ["word " * 50] * 30}] * 12
        found = list(pool.map(lambda body: client.post("/embed", json=body), bodies))
    refused = [each for each in found if each.status_code == 429]
    assert refused and all(int(each.headers["retry-after"]) >= 1 for each in refused)
    assert {each.status_code for each in found} == {200, 429}
    text = client.get("/metrics").text
    assert f'modernbert_requests_total{{path="/embed",status="429"}} {len(refused)}.0' in text
    assert "modernbert_queue_tokens 0.0" in text


def test_many_concurrent_clients_get_their_results(open_app: Open, small_bert: ModernBert) -> None:
    client = open_app(small_bert)
    rng = np.random.default_rng(0)
    asked = [list(rng.choice(TEXTS, int(rng.integers(1, 6)))) for _ in range(40)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda texts: client.post("/embed", json={"inputs": texts}).json(), asked))
    for texts, rows in zip(asked, found, strict=True):
        np.testing.assert_allclose(rows, small_bert.embed(texts), atol=1e-5)


def test_clients_of_openai_and_of_the_hub_work_unchanged(
    serve: Callable[..., Any], small_bert: ModernBert, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub
    import openai

    # Tests may not ask the Hub, but a local server.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    url = serve(small_bert, api_key="secret").url
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="secret")
    found = client.embeddings.create(model="any", input=TEXTS)
    np.testing.assert_allclose([row.embedding for row in found.data], small_bert.embed(TEXTS), atol=1e-5)
    hub = huggingface_hub.InferenceClient(base_url=url, token="secret")
    vector = np.array(hub.feature_extraction(TEXTS[0])).ravel()
    np.testing.assert_allclose(vector, small_bert.embed(TEXTS[0])[0], atol=1e-5)
    alike = hub.sentence_similarity(TEXTS[0], other_sentences=TEXTS, model=f"{url}/similarity")
    np.testing.assert_allclose(alike, small_bert.similarity(TEXTS[0], TEXTS)[0], atol=1e-5)
    guesses = hub.fill_mask("a [MASK]", top_k=2, model=f"{url}/fill-mask")
    assert [each.token for each in guesses] == [
        each.token for each in small_bert.fill_mask("a [MASK]", 2)[0]  # type: ignore[union-attr]
    ]  # fmt: skip
    with pytest.raises(openai.UnprocessableEntityError, match="dimensions: found 999, expected 1 to 64"):
        client.embeddings.create(model="any", input="a", dimensions=999)
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{url}/v1", api_key="wrong").embeddings.create(model="any", input="a")


def test_the_hubs_client_gets_labels_and_spans(
    serve: Callable[..., Any], folder: Path, small_bert: ModernBert, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    tagger = tuned(folder, "tag", ["O", "B-x", "I-x"], tmp_path, small_bert)
    found = huggingface_hub.InferenceClient(base_url=serve(tagger).url).token_classification(TEXTS[0])
    known = tagger.tag(TEXTS[0])
    assert known and [(each.start, each.end, each.entity_group, each.word) for each in found] == [
        (span.start, span.end, span.label, span.text) for span in known  # type: ignore[union-attr]
    ]  # fmt: skip


def test_a_request_to_end_loses_nothing_that_was_taken(folder: Path) -> None:
    # Accepted requests are answered, however busy the machine is.
    with Served(folder, "--max-wait", "1000") as server, concurrent.futures.ThreadPoolExecutor(6) as pool:
        body = {"inputs": ["word " * 50] * 60}
        asked = [pool.submit(httpx.post, f"{server.url}/embed", json=body, timeout=60) for _ in range(6)]
        while "modernbert_queue_tokens 0.0" in httpx.get(f"{server.url}/metrics").text:
            time.sleep(0.01)
        server.process.send_signal(signal.SIGTERM)
        found = [each.result() for each in asked]
        # Requests after the signal are refused; accepted ones are answered.
        taken = [each for each in found if each.status_code != 503]
        assert taken and all(each.status_code == 200 and len(each.json()) == 60 for each in taken)
        assert server.process.wait(30) == 143, "128 and the signal's number, as every verb"
        assert server.process.stderr is not None and "Traceback" not in server.process.stderr.read()


def test_an_address_is_taken_before_the_model_is_loaded() -> None:
    """Of two servers that start at once, the second reports the address in use."""
    first = _listen("127.0.0.1", 0)
    with first, pytest.raises(InputError, match="cannot listen"):
        _listen("127.0.0.1", first.getsockname()[1])


def test_an_address_that_is_taken_is_one_line(folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = modernbert("serve", str(folder), "--port", port)
    assert done.returncode == 2 and f"cannot listen at 127.0.0.1:{port}" in done.stderr and done.stderr.count("\n") == 1
