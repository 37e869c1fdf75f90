"""Labelled rows: every format, every broken row, and words that keep their characters."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modernbert import ModernBert
from modernbert.data.example_sampler import ExampleSampler
from modernbert.data.labeled_rows import Row, read_rows
from modernbert.data.words import join_words, split_words
from modernbert.errors import InputError
from modernbert.tasks.classification import Classification
from modernbert.tasks.examples import Columns, RowEncoder, batch_of
from modernbert.tasks.multilabel import Multilabel
from modernbert.tasks.multiple_choice import MultipleChoice
from modernbert.tasks.regression import Regression
from modernbert.tasks.tagging import Tagging

ROWS = [{"text": 'a "b", c', "label": "x"}, {"text": "d'e", "label": "y"}]


def write(path: Path, content: str) -> str:
    path.write_text(content, encoding="utf-8")
    return str(path)


def test_every_format_gives_the_same_rows(tmp_path: Path) -> None:
    tsv = write(tmp_path / "a.tsv", 'text\tlabel\na "b", c\tx\nd\'e\ty\n')
    csv = write(tmp_path / "a.csv", 'text,label\r\n"a ""b"", c",x\r\nd\'e,y\r\n')
    jsonl = write(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n\n" for row in ROWS))
    packed = tmp_path / "b.tsv.gz"
    packed.write_bytes(gzip.compress(Path(tsv).read_bytes()))
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    for source in (tsv, csv, jsonl, str(packed), str(tmp_path / "a.parquet"), f"file://{jsonl}"):
        assert [row.values for row in read_rows([source])] == ROWS, source
    assert [row.origin for row in read_rows([jsonl])] == [f"{jsonl}:1", f"{jsonl}:3"]
    # Without the name of a split in any file, all of a folder is the split train.
    assert len(read_rows([str(tmp_path)])) == 10
    with pytest.raises(InputError, match="all rows are the split train, expected dev"):
        read_rows([str(tmp_path)], "dev")
    (tmp_path / "a.tsv").rename(tmp_path / "test.tsv")
    (tmp_path / "a.csv").rename(tmp_path / "train.csv")
    assert [row.values for row in read_rows([str(tmp_path)])] == ROWS


def test_a_line_break_inside_quotes_is_part_of_the_cell(tmp_path: Path) -> None:
    rows = read_rows([write(tmp_path / "a.csv", 'text,label\n"a\nb",x\nc,y\n')])
    assert [row.values["text"] for row in rows] == ["a\nb", "c"] and rows[1].origin.endswith(":4")


def test_conll_sentences_end_at_blank_lines(tmp_path: Path) -> None:
    rows = read_rows([write(tmp_path / "a.conll", "-DOCSTART- X O\n\nEU NNP B-ORG\nrejects VB O\n\n\nno RB O\n")])
    assert [(row.values["words"], row.values["tags"]) for row in rows] == [
        (["EU", "rejects"], ["B-ORG", "O"]), (["no"], ["O"])
    ]  # fmt: skip


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("a.tsv", "text\tlabel\nonly\n", r"a.tsv:2: found 1 columns, expected 2 \(text, label\)"),
        ("a.tsv", "text\ttext\n", "a.tsv:1: found columns"),
        ("a.tsv", "text\tlabel\n", "found no row"),
        ("a.csv", 'text,label\n"never closed,x\n', "a.csv:2: is not readable as csv"),
        ("a.jsonl", '{"text": \n', "a.jsonl:1: is not JSON"),
        ("a.jsonl", "[1]\n", "a.jsonl:1: found a JSON list"),
        ("a.conll", "word\n", "a.conll:1: found 'word' alone"),
        ("a.xlsx", "", "a.xlsx: unknown format"),
        ("a.parquet", "no", "a.parquet: is not readable as parquet"),
    ],
)
def test_a_broken_file_is_one_line(name: str, content: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        read_rows([write(tmp_path / name, content)])


def test_bytes_that_are_not_text_and_absent_files_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_bytes(b"text\tlabel\n\xff\tx\n")
    with pytest.raises(InputError, match="a.tsv:2: found byte 0xff, expected UTF-8"):
        read_rows([str(tmp_path / "a.tsv")])
    with pytest.raises(InputError, match="no such file"):
        read_rows([str(tmp_path / "b.tsv")])


def rows_of(*values: dict[str, object]) -> list[Row]:
    return [Row(dict(each), f"f:{number}") for number, each in enumerate(values, 1)]


def test_labels_are_numbered_as_people_count() -> None:
    assert Classification().labels(rows_of({"label": 10}, {"label": "9"}), Columns()) == ["9", "10"]
    assert Classification().labels(rows_of({"label": "b"}, {"label": "a"}), Columns()) == ["a", "b"]


@pytest.mark.parametrize(
    "names, row, said",
    [
        (Classification().labels, {"label": "a\nb"}, r"f:2: label has 'a\\nb', expected text of one line"),
        (Multilabel().labels, {"label": ["x", "a\x85"]}, r"f:2: label has 'a\\x85', expected"),
        (Tagging().labels, {"words": ["a"], "tags": ["B-a\tb"]}, r"f:2: tags has 'B-a\\tb', expected"),
        (
            Tagging().labels, {"text": "a", "spans": [{"start": 0, "end": 1, "label": "\x7f"}]},
            r"f:2: spans has '\\x7f', expected",
        ),
    ],
)  # fmt: skip
def test_a_label_that_no_folder_takes_is_named(
    names: Callable[..., list[str]], row: dict[str, object], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        names(rows_of({"label": "x", "words": ["a"], "tags": ["O"]}, row), Columns())


@pytest.mark.parametrize(
    "row, said",
    [
        ({"text": "a"}, "f:1: no column 'label', found 'text'"),
        ({"text": "a", "label": None}, "f:1: label is None"),
        ({"text": "a", "label": float("nan")}, "f:1: label is nan"),
        ({"text": "a", "label": "z"}, "f:1: label is 'z', which no training row has"),
        ({"text": " ", "label": "x"}, "f:1: text is empty"),
        ({"text": 7, "label": "x"}, "f:1: text is int"),
        ({"text": "a \ud800", "label": "x"}, "f:1: text contains an invalid Unicode character"),
        ({"text": "a", "label": "\ud800"}, "f:1: label contains an invalid Unicode character"),
        ({"text": "a " * 600, "label": "x"}, "f:1: has .* tokens, expected at most 500; cut=true"),
    ],
)
def test_a_row_that_cannot_be_learned_from_is_named(row: dict[str, object], said: str, small_bert: ModernBert) -> None:
    with pytest.raises(InputError, match=said):
        Classification().examples(rows_of(row), ["x", "y"], RowEncoder(small_bert.tokenizer, Columns(), 500))


@pytest.mark.parametrize(
    "row, said",
    [
        ({"text": "a", "choices": ["b"], "label": 0}, "f:1: choices has 1 texts, expected two or more"),
        (
            {"text": "a", "choices": ["b", " "], "label": 0},
            "f:1: choices has 2 texts, expected two or more, none empty",
        ),
        ({"text": "a", "choices": "bc", "label": 0}, "f:1: choices is 'bc', expected a list"),
        ({"text": "a", "choices": ["b", "\udc00"], "label": 0}, "f:1: choices contains an invalid Unicode character"),
        ({"text": "a", "choices": ["b", "c"], "label": 2}, "f:1: label is 2, expected 0 to 1"),
        ({"text": "a", "choices": ["b", "c" * 4000], "label": 0}, "f:1: has .* tokens, expected at most 500"),
    ],
)
def test_a_choice_that_is_none_is_named(row: dict[str, object], said: str, small_bert: ModernBert) -> None:
    with pytest.raises(InputError, match=said):
        MultipleChoice().examples(rows_of(row), ["score"], RowEncoder(small_bert.tokenizer, Columns(), 500))


@pytest.mark.parametrize("found", ["nan", float("nan"), "x", None, True, "inf", 1e39, "-1e39", 10**400])
def test_a_number_that_is_none_is_named(found: object, small_bert: ModernBert) -> None:
    with pytest.raises(InputError, match="f:1: label is .*, expected a finite number"):
        Regression().examples(
            rows_of({"text": "a", "label": found}), ["score"], RowEncoder(small_bert.tokenizer, Columns(), 500)
        )


def test_pairs_are_one_document_and_cut_from_the_longer_text(small_bert: ModernBert) -> None:
    tokenizer = small_bert.tokenizer
    columns = Columns(text="a", pair="b")
    row = {"a": "The capital of country 3", "b": "a land of rivers " * 50, "label": "1.5"}
    (whole,) = Regression().examples(rows_of(row), ["score"], RowEncoder(tokenizer, columns, 10_000)).items
    ids = whole.tokens.tolist()
    assert ids == [tokenizer.cls_id, *tokenizer.encode([row["a"]], special=False)[0], tokenizer.sep_id,
                   *tokenizer.encode([row["b"]], special=False)[0], tokenizer.sep_id]  # fmt: skip
    examples = Regression().examples(rows_of(row, row), ["score"], RowEncoder(tokenizer, columns, 60, cut=True))
    (cut, again) = (each.tokens.tolist() for each in examples.items)
    first = ids.index(tokenizer.sep_id) + 1
    assert examples.num_cut == 2 and len(cut) == 60 and cut == again
    assert cut[:first] == ids[:first] and cut[first:-1] == ids[first : first + 59 - first] and cut[-1] == ids[-1]
    both = {**row, "a": row["b"]}
    (cut,) = Regression().examples(rows_of(both), ["score"], RowEncoder(tokenizer, columns, 61, cut=True)).items
    middle = cut.tokens.tolist().index(tokenizer.sep_id)
    assert len(cut.tokens) == 61 and middle - 1 == 29


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
    assert examples.num_cut == 1 and examples.num_words_cut == 40 - len(example.label_positions)


@given(st.text(max_size=60))
def test_words_hold_every_visible_character_once(text: str) -> None:
    ranges = split_words(text)
    assert "".join(text[a:b] for a, b in ranges) == "".join(text.split())
    assert all(a < b for a, b in ranges) and ranges == sorted(ranges)


@pytest.mark.parametrize(
    "text, words",
    [
        ("👩‍👩‍👧 ok", ["👩‍👩‍👧", "ok"]),
        ("cafe\u0301s\t\U0001f44d\U0001f3fd", ["cafe\u0301s", "\U0001f44d", "\U0001f3fd"]),
        ("  x_1=-2.5", ["x_1", "=", "-", "2", ".", "5"]),
        ("हिन्दी", ["हिन्दी"]),
    ],
)
def test_what_belongs_to_a_character_stays_with_it(text: str, words: list[str]) -> None:
    assert [text[a:b] for a, b in split_words(text)] == words


def test_joined_words_are_where_they_are_said_to_be() -> None:
    text, ranges = join_words(["a", "🙂b", "c"])
    assert [text[a:b] for a, b in ranges] == ["a", "🙂b", "c"]


def test_batches_name_rows_of_the_stream(small_bert: ModernBert) -> None:
    rows = rows_of({"words": ["a", "b"], "tags": ["O", "B-x"]}, {"words": ["c"], "tags": ["B-x"]})
    examples = Tagging().examples(rows, ["O", "B-x"], RowEncoder(small_bert.tokenizer, Columns(), 500)).items
    batch = batch_of(examples)
    assert batch.label_positions is not None and batch.labels is not None
    first, second = examples
    assert first.label_positions is not None and second.label_positions is not None
    assert batch.label_positions.tolist() == [*first.label_positions, *(second.label_positions + len(first.tokens))]
    assert batch.labels.tolist() == [0, 1, 1]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=50), st.integers(1, 9), st.integers(1, 64), st.integers(0, 9))
def test_each_pass_has_every_example_once(lengths: list[int], batch: int, budget: int, seed: int) -> None:
    lessons = ExampleSampler(lengths, batch, epochs=2, seed=seed, budget_tokens=budget)
    steps = [lessons.micro_batches(step) for step in range(lessons.num_steps)]
    half = lessons.steps_per_epoch
    for epoch in (steps[:half], steps[half:]):
        assert sorted(n for step in epoch for part in step for n in part) == list(range(len(lengths)))
        assert all(sum(map(len, step)) == batch for step in epoch[:-1])
    for part in (part for step in steps for part in step):
        assert len(part) == 1 or sum(lengths[n] for n in part) <= budget
