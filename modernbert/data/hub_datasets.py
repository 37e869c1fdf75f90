"""Data sets of the Hugging Face Hub by name, through the `datasets` library."""

import re
import sys
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from modernbert.data.remote_files import dataset_url
from modernbert.data.rows import Row
from modernbert.data.splits import match_split
from modernbert.errors import InputError, counted
from modernbert.extras import missing

__all__ = ["check_hub_rows", "is_hub_dataset", "name_of_dataset", "read_hub_rows"]

_URL = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+?)(?:@([\w./-]+))?/?")
_NAME = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+)")
# The Hub's conversions of data sets that `datasets` cannot read are read as folders.
_CONVERTED = "refs/convert/parquet"
_ROWS_AT_A_TIME = 1_024


def is_hub_dataset(source: str) -> bool:
    """Return whether a source is the name or the URL of a whole data set on the Hub.

    >>> is_hub_dataset("hf://datasets/stanfordnlp/sst2"), is_hub_dataset("hf://datasets/stanfordnlp/sst2/x.parquet")
    (True, False)
    """
    match = _URL.fullmatch(dataset_url(source) or source)
    return match is not None and match[2] != _CONVERTED


def name_of_dataset(source: str) -> str | None:
    """Return the name of the data set on the Hub that a source is, or is a file of.

    >>> name_of_dataset("hf://datasets/stanfordnlp/sst2@main/x.parquet"), name_of_dataset("./train.tsv")
    ('stanfordnlp/sst2', None)
    """
    match = _NAME.match(dataset_url(source) or source)
    return match[1] if match else None


def read_hub_rows(source: str, split: str, subset: str | None = None) -> Iterator[Row]:
    """Yield the rows of one split of a data set on the Hub. It is downloaded once and cached by `datasets`.

    Args:
        source: `owner/name` or `hf://datasets/owner/name`, each with or without `@revision`.
        split: The split. `validation`, `valid`, `val` and `dev` mean the same, and so do `test` and `eval`.
        subset: The subset (configuration), if the data set has several.

    Raises:
        InputError: The Hub cannot be reached, or the data set does not have the subset or the split.
    """
    builder = _open_builder(source, subset)
    name = match_split(_split_names(builder), split, source)
    try:
        builder.download_and_prepare()
        table = builder.as_dataset(split=name).with_format("arrow")
    except Exception as error:
        raise _one_line(source, error) from None
    print(f"{source}: split {name}, {counted(len(table), 'row')}")
    number = 0
    for batch in table.iter(batch_size=_ROWS_AT_A_TIME):
        for values in batch.to_pylist():
            yield Row(values, f"{source}:{name}[{number}]")
            number += 1


def check_hub_rows(source: str, split: str, subset: str | None = None) -> None:
    """Check that a data set on the Hub has a subset and a split, without reading its rows.

    Raises:
        InputError: It does not, the Hub cannot be reached, or `datasets` is not installed.
    """
    match_split(_split_names(_open_builder(source, subset)), split, source)


@lru_cache(maxsize=8)
def _open_builder(source: str, subset: str | None) -> Any:
    try:
        import datasets
    except ImportError:
        raise missing(source, "datasets") from None
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    match = _URL.fullmatch(dataset_url(source) or source)
    assert match is not None
    try:
        return datasets.load_dataset_builder(match[1], subset, revision=match[2])
    except Exception as error:
        raise _one_line(source, error) from None


def _split_names(builder: Any) -> list[str]:
    return [str(name) for name in builder.info.splits or builder.config.data_files or ()]


def _one_line(source: str, error: Exception) -> InputError:
    """Return the reason of an error of `datasets`, which raises many types, in one line."""
    text = str(error) or type(error).__name__
    reason = " ".join(text.partition("Example of usage")[0].split())[:300]
    remedy = ""
    if isinstance(error, ValueError) and "onfig" in reason:
        remedy = "; choose a subset with `subset=NAME`"
    elif isinstance(error, ConnectionError):
        remedy = "; check the name and the network"
    return InputError(f"{source}: {reason}{remedy}")
