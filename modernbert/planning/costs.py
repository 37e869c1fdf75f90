"""What one token costs: operations, bytes moved, bytes held.

In: the shape of a model and the lengths of its documents. Out: numbers per token, whatever the device. Products are
counted one by one, so that a device's time can be told from how it fills its tiles and how fast its memory is.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from modernbert.model.config import ModelConfig
from modernbert.model.heads import MaskedLM
from modernbert.model.meta_device import on_meta
from modernbert.training.flops import step_flops, visible_pairs

__all__ = ["TokenCosts", "num_parameters", "token_costs"]

# Bytes of a number of the residual stream and of what is trained, whatever the precision of products.
_WIDE = 4
# Of a parameter in training: weight, gradient and two moments.
_TRAINED = 4 * _WIDE


@dataclass(frozen=True)
class TokenCosts:
    """Costs of one token, on average over the documents.

    Units: floating-point operations (a multiplication and an addition are two) and bytes.
    """

    attention_flops: float
    matrix_flops: float
    training_flops: float
    moved_forward: float
    held_in_training: float
    held_anyway: float
    """Not per token: weights, gradients, moments."""
    held_of_logits: float
    """A row of logits at a time, of the rows that a device takes at once, and its gradient."""

    @property
    def forward_flops(self) -> float:
        """Operations of the encoder, without a head."""
        return self.attention_flops + self.matrix_flops


def token_costs(
    config: ModelConfig,
    lengths: Sequence[int],
    mask_rate: float = 0.3,
    *,
    recompute: bool = False,
    dtype: torch.dtype = torch.bfloat16,
) -> TokenCosts:
    """Count what documents of these lengths cost, a token, with products in a precision.

    With `recompute`, what is held in training is the input of each layer, and of one layer at a time all else.
    """
    num_tokens, num_layers = sum(lengths), config.num_hidden_layers
    width, feed_forward, narrow = config.hidden_size, config.intermediate_size, dtype.itemsize
    windows = [None if config.is_global(layer) else config.window for layer in range(num_layers)]
    pairs = sum(visible_pairs(lengths, window) * windows.count(window) for window in set(windows))
    training = step_flops(config, lengths, round(mask_rate * num_tokens))
    of_layer = _bytes_held(width, feed_forward, narrow)
    # After the last attention there are masked rows alone.
    of_layers = (num_layers - 1) * of_layer + _bytes_held(width, feed_forward, narrow, mask_rate)
    # An input is the stream, and what is still to be added to it.
    held = num_layers * (_WIDE + narrow) * width + of_layer if recompute else of_layers
    # Of weights, products read a copy in their own precision.
    of_parameter = _TRAINED + (narrow if narrow < _WIDE else 0)
    return TokenCosts(
        attention_flops=4 * pairs * width / num_tokens,
        matrix_flops=2.0 * num_layers * (4 * width**2 + 3 * width * feed_forward),
        training_flops=training / num_tokens,
        moved_forward=float(narrow * num_layers * _numbers_moved(width, feed_forward)),
        held_in_training=held + narrow * mask_rate * 4 * width,
        held_anyway=float(of_parameter * num_parameters(config)),
        held_of_logits=2.0 * narrow * config.vocab_size,
    )


def num_parameters(config: ModelConfig) -> int:
    """Count the parameters of the model with its masked-LM head, the tied decoder once."""
    with on_meta():
        return sum(parameter.numel() for parameter in MaskedLM(config).parameters())


def _numbers_moved(width: int, feed_forward: int) -> int:
    """Count the numbers that one layer reads and writes for a token, each step on its own but for sum and norm."""
    products = (width + 3 * width) + (width + width) + (width + 2 * feed_forward) + (feed_forward + width)
    attention = 3 * width + width
    rotation = 2 * (2 * width)
    sums_and_norms = 2 * (2 * width + 2 * width)
    geglu = 2 * feed_forward + feed_forward
    return products + attention + rotation + sums_and_norms + geglu


def _bytes_held(width: int, feed_forward: int, narrow: int, share_after: float = 1.0) -> float:
    """Count the bytes that one layer keeps for its way back, if after its attention there is a share of the rows."""
    sum_and_norm = _WIDE * width + narrow * width
    attention = narrow * (3 * width + width)
    mlp = narrow * (2 * feed_forward + feed_forward)
    return sum_and_norm + attention + share_after * (sum_and_norm + mlp)
