"""One row of the input of commands that use a model."""

from dataclasses import dataclass
from typing import Any

from modernbert.errors import InputError

__all__ = ["TextRow"]


@dataclass(frozen=True)
class TextRow:
    """One row of the input: where it was read, and its text, or the error of a row without a usable text.

    `pair` is the second text of a pair. `is_rest` marks the unreadable rest of a file, which is not one row.
    """

    origin: str
    text: str | None = None
    pair: str | None = None
    error: InputError | None = None
    is_rest: bool = False

    @property
    def item(self) -> Any:
        """Return the text, or the pair of texts."""
        return self.text if self.pair is None else (self.text, self.pair)
