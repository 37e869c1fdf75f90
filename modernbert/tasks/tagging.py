"""`tag`: a tag for each word, and the spans that tags mark (named entities, parts of speech)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from modernbert.data.rows import Row
from modernbert.data.unused_columns import TARGET
from modernbert.data.words import (
    is_unspaced_letter,
    join_words,
    merge_by_token,
    spans_from_tags,
    split_tagged_word,
    split_words,
    tags_of_parts,
)
from modernbert.errors import InputError
from modernbert.tasks.columns import Columns
from modernbert.tasks.examples import Example, Examples, RowEncoder, texts_of
from modernbert.tasks.head_losses import HeadLoss, cross_entropy_loss
from modernbert.tasks.metrics import Metric, TaggedTexts, span_f1, span_precision, span_recall, tag_accuracy
from modernbert.tasks.task import ClassifierTask, Predictions, register

__all__ = ["CharacterSpan", "Span", "Tagging", "TaggingExamples", "character_spans", "spans_of_best"]

CharacterSpan = tuple[int, int, str]
"""(first character, the one after the last, label)"""


@dataclass(frozen=True)
class Span:
    """A labeled span `text[start:end]`, with the mean probability of its words' tags as its score."""

    start: int
    end: int
    label: str
    text: str
    score: float


@dataclass
class TaggingExamples(Examples):
    """Examples of tagged texts."""

    words: list[tuple[str, list[tuple[int, int]]]] = field(default_factory=list)
    """For each row its text and the characters of each word that has a label."""
    spans: list[set[CharacterSpan]] = field(default_factory=list)
    """For each row its spans as they were given, those in a part that was cut off included."""
    num_words_cut: int = 0
    """Words that were cut off with the end of their text."""
    num_unaligned: int = 0
    """Spans that begin or end inside a word or a token; the whole word or token is labeled."""

    @property
    def share_unaligned(self) -> float:
        """Share of the given spans that tags of whole words and tokens cannot mark."""
        return self.num_unaligned / max(1, sum(map(len, self.spans)))

    def losses(self) -> list[tuple[int, str]]:
        """Return how much was lost or changed, each as a number and its description."""
        share = f"({self.share_unaligned:.1%} of {sum(map(len, self.spans)):,})"
        return [
            *super().losses(),
            (self.num_words_cut, "words cut off with them"),
            (self.num_unaligned, f"spans widened to whole words {share}"),
        ]

    def facts(self) -> dict[str, float]:
        """Return the share of spans that were widened."""
        return {"spans_widened": self.share_unaligned}


