"""Run a measurement in a new process, with its own peak memory; a crash ends that measurement only."""

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
_MAX_CHARS = 160

Argument = TypeVar("Argument")
Answer = TypeVar("Answer")


def in_new_process(function: Callable[[Argument], Answer], argument: Argument) -> Answer:
    """Call a function in a new process.

    Raises: InputError for any exception of the function, if memory is exhausted, or a signal ends the process.
    """
    (answer,) = rows_of_new_process(_once, (function, argument))
    return answer


def rows_of_new_process(function: Callable[[Argument], Iterator[Answer]], argument: Argument) -> Iterator[Answer]:
    """Yield the rows of a function in a new process as they come; an error later does not lose them.

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
        process.kill()  # an interrupt does not wait for the measurement
        raise
    finally:
        receiving.close()
        process.join()


def _once(call: tuple[Callable[[Argument], Answer], Argument]) -> Iterator[Answer]:
    function, argument = call
    yield function(argument)


def _answer(function: Callable[[Any], Iterator[Any]], argument: Any, sending: Connection) -> None:
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    try:
        for answer in function(argument):
            sending.send((None, answer))
        sending.send(None)
    except BrokenPipeError:
        pass  # the parent has stopped reading
    except Exception as error:
        # Other libraries raise anything; it ends this measurement only.
        sending.send((reason_of(error), None))


def reason_of(error: Exception) -> str:
    """Return one line for an exception: the message of an `InputError`, else the type and the first line."""
    if isinstance(error, InputError):
        return str(error)
    lines = str(error).strip().splitlines() or [""]
    # torch has a class for GPU memory; CPU memory is a RuntimeError like any other.
    is_of_memory = isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(
        words in str(error) for words in _OUT_OF_MEMORY
    )
    kind = "does not fit" if is_of_memory else type(error).__name__
    return f"{kind}: {lines[0][:_MAX_CHARS]}" if lines[0] else kind


def _end_with_the_parent() -> None:
    """Exit when the parent ends: a parent that is killed cannot stop this process."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
