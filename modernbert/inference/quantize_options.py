"""Options of the quantization of a model."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from modernbert.common_options import ModelRevision
from modernbert.option_types import FileOrUrl

__all__ = ["QuantizeConfig"]


@dataclass(frozen=True)
class QuantizeConfig(ModelRevision):
    """Write a model folder with int8 layers, for inference on a CPU, if its vectors agree with those of float32.

    The mean cosine must be at least 0.999, and the least 0.995; otherwise nothing is written.
    """

    model: str
    """Model folder, or name of a model on the Hub."""
    _: KW_ONLY
    output: Path
    """New model folder."""
    texts: FileOrUrl
    """File or URL of texts to compare the vectors of, such as a few hundred rows of your own data."""
    text_field: str = "text"
    """Column that holds the text."""
