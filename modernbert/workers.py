"""Worker processes on this machine: a pool that returns results in the order of the tasks."""

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
    """A process per place, usually a device. Each calls `begin(place)` once and passes the result to every task.

    The processes end with this one, even if it is killed, and at once if an error leaves the `with` block.
    """

    def __init__(self, places: Sequence[str], begin: Callable[[str], State]) -> None:
        context = get_context("spawn")
        queue = context.SimpleQueue()
        for place in places:
            queue.put(place)
        # Nothing is sent: workers wait for the end of the pipe to close, which the system does when this process ends.
        receiver, self._sender = context.Pipe(duplex=False)
        self._num_workers = len(places)
        self._pool = ProcessPoolExecutor(len(places), context, _start_worker, (receiver, queue, begin))

    def __enter__(self) -> "WorkerPool[State]":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        if kind is not None:
            self._sender.close()
        self._pool.shutdown(cancel_futures=True)
        self._sender.close()

    def submit(self, work: Callable[[State, Task], Result], task: Task) -> Future[Result]:
        """Run one task; the future raises BrokenProcessPool if its process dies."""
        return self._pool.submit(_run_task, work, task)

    def map(
        self, work: Callable[[State, Task], Result], tasks: Iterable[Task], *, ahead: int | None = None
    ) -> Iterator[Result]:
        """Yield the result of each task, in order. At most `ahead` tasks are read early, by default two per process.

        Raises: InputError if a process dies, and any exception of `work`.
        """
        waiting: deque[Future[Result]] = deque()
        max_waiting = 2 * self._num_workers if ahead is None else ahead
        try:
            for task in tasks:
                waiting.append(self.submit(work, task))
                if len(waiting) > max_waiting:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            raise InputError(
                "a worker process died, perhaps out of memory, or because the script that starts it has no "
                "if __name__ == '__main__' guard"
            ) from None
        finally:
            for future in waiting:
                future.cancel()


_begin: Callable[[], Any]
_state: list[Any] = []  # of a worker process, for all its tasks


def _start_worker(receiver: connection.Connection, queue: Any, begin: Callable[[str], Any]) -> None:
    """Prepare a new process for tasks."""
    global _begin
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C also reaches the parent, which ends the workers
    threading.Thread(target=_exit_with_parent, args=(receiver,), daemon=True).start()
    _begin = partial(begin, queue.get())


def _exit_with_parent(receiver: connection.Connection) -> None:
    connection.wait([receiver])
    os._exit(1)


def _run_task(work: Callable[[Any, Any], Any], task: Any) -> Any:
    # Begin with the first task, so that an error is raised with that task instead of breaking the pool.
    if not _state:
        _state.append(_begin())
    return work(_state[0], task)
