"""Configs: the defaults of a dataclass, a YAML file over them, and given values over both, checked as a whole."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from os import PathLike
from pathlib import Path
from typing import Any, ParamSpec, Protocol, TypeVar, cast, get_args, get_origin, overload, runtime_checkable

from modernbert.errors import InputError
from modernbert.options import MISSING, default_of, did_you_mean, hints_of, kind_of, options_of, plain_kind

__all__ = [
    "MISSING",
    "check_values",
    "nested",
    "read_yaml",
    "resolve",
    "shipped_configs",
    "takes_options",
    "takes_options_of",
    "to_yaml",
    "value_of",
]

Parameters = ParamSpec("Parameters")
Schema = TypeVar("Schema")
Answer = TypeVar("Answer", covariant=True)

_EXAMPLES = {
    "input": "corpus/",
    "model": "answerdotai/ModernBERT-base",
    "init_from": "answerdotai/ModernBERT-base",
    "output": "runs/mine",
    "task": "classify",
    "tokenizer": "answerdotai/ModernBERT-base",
    "train": "train.tsv",
}
# Keys that only the configs of one command have.
_COMMANDS = {"phases": "pretrain", "task": "finetune"}


def resolve(
    schema: type[Schema],
    given: Mapping[str, Any],
    path: Path | str | None = None,
    name_of: Callable[[str], str] | None = None,
) -> Schema:
    """Make a dataclass of its defaults, the YAML file at `path`, and nested `given` values.

    A `path` without a file may be the name of a shipped config, such as `pretrain/base`. A single value becomes a list
    of one where a list is expected. `name_of` writes the path of a field as an option of the command line.

    Raises: InputError naming the file or option, for an unknown name (with the nearest known one), a value of another
    type or out of bounds, a required option without a value, or a file that is absent or is not YAML.
    """
    from pydantic import TypeAdapter, ValidationError  # help texts do not wait for it

    _refuse_unknown(schema)
    of_file = read_yaml(path) if path is not None else {}
    for name, command in _COMMANDS.items():
        if name in of_file and name not in hints_of(cast(type, schema)):
            raise InputError(
                f"{path}: has {name}, so it is a config of `modernbert {command}`; expected one of this command"
            )
    merged = _merged(of_file, given)
    try:
        made = TypeAdapter(schema).validate_python(_prepared(schema, merged))
        if (key := _first_missing(schema, merged)) is not None:
            raise InputError(_missing_message(key, merged, name_of))
    except ValidationError as error:
        # An unknown name explains a missing value.
        ranks = {"unexpected_keyword_argument": 0, "missing": 2}
        first = min(error.errors(include_url=False), key=lambda each: ranks.get(each["type"], 1))
        key = _key_of(schema, first)
        origin = path if _has(of_file, key) and not _has(given, key) else None
        if first["type"] == "missing":
            raise InputError(_missing_message(key, merged, name_of)) from None
        raise InputError(
            _message(schema, key, first, f"{origin}: {key}" if origin else (name_of or str)(key))
        ) from None
    return made


def check_values(config: Any) -> None:
    """Check a dataclass that was made without `resolve`: types, choices, bounds, and required values.

    Raises: InputError naming the first field with another value than its annotation allows.
    """
    resolve(type(config), asdict(config))


@runtime_checkable
class Command(Protocol[Parameters, Answer]):
    """A function whose arguments are options; required options may come from the file `config` instead."""

    @overload
    def __call__(self, *args: Parameters.args, **options: Parameters.kwargs) -> Answer: ...

    @overload
    def __call__(self, *args: Any, config: str | Path, **options: Any) -> Answer: ...


def takes_options(
    schema: Callable[Parameters, Schema],
) -> Callable[[Callable[[Schema], Answer]], Command[Parameters, Answer]]:
    """Turn a function of a dataclass into a function of its fields, checked as the values of a config file are."""
    return cast(Any, takes_options_of(lambda given, config: cast(type, schema), cast(type, schema)))


def takes_options_of(
    choose: Callable[[Mapping[str, Any], str | Path | None], type], *schemas: type
) -> Callable[[Callable[[Any], Answer]], Callable[..., Answer]]:
    """Turn a function of one of several dataclasses into a function of their fields, as `takes_options` does.

    `choose` returns the dataclass for given options and a config file.
    """

    def decorate(run: Callable[[Any], Answer]) -> Callable[..., Answer]:
        parameters: dict[str, inspect.Parameter] = {}
        for schema in schemas:
            for name, found in inspect.signature(schema).parameters.items():
                shown = found.replace(default=inspect.Parameter.empty) if found.default == MISSING else found
                if parameters.setdefault(name, shown).default != shown.default:
                    parameters[name] = shown.replace(default=...)  # depends on the schema
        signature = inspect.Signature(list(parameters.values()))

        @functools.wraps(run)
        def call(*args: Any, config: str | Path | None = None, **options: Any) -> Answer:
            given = signature.bind_partial(*args).arguments | options
            return run(resolve(choose(given, config), given, config))

        config = inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, default=None)
        call.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[*signature.parameters.values(), config], return_annotation=run.__annotations__["return"]
        )
        helps = {each.key: f"    {each.key}: {each.help}" for schema in schemas[::-1] for each in options_of(schema)}
        helps["config"] = "    config: YAML file with options, or the name of a shipped config."
        call.__doc__ = "\n".join([inspect.getdoc(run) or "", "", "Args:", *helps.values()])
        return call

    return decorate


def value_of(key: str, path: Path | str) -> Any:
    """Return the value that a YAML file has for the path of a field, whatever its other keys are; None without one.

    Raises: InputError for a file that is absent or is not YAML.
    """
    found: Any = read_yaml(path)
    for name in key.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    return found


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a tree of dictionaries for paths of fields.

    >>> nested({"guard.window": 8, "guard.patience": 2})
    {'guard': {'window': 8, 'patience': 2}}
    """
    tree: dict[str, Any] = {}
    for key, value in values.items():
        *groups, name = key.split(".")
        inner = tree
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[name] = value
    return tree


