"""One measurement, one process: its peak memory is its own, and what ends it ends nothing else.

In: a function of a module and its argument. Out: what it returned, or row by row what it yielded.
"""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import torch

from modernbert.errors import InputError

__all__ = ["in_new_process", "reason_of", "rows_of_new_process"]

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
    (answer,) = rows_of_new_process(_once, (function, argument))
    return answer


def rows_of_new_process(function: Callable[[Argument], Iterator[Answer]], argument: Argument) -> Iterator[Answer]:
    """Yield what a function yields in a process that begins anew, as it comes: what ends it late loses nothing before.

    Raises: InputError as `in_new_process` does.
    """
    receiving, sending = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=_answer, args=(function, argument, sending))
    process.start()
    sending.close()
    try:
        while (sent := receiving.recv()) is not None:
            reason, answer = sent
            if reason is not None:
                raise InputError(reason)
            yield answer
    except EOFError:
        process.join()
        code = process.exitcode or 0
        how = f"signal {-code}: too little memory?" if code < 0 else f"status {code}"
        raise InputError(f"the process of the measurement ended with {how}") from None
    except BaseException:
        process.kill()  # who is to end does not wait for what is measured
        raise
    finally:
        receiving.close()
        process.join()


def _once(asked: tuple[Callable[[Argument], Answer], Argument]) -> Iterator[Answer]:
    function, argument = asked
    yield function(argument)


def _answer(function: Callable[[Any], Iterator[Any]], argument: Any, sending: Connection) -> None:
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    try:
        for answer in function(argument):
            sending.send((None, answer))
        sending.send(None)
    except BrokenPipeError:
        pass  # nobody listens any longer
    except Exception as error:
        # What another's library raises ends this measurement, and is told in a line like any other reason.
        sending.send((reason_of(error), None))


def reason_of(error: Exception) -> str:
    """Return a line for a row that is not there: what the package says itself, else the type and how it begins."""
    if isinstance(error, InputError):
        return str(error)
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
