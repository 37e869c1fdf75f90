"""`modernbert grow`: initialize a larger model from a trained one."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from modernbert.checkpoints.folder import save_folder
from modernbert.errors import InputError
from modernbert.model.config import ModelConfig
from modernbert.model.heads import MaskedLM
from modernbert.model.surgery import grow, layer_map
from modernbert.training.initial_model import find_start

__all__ = ["GrowConfig", "run"]

# Fields of the preset that are used; the others are those of the source.
_SHAPE = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


@dataclass
class GrowConfig:
    """What to grow (a model folder, a name on the hub, a checkpoint, a run), into which shape, and where to."""

    source: str
    out: str
    preset: str = "large"
    model: dict[str, Any] = field(default_factory=dict)
    """Fields of the shape to change."""


def run(config: GrowConfig) -> Path:
    """Write a folder with the larger model and the source's tokenizer.

    Raises: InputError if there is no such source, or it is larger than the new shape.
    """
    start = find_start(config.source)
    unknown = [key for key in config.model if key not in _SHAPE]
    if unknown:
        raise InputError(f"model.{unknown[0]}: is not a size to grow, expected {', '.join(_SHAPE)}")
    target = ModelConfig.preset(config.preset, **config.model)
    shape = ModelConfig(**{**asdict(start.config), **{name: getattr(target, name) for name in _SHAPE}})
    model = MaskedLM(shape)
    grown = grow(start.weights, start.config, shape)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(grown[name])
    out = Path(config.out)
    save_folder(out, model, lambda partial: start.tokenizer.save_folder(partial, shape.max_position_embeddings))
    layers = layer_map(start.config.num_hidden_layers, shape.num_hidden_layers)
    print(f"layers copied from {', '.join(map(str, layers))}")
    print(f"{out}: {sum(parameter.numel() for parameter in model.parameters()):,} parameters")
    return out
