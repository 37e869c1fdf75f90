"""`InputError`, the exception for errors that users cause; the command line prints one line and exits with status 2."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["CheckFailed", "InputError", "counted", "exit_on_error", "shown"]

_MOST_CHARS = 2_000


class InputError(ValueError):
    """An error that a user can fix: one line with the file or field, the found and the expected value, and the fix."""

    def __init__(self, message: str) -> None:
        super().__init__(shown(message))


class CheckFailed(InputError):
    """A written model failed its last check; `files.new_folder` keeps it under another name."""


@contextmanager
def exit_on_error(program: str = "") -> Iterator[None]:
    """Print an `InputError` as one line and exit with status 2, as the command line does, instead of a traceback.

    >>> with exit_on_error():  # doctest: +SKIP
    ...     main()

    Args:
        program: The name in front of the message; by default that of the script.
    """
    try:
        yield
    except InputError as error:
        print(f"{program or Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        sys.exit(2)


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun.

    >>> counted(1, "step"), counted(1_024, "step"), counted(2, "process", "processes")
    ('1 step', '1,024 steps', '2 processes')
    """
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def shown(text: str, most_chars: int = _MOST_CHARS) -> str:
    r"""Return text as one printable line: control characters are escaped.

    Names of files, tensors and labels come from untrusted model folders.

    >>> shown("a\nb")
    'a\\nb'
    """
    if len(text) > most_chars:
        text = f"{text[: most_chars - 40]} ... ({len(text):,} characters)"
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
