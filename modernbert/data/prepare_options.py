"""Options of the commands that read a corpus: tokenizer and prepare."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Lt, MultipleOf

from modernbert.option_types import Executor, FileOrUrl, OnError

__all__ = ["Documents", "PrepareConfig", "SplitDocuments", "TokenizerConfig"]


@dataclass(kw_only=True)
class Documents:
    """How files become documents."""

    text_field: str = "text"
    """Column that holds the text, in files with rows."""
    txt_unit: Literal["file", "line", "paragraph"] = "file"
    """What counts as one document in .txt, .md and .rst files: the whole file, each line, or each paragraph. Commands
    that use a model, such as embed, take each line as one text."""
    invalid: Literal["repair", "refuse"] = "repair"
    """What to do with text that is not UTF-8: repair replaces invalid bytes by U+FFFD."""
    on_error: OnError = "fail"
    """What to do with unreadable files and rows; skip lists them."""


@dataclass(kw_only=True)
class SplitDocuments(Documents):
    """Which documents are used."""

    heldout: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Share of the documents to hold out. The text alone decides which ones, so copies stay together."""
    deduplicate: bool = False
    """Keep only the first of the documents with the same text."""


@dataclass(kw_only=True)
class TokenizerConfig(Documents):
    """Train a tokenizer on text: a byte-level BPE vocabulary with the layout of ModernBERT's."""

    output: Path
    """New folder for the tokenizer."""
    input: Sequence[FileOrUrl] = ()
    """File, folder, URL (s3://, gs://, hf://, ...) or data set on the Hub; repeat for several. Without it, --adapt."""
    vocab_size: Annotated[int, Ge(384), MultipleOf(64)] = 50_368
    """Number of entries, a multiple of 64."""
    max_length: Annotated[int, Ge(3)] = 8_192
    """Maximum tokens of a text, written as model_max_length for other libraries."""
    adapt: Path | None = None
    """tokenizer.json of OLMo that gets ModernBERT's special tokens, without training; none, by default."""


@dataclass(kw_only=True)
class PrepareConfig(SplitDocuments):
    """Tokenize documents into shards for pretraining.

    A stopped command continues with the shards that are finished. A finished folder is verified and reused.
    """

    input: Sequence[FileOrUrl]
    """File, folder, URL (s3://, gs://, hf://, ...) or data set on the Hub; repeat for several."""
    tokenizer: str
    """A tokenizer.json, a folder with one, or a model on the Hub."""
    output: Path
    """Folder to write, with the shards in `train` and `heldout`."""
    processes: Annotated[int, Ge(1)] | None = None
    """Number of processes; one for each core, by default."""
    executor: Executor = "local"
    """Where to tokenize: local, or ray for the cluster that RAY_ADDRESS names."""
