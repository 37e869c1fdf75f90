"""Processes of this machine that take work and give back what came of it.

In: tasks. Out: results, in the order of the tasks. A file of its own because embedding, sweeps and preparing text all
share work out, and in each a process must neither outlive the one that started it nor die unheard.
"""

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import connection, get_context
from types import TracebackType
from typing import Any, Generic, TypeVar

from modernbert.errors import InputError

__all__ = ["WorkerPool"]

State = TypeVar("State")
Task = TypeVar("Task")
Result = TypeVar("Result")


class WorkerPool(Generic[State]):
    """Processes that each begin once, at a place of their own, and then take whichever task is next.

    A place is a device, as a rule. What `begin` makes of it is handed to the work of every task. Processes end with
    this one, however it ends, and at once if the `with` block is left by an error.
    """

    def __init__(self, places: Sequence[str], begin: Callable[[str], State]) -> None:
        context = get_context("spawn")
        queue = context.SimpleQueue()
        for place in places:
            queue.put(place)
        # Nothing is ever sent: the processes wait for this end to close, as it does with the last of this process.
        held, self._leash = context.Pipe(duplex=False)
        self._number = len(places)
        self._pool = ProcessPoolExecutor(len(places), context, _enter, (held, queue, begin))

    def __enter__(self) -> "WorkerPool[State]":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        if kind is not None:
            self._leash.close()
        self._pool.shutdown(cancel_futures=True)
        self._leash.close()

    def submit(self, work: Callable[[State, Task], Result], task: Task) -> Future[Result]:
        """Have one task done; the result is there later, or BrokenProcessPool for a process that died."""
        return self._pool.submit(_do, work, task)

    def map(
        self, work: Callable[[State, Task], Result], tasks: Iterable[Task], *, ahead: int | None = None
    ) -> Iterator[Result]:
        """Yield what came of each task, in order; so many wait or are done `ahead`, two for each process by default.

        Raises: InputError if a process dies, and whatever the work raises.
        """
        waiting: deque[Future[Result]] = deque()
        most = 2 * self._number if ahead is None else ahead
        try:
            for task in tasks:
                waiting.append(self.submit(work, task))
                if len(waiting) > most:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            raise InputError(
                "a process died, perhaps for want of memory, or because the script that starts it does so outside of "
                "if __name__ == '__main__'"
            ) from None
        finally:
            for future in waiting:
                future.cancel()


_begin: Callable[[], Any]
_state: list[Any] = []  # of a worker process, for all tasks that it takes


def _enter(held: connection.Connection, queue: Any, begin: Callable[[str], Any]) -> None:
    """Make this process one that works for another."""
    global _begin
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that is worked for is interrupted too, and lets go
    threading.Thread(target=_end_with, args=(held,), daemon=True).start()
    place = queue.get()
    _begin = partial(begin, place)


def _end_with(held: connection.Connection) -> None:
    connection.wait([held])
    os._exit(1)


def _do(work: Callable[[Any, Any], Any], task: Any) -> Any:
    # Not when the process enters: what is raised here is told with the task, there with a page of traces.
    if not _state:
        _state.append(_begin())
    return work(_state[0], task)
