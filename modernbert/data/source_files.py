"""The files of a source: a file, the files below a folder or URL, or the files of a Hub data set."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from modernbert.data.input_errors import BrokenInput
from modernbert.data.remote_files import RemoteFile, dataset_url, find_remote, is_url
from modernbert.data.suffixes import KNOWN, format_of
from modernbert.errors import InputError

__all__ = ["File", "Parts", "fail", "list_source"]

File = Path | RemoteFile
Parts = tuple[str, ...]
"""the path of a file below its folder or URL, part by part"""


def fail(error: InputError) -> None:
    """Raise an error."""
    raise error


def list_source(
    source: str | Path,
    skip: Callable[[str], bool],
    on_broken: Callable[[InputError], None] = fail,
    *,
    follow_links: bool = False,
) -> Iterable[tuple[Parts, File]]:
    """Return the files of a source, each with the parts of its path, sorted by them. A source that is a file has none.

    Args:
        source: A path, a URL, or `owner/name` of a data set on the Hugging Face Hub.
        skip: Whether to leave out local folders of this name.
        on_broken: Called with the error of a local folder that cannot be read.
        follow_links: Whether to list the files of linked local folders; otherwise the link is listed.

    Raises:
        InputError: There is no such file or folder.
    """
    text, path = str(source), Path(source)
    if is_url(text):
        return find_remote(text)
    if format_of(path) not in KNOWN and (url := dataset_url(text)):
        return find_remote(url)
    if path.is_dir():
        return _walk(path, (), frozenset(), skip, on_broken, follow_links)
    if path.exists():
        return [((), path)]
    raise InputError(f"{path}: no such file or folder")


def _walk(
    folder: Path,
    parts: Parts,
    above: frozenset[Path],
    skip: Callable[[str], bool],
    on_broken: Callable[[InputError], None],
    follow_links: bool,
) -> Iterator[tuple[Parts, File]]:
    real = folder.resolve()
    if real in above:
        return  # a link to a folder that contains it
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        on_broken(BrokenInput(folder, f"cannot be read ({error.strerror or error})"))
        return
    for entry in entries:
        if not entry.is_dir() or (entry.is_symlink() and not follow_links):
            yield (*parts, entry.name), entry
        elif not skip(entry.name):
            yield from _walk(entry, (*parts, entry.name), above | {real}, skip, on_broken, follow_links)
