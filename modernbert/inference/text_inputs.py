"""Texts for the commands that use a model: arguments of the command line, files, or standard input."""

import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from modernbert.data.corpus import check_choice
from modernbert.data.input_errors import BrokenInput, Skips
from modernbert.data.readers import read_file, require_readers
from modernbert.data.remote_files import RemoteFile, find_remote, is_url
from modernbert.data.rows import Row
from modernbert.data.source_files import File
from modernbert.data.suffixes import CONLL, ROWS, check_suffix, format_of
from modernbert.data.utf8 import decode_lines, find_problem
from modernbert.errors import InputError
from modernbert.files import new_file
from modernbert.inference.text_parts import relocate_error
from modernbert.inference.text_rows import TextRow

__all__ = [
    "Located",
    "TextRow",
    "answers_of",
    "check_files",
    "check_on_error",
    "find_file",
    "gather_rows",
    "gather_texts",
    "keep_input",
    "stream_input",
    "stream_rows",
    "stream_texts",
    "visible",
    "without_errors",
]

Located = tuple[str, str]
"""(where a text was read: `file:line`, the text)"""

Answer = TypeVar("Answer")

_INPUT = "standard input"
_MIN_WINDOW = 8
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def check_on_error(on_error: str, known: Sequence[str] = ("fail", "skip")) -> None:
    """Check the name of what to do with rows that cannot be used.

    Raises:
        InputError: The name is unknown.
    """
    check_choice("on_error", on_error, known)


def gather_rows(
    words: Sequence[str],
    file: Path | str | None,
    *,
    text_field: str = "text",
    pair_field: str | None = None,
    on_error: str = "fail",
) -> list[TextRow]:
    """Return the texts given as words, else the rows of `file`, else the lines of standard input.

    Args:
        words: The texts of the command line.
        file: A file or its URL.
        text_field: The field with the text, in files with rows.
        pair_field: The field with the second text of each pair.
        on_error: What to do with rows without a usable text: `fail`, or `skip`, which returns them with their error.

    Raises:
        InputError: There is no text, or with `fail` a row without one.
    """
    check_on_error(on_error)
    if words and file is not None:
        raise InputError(f"found texts and the file {file}, expected one or the other")
    if pair_field is not None and file is None:
        raise InputError("pair_field: found no `input`, expected one with both fields")
    if words:
        return [TextRow(f"text {number}", word) for number, word in enumerate(words)]
    if file is None:
        found = stream_input()
    else:
        source = find_file(file)
        check_files([source])
        found = stream_rows([source], text_field, pair_field)
    rows = []
    for row in found:
        if row.error is not None and on_error == "fail":
            raise row.error
        rows.append(row)
    if not rows:
        raise InputError(f"{file or _INPUT}: is empty, expected one text a line")
    return rows


def gather_texts(words: Sequence[str], file: Path | str | None, text_field: str = "text") -> list[str]:
    """Return the texts given as words, else the texts of `file`, else the lines of standard input.

    Raises:
        InputError: There is no text, or a row has none.
    """
    return [row.text or "" for row in gather_rows(words, file, text_field=text_field)]


def answers_of(
    rows: Sequence[TextRow], work: Callable[[list[Any]], Sequence[Answer]], on_error: str
) -> list[tuple[int, TextRow, Answer]]:
    """Return (index of the row, row, answer) of each row that can be used.

    With `skip`, rows without a text or that the model refuses are left out and listed on standard error.

    Raises:
        InputError: A row cannot be used and is not to be skipped, or all rows were skipped.
    """
    skips = Skips()
    good = [(number, row) for number, row in enumerate(rows) if row.error is None]
    for row in rows:
        if row.error is not None:
            skips.add(row.error)
    located = [(row.origin, row.item) for _, row in good]
    if on_error == "fail":
        try:
            answers: Sequence[Answer | None] = work([item for _, item in located])
        except InputError as error:
            raise relocate_error(error, located) from None
    else:
        answers, lost = without_errors(work, [item for _, item in located])
        for number, reason in lost.items():
            skips.add(InputError(f"{located[number][0]}: {reason}"))
    skips.show()
    found = [(*each, answer) for each, answer in zip(good, answers, strict=True) if answer is not None]
    if rows and not found:
        raise InputError(f"all {skips.number:,} rows were skipped, expected at least one text that can be used")
    return found


def without_errors(
    work: Callable[[list[Any]], Sequence[Answer]], items: Sequence[Any]
) -> tuple[list[Answer | None], dict[int, str]]:
    """Return the answer to each item, None for one that the model refuses, and the reasons of refusals by index.

    Raises:
        InputError: An error that is not about one text.
    """
    answers: list[Answer | None] = []
    lost: dict[int, str] = {}
    # The window shrinks after a refusal and then grows, so that a refusal costs the work of a few items only.
    window, grown = len(items), len(items)
    while len(answers) < len(items):
        try:
            answers.extend(work(list(items[len(answers) : len(answers) + window])))
            window = grown = 2 * grown
        except InputError as error:
            number = _number_of(error)
            if number is None or number >= window:
                raise
            if number:
                window, grown = number, _MIN_WINDOW  # the items before it
                continue
            lost[len(answers)] = str(error).partition(": ")[2]
            answers.append(None)
            window = grown = _MIN_WINDOW
    return answers, lost


