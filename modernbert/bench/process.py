"""One measurement, one process: its peak memory is its own, and what ends it ends nothing else.

In: a function of a module and its argument. Out: what it returned.
"""

import multiprocessing
import os
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, TypeVar, cast

import torch

from modernbert.errors import InputError

__all__ = ["in_new_process"]

_OUT_OF_MEMORY = (
    "DefaultCPUAllocator",
    "can't allocate memory",
    "not enough memory",
    "bad allocation",
    "std::bad_alloc",
)
_MOST_CHARS = 160

Argument = TypeVar("Argument")
Answer = TypeVar("Answer")


def in_new_process(function: Callable[[Argument], Answer], argument: Argument) -> Answer:
    """Call a function in a process that begins anew.

    Raises: InputError as the function does, if its memory does not suffice or a signal ends it, and for whatever else
    it raises.
    """
    receiving, sending = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=_answer, args=(function, argument, sending))
    process.start()
    sending.close()
    try:
        answer, reason = receiving.recv()
    except EOFError:
        process.join()
        code = process.exitcode or 0
        how = f"signal {-code}: too little memory?" if code < 0 else f"status {code}"
        raise InputError(f"the process of the measurement ended with {how}") from None
    finally:
        process.join()
    if reason is not None:
        raise InputError(reason)
    return cast(Answer, answer)


def _answer(function: Callable[[Any], Any], argument: Any, sending: Connection) -> None:
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    try:
        sending.send((function(argument), None))
    except InputError as error:
        sending.send((None, str(error)))
    except Exception as error:
        # What another's library raises ends this measurement, and is told in a line like any other reason.
        sending.send((None, _reason(error)))


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    # torch has a class for a GPU that is full; for a processor's memory it is one error among all others.
    is_of_memory = isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(
        words in str(error) for words in _OUT_OF_MEMORY
    )
    kind = "does not fit" if is_of_memory else type(error).__name__
    return f"{kind}: {lines[0][:_MOST_CHARS]}" if lines[0] else kind


def _end_with_the_parent() -> None:
    """Measure for nobody no longer: a parent that is killed cannot say so."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
