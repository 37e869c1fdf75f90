"""Rows to examples: labels, numbers, choices, pairs, and errors that name the row."""

from collections.abc import Callable

import pytest

from modernbert import ModernBert
from modernbert.data.rows import Row
from modernbert.errors import InputError
from modernbert.tasks.classification import Classification
from modernbert.tasks.columns import Columns
from modernbert.tasks.examples import RowEncoder
from modernbert.tasks.multilabel import Multilabel
from modernbert.tasks.multiple_choice import MultipleChoice
from modernbert.tasks.regression import Regression
from modernbert.tasks.tagging import Tagging


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
        ({"text": "a " * 600, "label": "x"}, "f:1: has .* tokens, expected at most 500; `cut=True`"),
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
    assert examples.num_truncated == 2 and len(cut) == 60 and cut == again
    assert cut[:first] == ids[:first] and cut[first:-1] == ids[first : first + 59 - first] and cut[-1] == ids[-1]
    both = {**row, "a": row["b"]}
    (cut,) = Regression().examples(rows_of(both), ["score"], RowEncoder(tokenizer, columns, 61, cut=True)).items
    middle = cut.tokens.tolist().index(tokenizer.sep_id)
    assert len(cut.tokens) == 61 and middle - 1 == 29
