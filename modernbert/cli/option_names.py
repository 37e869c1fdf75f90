"""Names of options in errors, as they are typed on the command line."""

import re
from collections.abc import Sequence

from modernbert.options import Option, option_name

__all__ = ["spell_options"]

# An error names an option at its start, or in backticks, alone or with a value: `truncate_dim`, `overflow="truncate"`.
_NAMED = re.compile(r"^(?P<first>[a-z]\w*(?:\.\w+)*)(?=: )|`(?P<key>[a-z]\w*(?:\.\w+)*)(?:=(?P<value>[^`]+))?`")


def spell_options(message: str, options: Sequence[Option]) -> str:
    """Return an error message with options as they are typed on the command line, instead of as they are in Python.

    >>> known = [Option(key, str, "", "", "", positional=key == "model") for key in ("max_len", "cut", "model")]
    >>> spell_options("max_len: found 9; pass `cut=True`, or `max_len=8` with another `model`", known)
    '--max-len: found 9; pass --cut, or --max-len 8 with another MODEL'
    """
    keys = {option.key: option for option in options}

    def spelled(found: re.Match[str]) -> str:
        key, value = found["first"] or found["key"], (found["value"] or "").strip("\"'")
        pattern = next((each for each in keys if _fits(key, each)), None)
        if pattern is None:
            return found[0]
        if keys[pattern].positional:
            return value or key.upper()
        if value == "False":
            return f"--no-{option_name(key).removeprefix('--')}"
        if value in ("", "True"):
            return option_name(key)
        return f"{option_name(key)} {'null' if value == 'None' else value}"

    return _NAMED.sub(spelled, message)


def _fits(key: str, pattern: str) -> bool:
    """Return whether a key is an option, an option of a mapping (`phases.NAME.lr`), or a group of options."""
    given, parts = key.split("."), pattern.split(".")
    return len(given) <= len(parts) and all(part in ("NAME", each) for each, part in zip(given, parts, strict=False))
