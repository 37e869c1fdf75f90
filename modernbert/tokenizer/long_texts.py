"""Splits long texts where the token ids cannot change, so that no call of the Rust library holds a whole text."""

import json
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import tokenizers

__all__ = ["LongTextSplitter", "bounded_batches"]

# The Rust library holds offsets and strings of every token of a call, so the characters of a call are bounded.
CALL_CHARS = 2_000_000
LONG_CHARS = 100_000

_SAFE_CUT = re.compile(r"(?<=\S)[ \n](?=\S)|(?<=[A-Za-z])(?=[0-9])")


class LongTextSplitter:
    """Splits texts of more than `LONG_CHARS` characters at places where a word of the tokenizer always ends."""

    def __init__(self, core: tokenizers.Tokenizer) -> None:
        self._core = core

    def split(self, text: str) -> Iterator[str]:
        """Yield a text in parts whose ids, joined, equal the ids of the text."""
        start = 0
        while len(text) - start > LONG_CHARS and self._has_safe_cuts:
            cut = self._find_cut(text, start + LONG_CHARS)
            if cut is None:
                break
            yield text[start:cut]
            start = cut
        yield text[start:]

    def _find_cut(self, text: str, start: int) -> int | None:
        for match in _SAFE_CUT.finditer(text, start):
            cut = match.start()
            if match[0]:
                return cut
            # Between a letter and a digit, a cut must not be inside an added token such as [unused7].
            near = text[max(0, cut - self._max_added_chars) : cut + self._max_added_chars]
            if near.isascii() and not any(token in near for token in self._added):
                return cut
        return None

    @cached_property
    def _added(self) -> list[str]:
        return [token.content for token in self._core.get_added_tokens_decoder().values()]

    @cached_property
    def _max_added_chars(self) -> int:
        return max(map(len, self._added))

    @cached_property
    def _has_safe_cuts(self) -> bool:
        """Whether words always end before a single space between visible characters, and between a letter and a digit.

        This holds for byte-level tokenizers with the regular expression of GPT-2: a space can only be the first
        character of a word there, and no word has both letters and digits. NFC neither joins a space or a digit to the
        character before it nor makes a space of a visible character. Added tokens are matched before words are; a
        tokenizer with added tokens that have inner spaces, or the flag `rstrip`, is never split.
        """
        plan: dict[str, Any] = json.loads(self._core.to_str())
        splitter = plan["pre_tokenizer"] or {}
        return (
            (plan["normalizer"] or {"type": "NFC"}) == {"type": "NFC"}
            and splitter.get("type") == "ByteLevel"
            and splitter.get("use_regex", True)
            and not splitter["add_prefix_space"]
            and not any(token["rstrip"] for token in plan["added_tokens"])
            and all(t["content"].isspace() or not re.search(r"\s", t["content"]) for t in plan["added_tokens"])
        )


def bounded_batches(parts: Sequence[tuple[int, str]]) -> Iterator[list[tuple[int, str]]]:
    """Group (number of the text, part of it) into batches of about `CALL_CHARS` characters."""
    batch: list[tuple[int, str]] = []
    num_chars = 0
    for n, part in parts:
        batch.append((n, part))
        num_chars += len(part)
        if num_chars >= CALL_CHARS:
            yield batch
            batch, num_chars = [], 0
    if batch:
        yield batch
