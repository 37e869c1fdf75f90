"""Words of a text and their tags: split a text into words, join words to a text, and read spans from tags.

Training and inference both use `split_words`, so that tags belong to the same words.
"""

import unicodedata
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

__all__ = [
    "tags_of_parts",
    "join_words",
    "split_tagged_word",
    "merge_by_token",
    "spans_from_tags",
    "split_words",
    "is_unspaced_letter",
]

_JOINER = "\u200d"
# Scripts without spaces between words, by the Unicode names of their letters: line breaking classes ID, CJ and SA.
_SCRIPTS = tuple(
    f"{script} " for script in (
        "CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "HALFWIDTH KATAKANA", "HALFWIDTH KATAKANA-HIRAGANA",
        "HENTAIGANA", "HANGZHOU", "BOPOMOFO", "VERTICAL KANA", "YI", "TANGUT", "NUSHU", "KHITAN", "THAI", "LAO",
        "KHMER", "MYANMAR", "TAI LE", "NEW TAI LUE", "TAI THAM", "TAI VIET", "AHOM",
    )
)  # fmt: skip
# The first Thai letter; all scripts with lower code points have spaces.
_FIRST_UNSPACED = "\u0e01"
# Letters that belong to the letter before them: Thai and Lao AM, half-width voiced sound marks.
_MARKS = frozenset("\u0e33\u0eb3\uff9e\uff9f")
# Signs that stack the next letter below the previous one: Myanmar virama, Khmer coeng, Tai Tham sakot.
_STACKERS = frozenset("\u1039\u17d2\u1a60")
# Prefixes of tags; prefixes that always begin a span; prefixes that end one. BIOES has E and S, BILOU has L and U.
_PREFIXES, _BEGINS, _ENDS = (frozenset(letters) for letters in ("BIESLU", "BSU", "ESLU"))


def split_words(text: str) -> list[tuple[int, int]]:
    """Return the range of each word: a run of letters, digits and underscores, or one other visible character.

    In scripts without spaces between words (Chinese, Japanese, Thai, Lao, Khmer, Myanmar, ...) each letter is a word.
    Combining marks, variation selectors and characters after a zero-width joiner belong to the character before them.

    >>> [text[a:b] for text in ["I'm here, x_1."] for a, b in split_words(text)]
    ['I', "'", 'm', 'here', ',', 'x_1', '.']
    >>> [text[a:b] for text in ["東京のGDPは2位"] for a, b in split_words(text)]
    ['東', '京', 'の', 'GDP', 'は', '2', '位']
    """
    ranges: list[tuple[int, int]] = []
    open_run = joined = False
    for place, character in enumerate(text):
        is_mark = unicodedata.category(character)[0] == "M" or character == _JOINER or character in _MARKS
        if character.isspace():
            open_run = joined = False
            continue
        is_letter = (character.isalnum() or character == "_") and (
            character < _FIRST_UNSPACED or not is_unspaced_letter(character)
        )
        touches = bool(ranges) and ranges[-1][1] == place
        if touches and (is_mark or joined or (is_letter and open_run)):
            ranges[-1] = (ranges[-1][0], place + 1)
        else:
            ranges.append((place, place + 1))
            open_run = is_letter
        joined = character == _JOINER or character in _STACKERS
    return ranges


@lru_cache(maxsize=65_536)
def is_unspaced_letter(character: str) -> bool:
    """Return whether a character is a letter of a script that has no spaces between words.

    >>> [is_unspaced_letter(letter) for letter in ("京", "の", "ก", "가", "a", "7")]
    [True, True, True, False, False, False]
    """
    if not character.isalnum() or character.isdecimal():
        return False
    name = unicodedata.name(character, "")
    return name.startswith(_SCRIPTS) or "IDEOGRAPH" in name or "\U00017000" <= character <= "\U00018d8f"


def merge_by_token(
    text: str, words: Sequence[tuple[int, int]], places: np.ndarray
) -> tuple[list[tuple[int, int]], np.ndarray, list[int]]:
    """Join letters of scripts without spaces that share their first token: a model has one vector for them.

    Words of other scripts stay as they are.

    Args:
        text: The text.
        words: The range of each word.
        places: The first token of each word.

    Returns:
        The ranges and first tokens of the joined words, and the number of the word that each begins with.
    """
    if (places[1:] != places[:-1]).all():
        return list(words), places, list(range(len(words)))
    ranges: list[tuple[int, int]] = []
    kept: list[int] = []
    for number, (begin, end) in enumerate(words):
        if kept and places[number] == places[kept[-1]] and ranges[-1][1] == begin:
            if is_unspaced_letter(text[begin]) and is_unspaced_letter(text[words[number - 1][0]]):
                ranges[-1] = (ranges[-1][0], end)
                continue
        ranges.append((begin, end))
        kept.append(number)
    return ranges, places[kept], kept


