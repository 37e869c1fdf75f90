"""Shapes that fill a GPU: the search behind the two of the paper.

In: a number of parameters. Out: shapes of about that size, by how well their matrix products fill the multiprocessors
of a basket of GPUs. A product of T tokens is cut into tiles of 128 rows by 256 columns, and as many tiles run at a time
as there are multiprocessors: the last wave of a product is seldom full, and that is lost.

Source: section 2.1.3 and appendix B of the paper (multiples of 64, tiles of 128 x 256, deep and narrow, GPUs from T4 to
H100). Tokens a batch are not given there; they are averaged over here.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from statistics import mean

from modernbert.planning.device_specs import BASKET, machine_of

__all__ = ["Shape", "best_shapes", "fill", "neighbours"]

VOCABULARY = 50_368
_TILE_ROWS, _TILE_COLUMNS = 128, 256
_STEP = 64  # what tensor cores divide by
# Tokens of a batch: from a few documents to what a large GPU trains on.
_TOKENS = (4_096, 8_192, 16_384, 32_768, 65_536, 98_304)


@dataclass(frozen=True)
class Shape:
    """Layers, width and feed-forward width; heads are 64 wide."""

    layers: int
    width: int
    feed_forward: int

    @property
    def num_parameters(self) -> int:
        """With embeddings, head, norms and the decoder's bias.

        >>> Shape(22, 768, 1152).num_parameters, Shape(28, 1024, 2624).num_parameters
        (149655232, 395881664)
        """
        matrices = self.layers * (4 * self.width**2 + 3 * self.width * self.feed_forward)
        norms = (2 * self.layers - 1) * self.width + 3 * self.width
        return matrices + norms + self.width**2 + (VOCABULARY * (self.width + 1))

    @property
    def products(self) -> tuple[tuple[int, int], ...]:
        """Inputs and outputs of the products of a layer."""
        width = self.width
        return (width, 3 * width), (width, width), (width, 2 * self.feed_forward), (self.feed_forward, width)


def fill(shape: Shape) -> float:
    """Return the share of tile places that are used, over the products of a layer, the basket and the token counts."""
    return mean(
        _fill_of(shape, machine_of(name).multiprocessors, num_tokens) for name in BASKET for num_tokens in _TOKENS
    )


def best_shapes(num_parameters: int, tolerance: float = 0.02, most: int = 10) -> list[tuple[Shape, float]]:
    """Return the shapes of about so many parameters that fill best, best first; of equals the deeper one first."""
    found = [(shape, fill(shape)) for shape in neighbours(num_parameters, tolerance)]
    return sorted(found, key=lambda each: (-round(each[1], 4), -each[0].layers))[:most]


def neighbours(num_parameters: int, tolerance: float = 0.02) -> Iterator[Shape]:
    """Yield the shapes within a share of a size: first and last layer global, widths in steps of 64."""
    for layers in range(7, 46, 3):
        for width in range(256, 2049, _STEP):
            for feed_forward in range(width, 4 * width + 1, _STEP):
                shape = Shape(layers, width, feed_forward)
                if abs(shape.num_parameters / num_parameters - 1) <= tolerance:
                    yield shape


def _fill_of(shape: Shape, multiprocessors: int, num_tokens: int) -> float:
    """Weigh each product by its operations: useful ones by those that its waves have room for."""
    useful = room = 0.0
    for inputs, outputs in shape.products:
        tiles = ceil(num_tokens / _TILE_ROWS) * ceil(outputs / _TILE_COLUMNS)
        places = ceil(tiles / multiprocessors) * multiprocessors
        useful += inputs * outputs * num_tokens
        room += inputs * places * _TILE_ROWS * _TILE_COLUMNS
    return useful / room
