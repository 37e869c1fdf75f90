"""Atomic writes of files and folders."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from modernbert.errors import CheckFailed, InputError
from modernbert.files import check_target, new_folder, only_process, write_file, write_tensors

# No process has this number.
DEAD = 2**31 - 1


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
    write_tensors(tmp_path / "x.safetensors", {"transposed": base.T})
    assert torch.equal(load_file(tmp_path / "x.safetensors")["transposed"], base.T)


def test_a_parent_that_is_a_file_is_one_line(tmp_path):
    (tmp_path / "file").write_text("x")
    for write in (lambda path: write_file(path, "y"), lambda path: only_process(path).__enter__()):
        with pytest.raises(InputError, match="cannot be written"):
            write(tmp_path / "file" / "below")
    assert names(tmp_path) == ["file"]


def test_a_target_that_cannot_be_written_is_refused_before_the_work(tmp_path):
    (tmp_path / "file").write_text("x")
    for target, said in (
        (tmp_path, "is a folder, expected the name of a file"),
        (tmp_path / "file" / "below", "file is a file"),
        (Path("/proc/below"), "/proc is not writable"),
    ):
        if said.startswith("/proc") and os.access("/proc", os.W_OK):
            continue  # os.access allows everything for root
        with pytest.raises(InputError, match=said):
            check_target(target)
    check_target(tmp_path / "new" / "folder" / "file")
    check_target(None)
    assert names(tmp_path) == ["file"]


def test_the_next_write_removes_the_temporary_file_of_a_killed_process(tmp_path):
    (tmp_path / f"report.md.partial-{DEAD}").write_text("ha")
    (tmp_path / f"report.md.partial-{os.getppid()}").write_text("of a living process")
    write_file(tmp_path / "report.md", "whole")
    assert names(tmp_path) == ["report.md", f"report.md.partial-{os.getppid()}"]


def test_the_backup_of_a_killed_process_is_restored(tmp_path):
    aside = tmp_path / f"model.partial-previous-{DEAD}"
    aside.mkdir()
    (aside / "weights").write_text("old")
    with pytest.raises(RuntimeError), new_folder(tmp_path / "model", replace=True):
        raise RuntimeError
    assert names(tmp_path) == ["model"]
    assert (tmp_path / "model" / "weights").read_text() == "old"


def test_weights_have_the_mode_of_the_other_files(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    write_tensors(tmp_path / "x.safetensors", {"x": torch.zeros(3)})
    assert (tmp_path / "x.safetensors").stat().st_mode == (tmp_path / "config.json").stat().st_mode


def test_a_folder_that_fails_its_last_check_is_kept(tmp_path):
    for content in ("first", "second"):
        with pytest.raises(InputError, match=r"differs; it is kept as .*/model\.unverified$"):
            with new_folder(tmp_path / "model") as folder:
                (folder / "weights").write_text(content)
                raise CheckFailed("model: differs")
        assert names(tmp_path) == ["model.unverified"]
        assert (tmp_path / "model.unverified" / "weights").read_text() == content
    with new_folder(tmp_path / "model") as folder:
        (folder / "weights").write_text("third")
    assert names(tmp_path) == ["model", "model.unverified"]


LEFT = """
import os, sys
from pathlib import Path
from modernbert.files import new_folder, write_file
os.chdir(sys.argv[1])
if os.getuid() == 0:
    os.setuid(65_534)
for folder in ("model", f"model.partial-{2**31 - 1}"):
    os.mkdir(folder)
    Path(folder, "old").write_text("old")
    os.chmod(folder, 0o555)
with new_folder(Path("model"), replace=True) as folder:
    (folder / "new").write_text("new")
write_file(Path("report.html"), "new")
"""


def test_leftovers_that_cannot_be_deleted_stop_no_write(open_folder):
    done = subprocess.run([sys.executable, "-c", LEFT, str(open_folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (open_folder / "model").iterdir()] == ["new"]
    said = done.stderr.splitlines()
    assert len(said) == 2 and all("cannot be deleted (Permission denied); continuing" in line for line in said)
