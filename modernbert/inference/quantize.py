"""Quantization of vectors to the formats of vector databases: float16, int8, packed bits."""

import numpy as np
from jaxtyping import Float32, Shaped

from modernbert.errors import InputError

__all__ = ["PRECISIONS", "quantize"]

PRECISIONS = ("float32", "float16", "int8", "binary")
# The largest finite float16.
_MAX_FLOAT16 = 65_504.0


def quantize(vectors: Float32[np.ndarray, "N D"], precision: str) -> Shaped[np.ndarray, "N _"]:
    """Return vectors in another precision.

    `int8` scales each vector so that its largest component is 127 or -127, which keeps cosines but not lengths.
    `binary` keeps signs, eight components a byte (uint8 [N, D / 8], the first in the highest bit), for Hamming
    distances.

    >>> quantize(np.array([[0.5, -1.0]], np.float32), "int8").tolist()
    [[64, -127]]

    Raises: InputError for an unknown precision, a component that float16 cannot hold, or a width that is no multiple of
    8 for binary.
    """
    if precision == "float32":
        return vectors
    if precision == "float16":
        largest = float(np.abs(vectors).max(initial=0))
        if largest > _MAX_FLOAT16:
            raise InputError(
                f"precision: found float16 for a component of {largest:.6g}, expected at most {_MAX_FLOAT16:,.0f}; "
                "normalize, or use float32"
            )
        return vectors.astype(np.float16)
    if precision == "int8":
        largest = np.abs(vectors).max(axis=1, keepdims=True, initial=0)
        return np.rint(vectors * (127 / np.where(largest > 0, largest, 1))).astype(np.int8)
    if precision != "binary":
        raise InputError(f"precision: found {precision!r}, expected {', '.join(PRECISIONS)}")
    if vectors.shape[1] % 8:
        raise InputError(f"precision: found binary for {vectors.shape[1]} components, expected a multiple of 8")
    return np.packbits(vectors > 0, axis=1)
