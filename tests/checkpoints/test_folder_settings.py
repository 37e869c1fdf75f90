"""Prompts and lengths of a sentence-transformers folder apply to every call, command and route."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import modernbert
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from transformers import BertConfig, BertModel

from modernbert import InputError, ModernBert
from modernbert.checkpoints.folder import ModelFolder
from modernbert.evaluation.mteb_encoder import MtebEncoder
from modernbert.search.passage_index import PassageIndex
from modernbert.tasks.task import start_classifier

pytestmark = pytest.mark.filterwarnings("ignore")

PROMPTS = {"query": "ask: ", "document": "read: ", "clustering": "sort this: "}
TEXTS = ["The capital of country 3 is city 21.", "rivers", "a land of 3 rivers, and of 4"]
LONG = "a land of 3 rivers, " * 12
LIMIT = 20
Write = Callable[..., Path]


@pytest.fixture(scope="module")
def plain(small_bert: ModernBert, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of transformers, of which sentence-transformers has written nothing."""
    small_bert.save(tmp_path_factory.mktemp("settings") / "plain")
    return next(tmp_path_factory.getbasetemp().glob("settings*")) / "plain"


@pytest.fixture
def write(plain: Path, small_bert: ModernBert, tmp_path: Path) -> Write:
    """Have sentence-transformers write a folder; `family` is modernbert or bert, `files` change its files."""

    def write(
        max_length: int | None = None, family: str = "modernbert", files: dict[str, dict[str, Any]] | None = None,
        **settings: Any,
    ) -> Path:  # fmt: skip
        start = plain
        if family == "bert":
            start = tmp_path / "bert"
            shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
            BertModel(BertConfig(vocab_size=512, max_position_embeddings=300, **shape)).save_pretrained(start)
            small_bert.tokenizer.save_folder(start, 300)
        first = Transformer(str(start))
        model = SentenceTransformer(
            modules=[first, Pooling(first.get_embedding_dimension()), Normalize()], device="cpu", **settings
        )
        if max_length is not None:
            model.max_seq_length = max_length
        model.save(str(tmp_path / "model"))
        for name, changes in (files or {}).items():
            place = tmp_path / "model" / name
            found = json.loads(place.read_text()) | changes
            place.write_text(json.dumps({key: value for key, value in found.items() if value is not None}))
        return tmp_path / "model"

    return write


def load(folder: Path) -> ModernBert:
    return ModernBert.load(folder, device="cpu", dtype="float32", engine="torch")


def theirs(folder: Path) -> SentenceTransformer:
    return SentenceTransformer(str(folder), device="cpu")


def close(ours: Any, expected: Any) -> None:
    np.testing.assert_allclose(ours, expected, atol=2e-5)


@contextmanager
def served(bert: ModernBert) -> Iterator[Any]:
    pytest.importorskip("fastapi")
    from fastapi.testclient import TestClient

    from modernbert.serving.app import ServeSettings, make_app
    from modernbert.serving.request_guard import Limits
    from modernbert.serving.scheduler import Scheduler

    app = make_app(bert, Scheduler(bert, budget_tokens=300), ServeSettings("mine", Limits(log=False), warm_up=False))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


@pytest.mark.parametrize("family", ["modernbert", "bert"])
def test_the_default_prompt_is_put_before_texts_as_sentence_transformers_does(write: Write, family: str) -> None:
    folder = write(prompts=PROMPTS, default_prompt_name="clustering", family=family)
    bert, model = load(folder), theirs(folder)
    expected = model.encode(TEXTS)
    assert np.abs(expected - model.encode(TEXTS, prompt="")).max() > 0.01
    close(bert.embed(TEXTS), expected)
    close(bert.embed(TEXTS, prompt=""), model.encode(TEXTS, prompt=""))
    close(bert.embed(TEXTS, prompt="x "), model.encode(TEXTS, prompt="x "))
    tokens = model.encode(TEXTS[:1], output_value="token_embeddings")
    close(bert.embed_tokens(TEXTS[:1])[0], np.asarray(tokens[0]))
    # Queries and documents have their prompts, not the default prompt.
    close(bert.embed_queries(TEXTS).vectors, model.encode_query(TEXTS))
    close(bert.embed_documents(TEXTS).vectors, model.encode_document(TEXTS))
    close(bert.similarity(TEXTS, TEXTS), model.encode_query(TEXTS) @ model.encode_document(TEXTS).T)


