"""Measure one row of the efficiency table, in its own process: tokens per second, memory, largest batch."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.peers import Loaded, check_takes, load
from benchmarks.process import in_new_process
from modernbert.devices import available_memory, choose_device, keep_freed_memory, peak_memory, restart_peak

__all__ = ["Row", "Work", "largest_batch", "measure", "measure_loaded"]


@dataclass(frozen=True)
class Work:
    """One measurement: `runs` passes over documents in batches of `batch`."""

    model: str
    documents: Sequence[np.ndarray]
    batch: int
    runs: int
    device: str
    dtype: str
    find_largest: bool


@dataclass(frozen=True)
class Row:
    """Result of a measurement. Units: real tokens (without padding) per second, bytes.

    The peak includes weights. On a CPU, the largest batch is computed from the memory of one batch.
    """

    model: str
    setting: str
    num_parameters: int
    num_tokens: int
    tokens_per_s: list[float]
    peak_memory: int
    largest_batch: int | None

    @property
    def mean(self) -> float:
        """Tokens per second, on average over the runs."""
        return statistics.mean(self.tokens_per_s)


def measure(work: Work) -> Row:
    """Measure in a new process.

    Raises: InputError if the model is not installed, its documents are too long for it, or it does not fit into memory.
    """
    check_takes(work.model, max(map(len, work.documents)))
    return in_new_process(_measure, work)


def _measure(work: Work) -> Row:
    device, dtype = choose_device(work.device), getattr(torch, work.dtype)
    if device.type == "cpu":
        keep_freed_memory()  # as this package does, for all models
    return measure_loaded(work, load(work.model, device, dtype))


def measure_loaded(work: Work, loaded: Loaded) -> Row:
    """Measure a loaded model in this process."""
    device = choose_device(work.device)
    batches = [work.documents[at : at + work.batch] for at in range(0, len(work.documents), work.batch)]
    with torch.inference_mode():
        _seconds(device, loaded, [[batches[0][0][:64]]])  # initialization
        held = restart_peak(device)
        _seconds(device, loaded, batches[:1])
        if device.type == "cuda":
            _seconds(device, loaded, batches)  # memory and kernels for each batch size
        per_document = (peak_memory(device) - held) / len(batches[0])
        seconds = [_seconds(device, loaded, batches) for _ in range(work.runs)]
        peak = peak_memory(device)  # before the search fills the memory
        largest = _largest_batch(work, loaded, device, per_document) if work.find_largest else None
    num_tokens = sum(map(len, work.documents))
    return Row(
        work.model, loaded.setting, loaded.num_parameters, num_tokens, [num_tokens / each for each in seconds], peak,
        largest,
    )  # fmt: skip


def _seconds(device: torch.device, loaded: Loaded, batches: Sequence[Sequence[np.ndarray]]) -> float:
    """Return the seconds of all batches."""
    begun = time.perf_counter()
    for batch in batches:
        loaded.encode(batch)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begun


def _largest_batch(work: Work, loaded: Loaded, device: torch.device, per_document: float) -> int | None:
    """Return how many of the longest documents fit into one batch."""
    if device.type != "cuda":
        return None if per_document <= 0 else work.batch + int(available_memory() / per_document)
    memory = torch.cuda.mem_get_info(device)[1]
    return largest_batch(loaded, max(work.documents, key=len), work.batch, memory, device)


@torch.inference_mode()
def largest_batch(loaded: Loaded, document: np.ndarray, size: int, memory: int, device: torch.device) -> int:
    """Return how many copies of a document fit into one batch, in some bytes of the memory of a GPU.

    The memory of a batch of `size` is the first guess.
    """

    def fits(number: int) -> bool:
        try:
            loaded.encode([document] * number)
            torch.cuda.synchronize(device)
            return True
        except torch.OutOfMemoryError:
            return False
        finally:
            torch.cuda.empty_cache()

    held = restart_peak(device)
    guess = int((memory - held) * size / max(1, peak_memory(device) - held)) if fits(size) else size // 2
    return largest_that(fits, max(1, guess))


def largest_that(fits: Callable[[int], bool], guess: int) -> int:
    """Return the largest number that fits, within 2 %; 0 if none does.

    >>> largest_that(lambda size: size <= 7, guess=20)
    7
    """
    step = max(1, guess // 16)
    if fits(guess):
        low = guess
        while fits(low + step):
            low, step = low + step, 2 * step
        high = low + step
    else:
        high = guess
        while high > step and not fits(high - step):
            high, step = high - step, 2 * step
        low = max(0, high - step)
    while high - low > max(1, low // 50):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
