"""A larger model that starts from a smaller one.

In: the weights and the shape of a trained model, and a larger shape. Out: weights of that shape. Every tensor of the
smaller model stands in the middle of the larger one, and what is around it repeats it.

Source: paper, appendix A.3 (center tiling, after Phi); the layer map of Gopher (Rae et al. 2021).
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from modernbert.errors import InputError
from modernbert.model.config import ModelConfig
from modernbert.model.heads import MaskedLM
from modernbert.model.meta_device import on_meta

__all__ = ["grow", "layer_map", "tile"]


def layer_map(old: int, new: int) -> list[int]:
    """Return the old layer that each new layer is made of.

    A side effect of the published rule: where layers double up, some global layers are made of local ones and the
    reverse (6 of the 10 global layers of large).

    >>> layer_map(4, 6)
    [0, 1, 1, 2, 3, 3]
    """
    # Python rounds ties to even, as the authors' run did. The last may round up to one that is not there.
    return [min(round(layer * old / new), old - 1) for layer in range(new)]


def tile(tensor: Tensor, shape: tuple[int, ...], whole: tuple[int, ...] | None = None) -> Tensor:
    """Enlarge a tensor: itself in the middle, wrapped around along each axis.

    The offset of an axis is half of what it gains, rounded down, and down to a multiple of `whole`, so that heads stay
    whole heads.

    >>> tile(torch.tensor([1, 2, 3]), (7,))
    tensor([2, 3, 1, 2, 3, 1, 2])
    """
    for axis, (size, unit) in enumerate(zip(shape, whole or (1,) * len(shape), strict=True)):
        old = tensor.shape[axis]
        offset = (size - old) // 2 // unit * unit
        tensor = tensor.index_select(axis, (torch.arange(size) - offset) % old)
    return tensor.contiguous()


def grow(weights: Mapping[str, Tensor], old: ModelConfig, new: ModelConfig) -> dict[str, Tensor]:
    """Return the weights of a `MaskedLM` of shape `new`, made of those of shape `old`.

    Queries, keys, values and both halves of the feed-forward input are tiled one by one. The first layer has no
    attention norm; a later layer that is made of it gets one of ones.

    Raises: InputError if the new shape is smaller in any way, or has heads of another width or another vocabulary.
    """
    _check(old, new)
    layers = layer_map(old.num_hidden_layers, new.num_hidden_layers)
    with on_meta():
        shapes = {name: parameter.shape for name, parameter in MaskedLM(new).named_parameters()}
    grown = {}
    for name, shape in shapes.items():
        source = weights.get(_source_of(name, layers))
        grown[name] = torch.ones(shape) if source is None else _tile_parts(name, source, shape, new.head_width)
    return grown


def _source_of(name: str, layers: list[int]) -> str:
    """Return the name of the old tensor that a new one is made of."""
    parts = name.split(".")
    if "layers" in parts:
        place = parts.index("layers") + 1
        parts[place] = str(layers[int(parts[place])])
    return ".".join(parts)


def _tile_parts(name: str, source: Tensor, shape: torch.Size, head_width: int) -> Tensor:
    """Tile a tensor part by part, where it is several tensors in one."""
    if name.endswith("Wqkv.weight"):
        return torch.cat([tile(part, (shape[0] // 3, shape[1]), (head_width, 1)) for part in source.chunk(3)])
    if name.endswith("attn.Wo.weight"):
        return tile(source, tuple(shape), (1, head_width))
    if name.endswith("mlp.Wi.weight"):
        return torch.cat([tile(part, (shape[0] // 2, shape[1])) for part in source.chunk(2)])
    return tile(source, tuple(shape))


def _check(old: ModelConfig, new: ModelConfig) -> None:
    for name in ("hidden_size", "intermediate_size", "num_hidden_layers"):
        if getattr(new, name) < getattr(old, name):
            raise InputError(
                f"{name}: found {getattr(new, name)}, expected at least {getattr(old, name)}, the source's"
            )
    for name in ("head_width", "vocab_size"):
        if getattr(new, name) != getattr(old, name):
            raise InputError(f"{name}: found {getattr(new, name)}, expected {getattr(old, name)}, as in the source")