def to_yaml(config: Any) -> str:
    """Write a config as YAML, with all its fields."""
    import yaml

    return yaml.safe_dump(_plain(asdict(config)), sort_keys=False, allow_unicode=True, width=120)


def shipped_configs() -> dict[str, Traversable]:
    """Return the configs that the package ships, by name: `pretrain/demo`."""
    found: dict[str, Traversable] = {}
    for folder in files("modernbert").joinpath("configs").iterdir():
        for file in folder.iterdir() if folder.is_dir() else ():
            if file.name.endswith(".yaml"):
                found[f"{folder.name}/{file.name.removesuffix('.yaml')}"] = file
    return dict(sorted(found.items()))


def read_yaml(path: Path | str) -> dict[str, Any]:
    """Read a YAML file, or a shipped config by its name, with `${...}` replaced.

    Raises: InputError for a file that is absent or is not YAML.
    """
    import yaml  # most commands read no config file
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if not isinstance(path, str | PathLike):
        raise InputError(
            f"config: found {type(path).__name__}, expected a YAML file or the name of a shipped config; "
            "options are arguments"
        )
    path = Path(path)
    try:
        shipped = {} if path.is_file() else shipped_configs()
        named = shipped.get(path.as_posix().removesuffix(".yaml"))
        loaded = OmegaConf.create(named.read_text(encoding="utf-8")) if named is not None else OmegaConf.load(path)
        found = OmegaConf.to_container(loaded, resolve=True)
    except FileNotFoundError:
        raise InputError(f"{path}: no such config file; the shipped configs are {', '.join(shipped)}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: is not YAML ({_first_line(error)})") from None
    except OmegaConfBaseException as error:
        place = f"{path}: {error.full_key}" if error.full_key else str(path)
        raise InputError(f"{place}: {_first_line(error)}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    if not isinstance(found, dict):
        raise InputError(f"{path}: found a list or a single value, expected `key: value` lines")
    return cast(dict[str, Any], found)


def _refuse_unknown(kind: Any) -> None:
    """Let the validation of a dataclass, and of the dataclasses in it, refuse unknown names."""
    kind = plain_kind(kind)
    if get_origin(kind) is dict:
        _refuse_unknown(get_args(kind)[1])
    elif is_dataclass(kind) and "__pydantic_config__" not in vars(kind):
        kind.__pydantic_config__ = {"extra": "forbid", "allow_inf_nan": False}  # type: ignore[union-attr]
        for each in hints_of(cast(type, kind)).values():
            _refuse_unknown(each)


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        result[key] = _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def _prepared(kind: Any, value: Any) -> Any:
    """Leave out values that are `MISSING`, add the defaults of groups, and convert values for pydantic.

    A single value becomes a list for a list, and a path becomes text for text.
    """
    kind = plain_kind(kind)
    if isinstance(value, Mapping):
        items = {key: each for key, each in value.items() if not (isinstance(each, str) and each == MISSING)}
        if is_dataclass(kind):
            hints = hints_of(cast(type, kind))
            # The default of a group may differ from the defaults of its class.
            groups = {
                each.name: vars(group) for each in dataclasses.fields(kind) if is_dataclass(group := default_of(each))
            }
            items |= {
                key: {**groups[key], **items[key]} for key in items.keys() & groups if isinstance(items[key], Mapping)
            }
            return {key: _prepared(hints.get(key, Any), each) for key, each in items.items()}
        inner = get_args(kind)[1] if get_origin(kind) is dict else Any
        return {key: _prepared(inner, each) for key, each in items.items()}
    if get_origin(kind) in (list, Sequence):
        several = [value] if isinstance(value, str | PathLike | int | float) else value
        if isinstance(several, list | tuple):
            return type(several)(_prepared(get_args(kind)[0], each) for each in several)
        return several
    return str(value) if kind is str and isinstance(value, PathLike) else value


def _first_missing(kind: Any, values: Any, key: str = "") -> str | None:
    """Return the path of the first field without a value, whose default is `MISSING`."""
    kind, inner = plain_kind(kind), None
    if isinstance(values, Mapping) and get_origin(kind) is dict:
        inner = {name: get_args(kind)[1] for name in values}
    elif isinstance(values, Mapping) and is_dataclass(kind):
        inner = hints_of(cast(type, kind))
        for each in dataclasses.fields(kind):
            found = values.get(each.name, default_of(each)) if each.init else None
            if isinstance(found, str) and found == MISSING:
                return f"{key}{each.name}"
    for name, hint in (inner or {}).items():
        if (found := _first_missing(hint, values.get(name), f"{key}{name}.")) is not None:
            return found
    return None


def _missing_message(key: str, values: Any, name_of: Callable[[str], str] | None) -> str:
    option, example = (name_of or str)(key), _EXAMPLES.get(key.rpartition(".")[2])
    if option.isupper():
        return f"Missing argument {option}{f' (for example {example})' if example else ''}."
    if name_of and example:
        return f"Missing required option {option} (for example {option} {example})."
    # A mistyped name in a mapping is a new entry.
    group = key.rpartition(".")[0].rpartition(".")[0]
    entries = f" ({group}: {', '.join(_at(values, group))})" if group else ""
    return f"Missing required option {option}{entries}."


def _message(schema: type, key: str, error: Any, place: str) -> str:
    parent, _, name = key.rpartition(".")
    if error["type"] == "unexpected_keyword_argument":
        known = hints_of(cast(type, plain_kind(kind_of(schema, parent)))) if parent else hints_of(schema)
        return f"{place}: unknown option.{did_you_mean(name, known)}"
    expected = error["msg"].split(", unable to ")[0].removeprefix("Input should be ")
    expected = expected.replace("greater than or equal to", "at least").replace("less than or equal to", "at most")
    expected = expected.replace("greater than", "more than")
    if error["type"] in ("dataclass_type", "dict_type"):
        expected = "key: value pairs"
    return f"{place}: found {error['input']!r}, expected {expected}."


def _key_of(schema: type, error: Any) -> str:
    """Return the path of the field of an error, without the names that pydantic gives to alternative types."""
    key = ""
    for name in (each for each in error["loc"] if isinstance(each, str)):
        longer = f"{key}.{name}" if key else name
        if kind_of(schema, longer) is None and error["type"] != "unexpected_keyword_argument":
            break
        key = longer
    return key


def _at(values: Any, key: str) -> Any:
    for name in key.split(".") if key else ():
        values = values.get(name, {}) if isinstance(values, Mapping) else {}
    return values


def _has(values: Any, key: str) -> bool:
    parent, _, name = key.rpartition(".")
    return name in _at(values, parent)


def _plain(value: Any) -> Any:
    """Return data that YAML writes."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, Path) else value


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split("\n    ")[0].split())
