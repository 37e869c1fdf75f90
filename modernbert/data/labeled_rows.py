"""Labeled rows of files, folders, URLs and Hub data sets, of which one split is read."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from modernbert.data.hub_datasets import check_hub_rows, is_hub_dataset, read_hub_rows
from modernbert.data.input_errors import BrokenInput
from modernbert.data.readers import read_file, require_readers, starts_array
from modernbert.data.remote_files import is_url
from modernbert.data.rows import Row
from modernbert.data.source_files import File, Parts, list_source
from modernbert.data.splits import Subset, choose_split, is_shard, splits_in, subset_of
from modernbert.data.suffixes import CONLL, KNOWN, ROWS, format_of, unknown_suffix
from modernbert.errors import InputError, counted

__all__ = ["check_files", "read_rows"]

_LABELED = (*ROWS, *CONLL)
# Suffixes of data files that are not read; a split that has one of them would be incomplete.
_OTHER_DATA = (".arrow", ".feather", ".xlsx", ".zip", ".tar", ".tgz", ".bz2", ".xz", ".pkl", ".txt", ".orc")
_CONVERTED = "@refs/convert/parquet"
_README_BYTES = 1 << 20


def read_rows(sources: Sequence[str], split: str = "train", subset: str | None = None) -> list[Row]:
    """Read the rows of all sources, in order.

    A `.tsv` file has a line of column names and neither quotes nor escapes; `.csv` has them. `.jsonl` and `.ndjson`
    have one object per line; `.json` has an array of objects, or of strings, which become the column `text`. `.conll`,
    `.conllu` and `.iob2` have a word and its tags per line, and a blank line between sentences; see `conll.py`. Each
    but `.parquet` may be compressed as `.gz` or `.zst`.

    Args:
        sources: Files, folders, URLs of either, or names of data sets on the Hugging Face Hub (`owner/name`,
            `owner/name@revision`, `hf://datasets/owner/name`). A file is read whatever its name is.
        split: The split to read of folders and data sets, found by the conventions of `datasets`.
        subset: The subset (configuration) of a folder with a README.md that lists them, or of a Hub data set.

    Raises:
        InputError: A file or row cannot be read, or a data set does not have the split; names it.
    """
    rows: list[Row] = []
    for source in sources:
        if is_hub_dataset(source):
            rows += read_hub_rows(source, split, subset)
            continue
        files = _files(source, split, subset)
        require_readers(files)
        for file in files:
            rows += _rows_of(file)
    if not rows:
        raise InputError(f"{', '.join(sources)}: found no row, expected at least one")
    return rows


def check_files(sources: Sequence[str], split: str, subset: str | None = None) -> None:
    """Check that all sources exist and can be read, without reading them.

    Raises:
        InputError: A source does not exist or has an unknown format, or a library is missing.
    """
    for source in sources:
        if is_hub_dataset(source):
            check_hub_rows(source, split, subset)
        else:
            require_readers(_files(source, split, subset, report=False))


def _rows_of(file: File) -> Iterator[Row]:
    for row in read_file(file, strict=True):
        if isinstance(row, BrokenInput):
            raise row
        yield row


def _files(source: str, split: str, subset: str | None, *, report: bool = True) -> list[File]:
    listed = list(list_source(source, lambda name: _is_hidden((name, "")), follow_links=True))
    if [parts for parts, _ in listed] == [()]:
        if subset is not None:
            raise InputError(f"subset: found {subset!r}, but {source} is a file, expected a data set")
        ((_, file),) = listed
        _check_format(file)
        return [file]
    listed = [each for each in listed if not _is_hidden(each[0])]
    chosen = _subset(source, listed, subset)
    by_names = chosen.patterns is None
    known = [(parts, file) for parts, file in listed if _has_rows(file) or not by_names]
    if not known:
        raise InputError(f"{source}: no labeled file there, expected {', '.join(_LABELED)}")
    paths = [parts for parts, _ in known]
    is_pattern = is_url(source) and "*" in source
    if is_pattern and subset is None and len({tuple(splits_in(parts)) for parts in paths}) == 1:
        return [file for _, file in known]
    name, numbers = choose_split(paths, split, source, chosen)
    if by_names and not is_shard(paths[numbers[0]]):
        _check_complete(source, listed, paths, numbers)
    found = [known[number][1] for number in numbers]
    for file in found:
        _check_format(file)
    if report:
        left_out = ["/".join(parts) for n, (parts, _) in enumerate(known) if n not in numbers]
        left_out = [path for path in left_out if path != "README.md"]
        more = f"; left out {', '.join(left_out[:6])}{' ...' if len(left_out) > 6 else ''}" if left_out else ""
        print(f"{source}: split {name}, {len(found)} of {counted(len(known), 'file')}{more}")
    return found


def _check_format(file: File) -> None:
    if format_of(file) not in KNOWN:
        raise unknown_suffix(file)
    if format_of(file) not in _LABELED:
        raise InputError(f"{file}: has text without fields, expected labeled rows: {', '.join(_LABELED)}")


def _is_hidden(parts: Parts) -> bool:
    return any(part.startswith(".") for part in parts) or any(part.startswith("__") for part in parts[:-1])


def _subset(source: str, listed: Sequence[tuple[Parts, File]], name: str | None) -> Subset:
    if source.endswith(_CONVERTED):
        # The Hub's own conversion has a folder per subset, and no README.md.
        folders = sorted({parts[0] for parts, _ in listed if len(parts) > 1})
        chosen = name or (folders[0] if len(folders) == 1 else None)
        if chosen not in folders:
            raise InputError(f"{source}: found the subsets {', '.join(folders)}; choose one with `subset=NAME`")
        return Subset((str(chosen),))
    readme = next((file for parts, file in listed if parts == ("README.md",)), None)
    if readme is None:
        return subset_of(None, name, source)
    try:
        with readme.open("rb") as stored:
            text = stored.read(_README_BYTES).decode("utf-8", "replace")
    except OSError as error:
        raise InputError(f"{readme}: cannot be read ({error.strerror or error})") from None
    return subset_of(text, name, source)


def _check_complete(
    source: str, listed: Sequence[tuple[Parts, File]], paths: Sequence[Parts], chosen: Sequence[int]
) -> None:
    """Check that no data file of the chosen split has a format that is not read."""
    splits = {split for number in chosen for split in splits_in(paths[number])}
    for parts, file in listed:
        if Path(parts[-1]).suffix.lower() in _OTHER_DATA and splits_in(parts):
            if set(splits_in(parts)) <= splits:
                raise InputError(
                    f"{file}: unknown format, but its name is that of the split that {source} is read for, expected "
                    f"{', '.join(_LABELED)}; convert it, or name the files to read"
                )


def _has_rows(file: File) -> bool:
    """Return whether a file in a folder is one to read; a .json file may be any object there."""
    return format_of(file) in _LABELED and (format_of(file) != ".json" or starts_array(file))
