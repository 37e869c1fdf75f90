"""Each option of each command has a help text, and sets exactly the argument of its name."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest
from annotated_types import Ge, Gt, Le, Lt, MultipleOf
from commands import run_here

from modernbert.cli.main import cli
from modernbert.cli.parser import VerbCommand, identifier, option_row
from modernbert.cli.verbs import VERBS, Verb
from modernbert.options import MISSING, Option, option_name, options_of, plain_kind

# Commands whose options depend on the task have two classes of them.
TASKS = {verb: (None, "embed") if VERBS[verb].by_task else (None,) for verb in VERBS}
OPTIONS = [
    (verb, task, option)
    for verb, tasks in TASKS.items()
    for task in tasks
    for option in options_of(VERBS[verb].load_options(task))
]
IDS = [f"{verb} {f'{task} ' if task else ''}{option.key}" for verb, task, option in OPTIONS]


def test_no_option_of_the_command_line_is_left_out() -> None:
    """Every command is generated from its option class, so that the tests below see all its options."""
    given = {"config", "print_config"}
    for verb, tasks in TASKS.items():
        for task in tasks:
            options = [option for checked, other, option in OPTIONS if (checked, other) == (verb, task)]
            command = VerbCommand(verb, VERBS[verb])
            if task:
                command.make_context(verb, ["--task", task, "--print"])
            names = {str(parameter.name) for parameter in command.params}
            assert names - given == {identifier(each.key) for each in options if "NAME" not in each.key.split(".")}
            assert {option.key for option in command.options} == {option.key for option in options}
    assert [name for name in cli.commands if name != "completion"] == []


@pytest.mark.parametrize(("verb", "task", "option"), OPTIONS, ids=IDS)
def test_every_option_has_a_help_text_that_says_its_default(verb: str, task: str | None, option: Option) -> None:
    assert option.help.endswith("."), "a sentence"
    assert option_row(option)[1].count("[default: ") <= 1
    if option.default is None:
        assert any(word in option.help for word in ("default", "Without", ", if", ", for", "or null")), (
            "what None means"
        )


@pytest.mark.parametrize(("verb", "task", "option"), OPTIONS, ids=IDS)
def test_every_option_sets_the_argument_of_its_name(
    verb: str, task: str | None, option: Option, monkeypatch: pytest.MonkeyPatch
) -> None:
    received: list[Any] = []
    monkeypatch.setattr(Verb, "load_function", lambda self: received.append)
    plain, changed = words_of(verb, task, option, False), words_of(verb, task, option, True)
    for words in (plain, changed):
        done = run_here(*words)
        assert done.returncode == 0, done.stderr
    before, after = ({**flat(asdict(config))} for config in received)
    key = option.key.replace("NAME", "one")
    assert {name for name in before | after if before.get(name) != after.get(name)} == {key}
    assert after[key] == other_value(option, task)


def words_of(verb: str, task: str | None, option_of_interest: Option, is_changed: bool) -> list[str]:
    """Return a command line with all required options, and with another value for one option if asked."""
    words, named = verb.split(), list[str]()
    for option in options_of(VERBS[verb].load_options(task)):
        if is_changed and option.key == option_of_interest.key:
            value = other_value(option, task)
        elif is_required(option, option_of_interest.key):
            value = first_value(option, task)
        else:
            continue
        texts = [str(each) for each in (value if isinstance(value, list | tuple) else [value])]
        name = option_name(option.key.replace("NAME", "one"))
        if option.positional:
            words += texts
        elif isinstance(value, bool):
            named.append(name if value else f"--no-{name.removeprefix('--')}")
        else:
            named += [word for text in texts for word in (name, text)]
    return words + named


def is_required(option: Option, other: str) -> bool:
    """Return whether a command needs a value for an option, if it has another option."""
    group = option.key.rpartition("NAME.")[0]
    return isinstance(option.default, str) and option.default == MISSING and (not group or other.startswith(group))


def first_value(option: Option, task: str | None) -> Any:
    return _values(option, task)[0]


def other_value(option: Option, task: str | None) -> Any:
    """Return a valid value that is not the default."""
    usual = first_value(option, task) if option.default is MISSING else option.default
    return next(value for value in _values(option, task) if value != usual)


def _values(option: Option, task: str | None) -> list[Any]:
    if option.key == "task" and task:
        return ["embed", "late"]
    kind = plain_kind(option.kind)
    if get_origin(kind) in (list, Sequence):
        default = option.default[0] if isinstance(option.default, list | tuple) and option.default else None
        inner = _scalars(get_args(kind)[0], default)
        return [inner[:1], inner[-2:]]
    return _scalars(option.kind, option.default)


def _scalars(kind: Any, default: Any) -> list[Any]:
    plain = plain_kind(kind)
    if get_origin(plain) is Literal:
        return list(get_args(plain))
    if plain is bool:
        return [False, True]
    if plain in (int, float):
        least, most, step = _bounds(kind)
        start = default if isinstance(default, int | float) else max(least, 0)
        numbers = [plain(start), plain(start + step), plain(start + 2 * step), plain(start / 2), plain(start / 4)]
        numbers += [0.5, 0.25] if plain is float else []
        return [number for number in numbers if least <= number <= most]
    if plain is Path:
        return [Path("one"), Path("two"), Path("three")]
    return ["one", "two", "three"]


def _bounds(kind: Any) -> tuple[float, float, int]:
    least, most, step = -math.inf, math.inf, 1
    for each in (kind, *get_args(kind)):
        for limit in get_args(each)[1:] if get_origin(each) is Annotated else ():
            least = limit.ge if isinstance(limit, Ge) else limit.gt + 1e-9 if isinstance(limit, Gt) else least
            most = limit.le if isinstance(limit, Le) else limit.lt - 1e-9 if isinstance(limit, Lt) else most
            step = limit.multiple_of if isinstance(limit, MultipleOf) else step
    return least, most, step


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the leaves of a tree of dictionaries by their paths."""
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            leaves |= flat(value, f"{prefix}{name}.")
        else:
            leaves[f"{prefix}{name}"] = value
    return leaves