def test_queries_and_documents_without_prompts_do_not_have_the_default_one(write: Write, tmp_path: Path) -> None:
    pytest.importorskip("lancedb")
    folder = write(prompts={"clustering": "sort this: "}, default_prompt_name="clustering")
    bert, model = load(folder), theirs(folder)
    queries, documents = model.encode_query(TEXTS), model.encode_document(TEXTS)
    close(queries, model.encode(TEXTS, prompt=""))
    close(bert.embed_queries(TEXTS).vectors, queries)
    close(bert.embed_documents(TEXTS).vectors, documents)
    ranked = bert.rerank(TEXTS[0], TEXTS)
    close([each.score for each in sorted(ranked, key=lambda each: each.index)], documents @ queries[0])
    with served(bert) as client:
        body = {"inputs": {"source_sentence": TEXTS[0], "sentences": TEXTS}}
        close(client.post("/similarity", json=body).json(), documents @ queries[0])
    for text in TEXTS:
        (tmp_path / f"{len(text)}.txt").write_text(text)
    words = ("--device", "cpu", "--dtype", "float32")
    sources = [word for path in tmp_path.glob("*.txt") for word in ("--input", str(path))]
    done = modernbert("index", str(folder), *sources, "--output", str(tmp_path / "i"), *words)
    assert done.returncode == 0, done.stderr
    hits = PassageIndex.open(tmp_path / "i").search(bert, TEXTS[0], 3, "vectors")
    close(sorted(hit.score for hit in hits), np.sort(documents @ queries[0]))


def test_an_empty_document_prompt_is_the_documents_prompt(write: Write) -> None:
    folder = write(prompts={"document": "", "passage": "read: ", "query": "ask: "})
    bert, model = load(folder), theirs(folder)
    close(bert.embed_documents(TEXTS).vectors, model.encode_document(TEXTS))
    close(bert.embed_documents(TEXTS).vectors, model.encode(TEXTS, prompt=""))


def test_the_command_and_the_server_put_the_default_prompt_before_texts(write: Write) -> None:
    folder = write(prompts=PROMPTS, default_prompt_name="clustering")
    bert, model = load(folder), theirs(folder)
    expected, bare = model.encode(TEXTS), model.encode(TEXTS, prompt="")
    for words, vectors in (((), expected), (("--prompt", ""), bare), (("--prompt", "x "), None)):
        done = modernbert("embed", str(folder), *TEXTS, *words, "--device", "cpu", "--dtype", "float32")
        assert done.returncode == 0, done.stderr
        rows = [json.loads(line) for line in done.stdout.splitlines()]
        close(rows, model.encode(TEXTS, prompt="x ") if vectors is None else vectors)
    with served(bert) as client:
        for path in ("/", "/embed"):
            close(client.post(path, json={"inputs": TEXTS}).json(), expected)
            close(client.post(path, json={"inputs": TEXTS, "prompt": ""}).json(), bare)
        for name, prompt in PROMPTS.items():
            found = client.post("/embed", json={"inputs": TEXTS, "prompt_name": name}).json()
            close(found, model.encode(TEXTS, prompt=prompt))
        for body, vectors in (({}, expected), ({"prompt": ""}, bare), ({"input_type": "query"}, None)):
            rows = client.post("/v1/embeddings", json={"input": TEXTS, **body}).json()["data"]
            close([row["embedding"] for row in rows], model.encode_query(TEXTS) if vectors is None else vectors)
        every = client.post("/embed_all", json={"inputs": TEXTS[:1]}).json()
        close(every[0], bert.embed_tokens(TEXTS[:1])[0])
        # Ids have no place for a prompt: complete ones are taken as they are, others only without it.
        bare_ids = bert.tokenizer.encode([f"{PROMPTS['clustering']}{TEXTS[0]}"], special=False)[0].tolist()
        whole = bert.tokenizer.add_special_tokens(bare_ids).tolist()
        close(client.post("/embed", json={"inputs": whole}).json(), expected[:1])
        close(client.post("/embed", json={"inputs": bare_ids, "prompt": ""}).json(), expected[:1])
        for body in ({"inputs": bare_ids}, {"inputs": whole, "prompt": "x "}, {"inputs": "a", "prompt_name": "no"},
                     {"inputs": "a", "prompt": "x", "prompt_name": "query"}):  # fmt: skip
            answer = client.post("/embed", json=body)
            assert answer.status_code == 422 and "prompt" in answer.json()["error"], body


