"""Checks of arguments: texts as a list of `str`, and whole numbers."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from modernbert.errors import InputError
from modernbert.tokenizer.tokenizer import check_not_table

__all__ = ["check_number", "check_texts", "listed"]


def listed(texts: Any) -> list[Any]:
    """Return one text or several as a list.

    Raises: InputError for a table, a dict, a set, or an object that is not iterable.
    """
    if isinstance(texts, str):
        return [texts]
    check_not_table(texts)
    # The elements of a pyarrow array are not Python strings.
    if callable(to_list := getattr(type(texts), "to_pylist", None)):
        return list(to_list(texts))
    # A NumPy array without dimensions is an Iterable by its class, but cannot be iterated over.
    if isinstance(texts, Iterable) and not isinstance(texts, bytes) and getattr(texts, "ndim", None) != 0:
        return list(texts)
    raise InputError(f"texts: found {type(texts).__name__}, expected a text or several")


def check_texts(texts: list[Any], *, pairs_ok: bool = False) -> list[Any]:
    """Return texts if every one is a `str`, or with `pairs_ok` a pair of them.

    Raises: InputError naming the first that is not.
    """
    for number, text in enumerate(texts):
        parts = text if pairs_ok and isinstance(text, tuple) and len(text) == 2 else (text,)
        wrong = [part for part in parts if not isinstance(part, str)]
        if wrong:
            is_missing = isinstance(wrong[0], float) and wrong[0] != wrong[0]
            found = "a missing value (NaN)" if is_missing else type(wrong[0]).__name__
            raise InputError(f"text {number}: found {found}, expected str")
    return texts


def check_number(name: str, value: Any, most: int | None = None) -> None:
    """Check that a count is a whole number of at least 1.

    Raises: InputError if it is not, or is larger than `most`.
    """
    is_whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not is_whole or value < 1 or (most is not None and value > most):
        raise InputError(f"{name}: found {value!r}, expected {'at least 1' if most is None else f'1 to {most}'}")
