"""The sets of the efficiency table: documents of random tokens, and real text beside them.

In: the name of a set and how many documents. Out: their lengths and ids, the same every time. The four synthetic ones
are the paper's: 512 and 8,192 tokens, fixed and normally distributed.

Source: section 4 and appendix F of the paper; lengths, ids and bounds as in the authors' script.
"""

from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch

from modernbert.data.corpus import Tally, read_documents
from modernbert.errors import InputError
from modernbert.hub_download import find_tokenizer
from modernbert.tokenizer.tokenizer import Tokenizer

__all__ = ["SETS", "LengthSet", "documents_of", "real_documents", "real_lengths"]

SEED = 42
# No special tokens below or above.
_FIRST_ID, _LAST_ID = 100, 15_999
_SHORTEST = 32
_PUBLISHED_DOCUMENTS = 8_192


@dataclass(frozen=True)
class LengthSet:
    """Lengths, normally distributed and cut at both ends; fixed where the deviation is 0. `batch` documents at a time
    are what the paper timed.
    """

    mean: int
    deviation: int
    longest: int
    batch: int

    def lengths(self, num_documents: int) -> list[int]:
        """Return the lengths, the same for every model.

        >>> SETS["short-fixed"].lengths(2)
        [512, 512]
        """
        # Fewer documents are the first of the published set, to the token.
        number = max(num_documents, _PUBLISHED_DOCUMENTS)
        generator = torch.Generator().manual_seed(SEED)
        drawn = torch.normal(float(self.mean), float(self.deviation), (number,), generator=generator)
        return drawn.trunc().clamp(_SHORTEST, self.longest).int().tolist()[:num_documents]


SETS = {
    "short-fixed": LengthSet(512, 0, 512, batch=512),
    "short-variable": LengthSet(256, 64, 512, batch=512),
    "long-fixed": LengthSet(8192, 0, 8192, batch=32),
    "long-variable": LengthSet(4096, 1024, 8192, batch=32),
}


def documents_of(name: str, num_documents: int) -> list[np.ndarray]:
    """Return the ids of a synthetic set's documents.

    Raises: InputError for an unknown set.
    """
    if name not in SETS:
        raise InputError(f"sets: found {name!r}, expected {', '.join(SETS)}, real")
    random = np.random.default_rng(SEED)
    return [random.integers(_FIRST_ID, _LAST_ID + 1, length) for length in SETS[name].lengths(num_documents)]


def real_lengths(paths: list[str], tokenizer: str, num_documents: int, longest: int) -> list[int]:
    """Return the lengths of as many real documents, cut at `longest`.

    Raises: InputError if a file or the tokenizer cannot be read.
    """
    loaded = Tokenizer.load(find_tokenizer(str(tokenizer)))
    texts = [document.text for document in islice(read_documents(paths, Tally()), num_documents)]
    return [min(len(ids), longest) for ids in loaded.encode(texts)]


def real_documents(paths: list[str], tokenizer: str, num_documents: int, longest: int) -> list[np.ndarray]:
    """Return as many documents with the lengths of real ones, cut at `longest`; ids are drawn like the others'.

    Every model has another vocabulary: what is real about this set is how long texts are.

    Raises: InputError if a file or the tokenizer cannot be read.
    """
    random = np.random.default_rng(SEED)
    lengths = real_lengths(paths, tokenizer, num_documents, longest)
    return [random.integers(_FIRST_ID, _LAST_ID + 1, length) for length in lengths]
