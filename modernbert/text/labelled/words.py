"""Words of a text, as tags are given to them: where each begins and ends.

In: a text. Out: ranges of characters. A file of its own because training and use must cut a text in the same places.
"""

import unicodedata

__all__ = ["join_words", "split_words"]

_JOINER = "\u200d"


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
