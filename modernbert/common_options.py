"""Groups of options that several commands share, each with one name, one type and one help text."""

from dataclasses import dataclass

from modernbert.engines.engine_names import EngineName
from modernbert.option_types import FileOrUrl, InferenceDtype, OnError

__all__ = ["Compute", "ModelRevision", "OneDevice", "TextFile"]


@dataclass(frozen=True, kw_only=True)
class ModelRevision:
    """Model."""

    revision: str | None = None
    """Commit, tag or branch of the model on the Hub; its main branch, by default."""


@dataclass(frozen=True, kw_only=True)
class OneDevice:
    """Computation."""

    device: str = "auto"
    """Device: auto, cpu, cuda or cuda:N."""
    dtype: InferenceDtype = "auto"
    """Data type of the computation; auto: bfloat16 where the device is fast at it, else float32. int8: the layers of
    a ModernBERT on a CPU, faster and less exact."""


@dataclass(frozen=True, kw_only=True)
class Compute(OneDevice):
    """Computation."""

    engine: EngineName = "auto"
    """Implementation of the encoder; auto: the fastest that supports the device."""


@dataclass(frozen=True, kw_only=True)
class TextFile:
    """Input."""

    input: FileOrUrl | None = None
    """File or URL of one, with one text per line or with rows: .jsonl, .json, .parquet, .csv, .tsv. Without texts and
    --input, lines of standard input are read."""
    text_field: str = "text"
    """Column that holds the text."""
    on_error: OnError = "fail"
    """What to do with rows that have no text or that the model cannot process."""
