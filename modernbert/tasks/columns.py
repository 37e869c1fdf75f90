"""Names of the columns of labeled rows, as options."""

from dataclasses import dataclass

__all__ = ["Columns"]


@dataclass(frozen=True)
class Columns:
    """Names of the columns. Tagging reads `words` and `tags`, or `text` and `spans`."""

    text: str = "text"
    """Column of the text, the query or the question."""
    pair: str | None = None
    """Column of a second text, such as the document of a query; none, by default."""
    label: str = "label"
    """Column of the label."""
    choices: str = "choices"
    """Column with a list of choices."""
    answers: str = "answers"
    """Column of the answers in SQuAD's form: lists `text` and `answer_start`."""
    words: str = "words"
    """Column with a list of words; in CoNLL files a name, or a number from 1."""
    tags: str = "tags"
    """Column with a list of tags, one per word; in CoNLL files a name, or a number from 1."""
    spans: str = "spans"
    """Column with a list of spans, each with `start`, `end` and `label`."""
