"""Checkpoints survive what happens to files: damage, full disks, kills, rotation."""

import json
import resource
import subprocess
import sys

import pytest
import torch

from modernbert.errors import InputError
from modernbert.training.run_checkpoint import checkpoints, latest, save


def tensors(value):
    return {
        "weights": {"a.b": torch.full((3, 4), float(value)), "c": torch.arange(5)},
        "optimizer": {"step": torch.tensor(value)},
    }


def saved(root, *steps, keep=9):
    for step in steps:
        save(root, step, tensors(step), {"cursor": [step, {"x": 0.1}]}, keep=keep)


def names(root):
    return sorted(path.name for path in root.iterdir())


def test_what_was_saved_comes_back(tmp_path):
    saved(tmp_path, 7)
    found = latest(tmp_path)
    assert (found.step, found.state) == (7, {"cursor": [7, {"x": 0.1}]})
    for stem, named in tensors(7).items():
        loaded = found.tensors(stem)
        assert loaded.keys() == named.keys()
        assert all(torch.equal(loaded[name], named[name]) for name in named)


def test_strided_tensors_are_saved_by_value(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    save(tmp_path, 1, {"weights": {"turned": base.T}}, {}, keep=2)
    assert torch.equal(latest(tmp_path).tensors("weights")["turned"], base.T)


def test_nothing_there_is_no_checkpoint(tmp_path):
    assert latest(tmp_path) is None
    assert latest(tmp_path / "absent") is None


def test_rotation_keeps_the_newest(tmp_path):
    saved(tmp_path, 1, 2, 3, 10, keep=2)
    assert names(tmp_path) == ["step-00000003", "step-00000010"]
    with pytest.raises(InputError, match="at least 2"):
        saved(tmp_path, 11, keep=1)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [flip, cut, lambda path: path.unlink(), lambda path: path.write_bytes(b"")])
@pytest.mark.parametrize("name", ["weights.safetensors", "state.json", "manifest.json"])
def test_a_damaged_checkpoint_is_passed_over_and_named(tmp_path, capsys, name, damage):
    saved(tmp_path, 1, 2)
    damage(tmp_path / "step-00000002" / name)
    assert latest(tmp_path).step == 1
    printed = capsys.readouterr().out
    assert "step-00000002" in printed and printed.count("\n") == 1


def test_only_damaged_checkpoints_is_an_error(tmp_path):
    saved(tmp_path, 1, 2)
    for folder in tmp_path.iterdir():
        flip(folder / "weights.safetensors")
    with pytest.raises(InputError, match="all 2 checkpoints are damaged"):
        latest(tmp_path)


def test_saving_goes_on_below_damaged_later_steps(tmp_path):
    saved(tmp_path, 1, 2, 3, 4)
    flip(tmp_path / "step-00000003" / "weights.safetensors")
    flip(tmp_path / "step-00000004" / "weights.safetensors")
    assert latest(tmp_path).step == 2
    saved(tmp_path, 3, keep=2)
    assert names(tmp_path) == ["step-00000002", "step-00000003"]
    assert latest(tmp_path).step == 3


def test_a_half_written_folder_is_cleared(tmp_path):
    saved(tmp_path, 1)
    stale = tmp_path / f"step-00000002.partial-{2**31 - 1}"
    stale.mkdir()
    (stale / "weights.safetensors").write_bytes(b"x")
    assert latest(tmp_path).step == 1
    assert names(tmp_path) == ["step-00000001"]


def test_a_failed_write_leaves_older_checkpoints_alone(tmp_path):
    saved(tmp_path, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(InputError, match="step-00000002: cannot be written"):
            save(tmp_path, 2, {"weights": {"large": torch.zeros(100_000)}}, {}, keep=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(tmp_path) == ["step-00000001"]
    assert latest(tmp_path).step == 1


def test_a_root_that_is_a_file_is_named(tmp_path):
    (tmp_path / "runs").write_text("not a folder")
    with pytest.raises(InputError, match="cannot be written"):
        saved(tmp_path / "runs", 1)


ENDLESS = """
import sys
from pathlib import Path
import torch
from modernbert.training.run_checkpoint import save
step = 0
while True:
    step += 1
    save(Path(sys.argv[1]), step, {"weights": {"w": torch.full((200_000,), float(step))}}, {"step": step}, keep=3)
    print(step, flush=True)
"""


def test_a_kill_at_any_moment_leaves_the_last_finished_one(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ENDLESS, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    for _ in range(5):
        reported = int(process.stdout.readline())
    process.kill()
    # What the pipe still holds was finished too.
    rest = process.stdout.read().split()
    process.wait()
    process.stdout.close()
    found = latest(tmp_path)
    assert found.step >= max([reported, *map(int, rest)])
    assert found.tensors("weights")["w"][0].item() == found.step == found.state["step"]
    assert all((folder / "manifest.json").exists() for folder in tmp_path.iterdir())
    assert json.loads((found.folder / "manifest.json").read_text())["step"] == found.step


# A folder that refuses to lose its files, as a folder on NFS does that a reader holds. Root may delete everything.
REFUSED = """
import logging, os, sys
import torch
from pathlib import Path
from modernbert.training.run_checkpoint import CheckpointWriter, latest, save
from modernbert.training.distributed import World

logging.basicConfig(format="%(message)s", stream=sys.stdout)
rank, size = int(sys.argv[2]), int(sys.argv[3])
os.chdir(sys.argv[1])
if os.getuid() == 0:
    os.setuid(65_534)
world = World()
if size > 1:
    store = torch.distributed.FileStore("store", size)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=size)
    world = World(rank, size, None, torch.distributed.new_group(backend="gloo"))
with CheckpointWriter(Path("checkpoints"), keep=2, world=world) as saver:
    for step in range(1, 6):
        saver.save(step, {"weights": {"w": torch.full((3,), float(step)), "b": torch.zeros(2)}}, {"step": step})
        saver.wait()
        if step in (1, 2) and world.is_main:
            os.chmod(f"checkpoints/step-{step:08d}", 0o555)
        if size > 1:
            torch.distributed.barrier()
print("latest", latest(Path("checkpoints")).step)
"""


def run_refused(root, rank=0, size=1):
    command = [sys.executable, "-c", REFUSED, str(root), str(rank), str(size)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.parametrize("size", [1, 2])
def test_a_run_goes_on_past_a_checkpoint_that_cannot_be_deleted(open_folder, size):
    processes = [run_refused(open_folder, rank, size) for rank in range(size)]
    said = [process.communicate(timeout=100)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * size, said
    lines = said[0].splitlines()
    warnings = [line for line in lines if "cannot be deleted (Permission denied); continuing" in line]
    assert len(warnings) >= 2 and all("step-0000000" in line for line in warnings)
    assert all(text.splitlines()[-1] == "latest 5" for text in said)
    # What could not be deleted is no checkpoint any more.
    assert [path.name for path in sorted((open_folder / "checkpoints").glob("step-????????"))] == [
        "step-00000004", "step-00000005",
    ]  # fmt: skip
    assert latest(open_folder / "checkpoints").step == 5
    assert [step.step for step in checkpoints(open_folder / "checkpoints")] == [4, 5]
