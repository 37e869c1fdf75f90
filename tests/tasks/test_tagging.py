"""Tags and spans: rows to examples in every script, and scores against the spans as they were given."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import modernbert

from modernbert import ModernBert
from modernbert.data.rows import Row
from modernbert.errors import InputError
from modernbert.model.config import ModelConfig
from modernbert.model.heads import Classifier, MaskedLM
from modernbert.model.initialization import initialize
from modernbert.tasks.columns import Columns
from modernbert.tasks.examples import RowEncoder, batch_of
from modernbert.tasks.tagging import Tagging
from modernbert.tasks.task import classifier_task
from modernbert.tokenizer.bpe_training import train_tokenizer
from modernbert.tokenizer.tokenizer import Tokenizer
from modernbert.training.finetuning import FinetuneConfig, finetune


def rows_of(*values: dict[str, object]) -> list[Row]:
    return [Row(dict(each), f"f:{number}") for number, each in enumerate(values, 1)]


def test_tags_stand_at_the_first_token_of_their_word(small_bert: ModernBert) -> None:
    words = ["The", "capital", "of", "Ouagadougou", "\u00a0", "🙂", "é"]
    row = {"words": words, "tags": ["O", "O", "O", "B-x", "O", "B-y", "O"]}
    names = Tagging().labels(rows_of(row), Columns())
    assert names == ["O", "B-x", "B-y"]
    (example,) = Tagging().examples(rows_of(row), names, RowEncoder(small_bert.tokenizer, Columns(), 500)).items
    assert example.labels.tolist() == [0, 0, 0, 1, 0, 2, 0]
    assert example.label_positions is not None
    # Up to each word's first token stand exactly the words before it.
    for number, place in enumerate(example.label_positions):
        before = small_bert.tokenizer.decode(example.tokens[:place], special=False)
        assert before.rstrip(" ") == " ".join(words[:number]).rstrip(" ")
    np.testing.assert_array_equal(example.tokens, small_bert.tokenizer.encode([" ".join(words)])[0])


def test_spans_become_tags_of_whole_words(small_bert: ModernBert) -> None:
    text = "  Dr. Ann-Marie\tlives in New York."
    spans = [{"start": 6, "end": 16, "label": "who"}, {"start": text.index("New"), "end": len(text) - 1, "label": "at"}]
    examples = Tagging().examples(
        rows_of({"text": text, "spans": spans}), ["O", "B-at", "B-who", "I-at", "I-who"],
        RowEncoder(small_bert.tokenizer, Columns(), 500),
    )  # fmt: skip
    assert examples.items[0].labels.tolist() == [0, 0, 2, 4, 4, 0, 0, 1, 3, 0]
    assert examples.num_unaligned == 1, "the first span ends one character behind its last word"


@pytest.mark.parametrize(
    "row, said",
    [
        ({"words": ["a", "b"], "tags": ["O"]}, "f:1: found 1 tags, expected one for each of 2 words"),
        ({"words": ["a"], "tags": ["B-z"]}, "f:1: found the tag 'B-z', which no training row has"),
        ({"words": ["a", ""], "tags": ["O", "O"]}, "f:1: words has an empty word"),
        ({"words": "ab", "tags": ["O"]}, "f:1: words is 'ab', expected a list"),
        ({"text": "a b", "spans": [{"start": 2, "end": 9, "label": "x"}]}, "f:1: found a span from 2 to 9"),
        ({"text": "a b", "spans": [{"start": 1, "end": 2, "label": "x"}]}, "f:1: the span from 1 to 2 holds no word"),
        ({"text": "a b", "spans": 3}, "f:1: spans is 3, expected objects"),
        ({"text": "a b", "spans": [{"start": 0.5, "end": 1, "label": "x"}]}, "f:1: spans is .*, expected objects"),
        ({"text": "a b", "spans": [{"start": 0, "end": 1, "label": ""}]}, "f:1: spans is .*, expected objects"),
        ({"text": "a b"}, "f:1: no column 'spans'"),
    ],
)
def test_a_row_whose_tags_do_not_fit_is_named(row: dict[str, object], said: str, small_bert: ModernBert) -> None:
    with pytest.raises(InputError, match=said):
        Tagging().examples(rows_of(row), ["O", "B-x", "I-x"], RowEncoder(small_bert.tokenizer, Columns(), 500))


def test_words_that_are_cut_off_are_counted(small_bert: ModernBert) -> None:
    row = {"words": ["capital"] * 40, "tags": ["O"] * 40}
    examples = Tagging().examples(rows_of(row), ["O"], RowEncoder(small_bert.tokenizer, Columns(), 20, cut=True))
    (example,) = examples.items
    assert example.label_positions is not None and example.label_positions.max() < 19 and len(example.tokens) == 20
    assert examples.num_truncated == 1 and examples.num_words_cut == 40 - len(example.label_positions)


def test_batches_name_rows_of_the_stream(small_bert: ModernBert) -> None:
    rows = rows_of({"words": ["a", "b"], "tags": ["O", "B-x"]}, {"words": ["c"], "tags": ["B-x"]})
    examples = Tagging().examples(rows, ["O", "B-x"], RowEncoder(small_bert.tokenizer, Columns(), 500)).items
    batch = batch_of(examples)
    assert batch.label_positions is not None and batch.labels is not None
    first, second = examples
    assert first.label_positions is not None and second.label_positions is not None
    assert batch.label_positions.tolist() == [*first.label_positions, *(second.label_positions + len(first.tokens))]
    assert batch.labels.tolist() == [0, 1, 1]


@pytest.fixture(scope="module")
def japanese() -> Tokenizer:
    """A vocabulary with tokens of several characters: 東京 is one of them."""
    tokenizer = train_tokenizer(["東京都に住む人々は大阪にも行く。" + "東京" * (n % 5) for n in range(400)], 384)
    assert len(tokenizer.encode(["東京"], special=False)[0]) < 2
    return tokenizer


def labels_of(row: dict[str, object], tokenizer: Tokenizer) -> tuple[list[str], list[str], float]:
    """Return the text of each word that is labelled, its tag, and the share of widened spans."""
    rows = [Row(row, "f:1")]
    names = Tagging().labels(rows, Columns())
    examples = Tagging().examples(rows, names, RowEncoder(tokenizer, Columns(), 500))
    ((text, ranges),), (item,) = examples.words, examples.items
    assert item.label_positions is not None and len(set(item.label_positions.tolist())) == len(item.label_positions), (
        "a token has one label"
    )
    return [text[a:b] for a, b in ranges], [names[n] for n in item.labels], examples.share_unaligned


def test_characters_that_share_a_token_are_one_word(japanese: Tokenizer) -> None:
    text = "東京に"
    words, tags, share = labels_of({"text": text, "spans": [{"start": 0, "end": 2, "label": "x"}]}, japanese)
    assert words[0] == "東京" and tags[0] == "B-x" and share == 0
    words, tags, share = labels_of({"text": text, "spans": [{"start": 1, "end": 2, "label": "x"}]}, japanese)
    assert words[0] == "東京" and tags[0] == "B-x" and share == 1.0
    spans = [{"start": 0, "end": 1, "label": "x"}, {"start": 1, "end": 2, "label": "y"}]
    assert labels_of({"text": text, "spans": spans}, japanese)[2] == 1.0, "one is widened, the other has no token"


def test_a_character_of_several_tokens_is_labelled_at_its_first(small_bert: ModernBert) -> None:
    assert len(small_bert.tokenizer.encode(["京"], special=False)[0]) == 3
    words, tags, _ = labels_of(
        {"text": "は東京だ", "spans": [{"start": 1, "end": 3, "label": "x"}]}, small_bert.tokenizer
    )
    assert list(zip(words, tags, strict=True)) == [("は", "O"), ("東", "B-x"), ("京", "I-x"), ("だ", "O")]


@pytest.mark.parametrize(
    "tags, expected",
    [
        (["B-x", "O", "O"], ["B-x", "I-x", "O", "O"]),
        (["S-x", "O", "O"], ["B-x", "E-x", "O", "O"]),
        (["U-x", "O", "O"], ["B-x", "L-x", "O", "O"]),
        (["I-x", "E-x", "O"], ["I-x", "I-x", "E-x", "O"]),
        (["NOUN", "ADP", "PUNCT"], ["NOUN", "NOUN", "ADP", "PUNCT"]),
    ],
)
def test_words_of_conll_are_joined_as_prose_and_tagged_by_character(
    tags: list[str], expected: list[str], small_bert: ModernBert
) -> None:
    row = {"words": ["東京", "に", "。"], "tags": tags}
    words, found, share = labels_of(row, small_bert.tokenizer)
    assert (words, found, share) == (["東", "京", "に", "。"], expected, 0)
    rows = [Row(row, "f:1")]
    encoder = RowEncoder(small_bert.tokenizer, Columns(), 99)
    (example,) = Tagging().examples(rows, Tagging().labels(rows, Columns()), encoder).items
    np.testing.assert_array_equal(example.tokens, small_bert.tokenizer.encode(["東京に。"])[0])


def test_an_answer_covers_whole_tokens(japanese: Tokenizer) -> None:
    config = ModelConfig(
        vocab_size=384, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=1,
        pad_token_id=japanese.pad_id, cls_token_id=japanese.cls_id, sep_token_id=japanese.sep_id,
    )  # fmt: skip
    start = MaskedLM(config)
    initialize(start, config, seed=0)
    model = Classifier(config, classifier_task("tag").head_spec, ["O", "B-x", "B-y"]).eval()
    torch.nn.init.normal_(model.classifier.weight)
    texts = ["東京都に住む人々は大阪にも行く。", "GDPは東京"]
    for text, spans in zip(texts, ModernBert(japanese, model).tag(texts), strict=True):
        ((_, tokens),) = japanese.encode_words([text], [range(len(text))])
        borders = {0, len(text), *(n for n in range(1, len(text)) if tokens[n] != tokens[n - 1])}
        assert spans and max(span.end - span.start for span in spans) < 6
        assert {border for span in spans for border in (span.start, span.end)} <= borders
        assert all(text[span.start : span.end] == span.text for span in spans)
        assert all(a.end <= b.start for a, b in zip(spans, spans[1:], strict=False))


@pytest.fixture
def config(tmp_path: Path, small_bert: ModernBert) -> FinetuneConfig:
    small_bert.save(tmp_path / "model")
    return FinetuneConfig(
        model=str(tmp_path / "model"), task="tag", output=str(tmp_path / "run"), epochs=4, batch=16, lr=1e-3,
        dropout=0.0, device="cpu", dtype="float32", engine="torch", train=[],
    )  # fmt: skip


def write(path: Path, rows: list[dict[str, object]]) -> list[str]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [str(path)]


def test_a_span_inside_a_sentence_without_blanks_is_learned(config: FinetuneConfig, tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"text": f"{before}東京だ", "spans": [{"start": len(before), "end": len(before) + 2, "label": "city"}]}
        for before in ("彼は", "", "ที่")
    ] * 12
    path = write(tmp_path / "some.jsonl", rows)
    folder = finetune(replace(config, train=path, test=path, batch=8, epochs=6, lr=2e-3))
    scores = json.loads((folder.parent / "scores.json").read_text())
    assert scores["test"]["span_f1"] == 1.0 and scores["spans_widened"] == {"train": 0.0, "test": 0.0}
    bert = ModernBert.load(folder, device="cpu", dtype="float32")
    assert [span.text for span in bert.tag("彼は東京だ")] == ["東京"]  # type: ignore[union-attr]
    done = modernbert("tag", str(folder), "彼は東京だ")
    assert done.returncode == 0 and "東京" in done.stdout and "東京だ" not in done.stdout, done.stderr


def test_scores_are_of_the_spans_as_they_were_given(
    config: FinetuneConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A span inside a word cannot be found, however well the word is learned."""
    rows: list[dict[str, object]] = [
        {"text": f"{word} of the land", "spans": [{"start": inside, "end": 4, "label": "x"}]}
        for word, inside in (("city", 1), ("city", 1), ("city", 1), ("land", 0))
    ] * 12
    path = write(tmp_path / "some.jsonl", rows)
    folder = finetune(replace(config, train=path, dev=path, test=path, batch=8))
    assert "36 spans widened to whole words (75.0% of 48)" in capsys.readouterr().out
    scores = json.loads((folder.parent / "scores.json").read_text())
    assert scores["spans_widened"] == {"train": 0.75, "dev": 0.75, "test": 0.75}
    assert scores["test"]["accuracy"] > 0.9 and scores["test"]["span_recall"] == 0.25
    lines = (folder.parent / "predictions.jsonl").read_text().splitlines()
    assert {"start": 0, "end": 4, "label": "x", "text": "city"} in json.loads(lines[0])["predicted"]


