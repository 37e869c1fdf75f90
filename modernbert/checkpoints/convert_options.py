"""Options of the conversion of checkpoints."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Gt

from modernbert.common_options import ModelRevision

__all__ = ["ConvertConfig"]


@dataclass(frozen=True)
class ConvertConfig(ModelRevision):
    """Convert a checkpoint of the reference repository, or a pytorch_model.bin, to a model folder.

    Nothing in the file is executed. Options of the model are needed only if the checkpoint does not store them.
    """

    checkpoint: Path
    """A Composer checkpoint (.pt), or a pytorch_model.bin."""
    _: KW_ONLY
    output: Path
    """New model folder, or FILE.safetensors for the tensors alone."""
    tokenizer: str | None = None
    """A folder with a tokenizer, or a model on the Hub; the tokenizer in the checkpoint, by default."""
    training_config: Path | None = None
    """The YAML file that the checkpoint was trained with; none, by default."""
    num_attention_heads: Annotated[int, Ge(1)] | None = None
    """Attention heads, if the checkpoint does not store their number."""
    max_position_embeddings: Annotated[int, Ge(1)] | None = None
    """Maximum tokens of a text, if the checkpoint does not store it."""
    global_attn_every_n_layers: Annotated[int, Ge(1)] | None = None
    """Distance between layers with global attention, if the checkpoint does not store it."""
    local_attention: Annotated[int, Ge(1)] | None = None
    """Attention window of the other layers, if the checkpoint does not store it."""
    global_rope_theta: Annotated[float, Gt(0)] | None = None
    """RoPE base of layers with global attention, if the checkpoint does not store it: 10000 in phase 1, then 160000."""
    local_rope_theta: Annotated[float, Gt(0)] | None = None
    """RoPE base of the other layers, if the checkpoint does not store it."""
    norm_eps: Annotated[float, Gt(0)] | None = None
    """LayerNorm epsilon, if the checkpoint does not store it."""
