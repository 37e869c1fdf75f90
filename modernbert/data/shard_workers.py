"""Where shards are tokenised: in processes of this machine, or on a cluster.

In: tasks, each for one shard. Out: futures of their entries. A file of its own because whoever writes shards should not
know how many machines there are: the shards are the same.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from modernbert.data.input_errors import Outage
from modernbert.errors import InputError
from modernbert.ray_workers import connected
from modernbert.tokenizer.tokenizer import Tokenizer
from modernbert.workers import WorkerPool

__all__ = ["EXECUTORS"]

Write = Callable[[Any, Path], Future[dict[str, Any]]]
"""(task, tokenizer file) -> the entry of the shard, later"""


@contextmanager
def _local(processes: int) -> Iterator[tuple[Write, int]]:
    """Work in processes of this machine."""
    try:
        with WorkerPool(["one core"] * processes, _begin_worker) as pool:
            yield lambda task, tokenizer_file: pool.submit(_write_in_worker, (task, tokenizer_file)), processes
    except BrokenProcessPool:
        raise Outage("a tokenising process died, perhaps for want of memory; try fewer processes") from None


@contextmanager
def _ray(processes: int) -> Iterator[tuple[Write, int]]:
    """Work in tasks of Ray: of the cluster that RAY_ADDRESS names, whose machines share the folder, or of this machine.

    Plain tasks, not a Ray dataset: which documents a shard holds is decided by the order in which they are read.
    """
    with connected(processes) as ray:
        write = ray.remote(num_cpus=1)(_write)
        try:
            yield lambda task, tokenizer_file: write.remote(task, tokenizer_file).future(), _num_workers(ray, processes)
        except ray.exceptions.RayTaskError as error:
            raise (
                error.cause if isinstance(error.cause, InputError | OSError) else Outage(f"ray: {error.cause}")
            ) from None
        except ray.exceptions.RayError as error:
            raise Outage(f"ray: a tokenising task died ({str(error).splitlines()[0]})") from None


def _num_workers(ray: Any, processes: int) -> int:
    return max(processes, int(ray.cluster_resources().get("CPU", 1)))


EXECUTORS: dict[str, Callable[[int], AbstractContextManager[tuple[Write, int]]]] = {"local": _local, "ray": _ray}


def _begin_worker(place: str) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # every process has one core to itself


def _write_in_worker(begun: None, task: tuple[Any, Path]) -> dict[str, Any]:
    return _write(*task)


@cache
def _loaded(tokenizer_file: Path) -> Tokenizer:
    return Tokenizer.load(tokenizer_file)


def _write(task: Any, tokenizer_file: Path) -> dict[str, Any]:
    # Here, not above: the writer of shards imports this file.
    from modernbert.data.shards import write_shard

    return write_shard(task, _loaded(tokenizer_file))