def test_mteb_gets_the_vectors_of_the_default_prompt(write: Write) -> None:
    mteb = pytest.importorskip("mteb")
    folder = write(prompts=PROMPTS, default_prompt_name="clustering")
    about: dict[str, Any] = {"task_metadata": mteb.get_task("STS12").metadata, "hf_split": "test", "hf_subset": "x"}
    close(MtebEncoder(load(folder)).encode([{"text": TEXTS}], **about), theirs(folder).encode(TEXTS))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"default_prompt_name": "other"}, "default_prompt_name is 'other', expected one of prompts: .*clustering"),
        ({"default_prompt_name": 3}, "default_prompt_name is '3', expected one of prompts"),
        ({"prompts": {"clustering": 3}}, "clustering is 3, expected a string"),
        ({"prompts": ["a"]}, "prompts is list, expected names and texts"),
    ],
)
def test_a_default_prompt_that_is_none_is_refused(write: Write, changes: dict[str, Any], said: str) -> None:
    folder = write(prompts=PROMPTS, files={"config_sentence_transformers.json": changes})
    with pytest.raises(InputError, match=rf"config_sentence_transformers.json: {said}") as told:
        load(folder)
    assert "\n" not in str(told.value)
    if "prompts" not in changes:
        with pytest.raises(ValueError, match="not found in the configured prompts"):
            theirs(folder)


LIMITS: dict[str, dict[str, Any]] = {
    "of the tokenizer": {"max_length": LIMIT},
    "of older folders": {
        "files": {"sentence_bert_config.json": {"max_seq_length": LIMIT}, "tokenizer_config.json": {}},
    },
    "of older folders, before the tokenizer's": {
        "max_length": 7, "files": {"sentence_bert_config.json": {"max_seq_length": LIMIT}},
    },
    "of arguments of the tokenizer": {
        "files": {"sentence_bert_config.json": {
            "max_seq_length": 9, "processor_kwargs": {"model_max_length": LIMIT}
        }},
    },
    "by an older name": {
        "files": {"tokenizer_config.json": {"model_max_length": None, "max_len": LIMIT}},
    },
}  # fmt: skip


@pytest.mark.parametrize("family", ["modernbert", "bert"])
@pytest.mark.parametrize("kind", LIMITS)
def test_texts_are_as_long_as_sentence_transformers_takes_them(write: Write, kind: str, family: str) -> None:
    folder = write(family=family, **LIMITS[kind])
    bert, model = load(folder), theirs(folder)
    assert bert.max_length == model.max_seq_length == LIMIT
    close(bert.embed([LONG, "x"], overflow="truncate"), model.encode([LONG, "x"]))
    with pytest.raises(InputError, match=rf"text 0: has [\d,]+ tokens, expected at most {LIMIT}"):
        bert.embed(LONG)


