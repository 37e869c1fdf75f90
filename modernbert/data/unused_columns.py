"""Checks for columns that look like labels, scores or texts of a task, but that the task does not read.

Columns with another name (`id`, `source`, `title`, ...) and columns without values pass.
"""

import re
from collections.abc import Iterable, Sequence
from itertools import chain
from re import Pattern

from modernbert.data.rows import Row
from modernbert.errors import InputError

__all__ = [
    "LABELS",
    "NEGATIVE",
    "POSITIVE",
    "SAMPLE_WEIGHT",
    "SCORE",
    "SECOND_TEXT",
    "TARGET",
    "check_ignored",
    "check_signals",
    "is_negative",
    "negatives_of",
    "without_columns",
]

_NUMBERED = re.compile(r"negative_([0-9]+)")
NEGATIVE = re.compile(r"(hard_?)?neg(ative)?s?(_.*|[0-9]+)?")
POSITIVE = re.compile(r"pos(itive)?s?(_.*|[0-9]+)?")
SCORE = re.compile(
    r"(teacher_|soft_|sample_)?(scores?|labels?|margins?|similarity|relevance|grades?|weights?)(_?[0-9]+)?"
    r"|(query_)?instructions?"
)
TARGET = re.compile(r"labels?|scores?")
SECOND_TEXT = re.compile(r"(text|sentence|sent|question|premise|hypothesis)_?(pair|[12ab])|premise|hypothesis")
LABELS = re.compile("labels")
SAMPLE_WEIGHT = re.compile("sample_weights?|soft_labels?")
_ID = re.compile(r".*_(ids?|idx|titles?|urls?)")


def check_signals(
    rows: Iterable[Row], task: str, signals: Sequence[Pattern[str]], known: Sequence[str], *, by_ids: bool = False
) -> None:
    """Check that no unread column looks like something to learn from.

    Args:
        rows: Rows of one split.
        task: Name of the task.
        signals: Names of columns that look like something that the task learns from.
        known: Names of the columns that are read.
        by_ids: Whether rows name their texts by ids, so that columns of ids are checked, too.

    Raises:
        InputError: A row has such a column; names both.
    """
    passes: dict[str, bool] = dict.fromkeys(known, True)
    for row in rows:
        for name, value in row.values.items():
            if name not in passes:
                plain = name.lower().replace("-", "_").replace(" ", "_")
                is_id = not by_ids and _ID.fullmatch(plain) is not None
                passes[name] = is_id or not any(pattern.fullmatch(plain) for pattern in signals)
            if not passes[name] and value is not None and value != "":
                expected = ", ".join(known)
                pair = f", or read it with `columns.pair={name}`" if SECOND_TEXT in signals and _is_second(name) else ""
                raise InputError(
                    f"{row.origin}: found the column {name!r}, which `task={task}` does not read, expected {expected}; "
                    f"rename it{pair}, or leave it out with `ignore_columns={name}`"
                )


def is_negative(column: str) -> bool:
    """Return whether `negatives_of` reads a column.

    >>> is_negative("negative_2"), is_negative("negative_score")
    (True, False)
    """
    return column in ("negative", "negatives") or _NUMBERED.fullmatch(column) is not None


def negatives_of(row: Row) -> list[str]:
    """Return the texts of `negative`, `negative_1`, `negative_2`, ... in this order, or of the list `negatives`.

    Columns without a value are skipped.

    Raises:
        InputError: A text is empty, `negatives` is not a list of texts, or both forms are used; names the row.
    """
    numbered = sorted((int(match[1]), name) for name in row.values if (match := _NUMBERED.fullmatch(name)) is not None)
    names = [name for name in ("negative", *(name for _, name in numbered)) if row.values.get(name) is not None]
    found = row.values.get("negatives")
    if found is None:
        return [row.text(name) for name in names]
    if names:
        raise InputError(f"{row.origin}: found negatives and {names[0]}, expected one of them")
    if not isinstance(found, list) or not all(isinstance(each, str) and each.strip() for each in found):
        raise InputError(f"{row.origin}: negatives is {str(found)[:60]!r}, expected a list of texts")
    row.check_whole("negatives", *found)
    return found


def check_ignored(names: Sequence[str], splits: Iterable[Sequence[Row]]) -> None:
    """Check that some row has each of the columns that are to be left out.

    Raises:
        InputError: No row has one; names it, and the columns of the last row.
    """
    left, known = set(names), Row({}, "")
    for row in chain.from_iterable(splits) if names else ():
        left, known = left - row.values.keys(), row
        if not left:
            return
    if left:
        columns = f", expected one of the columns ({', '.join(known.values)})" if known.values else ""
        raise InputError(f"ignore_columns: found {min(left)!r}, which no row has{columns}")


def without_columns(rows: Sequence[Row], names: Sequence[str]) -> list[Row]:
    """Return rows without some columns."""
    if not names:
        return list(rows)
    return [Row({key: value for key, value in row.values.items() if key not in names}, row.origin) for row in rows]


def _is_second(name: str) -> bool:
    return SECOND_TEXT.fullmatch(name.lower()) is not None
