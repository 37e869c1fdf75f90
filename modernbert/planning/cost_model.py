"""The cost of one token, whatever the device: floating-point operations, bytes moved, bytes held in memory."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from modernbert.model.config import ModelConfig
from modernbert.model.heads import MaskedLM
from modernbert.model.meta_device import on_meta
from modernbert.training.flops import step_flops, visible_pairs

__all__ = ["TokenCosts", "num_parameters", "token_costs"]

# Bytes of a number of the residual stream, and of a weight in training, whatever the precision of GEMMs.
_FP32 = 4
# Weight, gradient and two moments of a parameter.
_TRAINING_STATE = 4 * _FP32


@dataclass(frozen=True)
class TokenCosts:
    """Costs of one token, averaged over the documents.

    Units: floating-point operations (a multiplication and an addition are two) and bytes.
    """

    attention_flops: float
    gemm_flops: float
    training_flops: float
    forward_bytes: float
    """Bytes that a forward pass reads and writes."""
    activation_bytes: float
    """Bytes that training keeps for the backward pass."""
    state_bytes: float
    """Bytes of weights, gradients and moments; not per token."""
    logit_bytes: float
    """Bytes of one row of logits and its gradient, of the rows that are in memory at once."""

    @property
    def forward_flops(self) -> float:
        """Operations of the encoder, without a head."""
        return self.attention_flops + self.gemm_flops


def token_costs(
    config: ModelConfig,
    lengths: Sequence[int],
    mask_rate: float = 0.3,
    *,
    recompute: bool = False,
    dtype: torch.dtype = torch.bfloat16,
) -> TokenCosts:
    """Return the costs per token of documents of these lengths.

    Args:
        config: The model.
        lengths: Tokens of each document.
        mask_rate: Share of masked tokens.
        recompute: Activation checkpointing: training keeps the input of each layer, and all else of one layer.
        dtype: Precision of GEMMs.
    """
    num_tokens, num_layers = sum(lengths), config.num_hidden_layers
    width, intermediate, size = config.hidden_size, config.intermediate_size, dtype.itemsize
    windows = [None if config.is_global(layer) else config.window for layer in range(num_layers)]
    pairs = sum(visible_pairs(lengths, window) * windows.count(window) for window in set(windows))
    training = step_flops(config, lengths, round(mask_rate * num_tokens))
    of_layer = _layer_activations(width, intermediate, size)
    # After the last attention, only masked positions are computed.
    of_all_layers = (num_layers - 1) * of_layer + _layer_activations(width, intermediate, size, mask_rate)
    # The input of a layer is the residual stream and the output of the layer before it.
    activations = num_layers * (_FP32 + size) * width + of_layer if recompute else of_all_layers
    # GEMMs read a copy of the weights in their own precision.
    of_parameter = _TRAINING_STATE + (size if size < _FP32 else 0)
    return TokenCosts(
        attention_flops=4 * pairs * width / num_tokens,
        gemm_flops=2.0 * num_layers * (4 * width**2 + 3 * width * intermediate),
        training_flops=training / num_tokens,
        forward_bytes=float(size * num_layers * _layer_traffic(width, intermediate)),
        activation_bytes=activations + size * mask_rate * 4 * width,
        state_bytes=float(of_parameter * num_parameters(config)),
        logit_bytes=2.0 * size * config.vocab_size,
    )


def num_parameters(config: ModelConfig) -> int:
    """Return the number of parameters of the model with its masked-LM head; the tied decoder counts once."""
    with on_meta():
        return sum(parameter.numel() for parameter in MaskedLM(config).parameters())


def _layer_traffic(width: int, intermediate: int) -> int:
    """Return how many numbers a layer reads and writes per token; residual and norm are fused, all else is not."""
    gemms = (width + 3 * width) + (width + width) + (width + 2 * intermediate) + (intermediate + width)
    attention = 3 * width + width
    rope = 2 * (2 * width)
    residuals_and_norms = 2 * (2 * width + 2 * width)
    geglu = 2 * intermediate + intermediate
    return gemms + attention + rope + residuals_and_norms + geglu


def _layer_activations(width: int, intermediate: int, size: int, share_after_attention: float = 1.0) -> float:
    """Return the bytes per token that a layer keeps for its backward pass."""
    residual_and_norm = _FP32 * width + size * width
    attention = size * (3 * width + width)
    mlp = size * (2 * intermediate + intermediate)
    return residual_and_norm + attention + share_after_attention * (residual_and_norm + mlp)
