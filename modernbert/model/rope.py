"""Rotary positions: queries and keys turn by the angle of their place in the document.

In: positions [T], then queries, keys and values as they leave the projection. Out: the three apart, two of them turned.
Source: Su et al. 2021 (RoPE), half of a head's width against the other half (NeoX layout).
"""

import functools

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["Rotation", "rotate", "rotate_heads", "rotation"]

Rotation = tuple[Tensor, Tensor]


def rotate_heads(qkv: Float[Tensor, "T 3 H K"], rotation: Rotation) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values [T, H, K] each, the first two turned."""
    q, k, v = qkv.unbind(1)
    return rotate(q, rotation), rotate(k, rotation), v


def rotation(positions: Tensor, head_width: int, theta: float) -> Rotation:
    """Return cosines and sines [T, 1, K/2] in float32: half the width rotates against the other half (NeoX layout)."""
    angles = positions.float()[:, None] * _frequencies(head_width, theta, positions.device)[None, :]
    return angles.cos()[:, None, :], angles.sin()[:, None, :]


@functools.cache
@torch.inference_mode(False)
def _frequencies(head_width: int, theta: float, device: torch.device) -> Tensor:
    # On the CPU first: a power in the device's own arithmetic may differ in the last bit. Kept, for a captured pass
    # must find them where they were.
    powers = torch.arange(0, head_width, 2, dtype=torch.int64, device="cpu").float() / head_width
    return (1.0 / theta**powers).to(device)


def rotate(x: Float[Tensor, "T H K"], rotation: Rotation) -> Float[Tensor, "T H K"]:
    """Turn each pair of components by its position's angle, in float32 or wider."""
    cosines, sines = rotation
    wide = x if x.dtype == torch.float64 else x.float()
    first, second = wide.chunk(2, dim=-1)
    turned = torch.cat((first * cosines - second * sines, second * cosines + first * sines), dim=-1)
    return turned.to(x.dtype)
