"""Errors of input files: broken content, which can be skipped, and outages, after which the same work can resume."""

import sys
from dataclasses import dataclass, field

from modernbert.errors import InputError

__all__ = ["BrokenInput", "Outage", "Skips"]

_MAX_REASONS = 20


class BrokenInput(InputError):
    """A file or row that cannot be read; `origin` is its path or URL, with the line if there is one."""

    def __init__(self, origin: object, problem: str) -> None:
        super().__init__(f"{origin}: {problem}")
        self.origin, self.problem = str(origin), problem

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.origin, self.problem)


class Outage(InputError):
    """A failure outside the corpus and the settings, such as of a network or a machine; the work can resume later."""


@dataclass
class Skips:
    """Counts skipped rows and files, and keeps the first reasons."""

    number: int = 0
    reasons: list[str] = field(default_factory=list)

    def add(self, error: InputError) -> None:
        """Count a skipped row or file."""
        self.number += 1
        if len(self.reasons) < _MAX_REASONS:
            self.reasons.append(str(error))

    def show(self) -> None:
        """Print the first reasons and the total to standard error."""
        for reason in self.reasons:
            print(f"skipped {reason}", file=sys.stderr)
        if self.number:
            print(f"skipped {self.number:,} in all", file=sys.stderr)
