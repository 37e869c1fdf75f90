"""Bounds how much longer the replacements of a `tokenizer.json` can make a text.

Replacements in a row multiply: thirty that double make a billion characters of one, in a file of two kilobytes, and the
Rust library applies them to added tokens while it is loading.
"""

import base64
import json
import math
import re
from collections.abc import Iterator
from typing import Any

from modernbert.errors import InputError

__all__ = ["check_token_expansion"]

# Published tokenizers reach a few hundred: a table with at most 33 bytes per character, and quotation marks.
_MAX_EXPANSION = 10_000
# Replacements are applied to all added tokens while the file is loaded.
_MAX_ADDED_CHARS = 10_000_000
# Only the values of these names are parsed, because vocabularies are long. An escaped character could hide a name.
_BEGINS = re.compile(rb"\s*:\s*(?=[\[{])")
_ESCAPED_ASCII = re.compile(rb"\\u00[2-7]")
_MAX_PARTS, _FIRST_BYTES = 4, 2**16


def check_token_expansion(content: bytes, origin: str) -> None:
    """Check that neither the normalizer nor the decoder can make a text much longer.

    Raises:
        InputError: A part can; names it.
    """
    largest = 1
    for name in ("normalizer", "decoder"):
        expansion = max(map(_expansion, _parts(content, name)), default=1)
        if expansion > _MAX_EXPANSION:
            raise InputError(f"{origin}: its {name} may make a text more than {_MAX_EXPANSION:,} times as long")
        largest = max(largest, expansion)
    if largest > 1:
        added = [each for part in _parts(content, "added_tokens") for each in part if isinstance(each, dict)]
        chars = largest * sum(len(str(each.get("content"))) for each in added)
        if chars > _MAX_ADDED_CHARS:
            raise InputError(
                f"{origin}: its added tokens may become {chars:,} characters, expected at most {_MAX_ADDED_CHARS:,}"
            )


def _parts(content: bytes, name: str) -> list[Any]:
    """Return the objects and lists with a name."""
    places = list(_places(content, name))
    if len(places) > _MAX_PARTS or (b"\\u00" in content and _ESCAPED_ASCII.search(content)):
        whole = json.loads(content)
        return [whole[name]] if whole.get(name) else []
    return [_parsed(content, place) for place in places]


def _places(content: bytes, name: str) -> Iterator[int]:
    """Yield where the values of a name begin that are objects or lists."""
    word = f'"{name}"'.encode()
    place = content.find(word)
    while place >= 0:
        if begins := _BEGINS.match(content, place + len(word)):
            yield begins.end()
        place = content.find(word, place + len(word))


def _parsed(content: bytes, place: int) -> Any:
    decode = json.JSONDecoder().raw_decode
    try:
        return decode(content[place : place + _FIRST_BYTES].decode("utf-8", "replace"))[0]
    except ValueError:  # longer than that, or not JSON
        return decode(content[place:].decode("utf-8", "replace"))[0]


def _expansion(part: Any) -> int:
    """Return how many characters one may become. Parts are known by their keys: old files do not name their types."""
    if not isinstance(part, dict):
        return 1
    expansion = 1
    for key in ("normalizers", "decoders"):
        if isinstance(part.get(key), list):
            expansion *= math.prod(map(_expansion, part[key]))
    for key in ("content", "prepend"):
        if isinstance(part.get(key), str):
            expansion *= 1 + len(part[key])
    return expansion * _longest_replacement(part.get("precompiled_charsmap"))


def _longest_replacement(encoded: Any) -> int:
    """Return the longest replacement in bytes of SentencePiece's table: a trie, then strings that end with NUL."""
    if not isinstance(encoded, str):
        return 1
    table = base64.b64decode(encoded)
    start = 4 + int.from_bytes(table[:4], "little")
    return max(1, *map(len, table[start:].split(b"\0")), 1)
