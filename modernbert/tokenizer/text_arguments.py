"""The check that an argument for texts is not a table: iterating over a table gives the names of its columns."""

from collections.abc import Iterable, Mapping
from typing import Any

from modernbert.errors import InputError

__all__ = ["refuse_table"]

_NAMES_SHOWN = 8


def refuse_table(texts: Any) -> None:
    """Check that texts have one order, and neither columns nor keys: a table does not say which of them are meant.

    Raises: InputError for a set, or naming the columns of a pandas or polars DataFrame, a datasets.Dataset, a
        pyarrow.Table or a dict.
    """
    kind = type(texts).__name__
    names: Any = texts if isinstance(texts, Mapping) else None
    # Asked of the class: an element of a pandas Series may be called `columns`.
    attribute = next((name for name in ("column_names", "columns") if hasattr(type(texts), name)), None)
    if names is None and attribute is not None:
        names = getattr(texts, attribute)
    if isinstance(names, Iterable):
        listed = [repr(name) for name in names][:_NAMES_SHOWN]
        raise InputError(
            f"texts: found {kind}, expected a text or several; pass one of its columns, as texts[NAME] with NAME one "
            f"of {', '.join(listed) or 'none'}"
        )
    if isinstance(texts, (set, frozenset)):
        raise InputError(f"texts: found {kind}, which has no order, expected a list of texts")
