"""Choosing a device and a precision."""

from pathlib import Path

import pytest
import torch

from modernbert.devices import autocast, choose_device, choose_precision, peak_memory, restart_peak
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
