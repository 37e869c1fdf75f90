"""Passages of documents: consecutive lines, as many as fit a number of tokens."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from modernbert.errors import InputError
from modernbert.tokenizer.input_templates import InputTemplate
from modernbert.tokenizer.tokenizer import Tokenizer

__all__ = ["Passage", "longest_passage", "passages_of"]

_MIN_TOKENS = 8
# A prompt and a text may have a few more tokens together than each of them alone.
_SEAM_TOKENS = 4


@dataclass(frozen=True)
class Passage:
    """Lines of a document; `line` is the number of the first, counted from 1."""

    text: str
    line: int


def longest_passage(asked: int, template: InputTemplate, tokenizer: Tokenizer) -> int:
    """Return the maximum tokens of a passage, special tokens included: `asked`, or fewer if the template truncates.

    Raises:
        InputError: Fewer than 8 tokens fit.
    """
    (prompt,) = tokenizer.encode([template.prompt], special=False)
    budget = template.max_length - (len(prompt) + _SEAM_TOKENS if template.prompt else 0)
    if budget < _MIN_TOKENS:
        left = max(0, budget)
        raise InputError(f"document_length: leaves {left} tokens beside the prompt, expected at least {_MIN_TOKENS}")
    _check_longest(asked)
    return min(asked, budget)


def passages_of(text: str, tokenizer: Tokenizer, longest: int) -> list[Passage]:
    """Split a text into passages of at most `longest` tokens, special ones included.

    Passages end between lines, after an empty line if there is one in the second half of the passage. A longer line is
    split between words, a longer word in its middle. White space alone is not a passage.

    Raises:
        InputError: `longest` is below 8.
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
        left = whole - sizes[start]
        while end < len(numbered) and sizes[end] <= left:
            left -= sizes[end]
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
    if longest < _MIN_TOKENS:
        raise InputError(f"passage_tokens: found {longest}, expected at least {_MIN_TOKENS}")


def _fitting(line: str, tokenizer: Tokenizer, longest: int) -> Iterator[str]:
    """Yield a line, or the parts of a longer one."""
    # A token has at least one byte: a line with so few bytes need not be tokenized.
    if len(line.encode()) <= longest or len(tokenizer.encode([line], special=False)[0]) <= longest:
        yield line
        return
    cut = _middle(line)
    for part in (line[:cut], line[cut:]):
        yield from _fitting(part, tokenizer, longest)


def _middle(line: str) -> int:
    """Return where to split a line: at the blank nearest to its middle, else in the middle."""
    middle = len(line) // 2
    blanks: Sequence[int] = [place for place in (line.rfind(" ", 1, middle + 1), line.find(" ", middle)) if place > 0]
    return min(blanks, key=lambda place: abs(place - middle)) if blanks else middle
