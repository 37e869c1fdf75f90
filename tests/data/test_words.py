"""Words of texts in every script, and the spans that their tags mark."""

import sys
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modernbert.data.words import join_words, spans_from_tags, split_words


@given(st.text(max_size=60))
def test_words_hold_every_visible_character_once(text: str) -> None:
    ranges = split_words(text)
    assert "".join(text[a:b] for a, b in ranges) == "".join(text.split())
    assert all(a < b for a, b in ranges) and ranges == sorted(ranges)


@pytest.mark.parametrize(
    "text, words",
    [
        ("👩‍👩‍👧 ok", ["👩‍👩‍👧", "ok"]),
        ("cafe\u0301s\t\U0001f44d\U0001f3fd", ["cafe\u0301s", "\U0001f44d", "\U0001f3fd"]),
        ("  x_1=-2.5", ["x_1", "=", "-", "2", ".", "5"]),
        ("हिन्दी", ["हिन्दी"]),
    ],
)
def test_marks_stay_with_their_character(text: str, words: list[str]) -> None:
    assert [text[a:b] for a, b in split_words(text)] == words


def test_joined_words_are_where_they_are_said_to_be() -> None:
    text, ranges = join_words(["a", "🙂b", "c"])
    assert [text[a:b] for a, b in ranges] == ["a", "🙂b", "c"]


def words_of(text: str) -> list[str]:
    return [text[a:b] for a, b in split_words(text)]


@pytest.mark.parametrize(
    "text, words",
    [
        ("東京に住む。", ["東", "京", "に", "住", "む", "。"]),
        ("我爱iPhone15", ["我", "爱", "iPhone15"]),
        ("スーパー 人々", ["ス", "ー", "パ", "ー", "人", "々"]),
        ("ｶﾞ か\u3099", ["ｶﾞ", "か\u3099"]),
        ("น้ำ ๒๕๖๗ ไทย", ["น้ำ", "๒๕๖๗", "ไ", "ท", "ย"]),
        ("ខ្មែរ", ["ខ្មែ", "រ"]),
        ("မြန်မာ", ["မြ", "န်", "မာ"]),
        ("ນ້ຳ", ["ນ້ຳ"]),
        ("서울은 хорошо हिन्दी עברית", ["서울은", "хорошо", "हिन्दी", "עברית"]),
        ("葛\U000e0100城市", ["葛\U000e0100", "城", "市"]),
    ],
)
def test_words_of_scripts_without_blanks_are_characters(text: str, words: list[str]) -> None:
    assert words_of(text) == words


def test_these_scripts_are_those_of_the_unicode_database() -> None:
    """By the property Script of another library; where the two know the same version of Unicode."""
    regex = pytest.importorskip("regex")
    scripts = "Han Hira Kana Bopo Yiii Tang Nshu Kits Thai Laoo Khmr Mymr Tale Talu Lana Tavt Ahom".split()
    ours = regex.compile("[" + "".join(rf"\p{{scx={script}}}" for script in scripts) + "]")
    letters = [chr(code) for code in (*range(0x3400), *range(0x3400, sys.maxunicode, 11))]
    letters = [letter for letter in letters if unicodedata.category(letter) == "Lo"]
    differ = [letter for letter in letters if (len(words_of(letter * 2)) == 2) != bool(ours.match(letter))]
    # Thai and Lao AM are written with the letter before them; the masu mark is a sign of kana by its use alone.
    assert differ == ["\u0e33", "\u0eb3", "\u303c"]


def split_as_before(text: str) -> list[tuple[int, int]]:
    """The rule under which taggers of earlier versions were trained."""
    ranges: list[tuple[int, int]] = []
    open_run = joined = False
    for place, character in enumerate(text):
        is_mark = unicodedata.category(character)[0] == "M" or character == "\u200d"
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
        joined = character == "\u200d"
    return ranges


WITH_BLANKS = st.characters(max_codepoint=0x0DFF) | st.characters(min_codepoint=0x1F000, max_codepoint=0x1FFFF)


@given(st.text(WITH_BLANKS | st.sampled_from("\u200d\ufe0f 가\u1100"), max_size=40))
def test_text_with_blanks_is_split_as_it_was(text: str) -> None:
    assert split_words(text) == split_as_before(text)


def test_words_with_blanks_are_joined_by_blanks() -> None:
    assert join_words(["I", "live", "in", "東京", "。", "ok", "서울", "은"])[0] == "I live in 東京。ok 서울 은"


@pytest.mark.parametrize(
    "tags, spans",
    [
        (["B-x", "I-x", "O", "B-x"], {(0, 2, "x"), (3, 4, "x")}),
        (["B-x", "B-x"], {(0, 1, "x"), (1, 2, "x")}),
        (["I-x", "I-x", "I-y"], {(0, 2, "x"), (2, 3, "y")}),
        (["O", "I-x", "O"], {(1, 2, "x")}),
        (["NOUN", "NOUN"], {(0, 1, "NOUN"), (1, 2, "NOUN")}),
        (["B-x", "NOUN"], {(0, 1, "x"), (1, 2, "NOUN")}),
        (["B-a-b", "I-a-b"], {(0, 2, "a-b")}),
        (["B-x", "I-x", "E-x", "S-x", "O", "E-y"], {(0, 3, "x"), (3, 4, "x"), (5, 6, "y")}),
        (["B-x", "L-x", "U-x", "L-x"], {(0, 2, "x"), (2, 3, "x"), (3, 4, "x")}),
        (["B-", "S", "-x"], {(0, 1, "B-"), (1, 2, "S"), (2, 3, "-x")}),
        ([], set()),
    ],
)
def test_spans_begin_and_end_as_conll_counts_them(tags: list[str], spans: set[tuple[int, int, str]]) -> None:
    assert spans_from_tags(tags) == spans


def spans_of_seqeval(tags: list[str]) -> set[tuple[int, int, str]]:
    """The rules of `seqeval.metrics.sequence_labeling`, written down: which pairs of neighbours end or begin a span."""
    ends = {"BB", "BS", "BO", "IB", "IS", "IO", *(f"{before}{after}" for before in "ES" for after in "BIESO")}
    begins = {"EE", "EI", "SE", "SI", "OE", "OI", *(f"{before}{after}" for before in "BIESO" for after in "BS")}
    spans, begin, before, label_before = set(), 0, "O", "_"
    for place, tag in enumerate([*tags, "O"]):
        letter, label = tag[0], tag[2:] or "_"
        if before + letter in ends or (before != "O" and label_before != label):
            spans.add((begin, place, label_before))
        if before + letter in begins or (letter != "O" and label_before != label):
            begin = place
        before, label_before = letter, label
    return spans


def test_spans_are_those_of_seqeval_however_they_are_tagged() -> None:
    rng = np.random.default_rng(0)
    known = ["O", *(f"{letter}-{label}" for letter in "BIES" for label in "xy")]
    for _ in range(2_000):
        tags = rng.choice(known, 8).tolist()
        assert spans_from_tags(tags) == spans_of_seqeval(tags), tags
        assert spans_from_tags([tag.replace("E-", "L-").replace("S-", "U-") for tag in tags]) == spans_from_tags(tags)
