"""The one exception for what a user can cause; the command line prints it as one line and exits with status 2.

In: a message, with names that may be anybody's in it. Out: the same as one line that a terminal can show.
"""

__all__ = ["CheckFailed", "InputError", "shown"]

_MOST_CHARS = 2_000


class InputError(ValueError):
    """Say which file or field is wrong, what was found, and what was expected, in one line."""

    def __init__(self, message: str) -> None:
        super().__init__(shown(message))


class CheckFailed(InputError):
    """Say that a model failed the last check after it was written; `storage.new_folder` keeps it under another name."""


def shown(text: str, most_chars: int = _MOST_CHARS) -> str:
    r"""Return text as a line of a terminal may hold it: what breaks, moves or colours lines is spelled out.

    Names of files, tensors and labels come from model folders, and those from anybody.

    >>> shown("a\nb")
    'a\\nb'
    """
    if len(text) > most_chars:
        text = f"{text[: most_chars - 40]} ... ({len(text):,} characters)"
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
