"""Every option of every command is in a command line of at least one test."""

import ast
from collections.abc import Iterator
from pathlib import Path

import typer

from modernbert.cli.main import app

TESTS = Path(__file__).parent.parent
# What may stand before the words of a command.
_BEFORE = (["-m", "modernbert"], ["modernbert"])


def options(command: typer.core.TyperGroup, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], list[str]]]:
    """Yield the words of each command with the spellings of each of its options."""
    for name, inner in command.commands.items():
        if isinstance(inner, typer.core.TyperGroup):
            yield from options(inner, (*path, name))
            continue
        for parameter in inner.params:
            if isinstance(parameter, typer.core.TyperOption) and "--help" not in parameter.opts:
                yield (*path, name), [*parameter.opts, *parameter.secondary_opts]


def command_lines() -> Iterator[list[str]]:
    """Yield the words of each call, list and tuple of the tests that may be a command line."""
    for path in sorted(TESTS.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call | ast.List | ast.Tuple):
                parts = node.args if isinstance(node, ast.Call) else node.elts
                words = [word for each in parts for word in _words(each)]
                for before in _BEFORE:
                    words = words[len(before) :] if words[: len(before)] == before else words
                yield words
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                    # A function of a test that is called like the command it runs.
                    yield [node.func.id.replace("_", "-"), *words]


def _starts(words: list[str], command: tuple[str, ...]) -> bool:
    """Say whether words are of a command, be it without the name of its group."""
    return tuple(words[: len(command)]) == command or words[:1] == [command[-1]]


def _words(node: ast.expr) -> Iterator[str]:
    inner = [node]
    while inner:
        each = inner.pop(0)
        if isinstance(each, ast.Constant) and isinstance(each.value, str):
            yield each.value
        inner = [child for child in ast.iter_child_nodes(each) if isinstance(child, ast.expr)] + inner


def test_every_option_is_in_a_command_line_of_a_test() -> None:
    named = [(words, set(words)) for words in command_lines()]
    absent = [
        (*command, spellings[0])
        for command, spellings in options(typer.main.get_command(app))  # type: ignore[arg-type]
        if not any(_starts(words, command) and each & set(spellings) for words, each in named)
    ]
    assert absent == []
