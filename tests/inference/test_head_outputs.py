"""What heads say through `ModernBert`: beside the published classes, in any batch, for texts of any length."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import modernbert
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer

from modernbert import Batch, InputError, ModernBert
from modernbert.checkpoints.folder import ModelFolder
from modernbert.data.words import split_words
from modernbert.inference.quantize import quantize
from modernbert.model.heads import Classifier
from modernbert.tasks.task import start_classifier
from modernbert.training.finetuning_loop import predict

TEXTS = ["the capital of country 3", "x", "  rivers,\tcities 👩\u200d🚀 and Zoe\u0308 ", "word " * 120, "a land"]
LABELS = {"classify": ["no", "yes", "maybe"], "multilabel": ["a", "b"], "regress": ["score"], "rerank": ["score"],
          "tag": ["O", "B-x", "I-x", "B-y"]}  # fmt: skip
Load = Callable[[str], tuple[ModernBert, Path]]


@pytest.fixture(scope="module")
def load(small_bert: ModernBert, tmp_path_factory: pytest.TempPathFactory) -> Load:
    """Save a model with a random head for a task, and load it."""
    start = tmp_path_factory.mktemp("answers")
    small_bert.save(start / "start")

    def load(task: str) -> tuple[ModernBert, Path]:
        folder = start / task
        if not folder.exists():
            model = start_classifier(ModelFolder(start / "start").load_model(), task, LABELS[task], seed=3)
            torch.nn.init.normal_(model.classifier.weight, std=0.5)
            ModelFolder.save(folder, model, small_bert.tokenizer, 1_000)
        return ModernBert.load(folder, device="cpu", dtype="float32", engine="torch"), folder

    return load


@pytest.mark.parametrize("task", ["classify", "multilabel", "regress"])
def test_labels_are_those_of_transformers(task: str, load: Load) -> None:
    bert, folder = load(task)
    theirs, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder).eval(), _tokenizer(folder)
    answer: Callable[[Any], Any] = {"classify": lambda x: x.softmax(-1), "multilabel": torch.sigmoid}.get(
        task, lambda x: x
    )
    for text, found in zip(TEXTS, bert.classify(TEXTS), strict=True):
        with torch.no_grad():
            expected = answer(theirs(**tokenizer(text, return_tensors="pt")).logits[0])
        assert found == pytest.approx(dict(zip(LABELS[task], expected.tolist(), strict=True)), abs=1e-5)
        assert list(found.values()) == sorted(found.values(), reverse=True)
    assert bert.classify(TEXTS[0]) == pytest.approx(bert.classify(TEXTS)[0], abs=1e-6)  # type: ignore[index]
    with torch.no_grad():
        expected = answer(theirs(**tokenizer("one", "two", return_tensors="pt")).logits[0])
    both = dict(zip(LABELS[task], expected.tolist(), strict=True))
    assert bert.classify(("one", "two")) == pytest.approx(both, abs=1e-5)


def test_pairs_are_ranked_by_the_score_of_transformers(load: Load) -> None:
    bert, folder = load("rerank")
    theirs, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder).eval(), _tokenizer(folder)
    with torch.no_grad():
        expected = [
            float(theirs(**tokenizer("what", text, return_tensors="pt")).logits[0, 0].sigmoid()) for text in TEXTS
        ]
    found = bert.rerank("what", TEXTS)
    assert [each.index for each in found] == np.argsort(-np.array(expected), kind="stable").tolist()
    assert [each.score for each in found] == pytest.approx(sorted(expected, reverse=True), abs=1e-5)
    assert bert.rerank("what", TEXTS, top_k=2) == found[:2] and bert.rerank("what", []) == []


@pytest.mark.parametrize("task", ["regress", "rerank"])
def test_no_two_texts_score_alike_where_products_are_rounded(task: str, load: Load) -> None:
    """bfloat16 has 128 numbers between 1 and 2: documents ranked by them would be in no order."""
    _, folder = load(task)
    bert = ModernBert.load(folder, device="cpu", dtype="bfloat16", engine="torch")
    texts = [f"the capital of country {n}" for n in range(300)]
    pairs = [("what", text) for text in texts]
    found = [next(iter(each.values())) for each in bert.classify(pairs if task == "rerank" else texts)]
    # As a run scores its dev rows: weights in float32, products in bfloat16.
    batches = [Batch.from_documents(bert.tokenizer.encode(texts))]
    whole = ModelFolder(folder).load_model()
    assert isinstance(whole, Classifier)
    scored = predict(whole, batches, device=torch.device("cpu"), dtype=torch.bfloat16)
    for scores in (found, scored[:, 0].tolist()):
        assert len(set(scores)) > 290 > len(set(torch.tensor(scores).bfloat16().tolist()))


def test_spans_are_those_of_transformers_and_the_very_characters(load: Load) -> None:
    bert, folder = load("tag")
    theirs, tokenizer = AutoModelForTokenClassification.from_pretrained(folder).eval(), _tokenizer(folder)
    num_spans = 0
    for text, spans in zip(TEXTS, bert.tag(TEXTS), strict=True):
        encoded = tokenizer(text, return_tensors="pt", return_offsets_mapping=True)
        offsets = encoded.pop("offset_mapping")[0].tolist()
        with torch.no_grad():
            shares, best = theirs(**encoded).logits[0].softmax(-1).max(-1)
        # The first token that reaches past the beginning of a word is the word's.
        rows = [next(n for n, (_, end) in enumerate(offsets) if end > start) for start, _ in split_words(text)]
        tags = [LABELS["tag"][best[row]] for row in rows]
        begins = [n for n, name in enumerate(tags) if name != "O" and not (
            name[0] == "I" and n and tags[n - 1][1:] == name[1:])]  # fmt: skip
        assert [span.start for span in spans] == [split_words(text)[n][0] for n in begins]
        for span, first in zip(spans, begins, strict=True):
            assert text[span.start : span.end] == span.text
            behind = first + 1
            while behind < len(tags) and tags[behind] == f"I-{span.label}":
                behind += 1
            assert span.score == pytest.approx(float(shares[rows[first:behind]].mean()), abs=1e-5)
            num_spans += 1
    assert num_spans > 10
    assert bert.tag(TEXTS[0]) == bert.tag(TEXTS)[0]


def test_similarity_is_of_queries_and_documents_as_tuned(small_bert: ModernBert) -> None:
    vectors = replace(small_bert.vectors, query_prompt="find ", document_prompt="text ")
    bert = ModernBert(small_bert.tokenizer, small_bert.model, vectors=vectors)
    a, b = bert.embed(TEXTS[:2], prompt="find "), bert.embed(TEXTS, prompt="text ")
    np.testing.assert_allclose(bert.similarity(TEXTS[:2], TEXTS), a @ b.T, atol=1e-5)
    assert bert.similarity([], TEXTS).shape == (0, 5)
    best = bert.rerank(TEXTS[0], TEXTS)
    np.testing.assert_allclose([each.score for each in best], np.sort(-(a @ b.T)[0]) * -1, atol=1e-5)
    late = ModernBert(small_bert.tokenizer, small_bert.model, vectors=replace(vectors, pooling="tokens"))
    tokens = [late.embed_tokens([f"text {text}"])[0] for text in TEXTS]
    query = late.embed_tokens([f"find {TEXTS[0]}"])[0]
    unit = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in (query, *tokens)]
    expected = [float((unit[0] @ other.T).max(axis=1).sum()) for other in unit[1:]]
    np.testing.assert_allclose(late.similarity(TEXTS[0], TEXTS)[0], expected, rtol=1e-4)


def test_a_long_text_is_the_mean_of_its_parts(load: Load, small_bert: ModernBert) -> None:
    bert, _ = load("classify")
    long = " ".join(f"w{n}" for n in range(2_000))
    (ids,) = bert.tokenizer.encode([long])
    parts = bert.tokenizer.split(ids, 1_000)
    assert all(part[0] == ids[0] and part[-1] == ids[-1] and len(part) <= 1_000 for part in parts)
    np.testing.assert_array_equal(np.concatenate([part[1:-1] for part in parts]), ids[1:-1])
    assert len(parts) == -(-(len(ids) - 2) // 998) and max(map(len, parts)) - min(map(len, parts)) <= 1
    batch = Batch.from_documents(parts)
    with torch.no_grad():
        hidden = bert.encoder(batch.tokens, batch.layout).float().numpy()
    found = bert.embed(["short", long, "other"], overflow="split-mean", normalize=False)
    np.testing.assert_allclose(found[1], hidden.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(
        bert.embed(["short", long, "other"], overflow="split-mean")[[0, 2]], bert.embed(["short", "other"]), atol=1e-6
    )
    tokens = bert.embed_tokens([long], overflow="truncate")[0]
    np.testing.assert_allclose(
        bert.embed([long], overflow="truncate", normalize=False)[0], tokens.mean(axis=0), atol=1e-5
    )
    said = bert.classify([long, "short"], overflow="split-mean")
    assert said[1] == pytest.approx(bert.classify("short"), abs=1e-6)  # type: ignore[index]
    assert sum(said[0].values()) == pytest.approx(1, abs=1e-5)  # type: ignore[index]
    assert bert.count_tokens([long, "x"]) == [len(ids), 3]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda bert: bert.embed("a", overflow="drop"), "overflow: found 'drop', expected error, truncate, split-mean"),
        (lambda bert: bert.embed_tokens("a", overflow="split-mean"), "overflow: found split-mean"),
        (lambda bert: bert.embed("a", precision="int4"), "precision: found 'int4', expected float32, float16"),
        (lambda bert: bert.embed("a", precision="binary", truncate_dim=12), "binary for 12 components"),
        (lambda bert: bert.classify(["a", "b " * 3000]), r"text 1: has [\d,]+ tokens, expected at most 1,000"),
        (lambda bert: bert.classify(["a", ("b", "c")]), "found texts and pairs of texts"),
        (lambda bert: bert.embed("b " * 3000), "1,000; pass `overflow=.truncate.` .*, or `overflow=.split-mean.`"),
        (lambda bert: bert.embed_tokens("b " * 3000), "1,000; pass `overflow=.truncate.` to cut it$"),
        (lambda bert: bert.rerank("a", ["b"], overflow="drop"), "overflow: found 'drop'"),
        (lambda bert: bert.tag("a"), "has a head for classify, expected one for tag"),
        (lambda bert: bert.rerank("a", ["b"], top_k=0), "top_k: found 0"),
    ],
)
def test_what_cannot_be_answered_is_said(call: Callable[[ModernBert], Any], said: str, load: Load) -> None:
    bert, _ = load("classify")
    with pytest.raises(InputError, match=said):
        call(bert)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda bert: bert.rerank("a", ["b"], overflow="split-mean"), "overflow: found split-mean, expected error or"),
        (lambda bert: bert.rerank("a", ["b", "b " * 3000]), r"^text 1: has [\d,]+ tokens, .* 1,000; pass `overflow"),
        (lambda bert: bert.rerank("b " * 3000, ["b"]), r"^query: has [\d,]+ tokens, expected at most 1,000"),
    ],
)
def test_what_vectors_cannot_rank_is_said(call: Callable[[ModernBert], Any], said: str, small_bert: ModernBert) -> None:
    with pytest.raises(InputError, match=said):
        call(small_bert)


def test_a_tagger_names_its_own_remedy(load: Load) -> None:
    bert, _ = load("tag")
    with pytest.raises(InputError, match="expected at most 1,000; pass `overflow=.truncate.` to cut it$"):
        bert.tag("b " * 3000)
    assert bert.tag("b " * 3000, overflow="truncate") is not None


def test_what_is_compared_by_vectors_is_cut_if_asked_and_not_in_silence(small_bert: ModernBert) -> None:
    vectors = replace(small_bert.vectors, document_length=12, document_prompt="text ", query_length=8)
    bert = ModernBert(small_bert.tokenizer, small_bert.model, vectors=vectors)
    long = "the capital of country 3 is a city in a land of rivers"
    for query, documents, said in (("what", ["a", long], "^text 1: has"), (long, ["a"], "^query: has")):
        with pytest.raises(InputError, match=said):
            bert.rerank(query, documents)
    (cut,) = bert.rerank("what", [long], overflow="truncate")
    assert cut.score == pytest.approx(float(bert.similarity("what", long)[0, 0]), abs=1e-6)
    assert len(bert.rerank("what", (text for text in ["a", "x"]))) == 2


def test_fewer_bytes_keep_the_direction(small_bert: ModernBert) -> None:
    whole = small_bert.embed(TEXTS)
    for precision, least in (("float16", 0.999999), ("int8", 0.9999)):
        found = small_bert.embed(TEXTS, precision=precision)
        assert found.dtype == np.dtype(precision) and found.shape == whole.shape
        wide = found.astype(np.float32)
        cosines = (wide * whole).sum(axis=1) / np.linalg.norm(wide, axis=1)
        assert cosines.min() > least
    packed = small_bert.embed(TEXTS, precision="binary")
    assert packed.shape == (len(TEXTS), whole.shape[1] // 8)
    np.testing.assert_array_equal(np.unpackbits(packed, axis=1).astype(bool), whole > 0)
    assert quantize(np.zeros((1, 8), np.float32), "int8").tolist() == [[0] * 8]
    assert quantize(np.array([[65_504, -1]], np.float32), "float16").tolist() == [[65_504, -1]]
    with pytest.raises(InputError, match="precision: found float16 for a component of 70000, expected at most 65,504"):
        quantize(np.array([[1, -70_000]], np.float32), "float16")


def test_threads_do_not_disturb_each_other(load: Load) -> None:
    bert, _ = load("classify")
    rng = np.random.default_rng(0)
    batches = [list(rng.choice(TEXTS, int(rng.integers(1, 9)))) for _ in range(40)]
    expected = [(bert.embed(batch), bert.classify(batch)) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda batch: (bert.embed(batch), bert.classify(batch)), batches))
    for (vectors, labels), (same, again) in zip(expected, found, strict=True):
        np.testing.assert_allclose(vectors, same, atol=1e-6)
        assert [list(each) for each in labels] == [list(each) for each in again]


def test_the_commands_print_lines_or_json(load: Load) -> None:
    bert, folder = load("classify")
    run = lambda *words: modernbert(*words, "--device", "cpu", "--dtype", "float32")  # noqa: E731
    done = run("classify", str(folder), "a land", "x", "--json")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    for row, expected in zip(rows, bert.classify(["a land", "x"]), strict=True):
        assert row["labels"] == pytest.approx(expected, abs=1e-4)
    tagger, folder = load("tag")
    done = run("tag", str(folder), TEXTS[0])
    expected_spans = tagger.tag(TEXTS[0])
    assert [line.split("\t")[1:4] for line in done.stdout.splitlines()] == [
        [str(span.start), str(span.end), span.label] for span in expected_spans  # type: ignore[union-attr]
    ]  # fmt: skip
    _, folder = load("rerank")
    done = run("rerank", str(folder), "what", *TEXTS[:2], "--top-k", "1")
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 1
    done = run("rerank", str(folder), "what", "a\x1b[2Jb\x9bc")
    assert done.stdout.partition("\t")[2] == "a\ufffd[2Jb\ufffdc\n"
    done = run("tag", str(folder), "a")
    assert done.returncode == 2 and "has a head for rerank, expected one for tag" in done.stderr


def _tokenizer(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)
