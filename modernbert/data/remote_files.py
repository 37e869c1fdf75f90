"""Files behind URLs, which are listed and opened like local ones. Errors of all stores become one-line errors."""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from typing import Any, ParamSpec, TypeVar

from modernbert.data.input_errors import Outage
from modernbert.errors import InputError
from modernbert.extras import missing

__all__ = ["RemoteFile", "dataset_url", "find_remote", "is_url"]

BUFFER_BYTES = 1 << 20
# The keys under which stores have a mark that changes with the content.
MARKS = ("ETag", "etag", "blob_id", "mtime")

_URL = re.compile(r"[a-z][a-z0-9+.-]*://")
_DATASET = re.compile(r"([\w.-]+)/[\w.-]+(@[\w./-]+)?")

Given = ParamSpec("Given")
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class RemoteFile:
    """The URL of a file, and its size and mark in the store."""

    url: str
    size: int
    """Bytes as stored; 0 if the store does not say."""
    mark: str
    """A text that changes with the content, such as an ETag; empty if the store has none."""
    filesystem: Any = field(repr=False, compare=False)
    path: str = field(repr=False, compare=False)

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """Return the last part of the path."""
        return PurePosixPath(self.path).name

    @property
    def suffix(self) -> str:
        """Return the suffix of the name, with its dot."""
        return PurePosixPath(self.path).suffix

    def open(self, mode: str = "rb") -> io.BufferedReader:
        """Open the file for reading.

        Raises:
            Outage: The store fails, here or at a later read; names the URL.
        """
        stored = _translate_errors(self.url, self.filesystem.open, self.path, mode)
        return io.BufferedReader(_Stream(stored, self.url), BUFFER_BYTES)


def is_url(text: str) -> bool:
    """Return whether a source is a URL rather than a path."""
    return _URL.match(text) is not None


def dataset_url(text: str) -> str | None:
    """Return the URL of a data set on the Hub for its name, `owner/name` or `owner/name@revision`; None for a path.

    A source is a path if it exists or its folder does, so that a misspelled path never becomes a request to the Hub.
    """
    match = _DATASET.fullmatch(text)
    if match is None or Path(text).exists() or Path(match[1]).is_dir():
        return None
    return f"hf://datasets/{text}"


def find_remote(url: str) -> list[tuple[tuple[str, ...], RemoteFile]]:
    """List the files below a URL, or the files that match its `*`, each with the parts of its path below the URL.

    Files are sorted by these parts, as in a local folder. The URL of one file gives that file, without parts.

    Raises:
        InputError: The scheme is unknown, its library is missing, or there is no file.
        Outage: The store does not answer.
    """
    from fsspec.core import url_to_fs

    try:
        filesystem, root = url_to_fs(url)
    except ImportError as error:
        if url.startswith("s3"):
            raise missing(url, "s3fs") from None
        raise _needs_library(url, error) from None
    except ValueError as error:
        raise InputError(f"{url}: {_line(error)}; expected s3://, gs://, hf://, file:// or a path") from None
    root = root.rstrip("/")
    if "*" in root:
        found = _translate_errors(url, filesystem.glob, root, detail=True)
        root = root[: root.index("*")].rpartition("/")[0]
    else:
        info = _translate_errors(url, filesystem.info, root)
        if info["type"] == "file":
            return [((), _remote_file(filesystem, root, info))]
        found = _translate_errors(url, filesystem.find, root, detail=True)
    files = [
        (tuple(path.removeprefix(root).strip("/").split("/")), _remote_file(filesystem, path, info))
        for path, info in found.items()
        if info["type"] == "file"
    ]
    if not files:
        raise InputError(f"{url}: no file there")
    return sorted(files, key=lambda item: item[0])


def _remote_file(filesystem: Any, path: str, info: dict[str, Any]) -> RemoteFile:
    mark = next((str(info[key]) for key in MARKS if info.get(key)), "")
    return RemoteFile(filesystem.unstrip_protocol(path), int(info.get("size") or 0), mark, filesystem, path)


class _Stream(io.RawIOBase):
    """A remote file whose store errors are translated."""

    def __init__(self, stored: Any, url: str) -> None:
        self._stored, self._url = stored, url

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = _translate_errors(self._url, self._stored.read, len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return _translate_errors(self._url, self._stored.seek, offset, whence)

    def tell(self) -> int:
        return _translate_errors(self._url, self._stored.tell)

    def close(self) -> None:
        if not self.closed:
            self._stored.close()
        super().close()


def _translate_errors(url: str, call: Callable[Given, Answer], *args: Given.args, **kwargs: Given.kwargs) -> Answer:
    """Call a store, and turn its exceptions into one-line errors with the URL."""
    try:
        return call(*args, **kwargs)
    except FileNotFoundError as error:
        # fsspec raises this for every failure of HTTP, from an error of aiohttp.
        cause: Any = error.__cause__ if url.startswith("http") else None
        status = getattr(cause, "status", None)
        if cause is None or status == HTTPStatus.NOT_FOUND:
            raise InputError(f"{url}: no such file or folder") from None
        reason = _line(cause) if status is None else f"{status} {cause.message}"
        raise Outage(f"{url}: cannot be read ({reason})") from None
    except ImportError as error:
        raise _needs_library(url, error) from None
    except Exception as error:
        raise Outage(f"{url}: cannot be read ({_line(error)})") from None


def _needs_library(url: str, error: ImportError) -> InputError:
    fix = ": pip install aiohttp requests" if url.startswith("http") else ""
    return InputError(f"{url}: needs a library to be read ({_line(error)}){fix}")


def _line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
