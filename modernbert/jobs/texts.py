"""Where the verbs of use take their texts from: words of the command line, files, standard input.

In: what was given. Out: a list of texts. A file of its own because every verb of use asks the same.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from modernbert.errors import InputError

__all__ = ["gather_texts"]


def gather_texts(words: Sequence[str], file: Path | None, text_field: str = "text") -> list[str]:
    """Return the texts given as words, else the lines of `file`, else the lines of standard input.

    A `.jsonl` file gives the field `text_field` of each line.

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
        data = sys.stdin.buffer.read() if file is None else file.read_bytes()
        lines = data.decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{origin}: is not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise InputError(f"{origin}: cannot be read ({error.strerror})") from None
    if file is not None and file.suffix == ".jsonl":
        lines = [_field(line, f"{origin}:{n}", text_field) for n, line in enumerate(lines, 1) if line.strip()]
    if not lines:
        raise InputError(f"{origin}: is empty, expected one text a line")
    return lines


def _field(line: str, place: str, name: str) -> str:
    try:
        text = json.loads(line)[name]
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{place}: expected a JSON object with the field {name!r}") from None
    if not isinstance(text, str):
        raise InputError(f"{place}: {name} is {type(text).__name__}, expected a string")
    return text
