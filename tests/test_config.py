"""What a person can get wrong in a config is one line that says what to write instead."""

from dataclasses import dataclass, field

import pytest

from modernbert.config import MISSING, load
from modernbert.errors import InputError


@dataclass
class Part:
    tokens: int = MISSING
    lr: float = MISSING


@dataclass
class Example:
    out: str = "x"
    sources: list[str] = field(default_factory=list)
    parts: dict[str, Part] = field(default_factory=dict)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("sources=[corpus/", r"^sources=\[corpus/: while parsing"),
        ("sources=${foo}", "sources: Interpolation key 'foo' not found"),
        ("out=${oc.env:NO_SUCH_VARIABLE}", "out: .*'NO_SUCH_VARIABLE' not found"),
        ("sources[0]=corpus", r"^sources\[0\]=corpus: found a list where"),
        ("sources={a: b}", "^sources={a: b}: found a list where"),
        ("sources=corpus", r"^sources: found 'corpus', expected a list, such as sources='\[corpus\]'"),
        ("parts.thre.tokens=3", r"parts.thre.lr has no value, .* \(parts: one, thre\)"),
        ("parts=x", "^parts=x: "),
        ("outt=x", "^outt=x: .*Did you mean: 'out'"),
        ("out", "^out: expected key=value"),
        ("out=a\udcff", "^out=a.: is not UTF-8 text"),
    ],
)
def test_a_wrong_word_is_one_line(tmp_path, word, message):
    path = tmp_path / "config.yaml"
    path.write_text("parts: {one: {tokens: 1, lr: 1.0}}\n")
    with pytest.raises(InputError, match=message) as caught:
        load(Example, path, [word])
    assert "\n" not in str(caught.value)


def test_a_file_with_one_value_for_a_list_is_named(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("sources: corpus\n")
    with pytest.raises(InputError, match=r"config.yaml: sources: found one value, expected a list"):
        load(Example, path)


def test_one_value_for_a_group_is_named(tmp_path):
    path = tmp_path / "config.yaml"
    for text, said in (("parts: 3", "parts: found one value"), ("parts: {one: 3}", "parts.one: found 3")):
        path.write_text(text + "\n")
        with pytest.raises(InputError, match=f"config.yaml: {said}, expected key: value pairs"):
            load(Example, path)


def test_words_go_over_the_file_and_the_file_over_the_defaults(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("out: file\nsources: [a, b]\n")
    assert load(Example, path, ["out=word", "parts.one={tokens: 3, lr: 0.5}"]) == Example(
        "word", ["a", "b"], {"one": Part(3, 0.5)}
    )