def _number_of(error: InputError) -> int | None:
    found = re.match(r"text (\d+):", str(error))
    return None if found is None else int(found[1])


def find_file(file: Path | str) -> File:
    """Return a local file as it is, or the remote file of a URL.

    Raises:
        InputError: There is no file at the URL, or more than one.
    """
    if str(file) == "-":
        raise InputError("input: found -; leave it out to read standard input")
    if not isinstance(file, str) or not is_url(file):
        return Path(file)
    found = find_remote(file)
    if len(found) > 1:
        raise InputError(f"{file}: found {len(found):,} files, expected the URL of one")
    return found[0][1]


def check_files(files: Sequence[File]) -> None:
    """Check that files exist and have a suffix that is read; see `stream_rows`.

    Raises:
        InputError: One does not, or the library that reads it is not installed.
    """
    require_readers(files)
    for file in files:
        try:
            if not isinstance(file, RemoteFile):
                file.stat()
        except OSError as error:
            raise InputError(f"{file}: cannot be read ({error.strerror or error})") from None
        check_suffix(file)
        if format_of(file) in CONLL:
            raise InputError(f"{file}: has labeled words, expected lines of text or rows: {', '.join(ROWS)}")


def stream_rows(files: Sequence[File], text_field: str = "text", pair_field: str | None = None) -> Iterator[TextRow]:
    """Yield the rows of files of any size, one after another.

    Files with rows have fields; see `read_file`. Any other file has a text on each line, empty lines included. A row
    or the rest of a file that cannot be read is yielded with its error.

    Raises:
        InputError: A library is missing, or `pair_field` is given for a file without fields.
    """
    fields = [text_field] if pair_field is None else [text_field, pair_field]
    for file in files:
        if format_of(file) not in ROWS and pair_field is not None:
            raise InputError(f"{file}: has lines without fields, expected {', '.join(ROWS)} for `pair_field`")
        try:
            for found in read_file(file, fields):
                yield TextRow(found.origin, error=found) if isinstance(found, BrokenInput) else _text_row(found, fields)
        except BrokenInput as error:
            yield TextRow(str(file), error=error, is_rest=True)


def stream_texts(files: Sequence[File], text_field: str = "text") -> Iterator[Located]:
    """Yield the texts of files of any size with their origin; see `stream_rows`.

    Raises:
        InputError: A file cannot be read, or a row has no text; names the file and line.
    """
    check_files(files)
    for row in stream_rows(files, text_field):
        if row.error is not None or row.text is None:
            raise row.error or InputError(f"{row.origin}: has no text")
        yield row.origin, row.text


def stream_input(kept: Path | None = None) -> Iterator[TextRow]:
    """Yield the lines of standard input as they arrive, or of the file that `keep_input` wrote.

    Raises:
        InputError: Standard input is a terminal, or is UTF-16.
    """
    if kept is None:
        _check_input()
        yield from _rows_of_input(sys.stdin.buffer)
        return
    with kept.open("rb") as file:
        yield from _rows_of_input(file)


def keep_input(kept: Path) -> None:
    """Copy standard input to a file, so that it can be read again.

    Raises:
        InputError: Standard input is a terminal, or the disk is full.
    """
    _check_input()
    with new_file(kept) as partial, partial.open("wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)


def visible(text: str) -> str:
    r"""Return text that is safe to print: control characters other than line breaks and tabs become U+FFFD.

    >>> visible("a\x1b[2J\nb").encode("ascii", "replace")
    b'a?[2J\nb'
    """
    return _CONTROL.sub("\ufffd", text)


def _check_input() -> None:
    if sys.stdin.isatty():
        raise InputError("found no text, expected some as arguments, in `input`, or on standard input")


def _rows_of_input(lines: Iterable[bytes]) -> Iterator[TextRow]:
    # Only a line feed ends a line: text may have form feeds and the separators of Unicode.
    for number, line in decode_lines(lines, _INPUT):
        yield _text_row(Row({"text": line.rstrip("\r\n")}, f"{_INPUT}:{number}"), ["text"])


def _text_row(row: Row, fields: Sequence[str]) -> TextRow:
    texts: list[str] = [row.values[field] for field in fields]
    for text in texts:
        if found := find_problem(text):
            return TextRow(row.origin, error=BrokenInput(row.origin, found[1]))
    return TextRow(row.origin, texts[0], texts[1] if len(texts) > 1 else None)
