"""`modernbert push`: upload a model folder to the Hugging Face Hub, after it was checked.

Only the files of a model folder are uploaded, in one commit: until then, readers see the model that was there before.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from glob import escape
from pathlib import Path
from textwrap import shorten
from typing import Any

from modernbert.checkpoints.folder import ModelFolder
from modernbert.checkpoints.loading_examples import FOLDER
from modernbert.checkpoints.model_card import CARD, read_card
from modernbert.checkpoints.push_options import PushConfig
from modernbert.checkpoints.safetensors_files import read_weights
from modernbert.checkpoints.sentence_transformers_modules import listed_modules
from modernbert.errors import InputError, shown
from modernbert.files import UNVERIFIED

__all__ = ["PushConfig", "run"]

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_MOST_CHARS = 96
_ONNX = "onnx/model.onnx"
# Files that decide what the folder computes. Those on the Hub that the folder does not have are deleted in the commit,
# since a reader would combine them with the new ones.
_DECIDING = (
    "*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", "tokenizer.json",
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model",
    "modules.json", "modernbert_modules.json", "sentence_bert_config.json", "config_sentence_transformers.json",
    "artifact.metadata", "[0-9]_*/config.json", "[0-9]_*/*.safetensors", "onnx/*.onnx", "onnx/*.onnx_data",
    "export.json",
)  # fmt: skip
_UPLOADED = (*_DECIDING, CARD, "LICENSE*", "NOTICE*")
_REASONS = {
    401: "The access token is missing or not valid; log in with `hf auth login`, or set HF_TOKEN",
    403: "The access token may not write there; choose a name of your own, or a token with the role `write`",
    404: "There is no such name, or the access token may not see it",
    409: "The name is taken, or another upload is under way",
}


def run(config: PushConfig) -> str:
    """Upload a model folder, print its address on the Hub, and return it.

    Raises: InputError if the folder is not a model folder, the name is not OWNER/NAME, or the Hub cannot be reached or
        refuses the upload.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    if not _NAME.fullmatch(config.name) or len(config.name) > _MOST_CHARS:
        raise InputError(f"name: found {shown(config.name, 200)!r}, expected OWNER/NAME (for example me/my-model)")
    files = _checked_files(config.folder)
    contents: dict[str, Path | bytes] = {path.relative_to(config.folder).as_posix(): path for path in files}
    if (card := read_card(config.folder)) and _ONNX not in contents:  # ONNX Runtime loads local files only
        contents[CARD] = card.replace(FOLDER.encode(), config.name.encode())
    api = HfApi(library_name="modernbert")
    with _one_line_errors(config.name):
        api.create_repo(config.name, private=config.private, exist_ok=True)
        if config.private is not None and api.model_info(config.name).private != config.private:
            kinds = {True: "private", False: "public"}
            raise InputError(
                f"{config.name}: exists and is {kinds[not config.private]}, expected {kinds[config.private]}; "
                "change it in its settings on the Hub"
            )
        if config.revision is not None:
            api.create_branch(config.name, branch=config.revision, exist_ok=True)
        there = api.list_repo_files(config.name, revision=config.revision)
        gone = [name for name in there if name not in contents and _matches(name, _DECIDING)]
        operations: list[Any] = [CommitOperationAdd(name, content) for name, content in contents.items()]
        operations += [CommitOperationDelete(name) for name in gone]
        api.create_commit(config.name, operations, commit_message=config.message, revision=config.revision)
    address = f"{api.endpoint}/{config.name}" + (f"/tree/{config.revision}" if config.revision else "")
    print(address)
    return address


def _checked_files(folder: Path) -> list[Path]:
    """Return the files to upload of a folder that loads.

    Raises: InputError naming the file, if the folder is incomplete, invalid or not verified, or has links.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder, expected a model folder")
    if folder.name.endswith(UNVERIFIED):
        raise InputError(f"{folder}: failed its check when it was written, expected a model folder that passed it")
    opened = ModelFolder(folder)
    _check(opened)
    parts = [escape(module.path) for module in listed_modules(opened.files) if module.path]
    patterns = [*_UPLOADED, *(f"{part}/{name}" for part in parts for name in ("config.json", "*.safetensors"))]
    found = sorted(path for path in folder.rglob("*") if _matches(path.relative_to(folder).as_posix(), patterns))
    for path in found:
        if path.is_symlink() or path.parent.is_symlink() or not path.is_file():
            raise InputError(f"{path}: is a link or no file, expected a file of the folder itself")
    return found


def _check(folder: ModelFolder) -> None:
    """Read everything that a reader of the folder reads."""
    if (folder.path / _ONNX).is_file():
        _ = folder.config
    elif folder.is_modernbert:
        folder.load_projection(folder.load_model(takes_int8=True).hidden_size)
    else:
        read_weights(folder.path)
    _ = folder.tokenizer, folder.max_length, folder.embedding_config, folder.settings


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) and name.count("/") == pattern.count("/") for pattern in patterns)


@contextmanager
def _one_line_errors(name: str) -> Iterator[None]:
    """Turn the errors of the Hub's client into one line."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # the client raises a dozen types
        status = getattr(getattr(error, "response", None), "status_code", None)
        said = getattr(error, "server_message", None) or str(error.__cause__ or error).split("\n")[0]
        reason = _REASONS.get(status or 0) or ("The Hub refused it" if status else "The Hub cannot be reached")
        raise InputError(f"{name}: no commit was made. {reason} ({shorten(said, 200, placeholder=' ...')}).") from None
