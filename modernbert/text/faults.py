"""Two kinds of things that go wrong while a corpus is worked on.

In: what was found, in one line. Out: errors to be told apart. A file of its own because readers raise them far from
where it is decided what becomes of the work: the first can be passed over, after the second it can go on.
"""

from modernbert.errors import InputError

__all__ = ["BrokenInput", "Outage"]


class BrokenInput(InputError):
    """Name a file or a row that cannot be read, whoever tries; a user may ask to pass over it."""


class Outage(InputError):
    """Name what failed outside corpus and settings, as a network or a machine; the same work can go on later."""
