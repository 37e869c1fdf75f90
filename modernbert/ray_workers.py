"""Work on the machines of a Ray cluster: the one that RAY_ADDRESS names, or this machine alone.

In: how tasks are read, how a process begins, what it does with a task. Out: results, in the order in which they are
done. A file of its own because it is the only one that knows how Ray is told to be quiet, and what its errors hold.
"""

import logging
import os
import pickle
import signal
import socket
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from modernbert.errors import InputError
from modernbert.extras import missing

__all__ = ["connected", "ray_map"]

State = TypeVar("State")
Task = TypeVar("Task")
Result = TypeVar("Result")

# Processes that may die of one task before it is given up.
_MOST_DEATHS = 4
_ANSWER_S = 20.0


@contextmanager
def connected(num_cpus: int | None = None) -> Iterator[Any]:
    """Yield the library `ray`, connected; alone on this machine, it uses so many cores, or all.

    Raises: InputError if it is not installed, or there is no cluster at the address.
    """
    try:
        import ray
    except ImportError:
        raise missing("engine", "ray") from None
    is_ours = not ray.is_initialized()
    if is_ours:
        address = os.environ.get("RAY_ADDRESS")
        here: dict[str, Any] = {} if address else {"num_cpus": num_cpus, "include_dashboard": False}
        is_main = threading.current_thread() is threading.main_thread()
        on_end = signal.getsignal(signal.SIGTERM)
        _check_address(address)
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **here)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise InputError(f"RAY_ADDRESS: {address!r} is no cluster that can be used ({_line(error)})") from None
        if is_main:
            signal.signal(signal.SIGTERM, on_end)  # Ray has put its own there
    try:
        yield ray
    finally:
        if is_ours:
            ray.shutdown()


def ray_map(
    read: Callable[[], Iterable[Task]],
    begin: Callable[[str], State],
    work: Callable[[State, Task], Result],
    *,
    device: str = "auto",
    processes: int | None = None,
) -> Iterator[Result]:
    """Yield what the work makes of each task, in the order in which they are done.

    Tasks are read on this machine while others are at work, as far ahead as Ray's memory for objects allows. Each
    process begins once; one that dies is begun again, on another machine if its own is gone, and its task with it.
    `processes` are by default one for each GPU; where there is none, or `device` is `cpu`, one for each machine.

    Raises: what the reader, the beginning or the work raises; InputError for more processes than the cluster has room
    for, or if work ends its process again and again.
    """
    # Of every process it says that its arguments could be lost; it keeps them as long as there is work.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    with connected() as ray:
        import ray.data  # type: ignore[no-redef]

        place, needs, number = _places(ray, device, processes)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False
        # Every task is a block of its own: Ray would lay a hundred of them together, for one process.
        context.target_max_block_size = context.target_min_block_size = 1
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        deaths = ray.remote(num_cpus=0, max_restarts=-1)(_Beginnings).remote()
        results = (
            ray.data.from_items([0])
            .map_batches(_read, fn_args=(read,), batch_size=1, num_cpus=0, resources={_this_machine(ray): 0.001})
            .map_batches(
                _Worker, fn_constructor_args=(begin, work, place, deaths), batch_size=1,
                compute=ray.data.ActorPoolStrategy(size=number), **needs,
            )
        )  # fmt: skip
        try:
            for row in results.iter_rows():
                found = pickle.loads(row["result"])
                if isinstance(found, Exception):
                    raise found
                yield found
        except ray.exceptions.RayError as error:
            raise InputError(f"ray: {_line(error)}") from None


def _check_address(address: str | None) -> None:
    """Raises: InputError if nobody answers at an address with a port, for which Ray would wait many minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host, int(port)), _ANSWER_S).close()
        except (OSError, OverflowError) as error:
            raise InputError(f"RAY_ADDRESS: nobody answers at {address!r} ({error})") from None


def _places(ray: Any, device: str, processes: int | None) -> tuple[str, dict[str, int], int]:
    """Return the device of each process, what it asks of the cluster, and how many there are."""
    has = ray.cluster_resources()
    num_cpus, num_gpus = int(has.get("CPU", 0)), int(has.get("GPU", 0))
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(
            f"device: found {device!r}, expected auto, cpu or cuda: the cluster gives each process its own"
        )
    kind = "cuda" if device == "cuda" or (device == "auto" and num_gpus) else "cpu"
    room, name = (num_gpus, "GPUs") if kind == "cuda" else (num_cpus, "CPUs")
    if not 1 <= (processes or 1) <= room:
        raise InputError(f"processes: found {processes or 1}, but the cluster has {room} {name}")
    if kind == "cuda":
        return kind, {"num_gpus": 1}, processes or num_gpus
    cores = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    machines = [number for number in cores if number]
    return kind, {"num_cpus": num_cpus // processes if processes else min(machines)}, processes or len(machines)


def _this_machine(ray: Any) -> str:
    """Return the resource that only this machine has: files are where they were named."""
    number = ray.get_runtime_context().get_node_id()
    (node,) = (node for node in ray.nodes() if node["NodeID"] == number)
    return next(name for name in node["Resources"] if name.startswith("node:") and "internal" not in name)


def _read(batch: Any, read: Callable[[], Iterable[Any]]) -> Iterator[dict[str, list[bytes]]]:
    """Read tasks, each for a block; what is wrong with them goes the same way, for Ray has its own tale of errors."""
    try:
        for number, task in enumerate(read()):
            yield {"task": [pickle.dumps((number, task))]}
    except Exception as error:
        yield {"task": [pickle.dumps((-1, error))]}


class _Worker:
    """What a process on the cluster keeps between tasks."""

    def __init__(self, begin: Callable[[str], Any], work: Callable[[Any, Any], Any], place: str, deaths: Any) -> None:
        self._begin, self._work, self._place, self._deaths = begin, work, place, deaths
        self._state: list[Any] = []

    def __call__(self, batch: Any) -> dict[str, list[bytes]]:
        return {"result": [pickle.dumps(self._told(*pickle.loads(task))) for task in batch["task"]]}

    def _told(self, number: int, task: Any) -> Any:
        import ray

        if isinstance(task, Exception):
            return task
        if ray.get(self._deaths.count.remote(number)) > _MOST_DEATHS:
            return InputError(f"ray: {_MOST_DEATHS} processes died of the same work, perhaps for want of memory")
        try:
            if not self._state:
                self._state.append(self._begin(self._place))
            result = self._work(self._state[0], task)
        except Exception as error:
            error.add_note(traceback.format_exc())  # where it was, for whoever has to mend the package
            return error
        self._deaths.forget.remote(number)
        return result


class _Beginnings:
    """Count how often each task was begun and not ended."""

    def __init__(self) -> None:
        self._begun: dict[int, int] = {}

    def count(self, number: int) -> int:
        self._begun[number] = self._begun.get(number, 0) + 1
        return self._begun[number]

    def forget(self, number: int) -> None:
        self._begun.pop(number, None)


def _line(error: BaseException) -> str:
    """Return the last line of a message: what went wrong, behind the way there."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
