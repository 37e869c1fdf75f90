"""A checkpoint is a commit: it is there whole, or it is not there.

In: tensors by file, and a state of plain data. Out: folders `step-00000123` under a root, each with safetensors files,
`state.json`, and `manifest.json`, which is written last and has the size and sha256 of every other file. A folder
counts only if its manifest verifies.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from modernbert.errors import InputError
from modernbert.storage import new_folder, remove_leftovers, sha256_of, write_tensors

__all__ = ["Checkpoint", "latest", "save"]

_MANIFEST = "manifest.json"
_STATE = "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """Point at a verified checkpoint; tensors are read when asked for."""

    folder: Path
    step: int
    state: dict[str, Any]

    def tensors(self, stem: str) -> dict[str, Tensor]:
        """Read the tensors saved under a file stem, onto the CPU."""
        return load_file(self.folder / f"{stem}.safetensors")


def save(
    root: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], *, keep: int
) -> Path:
    """Write a checkpoint, then remove all but the newest `keep`.

    `tensors` maps a file stem to named tensors. Folders of later steps than this one are left from damaged checkpoints
    that were passed over; they go too.

    Raises: InputError naming the folder if it cannot be written; earlier checkpoints are then as they were.
    """
    if keep < 2:
        raise InputError(
            f"keep: found {keep}, expected at least 2 checkpoints, so that one damaged does not end the run"
        )
    final = root / f"step-{step:08d}"
    with new_folder(final, replace=True) as folder:
        for stem, named in tensors.items():
            write_tensors(folder / f"{stem}.safetensors", named)
        (folder / _STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")
        files = {path.name: [path.stat().st_size, sha256_of(path)] for path in sorted(folder.iterdir())}
        (folder / _MANIFEST).write_text(json.dumps({"step": step, "files": files}, indent=1), encoding="utf-8")
    _rotate(root, step, keep)
    return final


def latest(root: Path) -> Checkpoint | None:
    """Return the newest checkpoint that verifies; say which ones were passed over, and why.

    Folders left half written by a killed run are removed.

    Raises: InputError if there are checkpoints, but none that verifies.
    """
    remove_leftovers(root / "step-*")
    folders = _folders(root)
    for folder in reversed(folders):
        fault = _fault(folder)
        if fault is None:
            state = json.loads((folder / _STATE).read_text(encoding="utf-8"))
            return Checkpoint(folder, _step(folder), state)
        print(f"{fault}; passing over this checkpoint", flush=True)
    if folders:
        raise InputError(f"{root}: none of the {len(folders)} checkpoints is whole, expected at least one")
    return None


def _fault(folder: Path) -> str | None:
    """Say which file of a checkpoint is damaged and how, or nothing."""
    manifest = folder / _MANIFEST
    try:
        listed = json.loads(manifest.read_text(encoding="utf-8"))
        files = [(folder / name, int(size), str(digest)) for name, (size, digest) in listed["files"].items()]
        step = int(listed["step"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{manifest}: cannot be read ({error})"
    if step != _step(folder):
        return f"{manifest}: found step {step}, expected {_step(folder)}"
    for path, size, digest in files:
        if not path.is_file():
            return f"{path}: is missing"
        if path.stat().st_size != size:
            return f"{path}: found {path.stat().st_size:,} bytes, expected {size:,}"
        found = sha256_of(path)
        if found != digest:
            return f"{path}: found sha256 {found[:16]}, expected {digest[:16]}"
    return None


def _rotate(root: Path, step: int, keep: int) -> None:
    folders = _folders(root)
    current = [folder for folder in folders if _step(folder) <= step]
    kept = set(current[-keep:])
    for folder in folders:
        if folder not in kept:
            shutil.rmtree(folder)


def _folders(root: Path) -> list[Path]:
    return sorted(folder for folder in root.glob("step-*") if folder.name.removeprefix("step-").isdigit())


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))
