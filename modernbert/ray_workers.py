"""Workers of a Ray cluster: the one at RAY_ADDRESS, or this machine alone."""

import logging
import os
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

# A task is given up when it has ended this many processes.
_MAX_DEATHS = 4
_CONNECT_TIMEOUT_S = 20.0
# Tasks per worker that are submitted before the first has its result: the next one waits on the worker's machine.
_TASKS_AHEAD = 2


@contextmanager
def connected(num_cpus: int | None = None) -> Iterator[Any]:
    """Connect to the cluster and yield the `ray` module; alone on this machine, Ray uses `num_cpus` cores, or all.

    Raises: InputError if Ray is not installed, or no cluster answers at the address.
    """
    try:
        import ray
    except ImportError:
        raise missing("executor", "ray") from None
    starts_ray = not ray.is_initialized()
    if starts_ray:
        address = os.environ.get("RAY_ADDRESS")
        local: dict[str, Any] = {} if address else {"num_cpus": num_cpus, "include_dashboard": False}
        in_main_thread = threading.current_thread() is threading.main_thread()
        sigterm_handler = signal.getsignal(signal.SIGTERM)
        _check_address(address)
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **local)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise InputError(f"RAY_ADDRESS: cannot use a cluster at {address!r} ({_last_line(error)})") from None
        if in_main_thread:
            signal.signal(signal.SIGTERM, sigterm_handler)  # ray.init replaces it
    try:
        yield ray
    finally:
        if starts_ray:
            ray.shutdown()


def ray_map(
    read: Callable[[], Iterable[Task]],
    begin: Callable[[str], State],
    work: Callable[[State, Task], Result],
    *,
    device: str = "auto",
    processes: int | None = None,
) -> Iterator[Result]:
    """Yield `work(state, task)` of every task, in the order in which results arrive.

    Tasks are read on this machine, a bounded number ahead of the results. Each worker process calls `begin(device)`
    once and passes its result to every task. Ray restarts a worker that dies, on another machine if its own is gone,
    and repeats its task. `processes` is one per GPU by default; without GPUs, or with `device="cpu"`, one per machine.

    Raises: whatever `read`, `begin` or `work` raises; InputError if the cluster has fewer GPUs or CPUs than
    `processes`, or if a task ends its process again and again.
    """
    # Otherwise Ray prints a warning for every worker that restarts.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    with connected() as ray:
        place, resources, number = _resources(ray, device, processes)
        actor = ray.remote(max_restarts=-1, max_task_retries=_MAX_DEATHS - 1, **resources)(_Worker)
        workers = [actor.remote(begin, work, place) for _ in range(number)]
        try:
            yield from _map(ray, workers, read())
        except ray.exceptions.RayActorError:
            raise InputError(f"ray: {_MAX_DEATHS} processes died of the same work, perhaps out of memory") from None
        except ray.exceptions.RayError as error:
            raise InputError(f"ray: {_last_line(error)}") from None
        finally:
            for worker in workers:
                ray.kill(worker)


def _map(ray: Any, workers: list[Any], tasks: Iterable[Any]) -> Iterator[Any]:
    """Submit tasks to the workers with the fewest, and yield results as they arrive."""
    pending: dict[Any, int] = {}  # the future of a result -> the number of its worker

    def next_result() -> Any:
        (done,), _ = ray.wait(list(pending), num_returns=1)
        del pending[done]
        result = ray.get(done)
        if isinstance(result, Exception):
            raise result
        return result

    for task in tasks:
        if len(pending) == _TASKS_AHEAD * len(workers):
            yield next_result()
        load = list(pending.values())
        number = min(range(len(workers)), key=load.count)
        pending[workers[number].run.remote(task)] = number
    while pending:
        yield next_result()


def _check_address(address: str | None) -> None:
    """Check that something listens at an address with a port: Ray itself would wait for many minutes.

    Raises: InputError if the connection fails.
    """
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host, int(port)), _CONNECT_TIMEOUT_S).close()
        except (OSError, OverflowError) as error:
            raise InputError(f"RAY_ADDRESS: no cluster answers at {address!r} ({error})") from None


def _resources(ray: Any, device: str, processes: int | None) -> tuple[str, dict[str, int], int]:
    """Return the device of each worker, the resources it reserves, and the number of workers."""
    cluster = ray.cluster_resources()
    num_cpus, num_gpus = int(cluster.get("CPU", 0)), int(cluster.get("GPU", 0))
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"device: found {device!r}, expected auto, cpu or cuda: Ray assigns a device to each process")
    kind = "cuda" if device == "cuda" or (device == "auto" and num_gpus) else "cpu"
    available, name = (num_gpus, "GPUs") if kind == "cuda" else (num_cpus, "CPUs")
    if not 1 <= (processes or 1) <= available:
        raise InputError(f"processes: found {processes or 1}, but the cluster has {available} {name}")
    if kind == "cuda":
        return kind, {"num_gpus": 1}, processes or num_gpus
    cores = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    machines = [number for number in cores if number]
    return kind, {"num_cpus": num_cpus // processes if processes else min(machines)}, processes or len(machines)


class _Worker:
    """One worker process. It returns exceptions, because Ray would wrap them in another error."""

    def __init__(self, begin: Callable[[str], Any], work: Callable[[Any, Any], Any], place: str) -> None:
        self._begin, self._work, self._place = begin, work, place
        self._state: list[Any] = []

    def run(self, task: Any) -> Any:
        try:
            if not self._state:
                self._state.append(self._begin(self._place))
            return self._work(self._state[0], task)
        except Exception as error:
            error.add_note(traceback.format_exc())
            return error


def _last_line(error: BaseException) -> str:
    """Return the last line of an error of Ray, which states the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
