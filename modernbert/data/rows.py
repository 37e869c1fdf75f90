"""A row of a data file: values by column, and where the row was read."""

from dataclasses import dataclass
from typing import Any

from modernbert.errors import InputError
from modernbert.safe_files import is_one_line

__all__ = ["Row"]

# The largest number in float32, the precision of labels.
_MAX_NUMBER = 3.4e38


@dataclass(frozen=True)
class Row:
    """The values of one row by column, and where it was read: `path:line`."""

    values: dict[str, Any]
    origin: str

    def value(self, column: str) -> Any:
        """Return a value as it was read.

        Raises:
            InputError: The row has no such column; names the row and its columns.
        """
        if column not in self.values:
            raise InputError(f"{self.origin}: no column {column!r}, found {', '.join(map(repr, self.values))}")
        return self.values[column]

    def text(self, column: str) -> str:
        """Return a value that must be a text with something other than whitespace.

        Raises:
            InputError: It is not; names the row.
        """
        found = self.value(column)
        if not isinstance(found, str):
            raise InputError(f"{self.origin}: {column} is {type(found).__name__}, expected text")
        if not found.strip():
            raise InputError(f"{self.origin}: {column} is empty, expected text")
        self.check_whole(column, found)
        return found

    def number(self, column: str) -> float:
        """Return a value that must be a finite number in single precision, as a number or as text.

        Raises:
            InputError: It is not; names the row.
        """
        found = self.value(column)
        try:
            number = float("nan" if found is None or isinstance(found, bool) else found)
        except (TypeError, ValueError, OverflowError):
            number = float("nan")
        if not abs(number) <= _MAX_NUMBER:
            raise InputError(f"{self.origin}: {column} is {str(found)[:60]!r}, expected a finite number")
        return number

    def check_whole(self, column: str, *texts: str) -> None:
        """Check that texts have no unpaired surrogates: JSON can hold them, UTF-8 cannot.

        Raises:
            InputError: A text has one; names the row.
        """
        try:
            for text in texts:
                text.encode()
        except UnicodeEncodeError:
            raise InputError(
                f"{self.origin}: {column} contains an invalid Unicode character (unpaired surrogate)"
            ) from None

    def check_labels(self, column: str, *labels: str) -> None:
        """Check that labels can be written into a model folder and printed.

        Raises:
            InputError: A label cannot; names the row.
        """
        self.check_whole(column, *labels)
        for label in labels:
            if not is_one_line(label):
                raise InputError(f"{self.origin}: {column} has {label!r}, expected text of one line, without tabs")
