"""Atomic writes: a reader sees the old file or folder or the new one, never a part of it.

New content is written to a temporary sibling, synced to disk, and renamed into place.
"""

import errno
import hashlib
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from modernbert.errors import CheckFailed, InputError

__all__ = [
    "UNVERIFIED",
    "check_target",
    "check_writable",
    "translate_errors",
    "move_into_place",
    "new_file",
    "new_folder",
    "only_process",
    "remove_leftovers",
    "sha256_of",
    "sync_file",
    "sync_folder",
    "try_delete",
    "unwrap_errors",
    "write_file",
    "write_tensors",
]

# Follows the name of a folder whose content failed its last check.
UNVERIFIED = ".unverified"

_LEFTOVER = ".partial-"
_PREVIOUS = "previous-"
_OLD = "old-"

logger = logging.getLogger(__name__)


def check_target(target: Path | None, *, overwrite: bool = True) -> None:
    """Check before long work that the file `target` can be written; None is accepted.

    Raises: InputError if `target` is a folder, exists and `overwrite` is false, or its folder is not writable.
    """
    if target is None:
        return
    if target.is_dir():
        raise InputError(f"{target}: is a folder, expected the name of a file")
    if target.exists() and not overwrite:
        raise InputError(f"{target}: exists already, expected a new file, or `overwrite=True` to replace it")
    check_writable(target)


def check_writable(target: Path) -> None:
    """Check before long work that a file or a folder can be written. Raises: InputError if it cannot."""
    target_folder = target.absolute()
    above = target_folder if target.is_dir() else next(path for path in target_folder.parents if path.exists())
    if not above.is_dir():
        raise InputError(f"{target}: cannot be written ({above} is a file)")
    if not os.access(above, os.W_OK | os.X_OK):
        raise InputError(f"{target}: cannot be written ({above} is not writable)")


@contextmanager
def new_folder(target: Path, *, replace: bool = False, kept: Path | None = None) -> Iterator[Path]:
    """Yield a temporary sibling of `target`; on success sync it to disk and rename it into place.

    On failure the temporary folder is removed, except on `CheckFailed`: then it is renamed to `kept` (default: `target`
    plus `UNVERIFIED`), and the error names it. In both cases `target` is unchanged. After a kill between the two
    renames, the next attempt first restores the previous folder.

    Raises: InputError if `target` exists and `replace` is false, or if the disk is full or not writable.
    """
    _put_back(target)
    if target.exists() and not replace:
        raise InputError(f"{target}: exists already, expected a new folder")
    with _partial_of(target) as partial:
        partial.mkdir()
        try:
            yield partial
        except CheckFailed as error:
            kept = kept or target.with_name(target.name + UNVERIFIED)
            raise CheckFailed(f"{error}; {_keep(partial, kept)}") from None
        move_into_place(partial, target)


def _keep(partial: Path, kept: Path) -> str:
    """Rename a folder that failed its check, replacing an earlier one, and return the sentence that names it."""
    try:
        move_into_place(partial, kept)
    except OSError as error:
        return f"it is kept as {partial} until the next attempt ({kept}: {error.strerror or error})"
    return f"it is kept as {kept}"


def move_into_place(folder: Path, target: Path) -> None:
    """Sync a folder and everything in it to disk, then rename it to `target`, replacing the old content.

    Raises: OSError if the disk is full or not writable; `target` is then unchanged.
    """
    for path in sorted(folder.rglob("*")):
        sync_file(path)
    sync_folder(folder)
    _rename(folder, target)


@contextmanager
def only_process(folder: Path) -> Iterator[None]:
    """Lock a folder for this process; the system releases the lock however the process ends.

    Raises: InputError if another process holds the lock, or the folder cannot be written.
    """
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise InputError(f"{folder}: another process is at work in this folder") from None
    except OSError as error:
        raise translate_errors(folder, error) from error
    try:
        yield
    finally:
        lock.release()


