"""The command line of a config, for a model card: no folder of this machine and no secret is in it."""

import os
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import PurePath
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from modernbert.errors import shown
from modernbert.options import MISSING, default_of, option_name

__all__ = ["command_line", "public_name"]

_TOKEN = re.compile(r"\b(hf_|sk-|ghp_|github_pat_)\w{8,}")


def command_line(command: str, config: Any, free: tuple[str, ...] = ()) -> str:
    """Return a command with all options that differ from their defaults.

    Args:
        command: The words before the options, such as `modernbert finetune`.
        config: An instance of the class of its options.
        free: Names of options to leave out, since they do not change the model. The output is a placeholder.
    """
    first, words = [], list[str]()
    positional = {each.name for each in fields(config) if not each.kw_only}
    for key, value in _changed(config):
        name = key.split(".")[0]
        if name in positional:
            first.append(public_name(value))
        elif name not in ("output", *free):
            words += _words(key, value)
    return shlex.join([*command.split(), *first, *words, "--output", "OUTPUT"])


def public_name(value: Any) -> str:
    """Return a value for a public page: of an absolute path its name, of a URL no password, and no access token.

    >>> public_name("/home/me/data/train.tsv"), public_name("https://me:word@host/rows.csv?key=1"), public_name("a/b")
    ('train.tsv', 'https://host/rows.csv', 'a/b')
    """
    text = "null" if value is None else str(value)
    if "://" in text:
        parts = urlsplit(text)
        text = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
    elif os.path.isabs(text) or text.startswith("~"):
        text = PurePath(text).name
    return shown(_TOKEN.sub(r"\1...", text))


def _words(key: str, value: Any) -> list[str]:
    option = option_name(key)
    if isinstance(value, bool):
        return [option if value else f"--no-{option.removeprefix('--')}"]
    return [public_name(option), public_name(value)]


def _changed(config: Any, prefix: str = "", usual: Any = None) -> Iterator[tuple[str, Any]]:
    """Yield the path and the value of each field that differs from its default; of a list, each value."""
    for each in fields(config):
        value, default = getattr(config, each.name), getattr(usual, each.name, default_of(each))
        key = f"{prefix}{each.name}"
        if value == default and default is not MISSING:
            continue
        if is_dataclass(value):
            yield from _changed(value, f"{key}.", default)
        elif isinstance(value, Mapping):
            for name, item in value.items():
                if is_dataclass(item):
                    yield from _changed(item, f"{key}.{name}.")
                else:
                    yield f"{key}.{name}", item
        elif isinstance(value, (list, tuple)):
            yield from ((key, item) for item in value)
        else:
            yield key, value
