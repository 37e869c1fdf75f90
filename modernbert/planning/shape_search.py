"""Search for model shapes whose GEMMs use GPUs well.

A GEMM is computed in tiles of 128 x 256, one per multiprocessor at a time. The last wave of tiles seldom occupies all
multiprocessors; tile utilization is the share of tile slots that are used.

Source: section 2.1.3 and appendix B of the paper (multiples of 64, tiles of 128 x 256, deep and narrow, GPUs from T4 to
H100). The paper does not give the tokens per batch; the result is averaged over several.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from statistics import mean

from modernbert.planning.device_specs import GPUS, gpu_spec

__all__ = ["Shape", "best_shapes", "candidate_shapes", "tile_utilization"]

VOCABULARY = 50_368
_TILE_ROWS, _TILE_COLUMNS = 128, 256
_STEP = 64  # tensor cores need multiples of it
# Tokens per batch, from a few documents to a micro-batch of a large GPU.
_BATCH_TOKENS = (4_096, 8_192, 16_384, 32_768, 65_536, 98_304)


@dataclass(frozen=True)
class Shape:
    """Number of layers, hidden size and intermediate size; heads have 64 dimensions."""

    num_layers: int
    hidden_size: int
    intermediate_size: int

    @property
    def num_parameters(self) -> int:
        """Number of parameters, with embeddings, head, norms and the bias of the decoder.

        >>> Shape(22, 768, 1152).num_parameters, Shape(28, 1024, 2624).num_parameters
        (149655232, 395881664)
        """
        width = self.hidden_size
        matrices = self.num_layers * (4 * width**2 + 3 * width * self.intermediate_size)
        norms = (2 * self.num_layers - 1) * width + 3 * width
        return matrices + norms + width**2 + VOCABULARY * (width + 1)

    @property
    def gemms(self) -> tuple[tuple[int, int], ...]:
        """Input and output features of the GEMMs of a layer."""
        width, intermediate = self.hidden_size, self.intermediate_size
        return (width, 3 * width), (width, width), (width, 2 * intermediate), (intermediate, width)


def tile_utilization(shape: Shape) -> float:
    """Return the mean tile utilization over all GPUs and batch sizes."""
    return mean(
        _utilization_of(shape, gpu_spec(name).multiprocessors, num_tokens)
        for name in GPUS
        for num_tokens in _BATCH_TOKENS
    )


def best_shapes(num_parameters: int, tolerance: float = 0.02, limit: int = 10) -> list[tuple[Shape, float]]:
    """Return the shapes of this size with the best tile utilization, best first; of equals, the deeper one first."""
    found = [(shape, tile_utilization(shape)) for shape in candidate_shapes(num_parameters, tolerance)]
    return sorted(found, key=lambda each: (-round(each[1], 4), -each[0].num_layers))[:limit]


def candidate_shapes(num_parameters: int, tolerance: float = 0.02) -> Iterator[Shape]:
    """Yield the shapes within a tolerance of a size, with global attention in the first and the last layer."""
    for layers in range(7, 46, 3):
        for width in range(256, 2049, _STEP):
            for intermediate in range(width, 4 * width + 1, _STEP):
                shape = Shape(layers, width, intermediate)
                if abs(shape.num_parameters / num_parameters - 1) <= tolerance:
                    yield shape


def _utilization_of(shape: Shape, multiprocessors: int, num_tokens: int) -> float:
    """Return the operations of all GEMMs divided by the operations that their waves of tiles have slots for."""
    useful = available = 0.0
    for inputs, outputs in shape.gemms:
        tiles = ceil(num_tokens / _TILE_ROWS) * ceil(outputs / _TILE_COLUMNS)
        slots = ceil(tiles / multiprocessors) * multiprocessors
        useful += inputs * outputs * num_tokens
        available += inputs * slots * _TILE_ROWS * _TILE_COLUMNS
    return useful / available
