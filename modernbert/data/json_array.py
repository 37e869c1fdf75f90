"""A streaming reader of one JSON array, so that an array of any size can be read in bounded memory."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

from modernbert.data.input_errors import BrokenInput

__all__ = ["read_array"]

_WHITESPACE = " \t\r\n\ufeff"
_MIN_CHARS = 1 << 16
# Length of the longest literal, or of a character written as two escapes.
_MAX_TOKEN_CHARS = 16


def read_array(chunks: Iterable[str], origin: str) -> Iterator[tuple[str, Any]]:
    """Yield (origin, value) of each element of a JSON array, given in chunks of any size.

    The origin of an element is `origin:line[number]`, because several elements may be on one line.

    Raises:
        BrokenInput: The text is not one array; names `origin` and the line.
    """
    text = _Text(chunks)
    first = text.peek()
    if not first:
        raise BrokenInput(origin, "is empty, expected a JSON array")
    if first != "[":
        found = "a JSON object" if first == "{" else f"{first!r}"
        raise BrokenInput(
            f"{origin}:{text.line}",
            f"found {found}, expected a JSON array, [ ... ]; one object a line is a .jsonl file",
        )
    text.skip(1)
    number = 0
    while (found := text.peek()) != "]":
        if number:
            if found != ",":
                raise BrokenInput(f"{origin}:{text.line}", f"found {found or 'the end'!r}, expected a comma or ]")
            text.skip(1)
            text.peek()
        line = text.line
        try:
            value = text.decode()
        except RecursionError:
            raise BrokenInput(f"{origin}:{line}", "JSON nested too deeply") from None
        except ValueError as error:
            raise BrokenInput(f"{origin}:{line}", f"is not JSON ({error})") from None
        yield f"{origin}:{line}[{number}]", value
        number += 1
    text.skip(1)
    if rest := text.peek():
        raise BrokenInput(f"{origin}:{text.line}", f"found {rest!r} after the array, expected the end of the file")


class _Text:
    """A position in a stream of text. Characters before it are dropped, and their line breaks are counted."""

    def __init__(self, chunks: Iterable[str]) -> None:
        self._chunks = iter(chunks)
        self._buffer, self._at, self.line = "", 0, 1

    def peek(self) -> str:
        """Skip whitespace and return the next character, or "" at the end."""
        while True:
            while self._at < len(self._buffer) and self._buffer[self._at] in _WHITESPACE:
                self.skip(1)
            if self._at < len(self._buffer):
                return self._buffer[self._at]
            if not self._read(1):
                return ""

    def skip(self, number: int) -> None:
        """Skip a number of characters."""
        self.line += self._buffer.count("\n", self._at, self._at + number)
        self._at += number

    def decode(self) -> Any:
        """Skip one JSON value and return it.

        Raises:
            ValueError: There is none.
        """
        more = _MIN_CHARS
        while True:
            try:
                value, end = _DECODER.raw_decode(self._buffer, self._at)
            except json.JSONDecodeError as error:
                may_continue = error.msg.startswith("Unterminated") or error.pos >= len(self._buffer) - _MAX_TOKEN_CHARS
                # Twice as much each time, so that a long value is scanned only a few times.
                if not may_continue or not self._read(more):
                    raise
                more *= 2
                continue
            # A number at the end of the buffer may continue in the next chunk.
            if end < len(self._buffer) or not self._read(1):
                self.skip(end - self._at)
                return value

    def _read(self, number: int) -> bool:
        """Read at least `number` more characters; return whether there were any."""
        parts = [self._buffer[self._at :]]
        size = 0
        for chunk in self._chunks:
            parts.append(chunk)
            size += len(chunk)
            if size >= number:
                break
        self._buffer, self._at = "".join(parts), 0
        return size > 0


_DECODER = json.JSONDecoder()
