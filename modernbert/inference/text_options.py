"""Options of the commands that apply a model to texts: embed, classify, tag, rerank, fill-mask."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge

from modernbert.common_options import Compute, ModelRevision, TextFile
from modernbert.engines.engine_names import EngineName
from modernbert.option_types import Executor, FileOrUrl, InferenceDtype, Overflow

__all__ = ["ClassifyConfig", "EmbedConfig", "FillMaskConfig", "RerankConfig", "TagConfig"]


@dataclass(frozen=True)
class EmbedConfig(ModelRevision):
    """Write one embedding for each text.

    Input of any size is embedded chunk by chunk. A stopped command continues with the chunks that are not finished. The
    output file appears when it is complete.
    """

    model: str
    """Model folder, or name of a model on the Hub."""
    texts: Sequence[str] = ()
    """Texts; without texts and --input, lines of standard input are read."""
    _: KW_ONLY
    input: Sequence[FileOrUrl] = ()
    """File or URL of one, with one text per line or with rows: .jsonl, .json, .parquet, .csv, .tsv; repeat for
    several."""
    text_field: str = "text"
    """Column that holds the text."""
    on_error: Literal["fail", "skip", "null"] = "fail"
    """What to do with rows that have no text or that the model cannot process; null writes a vector of NaN."""
    output: Path | None = None
    """File to write: .npy, .jsonl, .parquet, or a .lance folder; JSON lines on standard output, by default."""
    overwrite: bool = False
    """Replace the file or folder of --output if it exists."""
    pooling: Literal["mean", "cls"] | None = None
    """Pooling of token vectors; from the model, by default."""
    normalize: bool = True
    """Scale embeddings to length 1."""
    prompt: str | None = None
    """Text in front of each text; from the model, by default."""
    truncate_dim: Annotated[int, Ge(1)] | None = None
    """Number of components to keep; all, by default."""
    overflow: Overflow = "error"
    """What to do with texts over the length limit."""
    precision: Literal["float32", "float16", "int8", "binary"] = "float32"
    """Data type of the embeddings that are written."""
    device: Sequence[str] = ("auto",)
    """Device: auto, cpu, cuda or cuda:N; repeat for one process on each."""
    dtype: InferenceDtype = "auto"
    """Data type of the computation; auto: bfloat16 where the device is fast at it, else float32. int8: the layers of
    a ModernBERT on a CPU, faster and less exact."""
    engine: EngineName = "auto"
    """Implementation of the encoder; auto: the fastest that supports the device."""
    executor: Executor = "local"
    """Where to compute: local, or ray for the cluster that RAY_ADDRESS names."""
    processes: Annotated[int, Ge(1)] | None = None
    """Number of processes; one for each device, by default, or for each GPU of the cluster."""


@dataclass(frozen=True)
class ClassifyConfig(ModelRevision, Compute, TextFile):
    """Print the labels of texts, or of pairs of texts, with their probabilities."""

    model: str
    """Model folder, or name of a model on the Hub."""
    texts: Sequence[str] = ()
    """Texts; without texts and --input, lines of standard input are read."""
    _: KW_ONLY
    pair_field: str | None = None
    """Column that holds the second text, for a model trained on pairs of texts."""
    top_k: Annotated[int, Ge(1)] | None = 1
    """Number of labels to print for a text."""
    json: bool = False
    """Print a JSON object for each text, with all labels."""
    overflow: Overflow = "error"
    """What to do with texts over the length limit."""


@dataclass(frozen=True)
class TagConfig(ModelRevision, Compute, TextFile):
    """Print the spans that a token classification model finds in texts."""

    model: str
    """Model folder, or name of a model on the Hub."""
    texts: Sequence[str] = ()
    """Texts; without texts and --input, lines of standard input are read."""
    _: KW_ONLY
    json: bool = False
    """Print a JSON object for each text."""
    overflow: Overflow = "error"
    """What to do with texts over the length limit."""


@dataclass(frozen=True)
class RerankConfig(ModelRevision, Compute, TextFile):
    """Print texts in the order of their relevance to a query.

    A cross-encoder scores the pairs; other models compare embeddings by cosine similarity or MaxSim.
    """

    model: str
    """Model folder, or name of a model on the Hub."""
    query: str
    """The query."""
    texts: Sequence[str] = ()
    """Texts; without texts and --input, lines of standard input are read."""
    _: KW_ONLY
    top_k: Annotated[int, Ge(1)] | None = None
    """Number of texts to print; all, by default."""
    json: bool = False
    """Print a JSON object for each text."""
    overflow: Overflow = "error"
    """What to do with texts over the length limit."""


@dataclass(frozen=True)
class FillMaskConfig(ModelRevision, Compute, TextFile):
    """Print the most probable tokens for each [MASK] in texts."""

    model: str
    """Model folder, or name of a model on the Hub."""
    texts: Sequence[str] = ()
    """Texts with at least one [MASK]; without texts and --input, lines of standard input are read."""
    _: KW_ONLY
    top_k: Annotated[int, Ge(1)] = 5
    """Number of tokens to print for each mask."""
    json: bool = False
    """Print a JSON object for each text."""
