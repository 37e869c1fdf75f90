"""Weights of a trained model for another shape (`grow`) or another vocabulary (`change_vocabulary`)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from modernbert.errors import InputError
from modernbert.model.config import ModelConfig
from modernbert.model.heads import MaskedLM
from modernbert.model.meta_device import on_meta

__all__ = ["change_vocabulary", "grow", "layer_map", "tile"]

# Tensors with a row per entry of the vocabulary.
_BY_ENTRY = ("model.embeddings.tok_embeddings.weight", "decoder.bias")


def layer_map(old: int, new: int) -> list[int]:
    """Return the old layer that each new layer copies.

    As published, some global layers copy local ones and the reverse (6 of the 10 global layers of large).

    >>> layer_map(4, 6)
    [0, 1, 1, 2, 3, 3]
    """
    # Python rounds ties to even, like the authors' code. The last layer can round up beyond the end.
    return [min(round(layer * old / new), old - 1) for layer in range(new)]


def tile(tensor: Tensor, shape: tuple[int, ...], units: tuple[int, ...] | None = None) -> Tensor:
    """Enlarge a tensor by center tiling: the old tensor in the middle, repeated around it along each axis.

    The offset along an axis is half of the growth, rounded down to a multiple of `units`, to keep heads whole.

    >>> tile(torch.tensor([1, 2, 3]), (7,))
    tensor([2, 3, 1, 2, 3, 1, 2])
    """
    for axis, (size, unit) in enumerate(zip(shape, units or (1,) * len(shape), strict=True)):
        old = tensor.shape[axis]
        offset = (size - old) // 2 // unit * unit
        tensor = tensor.index_select(axis, (torch.arange(size) - offset) % old)
    return tensor.contiguous()


def grow(weights: Mapping[str, Tensor], old: ModelConfig, new: ModelConfig) -> dict[str, Tensor]:
    """Grow weights of a `MaskedLM` of shape `old` to shape `new`, by center tiling and a layer map.

    Queries, keys, values and both halves of `mlp.Wi` are tiled separately. The first layer has no attention norm; a
    later layer that copies it gets a norm of ones.

    Source: paper, appendix A.3 (center tiling, after Phi); the layer map of Gopher (Rae et al. 2021).

    Raises: InputError if a size of the new shape is smaller, or the head width or the vocabulary differs.
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


def change_vocabulary(
    weights: Mapping[str, Tensor], entries: Sequence[Sequence[int]], vocab_size: int
) -> dict[str, Tensor]:
    """Return weights of a `MaskedLM` with another vocabulary; only the embedding and the decoder bias change.

    Args:
        weights: The weights by parameter name.
        entries: For each new entry, the old entries whose rows are averaged; a single row is copied exactly. An entry
            without old ones, and rows beyond the entries, get the mean of all old rows.
        vocab_size: The number of new rows.
    """
    changed = dict(weights)
    for name in _BY_ENTRY:
        old = weights[name]
        rows = old.mean(dim=0, keepdim=True).repeat(vocab_size, *[1] * (old.ndim - 1))
        for token, sources in enumerate(entries):
            if len(sources) == 1:
                rows[token] = old[sources[0]]
            elif sources:
                rows[token] = old[torch.tensor(sources)].mean(dim=0)
        changed[name] = rows
    return changed


def _source_of(name: str, layers: list[int]) -> str:
    """Return the name of the old tensor that a new tensor copies."""
    parts = name.split(".")
    if "layers" in parts:
        position = parts.index("layers") + 1
        parts[position] = str(layers[int(parts[position])])
    return ".".join(parts)


def _tile_parts(name: str, source: Tensor, shape: torch.Size, head_width: int) -> Tensor:
    """Tile a tensor; a fused tensor part by part."""
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
