"""Configs: the defaults in a dataclass, below a YAML file, below `key.sub=value` words of the command line.

In: a dataclass type, a path, a list of words. Out: an instance of the dataclass with every field checked. This is the
only file that knows the config library.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

import yaml
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from modernbert.errors import InputError

__all__ = ["MISSING", "load", "shipped_configs", "to_yaml", "value_of"]

Schema = TypeVar("Schema")

# How YAML spells nothing.
_NOTHING = ("", "~", "null", "Null", "NULL")


def load(schema: type[Schema], path: Path | str | None = None, overrides: Sequence[str] = ()) -> Schema:
    """Merge the defaults of `schema`, the YAML file at `path`, and `key.sub=value` overrides.

    A `path` without a file may be the name of a shipped config, such as `pretrain/demo`.

    Raises: InputError naming the file or word at fault, for an unknown key (with the nearest known one), a value of the
    wrong type, a file that is absent or is not YAML.
    """
    merged = OmegaConf.structured(schema)
    if path is not None:
        merged = _merge(merged, _read(Path(path)), str(path))
        _check(schema, OmegaConf.to_container(merged), "", str(path))
    for word in overrides:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise InputError(f"{word.encode(errors='replace').decode()}: is not UTF-8 text") from None
        if "=" not in word:
            raise InputError(f"{word}: expected key=value, for example seed=7")
        with _explained(word):
            update = _read_word(schema, word)
        merged = _merge(merged, update, word)
        _check(schema, OmegaConf.to_container(merged), "", word)
    with _explained(str(path or schema.__name__)):
        missing = sorted(OmegaConf.missing_keys(merged))
        if missing:
            place = f"{path or schema.__name__}: {missing[0]}"
            raise InputError(
                f"{place} has no value, expected one in the file or as {missing[0]}=...{_siblings(merged, missing[0])}"
            )
        return cast(Schema, OmegaConf.to_object(merged))


def value_of(key: str, path: Path | str | None, overrides: Sequence[str]) -> Any:
    """Return what a file and words say of one key, as plain data and whatever the schema; None if they do not.

    Raises: InputError for a file that is absent or is not YAML.
    """
    words = [word for word in overrides if word.partition("=")[0] == key and "=" in word]
    if words:
        with _explained(words[-1]):
            return OmegaConf.select(OmegaConf.from_dotlist(words[-1:]), key)
    if path is None:
        return None
    with _explained(str(path)):
        found = OmegaConf.select(_read(Path(path)), key)
        return OmegaConf.to_container(found, resolve=True) if OmegaConf.is_config(found) else found


def to_yaml(config: Any) -> str:
    """Write a config as YAML, every field in sight."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def _read_word(schema: type, word: str) -> Any:
    """Read `key.sub=value` as YAML, but text as it was typed: YAML makes a number of 2024_11_27, and true of on.

    Text in quotes is YAML all the same, and so is nothing.
    """
    key, _, typed = word.partition("=")
    kind: Any = schema
    for name in key.split("."):
        kind = _kind_of(kind, name)
    if kind is str and typed not in _NOTHING and typed[0] not in "'\"":
        return _entry(key, typed)
    update = OmegaConf.from_dotlist([word])
    read = OmegaConf.select(update, key, throw_on_resolution_failure=False)
    if kind in (list[str], dict[str, str]) and OmegaConf.is_config(read):
        return _entry(key, yaml.load(typed, Loader=yaml.BaseLoader))  # which takes all for text
    return update


def _entry(key: str, value: Any) -> Any:
    update = OmegaConf.create()
    OmegaConf.update(update, key, value)
    return update


def _kind_of(kind: Any, name: str) -> Any:
    """Return the type of an entry of a dataclass, a mapping or a list, that of `X | None` being X; Any if unknown."""
    if is_dataclass(kind):
        kind = get_type_hints(kind).get(name, Any)
    else:
        kind = get_args(kind)[-1] if get_origin(kind) in (dict, list) else Any
    kinds = [each for each in get_args(kind) if each is not NoneType]
    return kinds[0] if NoneType in get_args(kind) and len(kinds) == 1 else kind


def _check(kind: Any, found: Any, key: str, origin: str) -> None:
    """Refuse a list or a group where the schema has one value: in a list or a mapping the config library takes both."""
    if not isinstance(found, dict | list):
        return
    if kind in (str, int, float, bool):
        raise InputError(f"{origin}: found {found} as {key}, expected one value")
    for name, value in found.items() if isinstance(found, dict) else enumerate(found):
        _check(_kind_of(kind, str(name)), value, f"{key}.{name}" if key else str(name), origin)


def shipped_configs() -> dict[str, Traversable]:
    """Return the configs that the package ships, by name: `pretrain/demo`."""
    found: dict[str, Traversable] = {}
    for folder in files("modernbert").joinpath("configs").iterdir():
        for file in folder.iterdir() if folder.is_dir() else ():
            if file.name.endswith(".yaml"):
                found[f"{folder.name}/{file.name.removesuffix('.yaml')}"] = file
    return dict(sorted(found.items()))


def _read(path: Path) -> Any:
    try:
        # A file of that name comes first.
        shipped = {} if path.is_file() else shipped_configs()
        if (named := shipped.get(path.as_posix().removesuffix(".yaml"))) is not None:
            loaded = OmegaConf.create(named.read_text(encoding="utf-8"))
        else:
            loaded = OmegaConf.load(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such config file; the shipped configs are {', '.join(shipped)}") from None
    except (YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise InputError(f"{path}: is not YAML ({_first_line(error)})") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    if not OmegaConf.is_dict(loaded):
        raise InputError(f"{path}: found a list or a single value, expected `key: value` lines")
    return loaded


def _merge(onto: Any, update: Any, origin: str) -> Any:
    with _explained(origin):
        return OmegaConf.merge(onto, update)


@contextmanager
def _explained(origin: str) -> Iterator[None]:
    """Turn what the config library raises into one line that begins with the file or word at fault."""
    try:
        yield
    except (OmegaConfBaseException, YAMLError, TypeError) as error:
        key = getattr(error, "full_key", None)
        place = f"{origin}: {key}" if key and str(key) not in origin else origin
        reason = _first_line(error)
        if "is not a ListConfig" in reason:
            found = origin.partition("=")[2]
            reason = "found one value, expected a list, such as [a, b]"
            if found:
                place, reason = str(key), f"found {found!r}, expected a list, such as {key}='[{found}]'"
        if "Cannot assign" in reason:
            reason = "found one value, expected key: value pairs"
        if "is not a subclass of" in reason:
            reason = f"found {reason.partition('value: ')[2]}, expected key: value pairs"
        if "incompatible container types" in reason:
            reason = "found a list where key: value is expected, or key: value where a list is"
        raise InputError(f"{place}: {reason}") from None


def _siblings(merged: Any, key: str) -> str:
    """Name the entries beside the one that lacks a value: a mistyped name is a new, empty entry."""
    group = ".".join(key.split(".")[:-2])
    entries: Any = OmegaConf.select(merged, group) if group else None
    return f" ({group}: {', '.join(map(str, entries))})" if OmegaConf.is_dict(entries) else ""


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split("\n    ")[0].split())
