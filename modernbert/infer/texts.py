"""Where the verbs of use take their texts from: words of the command line, files, standard input.

In: what was given. Out: a list of texts, or a stream of them. A file of its own because every verb of use asks the
same.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from modernbert.errors import InputError
from modernbert.text.archive import open_plain
from modernbert.text.labelled.rows import read_file

__all__ = ["Located", "gather_texts", "stream_texts"]

Located = tuple[str, str]
"""where a text was read, `file:line`, and the text"""


def gather_texts(words: Sequence[str], file: Path | None, text_field: str = "text") -> list[str]:
    """Return the texts given as words, else the lines of `file`, else the lines of standard input.

    A `.jsonl` file gives the field `text_field` of each line; a file may be packed as .gz or .zst.

    Raises: InputError if there is no text, or the file is absent or not text.
    """
    if words and file is not None:
        raise InputError(f"found texts and the file {file}, expected one or the other")
    if words:
        return list(words)
    if file is None and sys.stdin.isatty():
        raise InputError("found no text, expected some as arguments, in --file, or on standard input")
    origin = "standard input" if file is None else str(file)
    try:
        # A line ends at a line feed and nowhere else: text may hold form feeds and Unicode's own separators.
        lines = [line.decode("utf-8-sig").rstrip("\r\n") for line in _raw_lines(file)]
    except UnicodeDecodeError as error:
        raise InputError(f"{origin}: is not UTF-8 text ({error.reason})") from None
    if file is not None and ".jsonl" in file.suffixes:
        lines = [_field(line, f"{origin}:{n}", text_field) for n, line in enumerate(lines, 1) if line.strip()]
    if not lines:
        raise InputError(f"{origin}: is empty, expected one text a line")
    return lines


def stream_texts(files: Sequence[Path], text_field: str = "text") -> Iterator[Located]:
    """Yield the texts of files of any size, one after another: lines, or a field of each row of `.jsonl`, `.parquet`.

    Empty lines of a text file are texts too: what comes out has a row for each. Files may be packed as .gz or .zst.

    Raises: InputError naming the file and line, for one that is absent, or a row without the field.
    """
    for file in files:
        if file.suffix == ".parquet" or ".jsonl" in file.suffixes:
            for row in read_file(file):
                text = row.value(text_field)
                if not isinstance(text, str):
                    raise InputError(f"{row.origin}: {text_field} is {type(text).__name__}, expected text")
                row.check_whole(text_field, text)
                yield row.origin, text
            continue
        with open_plain(file) as stream:
            for number, line in enumerate(stream.lines(), 1):
                try:
                    yield f"{file}:{number}", line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                except UnicodeDecodeError as error:
                    raise InputError(f"{file}:{number}: is not UTF-8 text ({error.reason})") from None


def _raw_lines(file: Path | None) -> list[bytes]:
    if file is None:
        return list(sys.stdin.buffer)
    with open_plain(file) as stream:
        return list(stream.lines())


def _field(line: str, place: str, name: str) -> str:
    try:
        text = json.loads(line)[name]
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{place}: expected a JSON object with the field {name!r}") from None
    if not isinstance(text, str):
        raise InputError(f"{place}: {name} is {type(text).__name__}, expected a string")
    return text
