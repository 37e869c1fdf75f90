"""Passages of documents: as many lines as a model reads well at a time.

In: a document's text. Out: passages, each with the number of its first line. A file of its own because where a text is
cut decides what can be found.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from modernbert.errors import InputError
from modernbert.tokenizer.input_templates import InputTemplate
from modernbert.tokenizer.tokenizer import Tokenizer

__all__ = ["Passage", "longest_passage", "passages_of"]

_LEAST_TOKENS = 8
# Where a prompt and a text meet, tokens may fall otherwise than in each of them alone.
_SEAM_TOKENS = 4


@dataclass(frozen=True)
class Passage:
    """Hold some lines of a document; `line` is the first, counted from 1."""

    text: str
    line: int


def longest_passage(asked: int, form: InputTemplate, tokenizer: Tokenizer) -> int:
    """Return how many tokens a passage may have, special ones included: as asked, or as a form takes uncut.

    Raises: InputError if next to nothing fits.
    """
    (prompt,) = tokenizer.encode([form.prompt], special=False)
    room = form.longest - (len(prompt) + _SEAM_TOKENS if form.prompt else 0)
    if room < _LEAST_TOKENS:
        raise InputError(
            f"document_length: documents of this model have room for {room} tokens beside their prompt, expected at "
            f"least {_LEAST_TOKENS}"
        )
    _check_longest(asked)
    return min(asked, room)


def passages_of(text: str, tokenizer: Tokenizer, longest: int) -> list[Passage]:
    """Cut a text into passages of at most `longest` tokens, special ones included.

    Cuts lie between lines, behind an empty one if there is one in the second half of the passage; a line that is longer
    alone is cut between words, and a word that is longer alone in its middle. White space alone is no passage.

    Raises: InputError if next to nothing fits.
    """
    _check_longest(longest)
    whole = longest - sum(tokenizer.num_special)
    numbered = [
        (number, part)
        for number, line in enumerate(text.split("\n"), 1)
        for part in _fitting(line, tokenizer, whole - 2)
    ]
    sizes = [len(ids) + 1 for ids in tokenizer.encode([part for _, part in numbered], special=False)]
    found = []
    start = 0
    while start < len(numbered):
        end = start + 1
        room = whole - sizes[start]
        while end < len(numbered) and sizes[end] <= room:
            room -= sizes[end]
            end += 1
        if end < len(numbered):
            blank = [n for n in range((start + end) // 2 + 1, end) if not numbered[n][1].strip()]
            end = blank[-1] + 1 if blank else end
        lines = numbered[start:end]
        passage = "\n".join(part for _, part in lines)
        if passage.strip():
            first = next(number for number, part in lines if part.strip())
            found.append(Passage(passage.strip("\n"), first))
        start = end
    return found


def _check_longest(longest: int) -> None:
    if longest < _LEAST_TOKENS:
        raise InputError(f"passage_tokens: found {longest}, expected at least {_LEAST_TOKENS}")


def _fitting(line: str, tokenizer: Tokenizer, longest: int) -> Iterator[str]:
    """Yield a line, or parts of it that are short enough."""
    # A token is at least a byte: a line with as few needs no counting.
    if len(line.encode()) <= longest or len(tokenizer.encode([line], special=False)[0]) <= longest:
        yield line
        return
    cut = _middle(line)
    for part in (line[:cut], line[cut:]):
        yield from _fitting(part, tokenizer, longest)


def _middle(line: str) -> int:
    """Return where to cut a line in two: at the blank nearest to its middle, else there."""
    middle = len(line) // 2
    blanks: Sequence[int] = [place for place in (line.rfind(" ", 1, middle + 1), line.find(" ", middle)) if place > 0]
    return min(blanks, key=lambda place: abs(place - middle)) if blanks else middle
