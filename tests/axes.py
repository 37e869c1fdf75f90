"""Check types of every function in tests, and axes only of functions whose annotations name some.

Import it before the package. Checking axes takes ten times as long as checking types, and most functions have none.
"""

from collections.abc import Callable
from types import FunctionType
from typing import Any

import jaxtyping

_with_axes = jaxtyping.jaxtyped


def _names_axes(function: FunctionType) -> bool:
    """Return whether a function may name axes; annotations that are strings are not parsed."""
    return any(isinstance(each, str) or "jaxtyping." in repr(each) for each in function.__annotations__.values())


def checked(*, typechecker: Callable[..., Any]) -> Callable[[Any], Any]:
    """Return the decorator of each function and class."""

    def decorate(target: Any) -> Any:
        if isinstance(target, FunctionType) and not _names_axes(target):
            return typechecker(target)
        return _with_axes(target, typechecker=typechecker)

    return decorate


jaxtyping.jaxtyped = checked
