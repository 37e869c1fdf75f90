"""Documents with the lengths of real texts, beside the synthetic sets of `modernbert.planning.length_sets`."""

from itertools import islice

import numpy as np

from modernbert.data.corpus import Tally, read_documents
from modernbert.hub_download import find_tokenizer
from modernbert.planning.length_sets import random_documents
from modernbert.tokenizer.tokenizer import Tokenizer

__all__ = ["real_documents", "real_lengths"]


def real_lengths(paths: list[str], tokenizer: str, num_documents: int, longest: int) -> list[int]:
    """Return the lengths of the first documents of some files, truncated at `longest` tokens.

    Raises: InputError if a file or the tokenizer cannot be read.
    """
    loaded = Tokenizer.load(find_tokenizer(str(tokenizer)))
    texts = [document.text for document in islice(read_documents(paths, Tally()), num_documents)]
    return [min(len(ids), longest) for ids in loaded.encode(texts)]


def real_documents(paths: list[str], tokenizer: str, num_documents: int, longest: int) -> list[np.ndarray]:
    """Return random documents with the lengths of real ones: each model has another vocabulary.

    Raises: InputError if a file or the tokenizer cannot be read.
    """
    return random_documents(real_lengths(paths, tokenizer, num_documents, longest))
