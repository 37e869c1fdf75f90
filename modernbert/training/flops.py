"""Floating-point operations of a training step, and the peak of known GPUs, for model FLOPs utilization (MFU).

Attention counts the pairs of tokens within the mask. The decoder, and the last layer after its attention, count
rows with a loss.
"""

import re
from collections.abc import Sequence

import torch

from modernbert.model.config import ModelConfig

__all__ = ["known_peak", "peak_flops", "step_flops", "visible_pairs"]


def step_flops(config: ModelConfig, lengths: Sequence[int], num_masked: int) -> int:
    """Count the operations of the matrix products, forward and backward, in one micro-batch of these documents.

    The backward pass has two products for each one of the forward pass: the gradients of both factors. Recomputed
    layers count once. Lookups, norms and activations do not count, as usual.

    Units: floating-point operations; a multiplication and an addition are two.
    """
    width, layers = config.hidden_size, config.num_hidden_layers
    # Before attention Wqkv; after it Wo, Wi, which is twice as wide for its gate, and the feed-forward network's Wo.
    before, after = 3 * width**2, width**2 + 3 * width * config.intermediate_size
    pairs = 0
    for layer in range(layers):
        window = None if config.is_global(layer) else config.window
        pairs += visible_pairs(lengths, window)
    head = width**2 + width * config.vocab_size
    # A pair costs one product of queries and keys and one of weights and values, each as wide as all heads together.
    # After the last attention there are only masked rows.
    of_tokens = sum(lengths) * (layers * before + (layers - 1) * after)
    return 3 * 2 * (of_tokens + num_masked * (after + head) + 2 * pairs * width)


def visible_pairs(lengths: Sequence[int], window: tuple[int, int] | None) -> int:
    """Count the pairs of a query and a key within the mask: in one document, and in the window, if there is one.

    >>> visible_pairs([3, 5], None), visible_pairs([3, 5], (1, 1))
    (34, 20)
    """
    if window is None:
        return sum(length**2 for length in lengths)
    return sum(length + sum(_neighbours(length, side) for side in window) for length in lengths)


def _neighbours(length: int, side: int) -> int:
    """Count the keys on one side of all queries: 0, 1, 2, ..., `side`, `side`, ..."""
    growing = min(length, side)
    return growing * (growing - 1) // 2 + (length - growing) * side


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Return the dense peak of a known GPU in a precision, without sparsity; None for any other device.

    float32 is the peak without TF32, which torch does not use by default.

    Units: operations per second. Source: the data sheets; where they name only the peak with 2:4 sparsity, half of it.
    """
    return known_peak(torch.cuda.get_device_name(device), dtype) if device.type == "cuda" else None


# Name from the driver, then TFLOPS in bfloat16, float16 and float32. A part of a GPU (MIG), a laptop GPU and other
# variants match none: a missing number is better than a wrong one.
_PEAKS = (
    (r"NVIDIA B200", 2250.0, 2250.0, 75.0),
    (r"NVIDIA H200", 989.4, 989.4, 66.9),
    (r"NVIDIA H100( SXM5)?( \d+GB)? HBM\w+", 989.4, 989.4, 66.9),
    (r"NVIDIA H100( \d+GB)? PCIe", 756.0, 756.0, 51.2),
    (r"NVIDIA A100[ -](SXM4|PCIE|PG509)-\d+GB|NVIDIA A100 80GB PCIe", 312.0, 312.0, 19.5),
    (r"NVIDIA A10", 125.0, 125.0, 31.2),
    (r"NVIDIA L4", 121.0, 121.0, 30.3),
    (r"NVIDIA L40S", 362.0, 362.0, 91.6),
    # With accumulation in float32, as in torch.
    (r"NVIDIA GeForce RTX 4090", 165.2, 165.2, 82.6),
    (r"NVIDIA GeForce RTX 3090", 71.0, 71.0, 35.6),
    # No bfloat16 in hardware.
    (r"(NVIDIA |Tesla )?T4", None, 65.0, 8.1),
    (r"(NVIDIA |Tesla )?V100-SXM\d-\d+GB(-LS)?", None, 125.0, 15.7),
    (r"(NVIDIA |Tesla )?V100-PCIE-\d+GB", None, 112.0, 14.0),
)


def known_peak(name: str, dtype: torch.dtype) -> float | None:
    """Return the dense peak of a GPU by the name that its driver reports, or None."""
    for pattern, *tflops in _PEAKS:
        if re.fullmatch(pattern, name):
            of_dtype = dict(zip((torch.bfloat16, torch.float16, torch.float32), tflops, strict=True))
            peak = of_dtype.get(dtype)
            return None if peak is None else peak * 1e12
    return None
