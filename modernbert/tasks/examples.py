"""Training examples of tasks with labels: the columns of rows, token ids with labels, and batches of them."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import torch

from modernbert.batch import Batch
from modernbert.data.rows import Row
from modernbert.errors import InputError
from modernbert.tasks.columns import Columns
from modernbert.tokenizer.input_templates import EncodedText, collate_texts
from modernbert.tokenizer.tokenizer import Tokenizer

__all__ = ["Example", "Examples", "RowEncoder", "batch_of", "check_not_withheld", "label_of", "texts_of"]

_ROWS_AT_A_TIME = 4_096
T = TypeVar("T")


@dataclass(frozen=True)
class Example:
    """The token ids and labels of a row.

    Attributes:
        tokens: Token ids.
        labels: Labels of the document, or of its tokens `label_positions`.
        label_positions: Numbers of the tokens that have a label.
        lengths: Tokens of each document, if the row became several documents with a label each.
    """

    tokens: np.ndarray
    labels: np.ndarray
    label_positions: np.ndarray | None = None
    lengths: tuple[int, ...] | None = None


@dataclass
class Examples:
    """The examples of one split, and what its texts lost on request."""

    items: list[Example] = field(default_factory=list)
    origins: list[str] = field(default_factory=list)
    """The file and line of each row."""
    num_truncated: int = 0
    """Texts that were longer than the limit and were cut."""

    def add(self, row: Row, example: Example) -> None:
        """Append the example of a row."""
        self.items.append(example)
        self.origins.append(row.origin)

    def losses(self) -> list[tuple[int, str]]:
        """Return how much was lost or changed, each as a number and its description."""
        return [(self.num_truncated, "texts cut")]

    def facts(self) -> dict[str, float]:
        """Return further numbers of the split for `scores.json`."""
        return {}

    @property
    def num_tokens(self) -> int:
        """Tokens of all examples."""
        return sum(len(each.tokens) for each in self.items)


@dataclass(frozen=True)
class RowEncoder:
    """Encode the texts of rows within a length limit.

    Attributes:
        tokenizer: The tokenizer of the model.
        columns: Names of the columns.
        max_length: Most tokens of an example.
        cut: Whether longer texts are cut, instead of being an error.
    """

    tokenizer: Tokenizer
    columns: Columns
    max_length: int
    cut: bool = False

    def documents(self, rows: Sequence[Row], labels: Sequence[np.ndarray]) -> Examples:
        """Return an example for the text of each row, or for its pair of texts.

        Raises: InputError naming the row, for an empty text, or one that is too long.
        """
        examples = Examples()
        pair = self.columns.pair
        for some, their_labels in zip(self.portions(rows), self.portions(labels), strict=True):
            texts = [row.text(self.columns.text) for row in some]
            if pair is None:
                encoded = cut = self.tokenizer.encode(texts)
            else:
                pairs = list(zip(texts, [row.text(pair) for row in some], strict=True))
                encoded = cut = self.tokenizer.encode_pairs(pairs)
                if any(len(ids) > self.max_length for ids in encoded):
                    cut = self.tokenizer.encode_pairs(pairs, self.max_length)
            for row, tokens, cut_pair, label in zip(some, encoded, cut, their_labels, strict=True):
                kept = self.fit(row, tokens, examples)
                examples.add(row, Example(kept if pair is None else cut_pair, label))
        return examples

    def fit(self, row: Row, tokens: np.ndarray, examples: Examples) -> np.ndarray:
        """Return tokens, cut at the limit and counted if that was asked for.

        Raises: InputError naming the row, if it was not.
        """
        if len(tokens) <= self.max_length:
            return tokens
        if not self.cut:
            raise InputError(
                f"{row.origin}: has {len(tokens):,} tokens, expected at most {self.max_length:,}; `cut=True` cuts "
                "longer texts"
            )
        examples.num_truncated += 1
        return self.tokenizer.truncate(tokens, self.max_length)

    def portions(self, rows: Sequence[T]) -> Iterator[Sequence[T]]:
        """Yield rows in portions: a tokenizer takes many texts at once, not all."""
        for start in range(0, len(rows), _ROWS_AT_A_TIME):
            yield rows[start : start + _ROWS_AT_A_TIME]


def batch_of(examples: Sequence[Example]) -> Batch:
    """Concatenate examples to a batch on the CPU; label positions become positions in the batch."""
    labels = torch.from_numpy(np.concatenate([each.labels for each in examples]))
    documents = [EncodedText(part, each.label_positions) for each in examples for part in _documents_of(each)]
    return replace(collate_texts(documents), labels=labels)


def _documents_of(example: Example) -> list[np.ndarray]:
    if example.lengths is None:
        return [example.tokens]
    return np.split(example.tokens, np.cumsum(example.lengths)[:-1])


def label_of(row: Row, column: str) -> str:
    """Return a label as text; 1.0 and 1 are the same.

    Raises: InputError naming the row, if it has none.
    """
    found = row.value(column)
    is_nothing = found is None or isinstance(found, (list, dict)) or (isinstance(found, str) and not found.strip())
    if is_nothing or (isinstance(found, float) and not math.isfinite(found)):
        raise InputError(f"{row.origin}: {column} is {found!r}, expected a label")
    row.check_labels(column, str(found))
    return str(int(found)) if isinstance(found, float) and found.is_integer() else str(found)


def texts_of(row: Row, column: str) -> list[str]:
    """Return a list of texts.

    Raises: InputError naming the row, if it has another value.
    """
    found = row.value(column)
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise InputError(f"{row.origin}: {column} is {str(found)[:60]!r}, expected a list of texts")
    row.check_whole(column, *found)
    return found


def check_not_withheld(rows: Sequence[Row], column: str, labels: Sequence[Sequence[str]]) -> None:
    """Refuse -1 among labels that are numbers from 0: test splits have it for withheld labels, as in GLUE.

    Raises: InputError naming the first such row.
    """
    found = {name for of_row in labels for name in of_row}
    if "-1" not in found or not (found == {"-1"} or "0" in found):
        return
    if all(name.removeprefix("-").isdecimal() for name in found):
        row = next(row for row, of_row in zip(rows, labels, strict=True) if "-1" in of_row)
        raise InputError(
            f"{row.origin}: {column} is -1, the mark of a label that was withheld; choose a split with labels, or "
            "give the label a name if it is one"
        )
