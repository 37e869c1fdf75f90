"""Hide words of held-out lines, to see what the model puts in their place.

In: held-out records. Out: lines with one whole word hidden. Which lines and which words follows from a seed alone, so
nobody picked the ones that come out well.
"""

import random
import re
from collections.abc import Iterable
from dataclasses import dataclass

from modernbert.demo.collect import Record
from modernbert.tokenizer.tokenizer import Tokenizer

__all__ = ["HiddenWord", "hide_words"]

_WORD = re.compile(r"(?<= )[A-Za-z]{3,12}\b")
_WORDS_IN_LINE = (6, 20)


@dataclass(frozen=True)
class HiddenWord:
    """A line around a word that was hidden."""

    before: str
    word: str
    after: str
    origin: str

    def masked(self, mask: str) -> str:
        """Return the line with the mask in place of the word and of the blank before it."""
        return f"{self.before.removesuffix(' ')}{mask}{self.after}"


def hide_words(records: Iterable[Record], tokenizer: Tokenizer, *, number: int, seed: int) -> list[HiddenWord]:
    """Hide one word in each of `number` lines; only words that are one token, so that one mask can stand for them."""
    rng = random.Random(seed)
    candidates = [
        (record.origin, line.strip())
        for record in records
        for line in record.text.split("\n")
        if _WORDS_IN_LINE[0] <= len(line.split()) <= _WORDS_IN_LINE[1]
    ]
    rng.shuffle(candidates)
    hidden: list[HiddenWord] = []
    seen: set[str] = set()
    for origin, line in candidates:
        words = list(_WORD.finditer(line))
        if len(hidden) == number or not words or line in seen:
            continue
        word = rng.choice(words)
        (ids,) = tokenizer.encode([f" {word[0]}"], special=False)
        if len(ids) == 1:
            seen.add(line)
            hidden.append(HiddenWord(line[: word.start()], word[0], line[word.end() :], origin))
    return hidden
