"""How much longer a tokenizer may make a text.

In: a tokenizer. Out: an error, if one letter could become a book. A file of its own because replacements in a row
multiply: thirty that double make a billion letters of one, in a file of two kilobytes.
"""

import base64
import json
import math
from collections.abc import Mapping
from typing import Any

import tokenizers

from modernbert.errors import InputError

__all__ = ["check_growth"]

# Published tokenizers reach a few hundred: a table of 33 bytes at most for a character, and quotation marks.
_MOST_TIMES = 10_000


def check_growth(core: tokenizers.Tokenizer, origin: str) -> None:
    """Check that neither a text before it is cut, nor one that is put together again, grows without measure.

    Raises: InputError naming the part.
    """
    for name, part in (("normalizer", core.normalizer), ("decoder", core.decoder)):
        times = 1 if part is None else _times(json.loads(part.__getstate__()))
        if times > _MOST_TIMES:
            raise InputError(f"{origin}: its {name} may make a text {times:,} times as long, expected {_MOST_TIMES:,}")


def _times(part: Mapping[str, Any]) -> int:
    inner = part.get("normalizers") or part.get("decoders")
    if inner:
        return math.prod(_times(each) for each in inner)
    kind = part.get("type")
    if kind in ("Replace", "Prepend"):
        return 1 + len(part.get("content", part.get("prepend", "")))
    return _longest_piece(part["precompiled_charsmap"]) if kind == "Precompiled" else 1


def _longest_piece(encoded: str) -> int:
    """Return the most bytes that SentencePiece's table makes of a character: a trie, then pieces that end with NUL."""
    table = base64.b64decode(encoded)
    start = 4 + int.from_bytes(table[:4], "little")
    return max(1, *map(len, table[start:].split(b"\0")), 1)
