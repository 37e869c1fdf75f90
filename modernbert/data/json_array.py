"""Elements of one JSON array, read piece by piece, so that an array of any size fits in memory."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

from modernbert.data.input_errors import BrokenInput

__all__ = ["read_array"]

_BLANKS = " \t\r\n\ufeff"
_PIECE_CHARS = 1 << 16
# Of a literal, or of a character written as two escapes.
_LONGEST_TOKEN = 16


def read_array(pieces: Iterable[str], origin: str) -> Iterator[tuple[str, Any]]:
    """Yield (place, value) of each element of a JSON array, given in pieces of any size.

    A place is `origin:line[number]`: several elements may stand on one line.

    Raises: BrokenInput naming `origin` and the line, if the text is not one array.
    """
    text = _Text(pieces)
    first = text.peek()
    if not first:
        raise BrokenInput(f"{origin}: is empty, expected a JSON array")
    if first != "[":
        found = "a JSON object" if first == "{" else f"{first!r}"
        raise BrokenInput(
            f"{origin}:{text.line}: found {found}, expected a JSON array, [ ... ]; one object a line is a .jsonl file"
        )
    text.skip(1)
    number = 0
    while (found := text.peek()) != "]":
        if number:
            if found != ",":
                raise BrokenInput(f"{origin}:{text.line}: found {found or 'the end'!r}, expected a comma or ]")
            text.skip(1)
            text.peek()
        line = text.line
        try:
            value = text.decode()
        except RecursionError:
            raise BrokenInput(f"{origin}:{line}: JSON nested too deeply") from None
        except ValueError as error:
            raise BrokenInput(f"{origin}:{line}: is not JSON ({error})") from None
        yield f"{origin}:{line}[{number}]", value
        number += 1
    text.skip(1)
    if rest := text.peek():
        raise BrokenInput(f"{origin}:{text.line}: found {rest!r} after the array, expected the end of the file")


class _Text:
    """A position in a stream of text. Characters before it are dropped, and their line breaks are counted."""

    def __init__(self, pieces: Iterable[str]) -> None:
        self._pieces = iter(pieces)
        self._buffer, self._at, self.line = "", 0, 1

    def peek(self) -> str:
        """Pass blanks, and return the next character; "" at the end."""
        while True:
            while self._at < len(self._buffer) and self._buffer[self._at] in _BLANKS:
                self.skip(1)
            if self._at < len(self._buffer):
                return self._buffer[self._at]
            if not self._read(1):
                return ""

    def skip(self, number: int) -> None:
        """Pass so many characters."""
        self.line += self._buffer.count("\n", self._at, self._at + number)
        self._at += number

    def decode(self) -> Any:
        """Pass one JSON value, and return it.

        Raises: ValueError if there is none.
        """
        more = _PIECE_CHARS
        while True:
            try:
                value, end = _DECODER.raw_decode(self._buffer, self._at)
            except json.JSONDecodeError as error:
                may_go_on = error.msg.startswith("Unterminated") or error.pos >= len(self._buffer) - _LONGEST_TOKEN
                # Twice as much each time, so that a long value is scanned a few times only.
                if not may_go_on or not self._read(more):
                    raise
                more *= 2
                continue
            # A number may go on behind the buffer, too.
            if end < len(self._buffer) or not self._read(1):
                self.skip(end - self._at)
                return value

    def _read(self, number: int) -> bool:
        """Read at least `number` more characters; say whether there were any."""
        parts = [self._buffer[self._at :]]
        size = 0
        for piece in self._pieces:
            parts.append(piece)
            size += len(piece)
            if size >= number:
                break
        self._buffer, self._at = "".join(parts), 0
        return size > 0


_DECODER = json.JSONDecoder()