class Tagging(ClassifierTask):
    """Choose one tag for each word, at its first token."""

    name = "tag"
    answers = "spans"
    head = "TokenClassification"
    is_published = True
    scores_tokens = True
    column_fields = ("words", "tags", "text", "spans")
    signals = (TARGET,)
    has_classes = True
    metrics = {
        "span_f1": span_f1, "span_precision": span_precision, "span_recall": span_recall, "accuracy": tag_accuracy,
    }  # fmt: skip

    def labels(self, rows: Sequence[Row], columns: Columns) -> list[str]:
        """Return the tags of the rows, `O` first; spans give `B-` for a first word and `I-` for the others.

        Where words are split further (scripts without spaces), the tags of their parts are included.

        Raises: InputError if a row has neither tags nor spans, or no word has a tag.
        """
        found = {"O"}
        is_split = False
        for row in rows:
            if _has_spans(row, columns):
                found.update(f"{prefix}-{label}" for _, _, label in _spans_in(row, columns) for prefix in "BI")
            else:
                found.update(_tags_in(row, columns))
                is_split = is_split or any(map(is_unspaced_letter, "".join(_words_in(row, columns))))
        if found <= {"O", "_"}:
            every = "'_', which is CoNLL-U's word for none" if "_" in found else "'O'"
            raise InputError(f"{columns.tags}: every word is {every}, expected at least one other tag")
        if is_split:
            found.update(part for tag in list(found) for part in tags_of_parts(tag))
        return ["O", *sorted(found - {"O"})]

    def examples(self, rows: Sequence[Row], labels: Sequence[str], encoder: RowEncoder) -> TaggingExamples:
        """Return an example for each row, with the number of each word's tag at the word's first token.

        Letters of scripts without spaces that share a token are one word (`merge_by_token`), with the first tag that is
        not `O` among theirs.

        Raises: InputError naming the row, for a tag that no training row has, as many tags as no words, an empty text,
        or one that is too long.
        """
        numbers = {name: number for number, name in enumerate(labels)}
        examples = TaggingExamples()
        for some in encoder.portions(rows):
            read = [_tagged_text(row, encoder.columns) for row in some]
            starts = [[begin for begin, _ in each.words] for each in read]
            encoded = encoder.tokenizer.encode_words([each.text for each in read], starts)
            for row, text, (tokens, places) in zip(some, read, encoded, strict=True):
                _add_example(examples, row, text, tokens, places, numbers, encoder)
        return examples

    def loss(self, class_weights: Tensor | None) -> HeadLoss:
        """Return the cross entropy."""
        return cross_entropy_loss(class_weights)

    def deciding_metrics(self, metrics: Mapping[str, Metric], labels: Sequence[str]) -> tuple[str, ...]:
        """Return all metrics; only accuracy, if the tags mark no spans (parts of speech)."""
        marks_spans = any(label.startswith(("B-", "I-")) for label in labels)
        return tuple(metrics) if marks_spans else ("accuracy",)

    def predict(self, logits: np.ndarray, examples: Examples, labels: Sequence[str]) -> Predictions:
        """Predict the tag with the highest score for each word, and the spans that these mark."""
        assert isinstance(examples, TaggingExamples)
        ends = np.cumsum([len(each.labels) for each in examples.items])[:-1]
        best = [[labels[n] for n in part] for part in np.split(logits.argmax(axis=1), ends)]
        expected = [[labels[n] for n in each.labels] for each in examples.items]
        spans = [character_spans(words, tags) for (_, words), tags in zip(examples.words, best, strict=True)]
        shown: list[Any] = [
            [{"start": a, "end": b, "label": label, "text": text[a:b]} for a, b, label in sorted(of_row)]
            for (text, _), of_row in zip(examples.words, spans, strict=True)
        ]
        return Predictions(TaggedTexts(best, spans), TaggedTexts(expected, examples.spans), shown)

    def activate(self, logits: Tensor) -> Tensor:
        """Return the probability of each tag; they sum to 1."""
        return logits.softmax(dim=-1)


def character_spans(words: Sequence[tuple[int, int]], tags: Sequence[str]) -> set[CharacterSpan]:
    """Return the spans that the tags of words mark, as ranges of characters.

    >>> character_spans([(0, 3), (4, 8)], ["B-place", "I-place"])
    {(0, 8, 'place')}
    """
    return {(words[first][0], words[behind - 1][1], label) for first, behind, label in spans_from_tags(tags)}


def spans_of_best(
    labels: Sequence[str], text: str, words: Sequence[tuple[int, int]], best: np.ndarray, shares: np.ndarray
) -> list[Span]:
    """Return the spans that the likeliest labels of a text's words mark, by label number and probability [words]."""
    spans = []
    for first, behind, label in sorted(spans_from_tags([labels[n] for n in best.tolist()])):
        start, end = words[first][0], words[behind - 1][1]
        spans.append(Span(start, end, label, text[start:end], float(shares[first:behind].mean())))
    return spans


@dataclass(frozen=True)
class _TaggedText:
    """A text, the range and the tag of each word, and the spans as they were given."""

    text: str
    words: list[tuple[int, int]]
    tags: list[str]
    spans: set[CharacterSpan]


