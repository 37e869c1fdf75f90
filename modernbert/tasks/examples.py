"""Rows -> examples: token ids of a document, and what is expected of it.

In: rows, a tokenizer, which columns are what. Out: `Example`s, and batches of them. Labels are numbers here; what a
number means is in the `names` that were learned from the training rows.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from modernbert.batch import Batch
from modernbert.data.labeled_rows import Row
from modernbert.data.unused_columns import is_negative, negatives_of
from modernbert.data.words import (
    continued,
    join_words,
    pieces_of,
    share_tokens,
    spans_of,
    split_words,
    stands_alone,
)
from modernbert.errors import InputError
from modernbert.tokenizer.input_templates import EncodedText, encode_with_template
from modernbert.tokenizer.tokenizer import Tokenizer

__all__ = [
    "CharacterSpan",
    "Columns",
    "Example",
    "Examples",
    "batch_of",
    "character_spans",
    "chosen",
    "fit",
    "labelled",
    "multilabelled",
    "names_of",
    "names_of_many",
    "pairs_of_negatives",
    "rated",
    "tag_names_of",
    "tagged",
]

_CALL_TEXTS = 4_096

CharacterSpan = tuple[int, int, str]
"""first character, the one after the last, label"""


@dataclass(frozen=True)
class Columns:
    """Say which columns hold what; `pair` is that of a second text, where each row has two.

    Tagged rows have either `words` and `tags`, or `text` and `spans`: a list of `start`, `end` and `label` each. Of
    CoNLL files, `words` and `tags` may be a column's number from 1, or its name.
    """

    text: str = "text"
    pair: str | None = None
    label: str = "label"
    choices: str = "choices"
    answers: str = "answers"
    words: str = "words"
    tags: str = "tags"
    spans: str = "spans"


@dataclass(frozen=True)
class Example:
    """Hold one document and what is expected: of itself, or of the rows `label_positions` of it.

    With `lengths` it is several documents laid end to end, each with a label of its own.
    """

    tokens: np.ndarray
    labels: np.ndarray
    label_positions: np.ndarray | None = None
    lengths: tuple[int, ...] | None = None


@dataclass
class Examples:
    """Hold the examples of one split, where each was read, and what of their texts was lost on request."""

    items: list[Example] = field(default_factory=list)
    origins: list[str] = field(default_factory=list)
    words: list[tuple[str, list[tuple[int, int]]]] = field(default_factory=list)
    """Of each tagged row, its text and the characters of each word that is scored."""
    spans: list[set[CharacterSpan]] = field(default_factory=list)
    """Of each tagged row, the spans as they were given, those in the part that was cut off included."""
    num_cut: int = 0
    """Texts that were longer than the limit, and were cut."""
    num_words_cut: int = 0
    """Words that carry a tag and were cut off with the end of their text."""
    num_unaligned: int = 0
    """Spans that begin or end inside a word or a token; the whole word or token is labelled."""

    @property
    def share_unaligned(self) -> float:
        """Share of the given spans that no tags of whole words and tokens can mark."""
        return self.num_unaligned / max(1, sum(map(len, self.spans)))


def batch_of(examples: Sequence[Example]) -> Batch:
    """Lay examples end to end, on the CPU; rows of a document become rows of the batch."""
    labels = torch.from_numpy(np.concatenate([each.labels for each in examples]))
    documents = [EncodedText(part, each.label_positions) for each in examples for part in _documents_of(each)]
    return replace(encode_with_template(documents), labels=labels)


def _documents_of(example: Example) -> list[np.ndarray]:
    if example.lengths is None:
        return [example.tokens]
    return np.split(example.tokens, np.cumsum(example.lengths)[:-1])


def names_of(rows: Sequence[Row], columns: Columns) -> list[str]:
    """Return the labels that rows have: numbers in their order if all are, else in alphabetical order.

    Raises: InputError if a row has none, or all have the same.
    """
    found = {_name(row, columns.label) for row in rows}
    _check_hidden(rows, columns.label, lambda row, column: [_name(row, column)])
    if len(found) < 2:
        raise InputError(f"{columns.label}: every row is {next(iter(found))!r}, expected at least two labels")
    return sorted(found, key=int) if all(name.isdecimal() for name in found) else sorted(found)


def _check_hidden(rows: Sequence[Row], column: str, names: Callable[[Row, str], Sequence[str]]) -> None:
    """Refuse -1 among labels that are numbers from 0: it stands for labels that were withheld, as in tests of GLUE.

    Raises: InputError naming the first such row.
    """
    found = {name for row in rows for name in names(row, column)}
    if "-1" not in found or not (found == {"-1"} or "0" in found):
        return
    if all(name.removeprefix("-").isdecimal() for name in found):
        row = next(row for row in rows if "-1" in names(row, column))
        raise InputError(
            f"{row.origin}: {column} is -1, which stands for a label that was withheld; choose a split with labels, or "
            "give the label a name if it is one"
        )


def labelled(
    rows: Sequence[Row], tokenizer: Tokenizer, columns: Columns, names: Sequence[str], longest: int, *, cut: bool
) -> Examples:
    """Make an example of each row, with the number of its label among `names`.

    Raises: InputError naming the row, for a label that is not among them, an empty text, or one that is too long.
    """
    numbers = {name: number for number, name in enumerate(names)}

    def label(row: Row) -> np.ndarray:
        name = _name(row, columns.label)
        if name not in numbers:
            _check_hidden([row], columns.label, lambda row, column: [_name(row, column)])
            raise InputError(f"{row.origin}: {columns.label} is {name!r}, which no training row has")
        return np.array([numbers[name]])

    return _documents(rows, [label(row) for row in rows], tokenizer, columns, longest, cut)


def names_of_many(rows: Sequence[Row], columns: Columns) -> list[str]:
    """Return all labels that rows have, of which each may have several, in alphabetical order.

    Raises: InputError if no row has one.
    """
    found = {name for row in rows for name in _names(row, columns.label)}
    _check_hidden(rows, columns.label, _names)
    if not found:
        raise InputError(f"{columns.label}: no row has a label, expected at least one")
    return sorted(found)


def multilabelled(
    rows: Sequence[Row], tokenizer: Tokenizer, columns: Columns, names: Sequence[str], longest: int, *, cut: bool
) -> Examples:
    """Make an example of each row, with 1 for each of `names` that it has, else 0.

    Raises: InputError naming the row, for a label that is not among them, an empty text, or one that is too long.
    """
    numbers = {name: number for number, name in enumerate(names)}
    if len(rows) > 1 and not any(_names(row, columns.label) for row in rows):
        raise InputError(
            f"{rows[0].origin}: {columns.label} has no label here nor in any other row, as where they were withheld; "
            "choose a split with labels"
        )

    def label(row: Row) -> np.ndarray:
        found = np.zeros((1, len(names)), dtype=np.float32)
        for name in _names(row, columns.label):
            if name not in numbers:
                raise InputError(f"{row.origin}: {columns.label} has {name!r}, which no training row has")
            found[0, numbers[name]] = 1
        return found

    return _documents(rows, [label(row) for row in rows], tokenizer, columns, longest, cut)


def rated(rows: Sequence[Row], tokenizer: Tokenizer, columns: Columns, longest: int, *, cut: bool) -> Examples:
    """Make an example of each row, with its label as a number.

    Raises: InputError naming the row, for a label that is no finite number, an empty text, or one that is too long.
    """
    numbers = [np.array([row.number(columns.label)], dtype=np.float32) for row in rows]
    if len(rows) > 1 and all(number == -1 for number in numbers):
        raise InputError(
            f"{rows[0].origin}: {columns.label} is -1 here and in every other row, which stands for labels that were "
            "withheld; choose a split with labels"
        )
    return _documents(rows, numbers, tokenizer, columns, longest, cut)


def pairs_of_negatives(rows: Sequence[Row], columns: Columns) -> list[Row]:
    """Make pairs of rows with negatives and no label: 1 for the text of `columns.pair`, 0 for each negative.

    Raises: InputError naming the row, for one with both, or an empty text.
    """
    found: list[Row] = []
    pair = columns.pair or "positive"
    for row in rows:
        negatives = negatives_of(row)
        if not negatives:
            found.append(row)
            continue
        if row.values.get(columns.label) is not None:
            raise InputError(f"{row.origin}: found {columns.label} and negatives, expected one of them")
        others = {key: value for key, value in row.values.items() if not is_negative(key)}
        for text, label in ((row.text(pair), 1), *((text, 0) for text in negatives)):
            found.append(Row(others | {pair: text, columns.label: label}, row.origin))
    return found


def chosen(rows: Sequence[Row], tokenizer: Tokenizer, columns: Columns, longest: int, *, cut: bool) -> Examples:
    """Make an example of each row: a text, each of its choices after it, and which one is right.

    A choice's label is (number of the row, 1 if it is the right one, else 0).

    Raises: InputError naming the row, for fewer than two choices, a label that names none of them, an empty text, or
    one that is too long.
    """
    examples = Examples()
    for number, row in enumerate(rows):
        choices = _listed(row, columns.choices)
        if len(choices) < 2 or not all(choice.strip() for choice in choices):
            raise InputError(
                f"{row.origin}: {columns.choices} has {len(choices)} texts, expected two or more, none empty"
            )
        right = row.number(columns.label)
        if right not in range(len(choices)):
            raise InputError(f"{row.origin}: {columns.label} is {right:g}, expected 0 to {len(choices) - 1}")
        pairs = [(row.text(columns.text), choice) for choice in choices]
        whole = tokenizer.encode_pairs(pairs)
        for tokens in whole:
            fit(row, tokens, tokenizer, longest, cut, examples)
        documents = tokenizer.encode_pairs(pairs, longest)
        labels = np.array([[number, int(place == right)] for place in range(len(choices))])
        lengths = tuple(len(each) for each in documents)
        examples.items.append(Example(np.concatenate(documents), labels, lengths=lengths))
        examples.origins.append(row.origin)
    return examples


def tag_names_of(rows: Sequence[Row], columns: Columns) -> list[str]:
    """Return the tags that rows have, `O` first; spans give `B-` for a first word and `I-` for the others.

    Where words are split further (scripts without blanks), the tags of their pieces are among them.

    Raises: InputError if a row has neither tags nor spans.
    """
    found = {"O"}
    is_split = False
    for row in rows:
        if _has_spans(row, columns):
            found.update(f"{prefix}-{span[2]}" for span in _spans(row, columns) for prefix in "BI")
        else:
            found.update(_tags(row, columns))
            is_split = is_split or any(map(stands_alone, "".join(_words(row, columns))))
    if found <= {"O", "_"}:
        every = "'_', which is CoNLL-U's word for none" if "_" in found else "'O'"
        raise InputError(f"{columns.tags}: every word is {every}, expected at least one other tag")
    if is_split:
        found.update(part for tag in list(found) for part in continued(tag))
    return ["O", *sorted(found - {"O"})]


def tagged(
    rows: Sequence[Row], tokenizer: Tokenizer, columns: Columns, names: Sequence[str], longest: int, *, cut: bool
) -> Examples:
    """Make an example of each row, with the number of each word's tag at the word's first token.

    Letters of scripts without blanks that share a token are one word (`share_tokens`), with the first tag that is not
    `O` among theirs.

    Raises: InputError naming the row, for a tag that is not among `names`, as many tags as no words, an empty text, or
    one that is too long.
    """
    numbers = {name: number for number, name in enumerate(names)}
    examples = Examples()
    for start in range(0, len(rows), _CALL_TEXTS):
        some = rows[start : start + _CALL_TEXTS]
        read = [_words_and_tags(row, columns) for row in some]
        starts = [[begin for begin, _ in each.words] for each in read]
        encoded = tokenizer.encode_words([each.text for each in read], starts)
        for row, each, (tokens, places) in zip(some, read, encoded, strict=True):
            ranges, where, firsts = share_tokens(each.text, each.words, places)
            groups = zip(firsts, [*firsts[1:], len(each.words)], strict=True)
            tags = [next((tag for tag in each.tags[a:b] if tag != "O"), "O") for a, b in groups]
            for tag in tags:
                if tag not in numbers:
                    raise InputError(f"{row.origin}: found the tag {tag!r}, which no training row has")
            examples.num_unaligned += len(each.spans - character_spans(ranges, tags))
            examples.spans.append(each.spans)
            kept = fit(row, tokens, tokenizer, longest, cut, examples)
            labels = np.array([numbers[tag] for tag in tags], dtype=np.int64)
            if kept is not tokens:
                inside = where < longest - tokenizer.num_special[1]
                examples.num_words_cut += int((~inside).sum())
                where, labels = where[inside], labels[inside]
            examples.items.append(Example(kept, labels, where))
            examples.origins.append(row.origin)
            examples.words.append((each.text, ranges[: len(where)]))
    return examples


def character_spans(words: Sequence[tuple[int, int]], tags: Sequence[str]) -> set[CharacterSpan]:
    """Return the spans that the tags of words mark, by the characters they cover.

    >>> character_spans([(0, 3), (4, 8)], ["B-place", "I-place"])
    {(0, 8, 'place')}
    """
    return {(words[first][0], words[behind - 1][1], label) for first, behind, label in spans_of(tags)}


def _documents(
    rows: Sequence[Row], labels: Sequence[np.ndarray], tokenizer: Tokenizer, columns: Columns, longest: int, cut: bool
) -> Examples:
    examples = Examples()
    for start in range(0, len(rows), _CALL_TEXTS):
        some = rows[start : start + _CALL_TEXTS]
        if columns.pair is None:
            encoded = tokenizer.encode([row.text(columns.text) for row in some])
            short = None
        else:
            pairs = [(row.text(columns.text), row.text(columns.pair)) for row in some]
            encoded = tokenizer.encode_pairs(pairs)
            short = tokenizer.encode_pairs(pairs, longest) if any(len(ids) > longest for ids in encoded) else encoded
        for number, (row, tokens) in enumerate(zip(some, encoded, strict=True)):
            kept = fit(row, tokens, tokenizer, longest, cut, examples)
            kept = short[number] if short is not None else kept
            examples.items.append(Example(kept, labels[start + number]))
            examples.origins.append(row.origin)
    return examples


def fit(row: Row, tokens: np.ndarray, tokenizer: Tokenizer, longest: int, cut: bool, examples: Examples) -> np.ndarray:
    """Return tokens, cut at `longest` and counted as such if that was asked for.

    Raises: InputError naming the row, if it was not.
    """
    if len(tokens) <= longest:
        return tokens
    if not cut:
        raise InputError(
            f"{row.origin}: has {len(tokens):,} tokens, expected at most {longest:,}; cut=true cuts longer texts"
        )
    examples.num_cut += 1
    return tokenizer.cut(tokens, longest)


def _name(row: Row, column: str) -> str:
    found = row.value(column)
    is_nothing = found is None or isinstance(found, (list, dict)) or (isinstance(found, str) and not found.strip())
    if is_nothing or (isinstance(found, float) and not math.isfinite(found)):
        raise InputError(f"{row.origin}: {column} is {found!r}, expected a label")
    row.check_labels(column, str(found))
    return str(int(found)) if isinstance(found, float) and found.is_integer() else str(found)


def _names(row: Row, column: str) -> list[str]:
    """Return the labels of a row that may have several, or none: a list, or text with commas between them."""
    found = row.value(column)
    if isinstance(found, str):
        found = [name.strip() for name in found.split(",")] if found.strip() else []
    whole = isinstance(found, list) and all(type(name) in (str, int) and str(name).strip() for name in found)
    if not whole or len(set(map(str, found))) < len(found):
        raise InputError(f"{row.origin}: {column} is {str(found)[:60]!r}, expected a list of different labels")
    row.check_labels(column, *map(str, found))
    return [str(name) for name in found]


def _listed(row: Row, column: str) -> list[str]:
    found = row.value(column)
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise InputError(f"{row.origin}: {column} is {str(found)[:60]!r}, expected a list of texts")
    row.check_whole(column, *found)
    return found


def _words(row: Row, columns: Columns) -> list[str]:
    _check_layer(row, "words", columns.words)
    return _listed(row, columns.words)


def _check_layer(row: Row, name: str, column: str) -> None:
    """Say how a column of CoNLL is chosen, where it is not there.

    Raises: InputError naming the row and its columns.
    """
    if column not in row.values and "1" in row.values:
        names = [each for each in row.values if not each.isdecimal() and each not in ("words", "tags")]
        raise InputError(
            f"{row.origin}: no column {column!r}; choose the {name} with columns.{name}=NAME of "
            f"{', '.join([*names, f'1 to {sum(map(str.isdecimal, row.values))}'])}"
        )


def _tags(row: Row, columns: Columns) -> list[str]:
    _check_layer(row, "tags", columns.tags)
    found = _listed(row, columns.tags)
    row.check_labels(columns.tags, *found)
    return found


@dataclass(frozen=True)
class _Tagged:
    """Hold a text, the range of each word in it, the tag of each word, and the spans that were given."""

    text: str
    words: list[tuple[int, int]]
    tags: list[str]
    spans: set[CharacterSpan]


def _has_spans(row: Row, columns: Columns) -> bool:
    """Say whether a row has a text and spans, rather than words and tags.

    Raises: InputError naming the row, if it has both tags and spans.
    """
    if columns.tags in row.values and columns.spans in row.values:
        raise InputError(f"{row.origin}: found {columns.tags} and {columns.spans}, expected one of them")
    return columns.words not in row.values and columns.text in row.values


def _words_and_tags(row: Row, columns: Columns) -> _Tagged:
    if not _has_spans(row, columns):
        words, tags = _words(row, columns), _tags(row, columns)
        if len(words) != len(tags):
            raise InputError(f"{row.origin}: found {len(tags)} tags, expected one for each of {len(words)} words")
        if not words or not all(word.strip() or word == "\u00a0" for word in words):
            raise InputError(f"{row.origin}: {columns.words} has an empty word, expected text")
        text, ranges = join_words(words)
        pieces = [
            (begin + a, begin + b, part)
            for (begin, _), word, tag in zip(ranges, words, tags, strict=True)
            for a, b, part in pieces_of(word, tag)
        ]
        parts, part_tags = [(a, b) for a, b, _ in pieces], [part for *_, part in pieces]
        # Tags that mark no spans, such as parts of speech, are those of characters.
        is_marked = any("-" in tag for tag in tags)
        spans = character_spans(ranges, tags) if is_marked else character_spans(parts, part_tags)
        return _Tagged(text, parts, part_tags, spans)
    text, given = row.text(columns.text), _spans(row, columns)
    ranges = split_words(text)
    tags = ["O"] * len(ranges)
    for begin, end, label in given:
        inside = [number for number, (a, b) in enumerate(ranges) if a < end and b > begin]
        if not inside:
            raise InputError(f"{row.origin}: the span from {begin} to {end} holds no word")
        if any(tags[number] != "O" for number in inside):
            raise InputError(f"{row.origin}: the span from {begin} to {end} shares a word with another")
        for place, number in enumerate(inside):
            tags[number] = f"{'I' if place else 'B'}-{label}"
    return _Tagged(text, ranges, tags, set(given))


def _spans(row: Row, columns: Columns) -> list[CharacterSpan]:
    text, found = row.text(columns.text), row.value(columns.spans)
    try:
        spans = [(span["start"], span["end"], span["label"]) for span in found]
    except (TypeError, KeyError):
        spans = [(None, None, None)]
    if not all(type(a) is int and type(b) is int and isinstance(c, str) and c.strip() for a, b, c in spans):
        raise InputError(
            f"{row.origin}: {columns.spans} is {str(found)[:60]}, expected objects with start, end and label"
        )
    row.check_labels(columns.spans, *(label for _, _, label in spans))
    for begin, end, _ in spans:
        if not 0 <= begin < end <= len(text):
            raise InputError(f"{row.origin}: found a span from {begin} to {end}, expected one inside 0 to {len(text)}")
    return spans
