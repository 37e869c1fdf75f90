"""Checkpoints of training runs, written atomically and in the background, by one process or several.

A checkpoint is a folder `step-00000123` with safetensors files, `state.json`, and `manifest.json`, which is written
last and has the size and SHA-256 of every other file. A folder whose manifest does not verify is ignored. Each process
writes its share of the tensors, or of their shards. A reader gets whole tensors, so that a run can continue with
another number of processes.
"""

import json
import logging
from collections.abc import Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from torch import Tensor

from modernbert.errors import InputError
from modernbert.files import (
    new_folder,
    remove_leftovers,
    sha256_of,
    sync_file,
    translate_errors,
    try_delete,
    write_tensors,
)
from modernbert.training.distributed import SINGLE_PROCESS, World, first_row, local_shard

__all__ = ["Checkpoint", "CheckpointWriter", "checkpoints", "latest", "newest_step", "open_checkpoint", "save"]

_MANIFEST = "manifest.json"
_STATE = "state.json"

logger = logging.getLogger(__name__)

Part = tuple[int, int]
"""(first row of a shard, number of rows of the whole tensor)"""


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint; its tensors are read on demand."""

    folder: Path
    step: int
    state: dict[str, Any]

    def tensors(self, stem: str) -> dict[str, Tensor]:
        """Read the whole tensors of the files whose names start with `stem`, onto the CPU."""
        parts: dict[str, list[tuple[int, Tensor]]] = {}
        for path in sorted(self.folder.glob(f"{stem}*.safetensors")):
            with safe_open(path, framework="pt") as file:
                first_rows = file.metadata() or {}
                for name in file.keys():
                    parts.setdefault(name, []).append((int(first_rows.get(name, "0")), file.get_tensor(name)))
        return {name: _joined(found) for name, found in parts.items()}


class CheckpointWriter:
    """Write checkpoints in the background: tensors are copied to the CPU at once, and written by a thread."""

    def __init__(
        self, root: Path, *, keep: int, kept_steps: Collection[int] = (), world: World = SINGLE_PROCESS
    ) -> None:
        self._root, self._keep, self._kept_steps, self._world = root, keep, kept_steps, world
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._running: Future[Path] | None = None

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        self._thread.shutdown(wait=True)
        if exception[0] is None:
            self.wait()

    def save(self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
        """Start to write a checkpoint, after the previous one is written.

        Raises: InputError if the previous one could not be written.
        """
        self.wait()
        copied = {stem: _copied(_of_process(named, self._world)) for stem, named in tensors.items()}
        self._running = self._thread.submit(
            _write, self._root, step, copied, dict(state), self._keep, self._kept_steps, self._world
        )

    def wait(self) -> None:
        """Wait until the checkpoint is written.

        Raises: InputError naming the folder if it could not be written; earlier checkpoints are then as they were.
        """
        if self._running is not None:
            running, self._running = self._running, None
            running.result()


def save(
    root: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    *,
    keep: int,
    kept_steps: Collection[int] = (),
) -> Path:
    """Write a checkpoint, then remove all but the newest `keep` and the checkpoints of `kept_steps`.

    `tensors` maps a file stem to named tensors. Checkpoints of later steps are removed too: they are damaged, or the
    run was rolled back.

    Raises: InputError naming the folder if it cannot be written; earlier checkpoints are then as they were.
    """
    mine = {stem: _of_process(named, SINGLE_PROCESS) for stem, named in tensors.items()}
    return _write(root, step, mine, dict(state), keep, kept_steps, SINGLE_PROCESS)


def latest(root: Path, *, clean: bool = True) -> Checkpoint | None:
    """Return the newest checkpoint that verifies; print which ones were skipped, and why.

    With `clean`, which one process of several sets, half-written folders of a killed run are removed.

    Raises: InputError if there are checkpoints, but none that verifies.
    """
    if clean:
        remove_leftovers(root / "step-*")
    folders = _folders(root)
    for folder in reversed(folders):
        fault = _fault(folder)
        if fault is None:
            return _opened(folder)
        if clean:
            print(f"{fault}; skipping this checkpoint", flush=True)
    if folders:
        raise InputError(f"{root}: all {len(folders)} checkpoints are damaged, expected at least one intact checkpoint")
    return None


def newest_step(root: Path) -> int | None:
    """Return the step of the newest checkpoint, without verifying it; None if there is none."""
    return max(map(_step, _folders(root)), default=None)


def checkpoints(root: Path) -> list[Checkpoint]:
    """Return all checkpoints under a root, oldest first.

    Raises: InputError if there is none, or one of them does not verify.
    """
    folders = _folders(root)
    if not folders:
        raise InputError(f"{root}: holds no checkpoint")
    return [open_checkpoint(folder) for folder in folders]


def open_checkpoint(folder: Path) -> Checkpoint:
    """Return one checkpoint, verified.

    Raises: InputError naming the file that is damaged or absent.
    """
    fault = _fault(folder)
    if fault is not None:
        raise InputError(fault)
    return _opened(folder)


def _opened(folder: Path) -> Checkpoint:
    step = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))["step"]
    return Checkpoint(folder, int(step), json.loads((folder / _STATE).read_text(encoding="utf-8")))


def _of_process(named: Mapping[str, Tensor], world: World) -> dict[str, tuple[Tensor, Part]]:
    """Return the tensors that this process writes: its shards and its share of the unsharded tensors."""
    loads = [0] * world.size
    chosen = {}
    for name, tensor in named.items():
        part = (first_row(tensor), tensor.shape[0] if tensor.ndim else 1)
        if local_shard(tensor) is not tensor:
            if world.holds_first_copy() and local_shard(tensor).numel():
                chosen[name] = (local_shard(tensor), part)
            continue
        writer = loads.index(min(loads))
        loads[writer] += tensor.numel()
        if writer == world.rank:
            chosen[name] = (tensor, part)
    return chosen


def _copied(named: Mapping[str, tuple[Tensor, Part]]) -> dict[str, tuple[Tensor, Part]]:
    return {name: (tensor.detach().to("cpu", copy=True), part) for name, (tensor, part) in named.items()}


def _write(
    root: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, tuple[Tensor, Part]]],
    state: Mapping[str, Any],
    keep: int,
    kept_steps: Collection[int],
    world: World,
) -> Path:
    """Write the files of this process; the main process then commits the folder."""
    if keep < 2:
        raise InputError(
            f"keep: found {keep}, expected at least 2 checkpoints, so that one damaged does not end the run"
        )
    final = root / f"step-{step:08d}"
    failure = None
    if world.is_main:
        try:
            with new_folder(final, replace=True) as folder:
                _commit(folder, step, tensors, state, world)
        except InputError as error:
            failure = str(error)
        _from_main({"failure": failure}, world)
        if failure is None:
            _rotate(root, step, keep, kept_steps)  # after the broadcast: no other process waits for it
    else:
        message = _from_main({}, world)
        if "folder" in message:
            _gather(_write_own(Path(message["folder"]), tensors, world), world)
            message = _from_main({}, world)
        failure = message["failure"]
    if failure is not None:
        raise InputError(failure)
    return final


def _commit(
    folder: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, tuple[Tensor, Part]]],
    state: Mapping[str, Any],
    world: World,
) -> None:
    """Have every process write its files, then write state and manifest."""
    _from_main({"folder": str(folder)}, world)
    for failure in _gather(_write_own(folder, tensors, world), world):
        if failure is not None:
            raise InputError(failure)
    (folder / _STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")
    files = {path.name: [path.stat().st_size, sha256_of(path)] for path in sorted(folder.iterdir())}
    (folder / _MANIFEST).write_text(json.dumps({"step": step, "files": files}, indent=1), encoding="utf-8")


def _write_own(folder: Path, tensors: Mapping[str, Mapping[str, tuple[Tensor, Part]]], world: World) -> str | None:
    """Write the files of this process; return the error message, if it fails."""
    suffix = "" if world.size == 1 else f"-{world.rank:05d}"
    try:
        for stem, named in tensors.items():
            first_rows = {
                name: str(first)
                for name, (tensor, (first, rows)) in named.items()
                if tensor.shape[:1] not in ((), (rows,))
            }
            path = folder / f"{stem}{suffix}.safetensors"
            write_tensors(path, {name: tensor for name, (tensor, _) in named.items()}, first_rows or None)
            sync_file(path)
    except OSError as error:
        return str(translate_errors(folder.with_name(folder.name.split(".")[0]), error))
    return None


def _joined(parts: list[tuple[int, Tensor]]) -> Tensor:
    ordered = [tensor for _, tensor in sorted(parts, key=lambda part: part[0])]
    return ordered[0] if len(ordered) == 1 else torch.cat(ordered)


def _from_main(message: dict[str, Any], world: World) -> dict[str, Any]:
    """Broadcast a message from the main process."""
    box = [message]
    if world.size > 1:
        dist.broadcast_object_list(box, src=0, group=world.writers)
    return box[0]


def _gather(failure: str | None, world: World) -> list[str | None]:
    """Return the failures of all processes, in the main process; elsewhere nothing."""
    if world.size == 1:
        return [failure]
    failures: list[str | None] = [None] * world.size
    dist.gather_object(failure, failures if world.is_main else None, dst=0, group=world.writers)
    return failures if world.is_main else []


def _fault(folder: Path) -> str | None:
    """Return which file of a checkpoint is damaged and how, or None."""
    manifest = folder / _MANIFEST
    try:
        listed = json.loads(manifest.read_text(encoding="utf-8"))
        files = [(folder / name, int(size), str(digest)) for name, (size, digest) in listed["files"].items()]
        step = int(listed["step"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{manifest}: cannot be read ({error})"
    # A copy may have another name.
    if _is_step(folder) and step != _step(folder):
        return f"{manifest}: found step {step}, expected {_step(folder)}"
    for path, size, digest in files:
        if not path.is_file():
            return f"{path}: is missing"
        if path.stat().st_size != size:
            return f"{path}: found {path.stat().st_size:,} bytes, expected {size:,}"
        found = sha256_of(path)
        if found != digest:
            return f"{path}: found sha256 {found[:16]}, expected {digest[:16]}"
        # The digest was computed from the file on disk, and so does not show that its end was lost while writing.
        if (reason := _unreadable(path)) is not None:
            return f"{path}: cannot be read ({reason})"
    return None


def _unreadable(path: Path) -> str | None:
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt"):
                pass
        elif path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
    except (SafetensorError, ValueError, OSError) as error:
        return str(error)
    return None


def _rotate(root: Path, step: int, keep: int, kept_steps: Collection[int]) -> None:
    """Delete the checkpoints that are not kept; one that cannot be deleted stays, with a warning."""
    try:
        folders = _folders(root)
    except InputError as error:
        logger.warning("%s; old checkpoints stay", error)
        return
    current = [folder for folder in folders if _step(folder) <= step]
    kept = {*current[-keep:], *(folder for folder in current if _step(folder) in kept_steps)}
    for folder in folders:
        if folder not in kept:
            try_delete(folder)


def _folders(root: Path) -> list[Path]:
    try:
        return sorted(folder for folder in root.glob("step-*") if _is_step(folder))
    except OSError as error:
        raise translate_errors(root, error) from error


def _is_step(folder: Path) -> bool:
    return folder.name.startswith("step-") and folder.name.removeprefix("step-").isdigit()


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))
