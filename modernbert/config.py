"""Configs: the defaults in a dataclass, below a YAML file, below `key.sub=value` words of the command line.

In: a dataclass type, a path, a list of words. Out: an instance of the dataclass with every field checked. This is the
only file that knows the config library.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from modernbert.errors import InputError

__all__ = ["MISSING", "load", "to_yaml", "value_of"]

Schema = TypeVar("Schema")


def load(schema: type[Schema], path: Path | str | None = None, overrides: Sequence[str] = ()) -> Schema:
    """Merge the defaults of `schema`, the YAML file at `path`, and `key.sub=value` overrides.

    Raises: InputError naming the file or word at fault, for an unknown key (with the nearest known one), a value of the
    wrong type, a file that is absent or is not YAML.
    """
    merged = OmegaConf.structured(schema)
    if path is not None:
        merged = _merge(merged, _read(Path(path)), str(path))
    for word in overrides:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise InputError(f"{word.encode(errors='replace').decode()}: is not UTF-8 text") from None
        if "=" not in word:
            raise InputError(f"{word}: expected key=value, for example seed=7")
        with _explained(word):
            update = OmegaConf.from_dotlist([word])
        merged = _merge(merged, update, word)
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


def _read(path: Path) -> Any:
    try:
        loaded = OmegaConf.load(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such config file") from None
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
