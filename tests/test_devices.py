"""Choosing a device, a precision and the number of threads."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from modernbert import devices
from modernbert.devices import (
    autocast,
    choose_device,
    choose_precision,
    limit_threads,
    peak_memory,
    restart_peak,
    serial_torch,
)
from modernbert.errors import InputError


def test_auto_takes_the_available_device():
    device = choose_device("auto")
    assert device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert choose_precision("auto", device) in (torch.float32, torch.bfloat16)


@pytest.mark.parametrize("name", ["cuda:99", "gpu", "meta", ""])
def test_an_absent_device_is_an_error(name):
    with pytest.raises(InputError, match="device: found"):
        choose_device(name)


def test_an_unknown_precision_is_an_error():
    with pytest.raises(InputError, match="expected auto, float32 or bfloat16"):
        choose_precision("fp16", torch.device("cpu"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_gives_products_of_the_dtype(dtype):
    left = torch.ones(2, 2)
    with autocast(torch.device("cpu"), dtype):
        assert (left @ left).dtype == dtype


def test_the_peak_can_be_reset() -> None:
    """Half a GiB that is written and freed is in the peak, but not after a reset."""
    device = torch.device("cpu")
    before = restart_peak(device)
    torch.ones(2**27)
    assert peak_memory(device) - before > 2**29 * 0.9
    again = restart_peak(device)
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("this system cannot reset the peak")
    assert again - before < 2**28
    assert peak_memory(device) - again < 2**28


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Four cores and torch's default number of threads, which is restored at the end."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "MODERNBERT_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)), raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("quota", "expected"), [(None, 4), (0.4, 1), (1.0, 1), (1.5, 2), (4.0, 4), (64.0, 4)], ids=str)
def test_the_default_number_of_threads_is_within_the_quota(
    threads: None, monkeypatch: pytest.MonkeyPatch, quota: float | None, expected: int
) -> None:
    monkeypatch.setattr(devices, "_cpu_quota", lambda: quota)
    limit_threads()
    assert torch.get_num_threads() == expected


def test_a_number_of_threads_that_was_set_stays(threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_cpu_quota", lambda: 1.0)
    torch.set_num_threads(3)
    limit_threads()
    assert torch.get_num_threads() == 3
    torch.set_num_threads(4)
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    limit_threads()
    assert torch.get_num_threads() == 4
    monkeypatch.setenv("MODERNBERT_NUM_THREADS", "2")
    limit_threads()
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("value", ["", "0", "-1", "two", "1.5", "\u0663", "5000"])
def test_a_wrong_number_of_threads_is_an_error(threads: None, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("MODERNBERT_NUM_THREADS", value)
    with pytest.raises(InputError, match="^MODERNBERT_NUM_THREADS: found '.*', expected a number from 1 to 1,024$"):
        limit_threads()
    assert torch.get_num_threads() == 4


QUOTAS = {
    "no files": ("0::/\n", {}, None),
    "no limit": ("0::/\n", {"cpu.max": "max 100000\n"}, None),
    "a container": ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
    "a container that sees the host's path": ("0::/docker/1\n", {"cpu.max": "200000 100000\n"}, 2.0),
    "a parent's limit": (
        "0::/a/b\n", {"a/cpu.max": "50000 100000\n", "a/b/cpu.max": "max 100000\n", "a/c/cpu.max": "1000 100000\n"}, 0.5
    ),
    "version 1": (
        "3:memory:/x\n2:cpu,cpuacct:/x\n",
        {"cpu/x/cpu.cfs_quota_us": "300000\n", "cpu/x/cpu.cfs_period_us": "100000\n"}, 3.0
    ),
    "version 1 without a limit": (
        "2:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None
    ),
    "a file of another form": ("0::/\n", {"cpu.max": "much\n"}, None),
}  # fmt: skip


@pytest.mark.parametrize("case", QUOTAS)
def test_the_quota_is_that_of_the_control_groups(case: str, tmp_path: Path) -> None:
    membership, files, expected = QUOTAS[case]
    (tmp_path / "cgroup").write_text(membership)
    for name, content in files.items():
        path = tmp_path / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    assert devices._cpu_quota(tmp_path / "cgroup", tmp_path / "groups") == expected


def test_serial_operations_restore_the_number_of_threads(threads: None) -> None:
    with pytest.raises(ZeroDivisionError), serial_torch(100):
        assert torch.get_num_threads() == 1
        raise ZeroDivisionError
    assert torch.get_num_threads() == 4
    with serial_torch(1_000_000):
        assert torch.get_num_threads() == 4


def test_the_command_line_names_a_wrong_number_of_threads() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "modernbert", "doctor"], env=os.environ | {"MODERNBERT_NUM_THREADS": "many"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].endswith("found 'many', expected a number from 1 to 1,024")
