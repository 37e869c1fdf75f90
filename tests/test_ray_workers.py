"""Tasks on a Ray cluster: exceptions are returned, and a task that kills its processes is abandoned."""

import subprocess
import sys

import pytest

from modernbert.errors import InputError
from modernbert.ray_workers import connected

SCRIPT = """
import os, signal
from modernbert.ray_workers import ray_map
from modernbert.errors import InputError

def begin(place):
    if os.environ.get("PLACE") == place:
        raise InputError(f"device: {place} is too small")
    return place

def work(place, task):
    if task == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    if task == 5:
        raise ZeroDivisionError("a mistake")
    return place, task * task

def read(tasks):
    yield from tasks
    if len(tasks) == 1:
        raise InputError("t.txt:7: cannot be read")

def report(tasks):
    found = []
    try:
        for result in ray_map(lambda: read(tasks), begin, work, device="cpu", processes=2):
            found.append(result)
    except Exception as error:
        print(type(error).__name__, error)
    else:
        print(sorted(found))

import ray
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
report(range(3))
report([2])
report([1, 3])
report([5, 5])
os.environ["PLACE"] = "cpu"
ray.shutdown()
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
report([0, 1])
"""


def test_results_errors_and_deaths_come_back() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if "(raylet)" not in line]
    assert lines[0] == "[('cpu', 0), ('cpu', 1), ('cpu', 4)]"
    assert lines[1:] == [
        "InputError t.txt:7: cannot be read",
        "InputError ray: 4 processes died of the same work, perhaps out of memory",
        "ZeroDivisionError a mistake",
        "InputError device: cpu is too small",
    ]


def test_an_address_without_a_cluster_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(InputError, match="RAY_ADDRESS: no cluster answers at '127.0.0.1:1'"), connected():
        raise AssertionError