def test_spans_that_are_cut_off_are_not_found(config: FinetuneConfig, tmp_path: Path) -> None:
    row: dict[str, object] = {"text": "city " + "land " * 20 + "city", "spans": [
        {"start": 0, "end": 4, "label": "x"}, {"start": 105, "end": 109, "label": "x"}]}  # fmt: skip
    path = write(tmp_path / "some.jsonl", [row] * 48)
    folder = finetune(replace(config, train=path, test=path, max_len=12, cut=True, batch=8))
    scores = json.loads((folder.parent / "scores.json").read_text())["test"]
    assert scores["span_precision"] == 1.0 and scores["span_recall"] == 0.5


def test_signs_that_share_a_token_are_words_as_before() -> None:
    tokenizer = train_tokenizer([f"so... well {n}... number {n * 7}" for n in range(400)], 384)
    text = "so... no"
    rows = [Row({"text": text, "spans": [{"start": 6, "end": 8, "label": "x"}]}, "f:1")]
    examples = Tagging().examples(rows, ["O", "B-x", "I-x"], RowEncoder(tokenizer, Columns(), 99))
    ((_, ranges),), (item,) = examples.words, examples.items
    assert ranges == [(0, 2), (2, 3), (3, 4), (4, 5), (6, 8)] and item.label_positions is not None
    assert len(set(item.label_positions.tolist())) < len(ranges), "the three points are one token"
