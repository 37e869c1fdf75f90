"""Mistakes in a config are one-line errors that name the correct value."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from commands import run_here

from modernbert.config_files import MISSING, nested, resolve
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
    files: Sequence[str | Path] = ()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sources[0]": "corpus"}, r"^sources\[0\]: unknown option. Did you mean sources\?"),
        ({"sources": {"a": "b"}}, "^sources: found {'a': 'b'}, expected a valid list"),
        ({"parts.thre.tokens": 3}, r"^Missing required option parts.thre.lr \(parts: one, thre\)"),
        ({"parts": "x"}, "^parts: found 'x', expected key: value pairs"),
        ({"folders.a.b": "x"}, r"^folders.a: found {'b': 'x'}, expected a valid string"),
        ({"shares": {"a": [1]}}, r"^shares.a: found \[1\], expected a valid number"),
        ({"shares": {"a": "much"}}, r"^shares.a: found 'much', expected a valid number"),
        ({"sources": [["a"]]}, r"^sources: found \['a'\], expected a valid string"),
        ({"out": None}, "^out: found None, expected a valid string"),
        ({"outt": "x"}, "^outt: unknown option. Did you mean out\\?"),
        ({"parts.one.tokns": "x"}, "^parts.one.tokns: unknown option. Did you mean tokens\\?"),
        ({"files": [3]}, "^files: found 3, expected a valid string"),
    ],
)
def test_a_wrong_value_is_one_line(tmp_path, given, message):
    path = tmp_path / "config.yaml"
    path.write_text("parts: {one: {tokens: 1, lr: 1.0}}\n")
    with pytest.raises(InputError, match=message) as caught:
        resolve(Example, nested(given), path)
    assert "\n" not in str(caught.value)


def test_one_value_is_a_list_of_one(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("sources: corpus\n")
    assert resolve(Example, {}, path).sources == resolve(Example, {"sources": "corpus"}).sources == ["corpus"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("out: ${foo}", "out: Interpolation key 'foo' not found"),
        ("out: ${oc.env:NO_SUCH_VARIABLE}", "out: .*'NO_SUCH_VARIABLE' not found"),
        ("- a", "found a list or a single value"),
        ("out: [", "is not YAML"),
        ("out: x\nout: y", "is not YAML .*duplicate"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path, text, said):
    path = tmp_path / "config.yaml"
    path.write_text(text + "\n")
    with pytest.raises(InputError, match=f"^{path}: {said}") as caught:
        resolve(Example, {}, path)
    assert "\n" not in str(caught.value)


def test_a_value_that_must_be_replaced_is_required(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("init_from: ???\n")
    with pytest.raises(InputError, match=r"^Missing required option init_from"):
        resolve(Example, {}, path)
    assert resolve(Example, {"init_from": "a"}, path).init_from == "a"


def test_a_group_for_one_value_is_named(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("folders: {a: [b]}\n")
    with pytest.raises(InputError, match=r"config.yaml: folders.a: found \['b'\], expected a valid string"):
        resolve(Example, {}, path)


def test_paths_are_text_where_text_is_expected(tmp_path):
    given = {"out": tmp_path, "sources": tmp_path, "folders": {"a": tmp_path}, "files": [tmp_path, "https://a/b"]}
    found = resolve(Example, given)
    assert (found.out, found.sources, found.folders) == (str(tmp_path), [str(tmp_path)], {"a": str(tmp_path)})
    assert found.files == [tmp_path, "https://a/b"]


def test_numbers_and_variables_of_a_file(monkeypatch, tmp_path):
    monkeypatch.setenv("CORPUS", "texts")
    (tmp_path / "config.yaml").write_text("out: ${oc.env:CORPUS}/x\nparts: {a: {tokens: 8_192, lr: 5e-5}}\n")
    found = resolve(Example, {}, tmp_path / "config.yaml")
    assert (found.out, found.parts["a"]) == ("texts/x", Part(8192, 5e-5))


def test_one_value_for_a_group_is_named(tmp_path):
    path = tmp_path / "config.yaml"
    for text, said in (("parts: 3", "parts: found 3"), ("parts: {one: 3}", "parts.one: found 3")):
        path.write_text(text + "\n")
        with pytest.raises(InputError, match=f"config.yaml: {said}, expected key: value pairs"):
            resolve(Example, {}, path)


def test_given_values_go_over_the_file_and_the_file_over_the_defaults(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("out: file\nsources: [a, b]\n")
    assert resolve(Example, {"out": "word", "parts": {"one": {"tokens": 3, "lr": 0.5}}}, path) == Example(
        "word", sources=["a", "b"], parts={"one": Part(3, 0.5)}
    )


@dataclass
class Group:
    every: float = 300.0
    keep: int = 2


@dataclass
class Outer:
    group: Group = field(default_factory=lambda: Group(every=600.0))


def test_a_group_keeps_its_own_defaults_when_one_value_is_given():
    assert resolve(Outer, {"group": {"keep": 3}}) == Outer(Group(600.0, 3))
    assert resolve(Outer, {}) == Outer(Group(600.0, 2))


def test_a_config_of_another_command_is_named(tmp_path):
    (tmp_path / "mine.yaml").write_text("text: corpus\nphases: {one: {tokens: 1, lr: 1.0}}\n")
    for command, config, owner in (
        (["finetune"], "pretrain/adapt", "pretrain"),
        (["finetune", "start", "--task", "embed"], str(tmp_path / "mine.yaml"), "pretrain"),
        (["embed", "start"], "pretrain/base", "pretrain"),
        (["pretrain"], "finetune/code", "finetune"),
        (["plan"], "finetune/code", "finetune"),
    ):
        done = run_here(*command, "--config", config)
        assert done.returncode == 2 and done.stderr.count("\n") == 1
        assert done.stderr.startswith(f"modernbert: {config}: has ")
        assert f"it is a config of `modernbert {owner}`" in done.stderr