def test_every_call_and_route_keeps_the_limit(write: Write, tmp_path: Path) -> None:
    folder = write(LIMIT)
    bert, model = load(folder), theirs(folder)
    expected = model.encode([LONG])
    close(bert.embed_documents([LONG]).vectors, expected)
    close(bert.embed_queries([LONG]).vectors, expected)
    assert bert.embed_queries([LONG]).num_truncated == 1
    assert bert.embed_tokens(LONG, overflow="truncate")[0].shape[0] == LIMIT
    ids = bert.tokenizer.encode([LONG], special=False)[0]
    parts = np.array_split(ids, -(-len(ids) // (LIMIT - 2)))
    vectors = [bert.embed(bert.tokenizer.decode(part), normalize=False)[0] * (len(part) + 2) for part in parts]
    mean = np.sum(vectors, axis=0)
    close(bert.embed(LONG, overflow="split-mean")[0], mean / np.linalg.norm(mean))
    for call in (lambda: bert.rerank("a", [LONG]), lambda: bert.rerank(LONG, ["a"])):
        with pytest.raises(InputError, match=f"expected at most {LIMIT}"):
            call()
    done = modernbert("embed", str(folder), LONG, "--device", "cpu", "--dtype", "float32")
    assert done.returncode == 2 and f"expected at most {LIMIT}" in done.stderr
    with served(bert) as client:
        assert client.get("/info").json()["max_input_length"] == LIMIT
        for path, body in (
            ("/embed", {"inputs": LONG}),
            ("/embed_all", {"inputs": LONG}),
            ("/embed", {"inputs": [ids.tolist()]}),
            ("/v1/embeddings", {"input": LONG}),
            ("/rerank", {"query": "a", "texts": [LONG]}),
            ("/similarity", {"inputs": {"source_sentence": LONG, "sentences": ["a"]}}),
        ):
            answer = client.post(path, json=body)
            assert answer.status_code == 422 and f"expected at most {LIMIT}" in answer.text, path
        close(client.post("/embed", json={"inputs": LONG, "truncate": True}).json(), expected)
        close(client.post("/embed", json={"inputs": ids.tolist(), "truncate": True}).json(), expected)
    bert.save(tmp_path / "saved")
    assert load(tmp_path / "saved").max_length == theirs(tmp_path / "saved").max_seq_length == LIMIT


@pytest.mark.parametrize("task", ["mask", "classify", "tag", "rerank"])
def test_heads_keep_the_limit_of_the_tokenizer(plain: Path, small_bert: ModernBert, tmp_path: Path, task: str) -> None:
    """As pipelines of transformers do that cut, and its cross-encoders."""
    model: Any = ModelFolder(plain).load_model()
    if task != "mask":
        model = start_classifier(model, task, ["O"] if task == "rerank" else ["O", "B-x"], seed=1)
    ModelFolder.save(tmp_path / "model", model, small_bert.tokenizer, LIMIT)
    bert = load(tmp_path / "model")
    calls: dict[str, Callable[[ModernBert], Any]] = {
        "mask": lambda bert: bert.fill_mask(f"[MASK] {LONG}"),
        "classify": lambda bert: bert.classify([LONG]),
        "tag": lambda bert: bert.tag([LONG]),
        "rerank": lambda bert: bert.rerank("a", [LONG]),
    }
    routes: dict[str, tuple[str, dict[str, Any]]] = {
        "mask": ("/fill-mask", {"inputs": f"[MASK] {LONG}"}),
        "classify": ("/predict", {"inputs": LONG}),
        "tag": ("/predict", {"inputs": LONG}),
        "rerank": ("/rerank", {"query": "a", "texts": [LONG]}),
    }
    assert bert.max_length == LIMIT
    with pytest.raises(InputError, match=f"expected at most {LIMIT}"):
        calls[task](bert)
    with served(bert) as client:
        path, body = routes[task]
        answer = client.post(path, json=body)
        assert answer.status_code == 422 and f"expected at most {LIMIT}" in answer.text
        assert client.get("/info").json()["max_input_length"] == LIMIT
    bert.save(tmp_path / "saved")
    assert load(tmp_path / "saved").max_length == LIMIT


@pytest.mark.parametrize(
    ("name", "key", "value", "longest"),
    [
        ("tokenizer_config.json", "model_max_length", 10**30, 1_000),
        ("tokenizer_config.json", "model_max_length", 1e30, 1_000),
        ("tokenizer_config.json", "model_max_length", 5_000, 1_000),
        ("tokenizer_config.json", "model_max_length", 0, None),
        ("tokenizer_config.json", "model_max_length", "20", None),
        ("sentence_bert_config.json", "max_seq_length", -1, None),
        ("sentence_bert_config.json", "max_seq_length", True, None),
    ],
)
def test_a_limit_is_a_number_of_tokens_or_refused(
    write: Write, name: str, key: str, value: Any, longest: int | None
) -> None:
    folder = write(files={name: {key: value}})
    if longest is not None:
        assert load(folder).max_length == longest
        return
    with pytest.raises(InputError, match=rf"{name}: {key} is '?{value}'?, expected a number of tokens"):
        load(folder)


def test_settings_under_an_old_name_are_refused_and_not_passed_over(write: Write) -> None:
    folder = write(LIMIT)
    (folder / "sentence_bert_config.json").rename(folder / "sentence_roberta_config.json")
    with pytest.raises(InputError, match="sentence_roberta_config.json: .* expected sentence_bert_config.json; rename"):
        load(folder)
