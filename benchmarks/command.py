"""Turn a config dataclass into the command line of a benchmark: `python -m benchmarks.NAME --options`."""

import argparse
import logging
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import MISSING, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_type_hints

from modernbert.errors import InputError

__all__ = ["option", "run_command"]


def option(default: Any, help_text: str) -> Any:
    """Declare a field of a config dataclass that is also a command-line option.

    Args:
        default: The default value.
        help_text: What `--help` prints.
    """
    return field(default=default, metadata={"help": help_text})


def run_command(config_type: type[Any], run: Callable[[Any], object]) -> None:
    """Parse `sys.argv` into `config_type`, call `run` with it, and exit: 2 and one line for a user error.

    Fields without a default are positional arguments. A sequence takes several values: `--models a b`.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    # SIGTERM ends measuring processes and deletes temporary folders, as an ordinary exit does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{Path(sys.argv[0]).stem}",
        description=sys.modules[config_type.__module__].__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    hints = get_type_hints(config_type)
    for each in fields(config_type):
        if "help" in each.metadata:
            parser.add_argument(f"--{each.name.replace('_', '-')}", **_keywords(each, hints[each.name]))
        elif each.default is MISSING and each.default_factory is MISSING:
            parser.add_argument(each.name, type=hints[each.name])
    try:
        run(config_type(**vars(parser.parse_args())))
    except InputError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted", file=sys.stderr)
        sys.exit(130)


def _keywords(each: Any, hint: Any) -> dict[str, Any]:
    keywords: dict[str, Any] = {"help": each.metadata["help"], "default": each.default}
    if isinstance(hint, UnionType):
        hint = next(part for part in get_args(hint) if part is not type(None))
    if hint is bool:
        return {**keywords, "action": "store_true"}
    if getattr(hint, "__origin__", None) is Sequence:
        return {**keywords, "nargs": "+", "action": "extend", "default": [], "type": get_args(hint)[0]}
    return {**keywords, "type": hint}
