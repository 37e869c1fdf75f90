"""Mask one word in random lines of held-out text; a seed determines the lines and the words."""

import random
import re
from collections.abc import Iterable
from dataclasses import dataclass

from modernbert.demo.collect import Record
from modernbert.tokenizer.tokenizer import Tokenizer

__all__ = ["MaskedWord", "mask_words"]

_WORD = re.compile(r"(?<= )[A-Za-z]{3,12}\b")
_WORDS_IN_LINE = (6, 20)


@dataclass(frozen=True)
class MaskedWord:
    """A line with one word to be masked."""

    before: str
    word: str
    after: str
    origin: str

    def masked(self, mask: str) -> str:
        """Return the line with the mask instead of the word and the space before it."""
        return f"{self.before.removesuffix(' ')}{mask}{self.after}"


def mask_words(records: Iterable[Record], tokenizer: Tokenizer, *, number: int, seed: int) -> list[MaskedWord]:
    """Return up to `number` lines with a word that is a single token, so that one mask replaces it."""
    rng = random.Random(seed)
    candidates = [
        (record.origin, line.strip())
        for record in records
        for line in record.text.split("\n")
        if _WORDS_IN_LINE[0] <= len(line.split()) <= _WORDS_IN_LINE[1]
    ]
    rng.shuffle(candidates)
    found: list[MaskedWord] = []
    seen: set[str] = set()
    for origin, line in candidates:
        words = list(_WORD.finditer(line))
        if len(found) == number or not words or line in seen:
            continue
        word = rng.choice(words)
        (ids,) = tokenizer.encode([f" {word[0]}"], special=False)
        if len(ids) == 1:
            seen.add(line)
            found.append(MaskedWord(line[: word.start()], word[0], line[word.end() :], origin))
    return found