def write_file(target: Path, content: str | bytes) -> None:
    """Write `content` to a temporary file and rename it to `target`.

    Raises: InputError if the disk is full or not writable; the old file is then unchanged.
    """
    with new_file(target) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def new_file(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside `target` to write to; on success rename it to `target`.

    Raises: InputError if the disk is full or not writable; the old file is then unchanged.
    """
    with _partial_of(target) as partial:
        yield partial
        sync_file(partial)
        os.replace(partial, target)
        sync_folder(target.parent)


def write_tensors(path: Path, tensors: Mapping[str, Any], metadata: dict[str, str] | None = None) -> None:
    """Write named tensors as a safetensors file, inside a folder of `new_folder`.

    Raises: OSError with its errno if the disk is full or not writable.
    """
    # Imported here, because this import loads torch and writers of text do not need it.
    from safetensors.torch import save_file

    path.touch()
    mode = path.stat().st_mode
    with unwrap_errors():
        save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, path, metadata)
    # The library sets mode 0600; weights get the mode of the other files.
    path.chmod(mode)


@contextmanager
def unwrap_errors() -> Iterator[None]:
    """Raise the OSError that safetensors or LanceDB wrapped in another error."""
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, RuntimeError) as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None and isinstance(error, RuntimeError):
            raise
        raise OSError(int(number[1]) if number else 0, str(error)) from None


def remove_leftovers(target: Path) -> None:
    """Remove temporary files of killed processes beside `target`; files of live processes stay.

    A previous folder whose replacement was interrupted is restored. `target` may be a pattern.
    """
    for path in _leftovers(target, _PREVIOUS):
        _put_back(path.with_name(path.name.split(_LEFTOVER)[0]))
    for path in _leftovers(target):
        try_delete(path)


def try_delete(path: Path) -> None:
    """Delete a file or a folder that is no longer needed; if the system refuses, log a warning and continue.

    A folder is renamed first, so that no reader sees it half deleted. The next `remove_leftovers` deletes the rest.
    """
    doomed = path
    if path.is_dir() and not path.is_symlink() and _LEFTOVER not in path.name:
        names = (f"{path.name}{_LEFTOVER}{_OLD}{number}-{os.getpid()}" for number in count())
        renamed = next(other for name in names if not os.path.lexists(other := path.with_name(name)))
        with suppress(OSError):
            os.rename(path, renamed)
            doomed = renamed
    try:
        shutil.rmtree(doomed) if doomed.is_dir() and not doomed.is_symlink() else doomed.unlink(missing_ok=True)
    except OSError as error:
        shutil.rmtree(doomed, ignore_errors=True)  # the first call stops at the first error
        if os.path.lexists(doomed):
            reason = error.strerror or error
            logger.warning(
                "%s: cannot be deleted (%s); continuing. Delete it by hand to free its space.", doomed, reason
            )


def sha256_of(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sync_file(path: Path) -> None:
    """Call fsync on a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Call fsync on a folder; a rename in it is durable only after this."""
    if os.name == "posix":
        sync_file(path)


@contextmanager
def _partial_of(target: Path) -> Iterator[Path]:
    """Yield the temporary sibling of `target`; on failure remove it, except on `CheckFailed`."""
    partial = target.with_name(f"{target.name}{_LEFTOVER}{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(target)
        yield partial
    except CheckFailed:
        raise
    except BaseException as error:
        with suppress(OSError):
            shutil.rmtree(partial, ignore_errors=True) if partial.is_dir() else partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise translate_errors(target, error) from error
        raise


def _leftovers(target: Path, kind: str = "") -> list[Path]:
    """List temporary files of killed processes, and of earlier attempts of this one, beside `target`."""
    paths = target.parent.glob(f"{target.name}{_LEFTOVER}{kind}*")
    owners = {path: path.name.rsplit("-", 1)[-1] for path in paths}
    return [
        path
        for path, owner in owners.items()
        if not (owner.isdigit() and int(owner) != os.getpid() and _alive(int(owner)))
    ]


def _rename(partial: Path, target: Path) -> None:
    previous = target.with_name(f"{target.name}{_LEFTOVER}{_PREVIOUS}{os.getpid()}")
    if target.exists():
        os.rename(target, previous)
    try:
        os.rename(partial, target)
    except BaseException:
        _put_back(target)
        raise
    sync_folder(target.parent)
    if os.path.lexists(previous):
        try_delete(previous)


def _put_back(target: Path) -> None:
    """Restore the previous `target` after an interrupted replacement."""
    if target.exists():
        return
    for previous in _leftovers(target, _PREVIOUS)[:1]:
        with suppress(OSError):  # the writer reports the same error
            os.rename(previous, target)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def translate_errors(target: Path, error: OSError) -> InputError:
    """Return the InputError that says why `target` could not be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return InputError(f"{target}: no space left on the disk; nothing was kept of the attempt")
    return InputError(f"{target}: cannot be written ({error.strerror or error}); nothing was kept of the attempt")
