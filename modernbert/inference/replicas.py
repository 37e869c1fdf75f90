"""A model that shares the texts of each call out to worker processes, each with a replica of it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from modernbert.batch import batch_by_size
from modernbert.devices import choose_device
from modernbert.errors import InputError
from modernbert.inference.modernbert import ModernBert
from modernbert.inference.results import TextVectors
from modernbert.inference.text_parts import PART_CHARACTERS, relocate_error
from modernbert.progress import show_texts
from modernbert.workers import WorkerPool

__all__ = ["ReplicaPool", "load_in_process", "replicas"]

Result = TypeVar("Result")

# Chunks are not made smaller: a device needs a few batches of some thousand tokens each to stay busy.
_FEWEST_CHARACTERS = 50_000
# Chunks for each process if there are few texts, so that all processes end at about the same time.
_CHUNKS_PER_PROCESS = 4


class ReplicaPool(ModernBert):
    """A `ModernBert` whose methods compute in the workers of a pool."""

    def __init__(self, bert: ModernBert, workers: WorkerPool[ModernBert], num_workers: int) -> None:
        super().__init__(
            bert.tokenizer, bert.model, bert.budget_tokens, bert.vectors, bert.projection, bert.max_length, bert.origin
        )
        self._workers, self._num_workers = workers, num_workers
        self._is_open = True

    def close(self) -> None:
        """Take no more texts: the workers are about to end."""
        self._is_open = False

    def __getstate__(self) -> dict[str, Any]:
        raise InputError("a model on several devices cannot be pickled; pickle the model itself")

    def _map(
        self, work: Callable[..., Result], texts: Sequence[Any], progress: bool = False, /, **settings: Any
    ) -> Result:
        """Return the results of the work for all texts, computed chunk by chunk.

        Raises: InputError naming a text by its number among all, or if a worker dies, or the pool is closed.
        """
        if not self._is_open:
            raise InputError(
                "devices: the processes ended with their `with` block; use the model itself, or open a new block"
            )
        named = [(f"text {number}", text) for number, text in enumerate(texts)]
        share = sum(map(_size, named)) // (_CHUNKS_PER_PROCESS * self._num_workers)
        chunks = list(batch_by_size(named, min(max(share, _FEWEST_CHARACTERS), PART_CHARACTERS), _size)) or [[]]
        results: list[Any] = []
        with show_texts(len(texts), progress) as show:
            done = 0
            found = self._workers.map(partial(_run_chunk, work, settings), chunks)
            for chunk, result in zip(chunks, found, strict=True):
                results.append(result)
                done += len(chunk)
                show(done, 0)
        return _join(results)


@contextmanager
def replicas(bert: ModernBert, devices: Sequence[str]) -> Iterator[ReplicaPool]:
    """Yield a pool of workers, one for each device, that load the folder of a model again.

    Raises: InputError for a device that is not available, or a model that was not loaded from a folder.
    """
    origin = bert.origin
    if origin is None:
        raise InputError("devices: this model was made in memory; save it and load it, for processes load it again")
    if isinstance(devices, str) or not devices:
        raise InputError(f"devices: found {devices!r}, expected a list of names")
    for device in devices:
        choose_device(device)
    arguments = origin.folder.path, origin.dtype, origin.engine, len(devices), torch.get_num_threads()
    begin = partial(load_in_process, *arguments, budget_tokens=bert.budget_tokens)
    with WorkerPool(devices, begin) as workers:
        pool = ReplicaPool(bert, workers, len(devices))
        try:
            yield pool
        finally:
            pool.close()


def load_in_process(
    name: str | Path,
    dtype: str,
    engine: str,
    num_processes: int,
    num_threads: int,
    device: str,
    budget_tokens: int | None = None,
) -> ModernBert:
    """Load a model in a worker process, which takes its share of the threads."""
    bert = ModernBert.load(name, device=device, dtype=dtype, engine=engine)
    torch.set_num_threads(max(1, num_threads // num_processes))
    bert.budget_tokens = budget_tokens or bert.budget_tokens
    return bert


def _size(named: tuple[str, str | tuple[str, str]]) -> int:
    text = named[1]
    return len(text) if isinstance(text, str) else sum(map(len, text))


def _run_chunk(
    work: Callable[..., Result], settings: dict[str, Any], bert: ModernBert, chunk: list[tuple[str, Any]]
) -> Result:
    try:
        return work(bert, [text for _, text in chunk], lambda done, tokens: None, **settings)
    except InputError as error:
        raise relocate_error(error, chunk) from None


def _join(results: list[Any]) -> Any:
    """Return the results of all chunks as one."""
    if isinstance(results[0], TextVectors):
        vectors: Iterable[Any] = [each.vectors for each in results]
        return TextVectors(_join(list(vectors)), sum(each.num_truncated for each in results))
    if isinstance(results[0], np.ndarray):
        return np.concatenate(results)
    return list(chain.from_iterable(results))
