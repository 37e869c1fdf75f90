"""`modernbert grow`: initialize a larger model from a trained one."""

from dataclasses import asdict
from pathlib import Path

import torch

from modernbert.checkpoints.command_line import command_line
from modernbert.checkpoints.folder import ModelFolder
from modernbert.checkpoints.model_card import ModelCard
from modernbert.errors import InputError
from modernbert.hub_download import at_revision
from modernbert.model.config import ModelConfig
from modernbert.model.heads import MaskedLM
from modernbert.model.surgery import grow, layer_map
from modernbert.training.command_options import GrowConfig
from modernbert.training.initial_model import open_initial_model

__all__ = ["GrowConfig", "run"]

# Fields of the preset that are used; the others are those of the source.
_SHAPE = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


def run(config: GrowConfig) -> Path:
    """Write a folder with the larger model and the source's tokenizer.

    Raises: InputError if there is no such source, or it is larger than the new shape.
    """
    start = open_initial_model(at_revision(config.model, config.revision))
    unknown = [key for key in config.shape if key not in _SHAPE]
    if unknown:
        raise InputError(f"shape.{unknown[0]}: is not a size to grow, expected {', '.join(_SHAPE)}")
    target = ModelConfig.preset(config.preset, **config.shape)
    shape = ModelConfig(**{**asdict(start.config), **{name: getattr(target, name) for name in _SHAPE}})
    model = MaskedLM(shape)
    grown = grow(start.weights, start.config, shape)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(grown[name])
    out = Path(config.output)
    card = ModelCard(
        method="A larger model with the weights of a smaller one, to be trained further.",
        command=command_line("modernbert grow", config),
        bases=[config.model],
    )
    ModelFolder.save(out, model, start.tokenizer, card=card)
    layers = layer_map(start.config.num_hidden_layers, shape.num_hidden_layers)
    print(f"layers copied from {', '.join(map(str, layers))}")
    print(f"{out}: {sum(parameter.numel() for parameter in model.parameters()):,} parameters")
    return out
