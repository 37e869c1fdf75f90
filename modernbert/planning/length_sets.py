"""The synthetic sets of the paper's efficiency table: documents of random tokens, the same every time.

Source: section 4 and appendix F of the paper; lengths, token ids and bounds as in the authors' script.
"""

from dataclasses import dataclass

import numpy as np
import torch

from modernbert.errors import InputError

__all__ = ["LENGTH_SETS", "LengthSet", "random_documents", "set_documents"]

SEED = 42
# No special tokens below or above.
_FIRST_ID, _LAST_ID = 100, 15_999
_SHORTEST = 32
_PUBLISHED_DOCUMENTS = 8_192


@dataclass(frozen=True)
class LengthSet:
    """Lengths of documents: normally distributed between 32 and `longest`, or fixed if `deviation` is 0.

    `batch` is the number of documents per batch in the paper.
    """

    mean: int
    deviation: int
    longest: int
    batch: int

    def lengths(self, num_documents: int) -> list[int]:
        """Return the lengths of the first documents of the set.

        >>> LENGTH_SETS["short-fixed"].lengths(2)
        [512, 512]
        """
        # The published set is drawn whole, so that fewer documents are its beginning.
        number = max(num_documents, _PUBLISHED_DOCUMENTS)
        generator = torch.Generator().manual_seed(SEED)
        drawn = torch.normal(float(self.mean), float(self.deviation), (number,), generator=generator)
        return drawn.trunc().clamp(_SHORTEST, self.longest).int().tolist()[:num_documents]


LENGTH_SETS = {
    "short-fixed": LengthSet(512, 0, 512, batch=512),
    "short-variable": LengthSet(256, 64, 512, batch=512),
    "long-fixed": LengthSet(8192, 0, 8192, batch=32),
    "long-variable": LengthSet(4096, 1024, 8192, batch=32),
}


def set_documents(name: str, num_documents: int) -> list[np.ndarray]:
    """Return the token ids of the first documents of a set.

    Raises:
        InputError: The set is unknown.
    """
    if name not in LENGTH_SETS:
        raise InputError(f"sets: found {name!r}, expected {', '.join(LENGTH_SETS)}, real")
    return random_documents(LENGTH_SETS[name].lengths(num_documents))


def random_documents(lengths: list[int]) -> list[np.ndarray]:
    """Return documents of random token ids that every vocabulary has."""
    random = np.random.default_rng(SEED)
    return [random.integers(_FIRST_ID, _LAST_ID + 1, length) for length in lengths]
