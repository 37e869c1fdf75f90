"""Types of every function are checked in tests, and axes where an annotation names them.

In: the functions of the package, as `--jaxtyping-packages` hands them over while they are imported. Out: the same,
checked. A file of its own because it has to come before the package does. To keep the axes of a call takes ten times as
long as to check its types, and most functions name none: tests that train were half as slow again.
"""

from collections.abc import Callable
from types import FunctionType
from typing import Any

import jaxtyping

_with_axes = jaxtyping.jaxtyped


def _names_axes(function: FunctionType) -> bool:
    """Say whether a function may name axes: what is written as a string is not looked into."""
    return any(isinstance(each, str) or "jaxtyping." in repr(each) for each in function.__annotations__.values())


def checked(*, typechecker: Callable[..., Any]) -> Callable[[Any], Any]:
    """Return what is put around each function and class."""

    def decorate(target: Any) -> Any:
        if isinstance(target, FunctionType) and not _names_axes(target):
            return typechecker(target)
        return _with_axes(target, typechecker=typechecker)

    return decorate


jaxtyping.jaxtyped = checked
