"""Pools that run functions in processes of this machine or in tasks of a Ray cluster."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from modernbert.data.input_errors import Outage
from modernbert.errors import InputError
from modernbert.ray_workers import connected
from modernbert.workers import WorkerPool

__all__ = ["EXECUTORS"]

Submit = Callable[..., Future[Any]]
"""(function of a module, arguments) -> its result, later"""


@contextmanager
def _local(processes: int) -> Iterator[tuple[Submit, int]]:
    try:
        with WorkerPool(["one core"] * processes, _begin_worker) as pool:
            yield lambda function, *args: pool.submit(_call_in_worker, (function, args)), processes
    except BrokenProcessPool:
        raise Outage("a tokenizing process died, perhaps for lack of memory; try fewer processes") from None


@contextmanager
def _ray(processes: int) -> Iterator[tuple[Submit, int]]:
    """Use the cluster that RAY_ADDRESS names, whose machines share the folder, or this machine.

    Plain tasks instead of a Ray dataset: the order of reading decides which documents a shard holds.
    """
    with connected(processes) as ray:
        call = ray.remote(num_cpus=1)(_call)
        num_workers = max(processes, int(ray.cluster_resources().get("CPU", 1)))
        try:
            yield lambda function, *args: call.remote(function, args).future(), num_workers
        except ray.exceptions.RayTaskError as error:
            raise (
                error.cause if isinstance(error.cause, InputError | OSError) else Outage(f"ray: {error.cause}")
            ) from None
        except ray.exceptions.RayError as error:
            raise Outage(f"ray: a tokenizing task died ({str(error).splitlines()[0]})") from None


EXECUTORS: dict[str, Callable[[int], AbstractContextManager[tuple[Submit, int]]]] = {"local": _local, "ray": _ray}


def _begin_worker(place: str) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # each process has one core


def _call_in_worker(state: None, task: tuple[Callable[..., Any], tuple[Any, ...]]) -> Any:
    return _call(*task)


def _call(function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    return function(*args)
