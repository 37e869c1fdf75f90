"""Texts for the commands that use a model: arguments of the command line, files, or standard input."""

import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from modernbert.data.input_errors import BrokenInput, Skips
from modernbert.data.readers import RawRow, check_not_utf16, not_utf8, read_fields, read_lines, require_readers
from modernbert.data.suffixes import CONLL, ROWS, check_suffix, format_of
from modernbert.errors import InputError, shown
from modernbert.files import new_file
from modernbert.inference.text_parts import relocate_error
from modernbert.inference.text_rows import TextRow

__all__ = [
    "Located",
    "TextRow",
    "answers_of",
    "check_files",
    "check_on_error",
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
"""where a text was read, `file:line`, and the text"""

Answer = TypeVar("Answer")

_INPUT = "standard input"
_FIRST_WINDOW = 8
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def check_on_error(on_error: str, known: Sequence[str] = ("fail", "skip")) -> None:
    """Check the name of what to do with rows that cannot be used.

    Raises: InputError for an unknown one.
    """
    if on_error not in known:
        raise InputError(f"on_error: found {on_error!r}, expected {', '.join(map(repr, known[:-1]))} or {known[-1]!r}")


def gather_rows(
    words: Sequence[str],
    file: Path | None,
    *,
    text_field: str = "text",
    pair_field: str | None = None,
    on_error: str = "fail",
) -> list[TextRow]:
    """Return the texts given as words, else the rows of `file`, else the lines of standard input.

    Rows without a usable text are among them, each with its error, unless `on_error` is `fail`.

    Raises: InputError if there is no text; with `fail` for the first row without one.
    """
    check_on_error(on_error)
    if words and file is not None:
        raise InputError(f"found texts and the file {file}, expected one or the other")
    if pair_field is not None and file is None:
        raise InputError("--pair-field: found no --file, expected one with both fields")
    if words:
        return [TextRow(f"text {number}", word) for number, word in enumerate(words)]
    if file is not None:
        check_files([file])
    found = stream_input() if file is None else stream_rows([file], text_field, pair_field)
    rows = []
    for row in found:
        if row.error is not None and on_error == "fail":
            raise row.error
        rows.append(row)
    if not rows:
        raise InputError(f"{file or _INPUT}: is empty, expected one text a line")
    return rows


def gather_texts(words: Sequence[str], file: Path | None, text_field: str = "text") -> list[str]:
    """Return the texts given as words, else those of `file`, else the lines of standard input.

    Raises: InputError if there is no text, or for the first row without one.
    """
    return [row.text or "" for row in gather_rows(words, file, text_field=text_field)]


def answers_of(
    rows: Sequence[TextRow], work: Callable[[list[Any]], Sequence[Answer]], on_error: str
) -> list[tuple[int, TextRow, Answer]]:
    """Return (number of the row, row, answer) of each row that could be used.

    With `skip`, rows that have no text or that the model refuses are left out, and listed on standard error.

    Raises: InputError naming the row, unless it is to be skipped; or if all rows were skipped.
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
    """Return the answer to each item, None for one that the model refuses, and the reasons of the refusals by number.

    Raises: InputError that is not about one text.
    """
    answers: list[Answer | None] = []
    lost: dict[int, str] = {}
    # After a refusal few items are asked for at a time, then ever more: each refusal costs the work of a few items.
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
                window, grown = number, _FIRST_WINDOW  # the items before it
                continue
            lost[len(answers)] = str(error).partition(": ")[2]
            answers.append(None)
            window = grown = _FIRST_WINDOW
    return answers, lost


def _number_of(error: InputError) -> int | None:
    found = re.match(r"text (\d+):", str(error))
    return None if found is None else int(found[1])


def check_files(files: Sequence[Path]) -> None:
    """Check that files are there, and have a suffix that is read; see `stream_rows`.

    Raises: InputError naming the file, or the library that reads it if that is not installed.
    """
    require_readers(files)
    for file in files:
        try:
            file.stat()
        except OSError as error:
            raise InputError(f"{file}: cannot be read ({error.strerror or error})") from None
        check_suffix(file)
        if format_of(file) in CONLL:
            raise InputError(f"{file}: holds labelled words, expected lines of text or rows: {', '.join(ROWS)}")


def stream_rows(files: Sequence[Path], text_field: str = "text", pair_field: str | None = None) -> Iterator[TextRow]:
    """Yield the rows of files of any size, one after another.

    `.jsonl`, `.json`, `.parquet`, `.csv` and `.tsv` have rows with fields; a `.json` array may be of strings. A file
    with another known suffix, or without one, has a text on each line, empty lines too. Files may be compressed as .gz
    or .zst.

    Raises: InputError for a library that is absent, or a pair of a file without fields. What is wrong with a row or
    with the rest of a file is in the row that is yielded.
    """
    fields = [text_field] if pair_field is None else [text_field, pair_field]
    for file in files:
        if format_of(file) not in ROWS and pair_field is not None:
            raise InputError(f"{file}: has lines without fields, expected {', '.join(ROWS)} for --pair-field")
        try:
            if format_of(file) in ROWS:
                for found in read_fields(file, fields, lambda _: None):
                    yield _row_of(found.values, found.origin) if isinstance(found, RawRow) else _broken(found, file)
            else:
                for line in read_lines(file, lambda _: None):
                    yield _row_of([line.text], line.origin)
        except BrokenInput as error:
            yield TextRow(str(file), error=error, is_rest=True)


def stream_texts(files: Sequence[Path], text_field: str = "text") -> Iterator[Located]:
    """Yield the texts of files of any size, and where each was read; see `stream_rows`.

    Raises: InputError naming the file and line, for a file that cannot be read, or the first row without a text.
    """
    check_files(files)
    for row in stream_rows(files, text_field):
        if row.error is not None or row.text is None:
            raise row.error or InputError(f"{row.origin}: has no text")
        yield row.origin, row.text


def stream_input(kept: Path | None = None) -> Iterator[TextRow]:
    """Yield the lines of standard input as they come, or those of the file in which they were kept.

    Raises: InputError if nobody sends any, or for UTF-16.
    """
    if kept is None:
        _check_input()
        yield from _lines(sys.stdin.buffer)
        return
    with kept.open("rb") as file:
        yield from _lines(file)


def keep_input(kept: Path) -> None:
    """Copy standard input to a file, so that it can be read again.

    Raises: InputError if nobody sends any, or the disk is full.
    """
    _check_input()
    with new_file(kept) as partial, partial.open("wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)


def visible(text: str) -> str:
    r"""Return text as a terminal may show it: what moves, colours or deletes there becomes U+FFFD, lines stay.

    >>> visible("a\x1b[2J\nb").encode("ascii", "replace")
    b'a?[2J\nb'
    """
    return _CONTROL.sub("\ufffd", text)


def _check_input() -> None:
    if sys.stdin.isatty():
        raise InputError("found no text, expected some as arguments, in --file, or on standard input")


def _lines(lines: Iterable[bytes]) -> Iterator[TextRow]:
    # A line ends at a line feed and nowhere else: text may hold form feeds and Unicode's own separators.
    for number, line in enumerate(lines, 1):
        if number == 1:
            check_not_utf16(line, _INPUT)
            line = line.removeprefix(b"\xef\xbb\xbf")
        yield _row_of([line.rstrip(b"\r\n")], f"{_INPUT}:{number}")


def _row_of(values: Sequence[str | bytes], origin: str) -> TextRow:
    try:
        texts = [value.decode() if isinstance(value, bytes) else _checked(value) for value in values]
    except UnicodeError as error:
        return TextRow(origin, error=BrokenInput(f"{origin}: {not_utf8(error)}"))
    return TextRow(origin, texts[0], texts[1] if len(texts) > 1 else None)


def _checked(text: str) -> str:
    text.encode()
    return text


def _broken(error: BrokenInput, file: Path) -> TextRow:
    found = re.match(re.escape(shown(str(file))) + r":\d+(\[\d+\])?(?=:)", str(error))
    return TextRow(str(file) if found is None else f"{file}{found[0][len(shown(str(file))) :]}", error=error)