def _add_example(
    examples: TaggingExamples,
    row: Row,
    read: _TaggedText,
    tokens: np.ndarray,
    places: np.ndarray,
    numbers: Mapping[str, int],
    encoder: RowEncoder,
) -> None:
    """Append the example of a text whose words begin at the tokens `places`."""
    ranges, positions, firsts = merge_by_token(read.text, read.words, places)
    groups = zip(firsts, [*firsts[1:], len(read.words)], strict=True)
    tags = [next((tag for tag in read.tags[a:b] if tag != "O"), "O") for a, b in groups]
    for tag in tags:
        if tag not in numbers:
            raise InputError(f"{row.origin}: found the tag {tag!r}, which no training row has")
    examples.num_unaligned += len(read.spans - character_spans(ranges, tags))
    examples.spans.append(read.spans)
    kept = encoder.fit(row, tokens, examples)
    targets = np.array([numbers[tag] for tag in tags], dtype=np.int64)
    if kept is not tokens:
        inside = positions < encoder.max_length - encoder.tokenizer.num_special[1]
        examples.num_words_cut += int((~inside).sum())
        positions, targets = positions[inside], targets[inside]
    examples.add(row, Example(kept, targets, positions))
    examples.words.append((read.text, ranges[: len(positions)]))


def _has_spans(row: Row, columns: Columns) -> bool:
    """Return whether a row has a text and spans, rather than words and tags.

    Raises: InputError naming the row, if it has both tags and spans.
    """
    if columns.tags in row.values and columns.spans in row.values:
        raise InputError(f"{row.origin}: found {columns.tags} and {columns.spans}, expected one of them")
    return columns.words not in row.values and columns.text in row.values


def _tagged_text(row: Row, columns: Columns) -> _TaggedText:
    return _from_spans(row, columns) if _has_spans(row, columns) else _from_words(row, columns)


def _from_words(row: Row, columns: Columns) -> _TaggedText:
    words, tags = _words_in(row, columns), _tags_in(row, columns)
    if len(words) != len(tags):
        raise InputError(f"{row.origin}: found {len(tags)} tags, expected one for each of {len(words)} words")
    if not words or not all(word.strip() or word == "\u00a0" for word in words):
        raise InputError(f"{row.origin}: {columns.words} has an empty word, expected text")
    text, ranges = join_words(words)
    parts = [
        ((begin + a, begin + b), part)
        for (begin, _), word, tag in zip(ranges, words, tags, strict=True)
        for a, b, part in split_tagged_word(word, tag)
    ]
    part_ranges, part_tags = [place for place, _ in parts], [tag for _, tag in parts]
    # Tags that mark no spans, such as parts of speech, are the tags of the parts.
    is_marked = any("-" in tag for tag in tags)
    spans = character_spans(ranges, tags) if is_marked else character_spans(part_ranges, part_tags)
    return _TaggedText(text, part_ranges, part_tags, spans)


def _from_spans(row: Row, columns: Columns) -> _TaggedText:
    text, given = row.text(columns.text), _spans_in(row, columns)
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
    return _TaggedText(text, ranges, tags, set(given))


def _words_in(row: Row, columns: Columns) -> list[str]:
    _check_column(row, "words", columns.words)
    return texts_of(row, columns.words)


def _tags_in(row: Row, columns: Columns) -> list[str]:
    _check_column(row, "tags", columns.tags)
    found = texts_of(row, columns.tags)
    row.check_labels(columns.tags, *found)
    return found


def _check_column(row: Row, name: str, column: str) -> None:
    """Explain how a column of a CoNLL file is chosen, if it is missing.

    Raises: InputError naming the row and its columns.
    """
    if column not in row.values and "1" in row.values:
        names = [each for each in row.values if not each.isdecimal() and each not in ("words", "tags")]
        raise InputError(
            f"{row.origin}: no column {column!r}; choose the {name} with columns.{name}=NAME of "
            f"{', '.join([*names, f'1 to {sum(map(str.isdecimal, row.values))}'])}"
        )


def _spans_in(row: Row, columns: Columns) -> list[CharacterSpan]:
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


register(Tagging())
