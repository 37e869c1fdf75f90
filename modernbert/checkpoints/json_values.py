"""Values of JSON settings, checked for their type."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modernbert.errors import InputError

__all__ = ["count_of", "string_of", "strings_of"]


def count_of(key: str, found: Mapping[str, Any], place: Path, what: str = "tokens") -> int | None:
    """Return a number of at least 1, or None for no value. Raises: InputError for another value."""
    value = found.get(key)
    if value is not None and (type(value) is not int or value < 1):
        raise InputError(f"{place}: {key} is {value!r}, expected a number of {what}")
    return value


def string_of(key: str, found: Mapping[str, Any], place: Path) -> str:
    """Return a string, empty for no value. Raises: InputError for another value."""
    value = found.get(key)
    if value is not None and not isinstance(value, str):
        raise InputError(f"{place}: {key} is {str(value)[:60]}, expected a string")
    return value or ""


def strings_of(key: str, found: Mapping[str, Any], place: Path) -> list[str]:
    """Return a list of strings, empty for no value. Raises: InputError for another value."""
    values = found.get(key) or []
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise InputError(f"{place}: {key} is {str(values)[:60]!r}, expected a list of tokens")
    return list(values)
