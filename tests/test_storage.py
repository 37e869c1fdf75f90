"""Files that are there whole or not at all."""

import resource

import pytest
import torch
from safetensors.torch import load_file

from modernbert.errors import InputError
from modernbert.storage import new_folder, write_tensors


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_disk_that_takes_no_more_tensors_is_one_line(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(InputError, match="model: cannot be written"), new_folder(tmp_path / "model") as folder:
            write_tensors(folder / "model.safetensors", {"large": torch.zeros(100_000)}, {"format": "pt"})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(tmp_path) == []


def test_strided_tensors_are_written_by_value(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    write_tensors(tmp_path / "x.safetensors", {"turned": base.T})
    assert torch.equal(load_file(tmp_path / "x.safetensors")["turned"], base.T)
