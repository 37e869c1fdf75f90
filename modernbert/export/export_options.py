"""Options of the ONNX export."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from modernbert.common_options import ModelRevision

__all__ = ["ExportConfig"]


@dataclass(frozen=True)
class ExportConfig(ModelRevision):
    """Write a model for ONNX Runtime, and compare its outputs with the model's before it is kept."""

    model: str
    """Model folder, or name of a model on the Hub."""
    _: KW_ONLY
    output: Path
    """New folder for the ONNX model."""
    int8: bool = False
    """Also write an int8 model, if it stays accurate."""
    input: Path | None = None
    """File of texts to compare outputs on, besides generated ones; none, by default."""
