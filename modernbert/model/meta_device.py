"""Modules of shapes alone, for whoever has the numbers already, or wants to count them.

In: code that makes modules. Out: their parameters on torch's device without memory, which nothing has been written to.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

__all__ = ["on_meta"]


@contextmanager
def on_meta() -> Iterator[None]:
    """Have modules that are made inside take no memory and get no first values."""
    with torch.device("meta"), _Unfilled():
        yield


class _Unfilled(TorchFunctionMode):
    """Leave out what fills a new module's parameters.

    On a device without memory that does nothing but bring in torch's compiler, and with it seconds of imports.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # fmt: skip
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)
