"""Words of a text, as tags are given to them: where each begins and ends, and which spans their tags mark.

In: a text, or tags. Out: ranges of characters, or of words. A file of its own because training and use must cut a text
in the same places.
"""

import unicodedata
from collections.abc import Sequence

__all__ = ["join_words", "spans_of", "split_words"]

_JOINER = "\u200d"
# Of a tag: which begin a span whatever stands before, and which end theirs. BIOES says E and S, BILOU L and U.
_PREFIXES, _BEGINS, _ENDS = (frozenset(letters) for letters in ("BIESLU", "BSU", "ESLU"))


def split_words(text: str) -> list[tuple[int, int]]:
    """Return the range of each word: a run of letters, digits and underscores, or one other visible character.

    Marks that combine with a character, variation selectors and what a zero-width joiner joins stay with it.

    >>> [text[a:b] for text in ["I'm here, x_1."] for a, b in split_words(text)]
    ['I', "'", 'm', 'here', ',', 'x_1', '.']
    """
    ranges: list[tuple[int, int]] = []
    open_run = joined = False
    for place, character in enumerate(text):
        is_mark = unicodedata.category(character)[0] == "M" or character == _JOINER
        if character.isspace():
            open_run = joined = False
            continue
        is_letter = character.isalnum() or character == "_"
        touches = bool(ranges) and ranges[-1][1] == place
        if touches and (is_mark or joined or (is_letter and open_run)):
            ranges[-1] = (ranges[-1][0], place + 1)
        else:
            ranges.append((place, place + 1))
            open_run = is_letter
        joined = character == _JOINER
    return ranges


def join_words(words: list[str]) -> tuple[str, list[tuple[int, int]]]:
    """Join words that came apart with blanks, as they stand in prose; return the text and where each word is in it.

    A word inside a text begins with a blank for a byte-level vocabulary; without one it would be another word.

    >>> join_words(["to", "be"])
    ('to be', [(0, 2), (3, 5)])
    """
    ranges, place = [], 0
    for word in words:
        ranges.append((place, place + len(word)))
        place += len(word) + 1
    return " ".join(words), ranges


def spans_of(tags: Sequence[str]) -> set[tuple[int, int, str]]:
    """Return (first word, word after the last, label) of each span that tags mark.

    `B-` begins a span; `I-` goes on with one of its label, and begins one where there is none; `E-` or `L-` does the
    same and ends it; `S-` or `U-` is one alone. A tag without a prefix is a span of one word; `O` is none. Source:
    conlleval, as seqeval has it for tags that mark ends too.

    >>> sorted(spans_of(["B-x", "I-x", "I-y", "O", "z", "B-x", "E-x", "S-x"]))
    [(0, 2, 'x'), (2, 3, 'y'), (4, 5, 'z'), (5, 7, 'x'), (7, 8, 'x')]
    """
    spans: set[tuple[int, int, str]] = set()
    begin, open_label = 0, ""
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, label = tag.partition("-")
        known = bool(label) and prefix in _PREFIXES
        goes_on = known and prefix not in _BEGINS and label == open_label
        if open_label and not goes_on:
            spans.add((begin, place, open_label))
            open_label = ""
        if known and not goes_on:
            begin, open_label = place, label
        if known and prefix in _ENDS:
            spans.add((begin, place + 1, label))
            open_label = ""
        elif not known and tag != "O":
            spans.add((place, place + 1, tag))
    return spans