def join_words(words: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    """Join words to a text with spaces between them, as in prose; return the text and the range of each word.

    A byte-level vocabulary has other tokens for words after a space. There is no space between letters of scripts
    without spaces, nor beside their punctuation.

    >>> join_words(["to", "be"])
    ('to be', [(0, 2), (3, 5)])
    >>> join_words(["東京", "へ", "。"])
    ('東京へ。', [(0, 2), (2, 3), (3, 4)])
    """
    ranges: list[tuple[int, int]] = []
    parts: list[str] = []
    place = 0
    for number, word in enumerate(words):
        if number and not _touch(words[number - 1], word):
            parts.append(" ")
            place += 1
        parts.append(word)
        ranges.append((place, place + len(word)))
        place += len(word)
    return "".join(parts), ranges


def _touch(before: str, word: str) -> bool:
    """Return whether prose has no space between two words."""
    last = next((c for c in reversed(before) if unicodedata.category(c)[0] != "M" and c not in _MARKS), "")
    if not last or not word:
        return False
    both = (last, word[0])
    unspaced = [is_unspaced_letter(each) for each in both]
    wide = [unicodedata.east_asian_width(c) in "WF" and unicodedata.category(c)[0] == "P" for c in both]
    return all(a or w for a, w in zip(unspaced, wide, strict=True)) or any(wide)


def split_tagged_word(word: str, tag: str) -> list[tuple[int, int, str]]:
    """Return the ranges into which `split_words` would split a word, each with its part of the word's tag.

    Only words with letters of scripts without spaces are split.

    >>> split_tagged_word("東京", "B-place")
    [(0, 1, 'B-place'), (1, 2, 'I-place')]
    >>> split_tagged_word("don't", "O")
    [(0, 5, 'O')]
    """
    if not any(map(is_unspaced_letter, word)):
        return [(0, len(word), tag)]
    ranges = split_words(word)
    if not ranges or ranges[0][0] != 0 or sum(end - begin for begin, end in ranges) < len(word):
        return [(0, len(word), tag)]
    return [(*each, part) for each, part in zip(ranges, _parts_of(tag, len(ranges)), strict=True)]


def tags_of_parts(tag: str) -> list[str]:
    """Return the tags that parts of a word with this tag can have.

    >>> tags_of_parts("S-x"), tags_of_parts("NOUN")
    (['S-x', 'B-x', 'E-x', 'I-x'], ['NOUN'])
    """
    return list(dict.fromkeys([tag, *_parts_of(tag, 2), *_parts_of(tag, 3)]))


def _parts_of(tag: str, number: int) -> list[str]:
    prefix, dash, label = tag.partition("-")
    if number == 1 or not dash or not label or prefix not in _PREFIXES:
        return [tag] * number
    first, inside, last = tuple({"S": "BIE", "U": "BIL", "E": "IIE", "L": "IIL"}.get(prefix, f"{prefix}II"))
    return [f"{first}-{label}", *[f"{inside}-{label}"] * (number - 2), f"{last}-{label}"]


def spans_from_tags(tags: Sequence[str]) -> set[tuple[int, int, str]]:
    """Return (first word, word after the last, label) of each span that tags mark.

    `B-` begins a span. `I-` continues a span of its label, or begins one. `E-` or `L-` does the same and ends it. `S-`
    or `U-` is a span of one word, and so is a tag without a prefix; `O` is none. Source: conlleval, and seqeval for
    tags that mark ends.

    >>> sorted(spans_from_tags(["B-x", "I-x", "I-y", "O", "z", "B-x", "E-x", "S-x"]))
    [(0, 2, 'x'), (2, 3, 'y'), (4, 5, 'z'), (5, 7, 'x'), (7, 8, 'x')]
    """
    spans: set[tuple[int, int, str]] = set()
    begin, open_label = 0, ""
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, label = tag.partition("-")
        known = bool(label) and prefix in _PREFIXES
        continues = known and prefix not in _BEGINS and label == open_label
        if open_label and not continues:
            spans.add((begin, place, open_label))
            open_label = ""
        if known and not continues:
            begin, open_label = place, label
        if known and prefix in _ENDS:
            spans.add((begin, place + 1, label))
            open_label = ""
        elif not known and tag != "O":
            spans.add((place, place + 1, tag))
    return spans
