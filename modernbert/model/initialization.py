"""Initialization in the style of Megatron, from a seed.

Matrices have a truncated normal distribution with standard deviation 0.02, or 0.02 / sqrt(2 x layers) for projections
into the residual stream, cut at two standard deviations. Norms are 1, biases 0. Source: the authors' training code.
"""

import math

import torch
from torch import Tensor, nn

from modernbert.model.config import ModelConfig

__all__ = ["draw_normal", "initialize"]


def initialize(module: nn.Module, config: ModelConfig, seed: int) -> None:
    """Initialize every parameter of a model in place; parameters on the meta device are skipped."""
    generator = torch.Generator().manual_seed(seed)
    narrow = config.initializer_range / math.sqrt(2 * config.num_hidden_layers)
    for name, parameter in module.named_parameters():
        if parameter.is_meta:
            continue
        if parameter.ndim == 1:
            nn.init.constant_(parameter, 0.0 if name.endswith("bias") else 1.0)
            continue
        std = narrow if name.endswith("Wo.weight") else config.initializer_range
        cutoff = config.initializer_cutoff_factor * std
        # Drawn on the CPU in float32, so a seed gives the same weights on every device and in every precision.
        with torch.no_grad():
            parameter.copy_(draw_normal(parameter.shape, std, cutoff, generator))


def draw_normal(shape: torch.Size, std: float, cutoff: float, generator: torch.Generator) -> Tensor:
    """Draw from a normal distribution, and redraw values beyond the cutoff.

    `nn.init.trunc_normal_` redraws the whole matrix while any value is beyond, which takes six times as long.
    """

    def draw(number: int) -> Tensor:
        return torch.empty(number, device="cpu", dtype=torch.float32).normal_(std=std, generator=generator)

    drawn = draw(shape.numel())
    beyond = (drawn.abs() > cutoff).nonzero()[:, 0]
    while len(beyond):
        again = draw(len(beyond))
        drawn[beyond] = again
        beyond = beyond[again.abs() > cutoff]
    return drawn.view(shape)
