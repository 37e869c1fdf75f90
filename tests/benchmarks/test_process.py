"""A measurement in a process."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.process import in_new_process, rows_of_new_process
from modernbert.errors import InputError

MEASURE = """
import os, signal, sys, time
from benchmarks.process import in_new_process

def forever(path):
    with open(path + ".partial", "w") as file:
        file.write(str(os.getpid()))
    os.rename(path + ".partial", path)
    time.sleep(600)

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as the command does
    in_new_process(forever, sys.argv[1])
"""


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")")[-1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_until(is_so, seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while not (found := is_so()) and time.monotonic() < end:
        time.sleep(0.05)
    return found


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_measurement_ends_with_its_benchmark(tmp_path: Path, how: signal.Signals) -> None:
    script, told = tmp_path / "measure.py", tmp_path / "pid"
    script.write_text(MEASURE)
    # The benchmarks are a folder of the clone, not an installed package.
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    bench = subprocess.Popen([sys.executable, str(script), str(told)], env=environment, stderr=subprocess.DEVNULL)
    try:
        assert wait_until(told.exists)
        bench.send_signal(how)
        assert bench.wait(timeout=60) != 0
    finally:
        bench.kill()
        bench.wait()
    measuring = int(told.read_text())
    if not wait_until(lambda: not is_running(measuring)):
        os.kill(measuring, signal.SIGKILL)
        raise AssertionError("the measurement continued")


def _takes_too_much(_: None) -> None:
    torch.empty(2**60, dtype=torch.uint8)


def _raises(message: str) -> None:
    raise ArithmeticError(message)


def _yields_until_it_raises(number: int) -> Iterator[int]:
    yield from range(number)
    raise ArithmeticError("odd")


def test_rows_before_the_end_of_the_process_are_kept() -> None:
    rows = rows_of_new_process(_yields_until_it_raises, 3)
    assert [next(rows) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(InputError, match="^ArithmeticError: odd$"):
        next(rows)


def test_out_of_memory_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="^does not fit: .*allocate memory") as raised:
        in_new_process(_takes_too_much, None)
    assert "\\n" not in str(raised.value)
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("message, said", [("odd\nthing", "ArithmeticError: odd"), ("", "ArithmeticError")])
def test_an_exception_of_a_measurement_is_its_type_and_first_line(
    message: str, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError) as raised:
        in_new_process(_raises, message)
    assert str(raised.value) == said
    assert "Traceback" not in capfd.readouterr().err
