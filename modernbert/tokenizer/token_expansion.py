"""How much longer a tokenizer may make a text.

In: the content of a `tokenizer.json`. Out: an error, if one letter could become a book. A file of its own because
replacements in a row multiply: thirty that double make a billion letters of one, in a file of two kilobytes, and the
Rust library begins to replace while it is still reading.
"""

import base64
import json
import math
import re
from collections.abc import Iterator
from typing import Any

from modernbert.errors import InputError

__all__ = ["check_token_expansion"]

# Published tokenizers reach a few hundred: a table with 33 bytes at most for a character, and quotation marks.
_MOST_TIMES = 10_000
# Added tokens go through the replacements too, all of them while the file is read.
_MOST_ADDED_CHARS = 10_000_000
# Vocabularies are long, so no more is parsed than begins at these names. A letter that is spelled out could hide one.
_BEGINS = re.compile(rb"\s*:\s*(?=[\[{])")
_SPELLED_OUT = re.compile(rb"\\u00[2-7]")
_MOST_PARTS, _SOME_BYTES = 4, 2**16


def check_token_expansion(content: bytes, origin: str) -> None:
    """Check that neither a text before it is cut, nor one that is put together again, grows without measure.

    Raises: InputError naming the part.
    """
    most = 1
    for name in ("normalizer", "decoder"):
        times = max(map(_times, _parts(content, name)), default=1)
        if times > _MOST_TIMES:
            raise InputError(f"{origin}: its {name} may make a text more than {_MOST_TIMES:,} times as long")
        most = max(most, times)
    if most > 1:
        added = [each for part in _parts(content, "added_tokens") for each in part if isinstance(each, dict)]
        chars = most * sum(len(str(each.get("content"))) for each in added)
        if chars > _MOST_ADDED_CHARS:
            raise InputError(f"{origin}: its added tokens may become {chars:,} letters, expected {_MOST_ADDED_CHARS:,}")


def _parts(content: bytes, name: str) -> list[Any]:
    """Return the objects and lists that go by a name."""
    places = list(_places(content, name))
    if len(places) > _MOST_PARTS or (b"\\u00" in content and _SPELLED_OUT.search(content)):
        whole = json.loads(content)
        return [whole[name]] if whole.get(name) else []
    return [_parsed(content, place) for place in places]


def _places(content: bytes, name: str) -> Iterator[int]:
    """Yield where what goes by a name begins, if it is an object or a list."""
    word = f'"{name}"'.encode()
    place = content.find(word)
    while place >= 0:
        if begins := _BEGINS.match(content, place + len(word)):
            yield begins.end()
        place = content.find(word, place + len(word))


def _parsed(content: bytes, place: int) -> Any:
    decode = json.JSONDecoder().raw_decode
    try:
        return decode(content[place : place + _SOME_BYTES].decode("utf-8", "replace"))[0]
    except ValueError:  # it is longer than that, or nothing
        return decode(content[place:].decode("utf-8", "replace"))[0]


def _times(part: Any) -> int:
    """Return how many letters one may become; parts are known by their keys, for old files do not name their types."""
    if not isinstance(part, dict):
        return 1
    times = 1
    for key in ("normalizers", "decoders"):
        if isinstance(part.get(key), list):
            times *= math.prod(map(_times, part[key]))
    for key in ("content", "prepend"):
        if isinstance(part.get(key), str):
            times *= 1 + len(part[key])
    return times * _longest_piece(part.get("precompiled_charsmap"))


def _longest_piece(encoded: Any) -> int:
    """Return the most bytes that SentencePiece's table makes of a character: a trie, then pieces that end with NUL."""
    if not isinstance(encoded, str):
        return 1
    table = base64.b64decode(encoded)
    start = 4 + int.from_bytes(table[:4], "little")
    return max(1, *map(len, table[start:].split(b"\0")), 1)
