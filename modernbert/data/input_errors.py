"""Two kinds of things that go wrong while a corpus is worked on.

In: what was found, in one line. Out: errors to be told apart. A file of its own because readers raise them far from
where it is decided what becomes of the work: the first can be passed over, after the second it can go on.
"""

import sys
from dataclasses import dataclass, field

from modernbert.errors import InputError

__all__ = ["BrokenInput", "Outage", "Skips"]

_REASONS_KEPT = 20


class BrokenInput(InputError):
    """Name a file or a row that cannot be read, whoever tries; a user may ask to pass over it."""


class Outage(InputError):
    """Name what failed outside corpus and settings, as a network or a machine; the same work can go on later."""


@dataclass
class Skips:
    """Count rows and files that were skipped on request, and keep the reasons of the first ones."""

    number: int = 0
    reasons: list[str] = field(default_factory=list)

    def add(self, error: InputError) -> None:
        """Count one that was skipped."""
        self.number += 1
        if len(self.reasons) < _REASONS_KEPT:
            self.reasons.append(str(error))

    def show(self) -> None:
        """List the first ones on standard error, and count all of them."""
        for reason in self.reasons:
            print(f"skipped {reason}", file=sys.stderr)
        if self.number:
            print(f"skipped {self.number:,} in all", file=sys.stderr)
