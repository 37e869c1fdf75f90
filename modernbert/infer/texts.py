"""Where the verbs of use take their texts from: words of the command line, files, standard input.

In: what was given. Out: a list of texts, or a stream of them. A file of its own because every verb of use asks the
same.
"""

import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from modernbert.errors import InputError
from modernbert.storage import new_file
from modernbert.text.archive import open_plain
from modernbert.text.formats import format_of, require_readers
from modernbert.text.labelled.rows import read_file

__all__ = ["Located", "gather_texts", "keep_input", "stream_input", "stream_texts", "visible"]

Located = tuple[str, str]
"""where a text was read, `file:line`, and the text"""

_ROWS = (".jsonl", ".parquet", ".csv", ".tsv")
_INPUT = "standard input"
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def gather_texts(words: Sequence[str], file: Path | None, text_field: str = "text") -> list[str]:
    """Return the texts given as words, else those of `file`, else the lines of standard input.

    Raises: InputError if there is no text, or what `stream_texts` raises.
    """
    if words and file is not None:
        raise InputError(f"found texts and the file {file}, expected one or the other")
    if words:
        return list(words)
    texts = [text for _, text in (stream_input() if file is None else stream_texts([file], text_field))]
    if not texts:
        raise InputError(f"{file or _INPUT}: is empty, expected one text a line")
    return texts


def stream_texts(files: Sequence[Path], text_field: str = "text") -> Iterator[Located]:
    """Yield the texts of files of any size, one after another: lines, or a field of each row of those that have fields.

    Rows are those of `.jsonl`, `.parquet`, `.csv` and `.tsv`; a file of any other name is text.
    Empty lines of a text file are texts too: what comes out has a row for each. Files may be packed as .gz or .zst.

    Raises: InputError naming the file and line, for one that is absent, or a row without the field.
    """
    require_readers(files)
    for file in files:
        if format_of(file) in _ROWS:
            for row in read_file(file, text_field):
                text = row.value(text_field)
                if not isinstance(text, str):
                    raise InputError(f"{row.origin}: {text_field} is {type(text).__name__}, expected text")
                row.check_whole(text_field, text)
                yield row.origin, text
            continue
        with open_plain(file) as stream:
            yield from _lines(stream.lines(), str(file))


def stream_input(kept: Path | None = None) -> Iterator[Located]:
    """Yield the lines of standard input as they come, or those of the file in which they were kept.

    Raises: InputError naming the line, for one that is not UTF-8; if nobody sends any.
    """
    if kept is None:
        _check_input()
        yield from _lines(sys.stdin.buffer, _INPUT)
        return
    with kept.open("rb") as file:
        yield from _lines(file, _INPUT)


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


def _lines(lines: Iterable[bytes], origin: str) -> Iterator[Located]:
    # A line ends at a line feed and nowhere else: text may hold form feeds and Unicode's own separators.
    for number, line in enumerate(lines, 1):
        try:
            yield f"{origin}:{number}", line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise InputError(f"{origin}:{number}: is not UTF-8 text ({error.reason})") from None
