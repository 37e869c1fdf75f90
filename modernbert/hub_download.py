"""Local copies of models on the Hugging Face Hub: a name to a folder."""

import logging
import os
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from textwrap import shorten

from modernbert.errors import InputError, shown

__all__ = ["MODEL_FILES", "at_revision", "find_folder", "find_tokenizer", "name_on_hub"]

logger = logging.getLogger("modernbert")

MODEL_FILES = ["*.json", "*.safetensors", "artifact.metadata"]
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_REVISION = re.compile(r"[\w.-]+(/[\w.-]+)*")
# The hub's own limit.
_MAX_HUB_NAME = 96


def find_folder(
    name: str | Path,
    revision: str | None = None,
    *,
    token: str | None = None,
    offline: bool = False,
    files: Sequence[str] = MODEL_FILES,
) -> Path:
    """Return a local folder, or the local copy of a model on the hub.

    Args:
        name: A folder, or a name on the hub: `owner/model`, or `owner/model@revision`.
        revision: A commit, tag or branch of the hub. Without a commit, the model may change, so the commit is logged.
        token: An access token for private models.
        offline: Use earlier downloads only.
        files: Patterns of the files to download.

    Raises: InputError if there is neither, with the hub's reason.
    """
    if not isinstance(name, (str, os.PathLike)) or not str(name):
        raise InputError(f"model: found {name!r}, expected a folder or the name of a model on the hub")
    folder = Path(name)
    # Path.is_dir raises for a name that is too long for a file.
    if os.path.isdir(folder):
        if revision is not None:
            raise InputError(f"revision: found {revision!r}, but {name} is a folder, which has none")
        return folder
    if os.path.exists(folder):
        raise InputError(f"{name}: is a file, expected a model folder")
    bare, revision = _split_revision(str(name), revision)
    if not _HUB_NAME.fullmatch(bare) or len(bare) > _MAX_HUB_NAME:
        raise InputError(f"{shown(str(name), 200)}: no such folder, and not a name on the hub (owner/model)")
    name = bare if revision is None else f"{bare}@{revision}"
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        found = Path(
            snapshot_download(
                bare, revision=revision, allow_patterns=list(files), token=token, local_files_only=offline
            )
        )
    except LocalEntryNotFoundError as error:
        raise InputError(
            f"{name}: no such folder, no earlier download, and the Hub cannot be reached ({_reason(error, offline)})"
        ) from None
    except Exception as error:  # the hub's client raises a dozen types
        reason = shorten(str(error), 200, placeholder=" ...")
        raise InputError(f"{name}: no such folder, and not available on the Hub ({reason})") from None
    if not _COMMIT.fullmatch(revision or ""):
        _log_commit(bare, revision or "main", found.name)
    return found


def at_revision(name: str | Path, revision: str | None) -> str:
    """Return the name of a model with its revision, `owner/model@revision`, as `find_folder` takes it.

    Raises: InputError if the name is a folder, or already has a revision, or the revision is not valid.
    """
    if revision is None:
        return str(name)
    if os.path.exists(name):
        kind = "folder" if os.path.isdir(name) else "file"
        raise InputError(f"revision: found {revision!r}, but {name} is a {kind}, which has none")
    bare, revision = _split_revision(str(name), revision)
    return f"{bare}@{revision}"


def _split_revision(name: str, revision: str | None) -> tuple[str, str | None]:
    """Return a name on the hub without its revision, and the revision that it or the option has."""
    bare, at, of_name = name.partition("@")
    if at and revision is not None:
        raise InputError(f"revision: found {revision!r}, but {shown(name, 200)} has one")
    revision = of_name if at else revision
    if revision is None:
        return bare, None
    if at and os.path.isdir(bare):
        raise InputError(f"revision: found {shown(of_name, 80)!r}, but {bare} is a folder, which has none")
    if not _REVISION.fullmatch(revision) or ".." in revision:
        raise InputError(f"revision: found {shown(revision, 80)!r}, expected a commit, tag or branch")
    return bare, revision


@cache
def _log_commit(name: str, revision: str, commit: str) -> None:
    """Log which commit a branch or tag is now, once in a process."""
    logger.info("%s: %s is commit %s", name, revision, commit)


def _reason(error: Exception, offline: bool) -> str:
    """Return in a few words why the Hub was not asked, or did not answer."""
    from huggingface_hub import constants

    if offline:
        return "offline=True"
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    return shorten(str(error.__cause__ or error), 120, placeholder=" ...")


def name_on_hub(name: str | Path) -> str | None:
    """Return the name of a model that was downloaded from the Hub, without its revision; None for any folder."""
    bare = str(name).partition("@")[0]
    if os.path.isdir(name) or not _HUB_NAME.fullmatch(bare):
        return None
    from huggingface_hub import constants

    cached = Path(constants.HF_HUB_CACHE) / f"models--{bare.replace('/', '--')}"
    return bare if cached.is_dir() else None


def find_tokenizer(name: str) -> Path:
    """Return a local tokenizer file or folder, or the local copy of a model's tokenizer on the hub, without weights.

    Raises: InputError if there is neither, with the hub's reason.
    """
    # A name that ends in .json is a path; `Tokenizer.load` reports that it does not exist.
    if os.path.lexists(name) or name.endswith(".json"):
        return Path(name)
    try:
        return find_folder(name, files=["*.json"])
    except InputError as error:
        raise InputError(f"{name}: no such tokenizer file or folder, and not on the hub ({error})") from None
