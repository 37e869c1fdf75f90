"""What a person can get wrong in a config is one line that says what to write instead."""

from dataclasses import dataclass, field

import pytest

from modernbert.config_files import MISSING, load
from modernbert.errors import InputError


@dataclass
class Part:
    tokens: int = MISSING
    lr: float = MISSING


@dataclass
class Example:
    out: str = "x"
    init_from: str | None = "start"
    sources: list[str] = field(default_factory=list)
    folders: dict[str, str] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)
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
        ("folders.a.b=x", r"^folders.a.b=x: found {'b': 'x'} as folders.a, expected one value"),
        ("shares={a: [1]}", r"^shares={a: \[1\]}: found \[1\] as shares.a, expected one value"),
        ("sources=[[a]]", r"^sources=\[\[a\]\]: found \['a'\] as sources.0, expected one value"),
        ("out=null", "^out=null: .*field of type 'str'"),
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


def test_a_group_for_one_value_is_named(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("folders: {a: [b]}\n")
    with pytest.raises(InputError, match=r"config.yaml: found \['b'\] as folders.a, expected one value"):
        load(Example, path)


@pytest.mark.parametrize("text", ["2024_11_27", "1e3", "007", "on", "12:30", "a: b", "query: ", "a #1", "50%", "[Q] "])
def test_text_is_what_was_typed(text):
    words = [f"out={text}", f"init_from={text}", f"folders.a={text}"]
    found = load(Example, None, words)
    assert (found.out, found.init_from, found.folders) == (text, text, {"a": text})


def test_lists_quotes_and_nothing_are_yaml(monkeypatch):
    monkeypatch.setenv("CORPUS", "texts")
    words = [
        "sources=[2024_11_27, 'on']",
        "folders={a: 007}",
        "out='a b'",
        "init_from=null",
        "parts.a={tokens: 1_0, lr: 1}",
    ]
    found = load(Example, None, words)
    assert (found.sources, found.folders, found.out) == (["2024_11_27", "on"], {"a": "007"}, "a b")
    assert found.init_from is None and found.parts["a"].tokens == 10
    assert load(Example, None, ["out=${oc.env:CORPUS}/x"]).out == "texts/x"


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
        "word", sources=["a", "b"], parts={"one": Part(3, 0.5)}
    )
