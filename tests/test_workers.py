"""Worker processes: results in order, few tasks read ahead, and no worker outlives its parent."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from modernbert.errors import InputError
from modernbert.workers import WorkerPool


def begin(place: str) -> tuple[str, int]:
    if place == "nowhere":
        raise InputError("device: found nowhere")
    return place, os.getpid()


def square(state: tuple[str, int], task: int) -> tuple[int, str, int]:
    if task < 0:
        raise InputError(f"task: found {task}")
    time.sleep(0.2 if task == 0 else 0.01)
    return task * task, *state


def end(state: object, task: int) -> None:
    if task == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def sleep(state: object, file: str) -> None:
    Path(file).write_text(str(os.getpid()))
    time.sleep(100)


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until_gone(process: int) -> None:
    until = time.monotonic() + 20
    while alive(process):
        assert time.monotonic() < until, "the process is still there"
        time.sleep(0.02)


def test_results_are_in_order_and_few_tasks_are_read_ahead() -> None:
    taken = []

    def tasks() -> Iterator[int]:
        for number in range(30):
            taken.append(number)
            yield number

    with WorkerPool(["here", "there"], begin) as pool:
        results = pool.map(square, tasks())
        first = [next(results) for _ in range(3)]
        assert len(taken) <= 8, "at most two tasks per process wait"
        everything = first + list(results)
        assert [value for value, _, _ in everything] == [number * number for number in range(30)]
        assert len({(place, process) for _, place, process in everything}) == 2, "each place has one process"
        with pytest.raises(InputError, match="task: found -1"):
            list(pool.map(square, [1, -1, 2]))
        assert [value for value, _, _ in pool.map(square, [3])] == [9], "an error of one task does not end the pool"


def test_an_error_at_the_start_is_raised_with_the_task() -> None:
    with WorkerPool(["nowhere"], begin) as pool, pytest.raises(InputError, match="^device: found nowhere$"):
        list(pool.map(square, [1]))


def test_a_process_that_dies_is_one_line() -> None:
    with (
        pytest.raises(InputError, match="a worker process died, perhaps out of memory"),
        WorkerPool(["a"], str) as pool,
    ):
        list(pool.map(end, range(5)))


def test_an_error_ends_running_tasks(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), WorkerPool(["a"], str) as pool:
        pool.submit(sleep, str(tmp_path / "process"))
        while not (tmp_path / "process").exists() or not (tmp_path / "process").read_text():
            time.sleep(0.02)
        raise KeyboardInterrupt
    wait_until_gone(int((tmp_path / "process").read_text()))


def test_no_process_outlives_one_that_was_killed(tmp_path: Path) -> None:
    code = """
import sys, test_workers as tests
with tests.WorkerPool(["a"], str) as pool:
    pool.submit(tests.sleep, sys.argv[1]).result()
"""
    words = [sys.executable, "-c", code, str(tmp_path / "process")]
    running = subprocess.Popen(words, env=os.environ | {"PYTHONPATH": f"{Path(__file__).parent}:{Path.cwd()}"})
    while not (tmp_path / "process").exists() or not (tmp_path / "process").read_text():
        assert running.poll() is None
        time.sleep(0.02)
    running.kill()
    running.wait()
    wait_until_gone(int((tmp_path / "process").read_text()))
