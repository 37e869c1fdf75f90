"""Tags in scripts without blanks between words, and scores against the spans as they were given."""

import json
import sys
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import modernbert
from hypothesis import given
from hypothesis import strategies as st

from modernbert import ModernBert
from modernbert.data.labeled_rows import Row
from modernbert.data.words import join_words, split_words
from modernbert.model.config import ModelConfig
from modernbert.model.heads import Classifier, MaskedLM
from modernbert.model.initialization import initialize
from modernbert.tasks.examples import Columns, RowEncoder
from modernbert.tasks.tagging import Tagging
from modernbert.tasks.task import classifier_task
from modernbert.tokenizer.tokenizer import Tokenizer, train_tokenizer
from modernbert.training.finetuning import FinetuneConfig, finetune


def words_of(text: str) -> list[str]:
    return [text[a:b] for a, b in split_words(text)]


@pytest.mark.parametrize(
    "text, words",
    [
        ("東京に住む。", ["東", "京", "に", "住", "む", "。"]),
        ("我爱iPhone15", ["我", "爱", "iPhone15"]),
        ("スーパー 人々", ["ス", "ー", "パ", "ー", "人", "々"]),
        ("ｶﾞ か\u3099", ["ｶﾞ", "か\u3099"]),
        ("น้ำ ๒๕๖๗ ไทย", ["น้ำ", "๒๕๖๗", "ไ", "ท", "ย"]),
        ("ខ្មែរ", ["ខ្មែ", "រ"]),
        ("မြန်မာ", ["မြ", "န်", "မာ"]),
        ("ນ້ຳ", ["ນ້ຳ"]),
        ("서울은 хорошо हिन्दी עברית", ["서울은", "хорошо", "हिन्दी", "עברית"]),
        ("葛\U000e0100城市", ["葛\U000e0100", "城", "市"]),
    ],
)
def test_words_of_scripts_without_blanks_are_characters(text: str, words: list[str]) -> None:
    assert words_of(text) == words


def test_these_scripts_are_those_of_the_unicode_database() -> None:
    """By the property Script of another library; where the two know the same version of Unicode."""
    regex = pytest.importorskip("regex")
    scripts = "Han Hira Kana Bopo Yiii Tang Nshu Kits Thai Laoo Khmr Mymr Tale Talu Lana Tavt Ahom".split()
    ours = regex.compile("[" + "".join(rf"\p{{scx={script}}}" for script in scripts) + "]")
    letters = [chr(code) for code in (*range(0x3400), *range(0x3400, sys.maxunicode, 11))]
    letters = [letter for letter in letters if unicodedata.category(letter) == "Lo"]
    differ = [letter for letter in letters if (len(words_of(letter * 2)) == 2) != bool(ours.match(letter))]
    # Thai and Lao AM are written with the letter before them; the masu mark is a sign of kana by its use alone.
    assert differ == ["\u0e33", "\u0eb3", "\u303c"]


def split_as_before(text: str) -> list[tuple[int, int]]:
    """The rule under which taggers of earlier versions were trained."""
    ranges: list[tuple[int, int]] = []
    open_run = joined = False
    for place, character in enumerate(text):
        is_mark = unicodedata.category(character)[0] == "M" or character == "\u200d"
        if character.isspace():
            open_run = joined = False
            continue
        is_letter = character.isalnum() or character == "_"
        touches = bool(ranges) and ranges[-1][1] == place
        if touches and (is_mark or joined or (is_letter and open_run)):
            ranges[-1] = (ranges[-1][0], place + 1)
        else:
            ranges.append((place, place + 1))
            open_run = is_letter
        joined = character == "\u200d"
    return ranges


WITH_BLANKS = st.characters(max_codepoint=0x0DFF) | st.characters(min_codepoint=0x1F000, max_codepoint=0x1FFFF)


@given(st.text(WITH_BLANKS | st.sampled_from("\u200d\ufe0f 가\u1100"), max_size=40))
def test_text_with_blanks_is_split_as_it_was(text: str) -> None:
    assert split_words(text) == split_as_before(text)


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


def test_words_with_blanks_are_joined_by_blanks() -> None:
    assert join_words(["I", "live", "in", "東京", "。", "ok", "서울", "은"])[0] == "I live in 東京。ok 서울 은"


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
    assert ranges == split_as_before(text) and item.label_positions is not None
    assert len(set(item.label_positions.tolist())) < len(ranges), "the three points are one token"
