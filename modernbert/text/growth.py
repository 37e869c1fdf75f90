"""How much longer a tokenizer may make a text.

In: the content of a `tokenizer.json`. Out: an error, if one letter could become a book. A file of its own because
replacements in a row multiply: thirty that double make a billion letters of one, in a file of two kilobytes, and the
Rust library begins to replace while it is still reading.
"""

import base64
import json
import math
import re
from typing import Any

from modernbert.errors import InputError

__all__ = ["check_growth"]

# Published tokenizers reach a few hundred: a table with 33 bytes at most for a character, and quotation marks.
_MOST_TIMES = 10_000
# Added tokens go through the replacements too, all of them while the file is read.
_MOST_ADDED_CHARS = 10_000_000
# Vocabularies are long, so no more is parsed than begins here. A letter that is spelled out could hide a name.
_PART = re.compile(rb'"(normalizer|decoder|added_tokens)"\s*:\s*(?=[\[{])')
_SPELLED_OUT = re.compile(rb"\\u00[2-7]")
_MOST_PARTS, _MOST_PART_BYTES = 8, 2**23


def check_growth(content: bytes, origin: str) -> None:
    """Check that neither a text before it is cut, nor one that is put together again, grows without measure.

    Raises: InputError naming the part.
    """
    added = 0
    most = 1
    for name, part in _parts(content):
        if name == "added_tokens":
            texts = [each.get("content") for each in part if isinstance(each, dict)]
            added += sum(len(text) for text in texts if isinstance(text, str))
            continue
        times = _times(part)
        if times > _MOST_TIMES:
            raise InputError(
                f"{origin}: its {name} may make a text {times:.0e} times as long, expected {_MOST_TIMES:,}"
            )
        most = max(most, times)
    if most > 1 and most * added > _MOST_ADDED_CHARS:
        raise InputError(
            f"{origin}: its added tokens may become {most * added:,} letters, expected {_MOST_ADDED_CHARS:,}"
        )


def _parts(content: bytes) -> list[tuple[str, Any]]:
    places = list(_PART.finditer(content))
    if len(places) > _MOST_PARTS or _SPELLED_OUT.search(content):
        whole = json.loads(content)
        return [(name, whole[name]) for name in ("normalizer", "decoder", "added_tokens") if whole.get(name)]
    decode = json.JSONDecoder().raw_decode
    parts = []
    for place in places:
        text = content[place.end() : place.end() + _MOST_PART_BYTES].decode("utf-8", "replace")
        parts.append((place[1].decode(), decode(text)[0]))
    return parts


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
