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

Argument = TypeVar("Argument")
Answer = TypeVar("Answer")


def in_new_process(function: Callable[[Argument], Answer], argument: Argument) -> Answer:
    """Call a function in a process that begins anew.

    Raises: InputError as the function does, and if its memory does not suffice or a signal ends it.
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
    except (torch.OutOfMemoryError, MemoryError) as error:
        sending.send((None, f"does not fit: {' '.join(str(error).split())[:120]}"))


def _end_with_the_parent() -> None:
    """Measure for nobody no longer: a parent that is killed cannot say so."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
