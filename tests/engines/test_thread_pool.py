"""The thread pool of the CPU kernels: several callers at once, forked processes, and no threads of OpenMP beside it."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from modernbert.batch import Batch
from modernbert.engines.cpu import build
from modernbert.engines.registry import find_engine
from modernbert.inference.loading import permit_plans
from modernbert.model.config import ModelConfig
from modernbert.model.encoder import Encoder
from modernbert.model.initialization import initialize

pytestmark = pytest.mark.skipif(build.unavailable_reason() is not None, reason=f"cpu {build.unavailable_reason()}")


def make() -> Encoder:
    config = ModelConfig.preset("tiny", hidden_size=128, num_attention_heads=2, intermediate_size=192)
    encoder = Encoder(config, find_engine("cpu"))
    initialize(encoder, config, seed=1)
    return permit_plans(encoder.eval())  # type: ignore[return-value]


def batch_of(lengths: list[int]) -> Batch:
    return Batch.from_documents([[5 + (n * 7) % 400 for n in range(length)] for length in lengths])


@torch.inference_mode()
def encoded(encoder: Encoder, lengths: list[int], num_threads: int) -> torch.Tensor:
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        batch = batch_of(lengths)
        return encoder(batch.tokens, batch.layout)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("lengths", [[1], [16], [130], [300, 5, 700]], ids=str)
def test_the_number_of_threads_changes_no_bit(lengths: list[int]) -> None:
    encoder = make()
    expected = encoded(encoder, lengths, 1)
    for num_threads in (2, 3, 5, 2):
        assert torch.equal(encoded(encoder, lengths, num_threads), expected)


def test_callers_at_once_get_the_bits_they_get_alone() -> None:
    encoder = make()
    sizes = [[16], [130], [300, 5], [40] * 20]
    expected = [encoded(encoder, lengths, 1) for lengths in sizes]

    def repeat(number: int) -> bool:
        found = (encoded(encoder, sizes[number], 3) for _ in range(30))
        return all(torch.equal(each, expected[number]) for each in found)

    with ThreadPoolExecutor(len(sizes)) as callers:
        assert all(callers.map(repeat, range(len(sizes))))


def run(script: str) -> None:
    """Run a script in a new process, with one thread unless it asks for more."""
    path = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", "from test_thread_pool import *\n" + script],
        capture_output=True, text=True, timeout=120, env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_fork_during_the_loop_of_another_thread_has_a_new_pool() -> None:
    """The pool is taken and its threads are absent in the forked process."""
    run("""
import signal, threading
from modernbert.engines.cpu import calls
both = torch.randn(500, 128)
torch.set_num_threads(3)
expected = calls.geglu(both)
stop = threading.Event()
def repeat():
    torch.set_num_threads(3)
    while not stop.is_set():
        calls.geglu(both)
caller = threading.Thread(target=repeat, daemon=True)
caller.start()
for _ in range(10):
    if not (child := os.fork()):
        signal.alarm(60)
        threads = len(os.listdir("/proc/self/task"))
        found = calls.geglu(both)
        started = len(os.listdir("/proc/self/task")) - threads
        os._exit(0 if found.tolist() == expected.tolist() and started == 2 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, "the forked process did not answer"
stop.set()
caller.join()
""")


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="threads are counted in /proc")
def test_inference_of_short_texts_starts_no_threads_of_openmp() -> None:
    run("""
from modernbert.inference.outputs import PooledVectors
encoder, lengths = make(), [16, 130, 600]
batch = batch_of(lengths)
torch.set_num_threads(3)
before = len(os.listdir("/proc/self/task"))
with torch.inference_mode():
    PooledVectors("mean").of_batch(encoder(batch.tokens, batch.layout), batch.layout)
assert len(os.listdir("/proc/self/task")) - before == 2, "expected the two workers of the pool"
assert torch.get_num_threads() == 3
""")
