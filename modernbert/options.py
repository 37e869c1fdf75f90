"""Options as typed, documented dataclass fields, which the command line, config files and Python calls share.

A field's annotation is the type of the option, its default the default, and the docstring below it the help text.
Fields before `KW_ONLY` are positional in Python and on the command line. `Literal` lists choices; `Annotated` with the
classes of `annotated_types` limits numbers.
"""

import ast
import dataclasses
import functools
import inspect
import textwrap
import types
import typing
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, is_dataclass
from difflib import SequenceMatcher
from typing import Annotated, Any, Union

__all__ = [
    "MISSING",
    "Option",
    "default_of",
    "did_you_mean",
    "hints_of",
    "kind_of",
    "option_name",
    "options_of",
    "plain_kind",
]

# The share of equal characters above which a name is taken for a misspelled one.
_MIN_LIKENESS = 0.6

MISSING: Any = "???"
"""A value that must be replaced: the default of a required field, or in a config file."""


@dataclass(frozen=True)
class Option:
    """One option: a field of the dataclass of a command, or of a dataclass in it."""

    key: str
    """Path of the field, such as `guard.window`; `NAME` means any key of a mapping: `phases.NAME.tokens`."""
    kind: Any
    """Type of the field."""
    default: Any
    """Default value; `MISSING` if the option is required."""
    help: str
    """Help text."""
    section: str
    """Heading in the help text of the command."""
    positional: bool = False
    """Whether it is an argument instead of an option."""


def options_of(schema: type, prefix: str = "", section: str = "", defaults: Any = None) -> Iterator[Option]:
    """Yield the options of a dataclass: positional ones, then its own, then the options of its base classes.

    `defaults` is an instance whose values are the defaults, for a dataclass in another.
    """
    owners = {name: owner for owner in reversed(schema.__mro__) for name in _docs(owner)}
    rank = {owner: number for number, owner in enumerate(schema.__mro__)}
    hints = hints_of(schema)
    fields = [each for each in dataclasses.fields(schema) if each.init]
    for each in sorted(fields, key=lambda field: (field.kw_only, rank[owners[field.name]])):
        owner, key, kind = owners[each.name], f"{prefix}{each.name}", plain_kind(hints[each.name])
        text = _docs(owner)[each.name]
        default = getattr(defaults, each.name, default_of(each))
        if typing.get_origin(kind) is dict:
            key, kind = f"{key}.NAME", typing.get_args(kind)[1]
        if is_dataclass(kind):
            yield from options_of(typing.cast(type, kind), f"{key}.", text.rstrip("."), default)
            continue
        heading = section or ("" if owner is schema else (inspect.getdoc(owner) or "").split("\n")[0].rstrip("."))
        hint = kind if key.endswith(".NAME") else hints[each.name]
        yield Option(key, hint, default, text, heading, not (prefix or each.kw_only))


@functools.cache
def hints_of(schema: type) -> dict[str, Any]:
    """Return the types of the fields of a dataclass."""
    hints = typing.get_type_hints(schema, include_extras=True)
    return {each.name: hints[each.name] for each in dataclasses.fields(schema) if each.init}


def kind_of(schema: Any, key: str) -> Any:
    """Return the type of the field at a path such as `phases.adapt.tokens`; None if there is no such field."""
    kind = schema
    for name in key.split("."):
        kind = plain_kind(kind)
        if is_dataclass(kind):
            kind = hints_of(typing.cast(type, kind)).get(name)
        elif typing.get_origin(kind) is dict:
            kind = typing.get_args(kind)[1]
        elif kind is not Any:
            return None
    return kind


def plain_kind(kind: Any) -> Any:
    """Return a type without `Annotated` and without `| None`.

    >>> plain_kind(Annotated[int, "limits"] | None)
    <class 'int'>
    """
    if typing.get_origin(kind) is Annotated:
        return plain_kind(typing.get_args(kind)[0])
    if typing.get_origin(kind) in (Union, types.UnionType):
        inner = [each for each in typing.get_args(kind) if each is not type(None)]
        return plain_kind(inner[0]) if len(inner) == 1 else kind
    return kind


def default_of(field: "dataclasses.Field[Any]") -> Any:
    """Return the default of a field; `MISSING` if it has none."""
    if field.default is not dataclasses.MISSING:
        return field.default
    return MISSING if field.default_factory is dataclasses.MISSING else field.default_factory()


def option_name(key: str) -> str:
    """Return how an option is written on the command line.

    >>> option_name("guard.loss_rise")
    '--guard.loss-rise'
    """
    return f"--{key.replace('_', '-')}"


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Return a hint with the known name that is most like a given one; nothing if none is like it.

    Names with dots are compared part by part; a last part alone is enough.

    >>> did_you_mean("--phases.one.tokns", ["--phases.one.tokens", "--phases.one.lr"])
    ' Did you mean --phases.one.tokens?'
    >>> did_you_mean("--nope", ["--input", "--dtype"])
    ''
    """

    def likeness(name: str) -> float:
        ours, others = (each.removeprefix("--").split(".") for each in (given, name))
        if len(ours) != len(others):
            return float(len(ours) == 1 and ours[-1] == others[-1])
        return min(SequenceMatcher(None, *pair).ratio() for pair in zip(ours, others, strict=True))

    best = max(known, key=likeness, default=given)
    return f" Did you mean {best}?" if best != given and likeness(best) >= _MIN_LIKENESS else ""


@functools.cache
def _docs(owner: type) -> dict[str, str]:
    """Return the fields that a class itself declares, with the docstring below each on one line."""
    if not is_dataclass(owner):
        return {}
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
    assert isinstance(node, ast.ClassDef)
    found = {}
    for statement, after in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            found[statement.target.id] = " ".join(str(after.value.value).split()) if is_text else ""  # type: ignore[union-attr]
    return found
