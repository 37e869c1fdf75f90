"""A model for late interaction in the layout of Stanford's ColBERT library.

In: a folder in PyLate's layout. Out: one whose weights hold encoder and projection together, with `artifact.metadata`
beside them. The library marks texts with one token each, fills queries up, and skips punctuation or nothing.

Source: github.com/stanford-futuredata/ColBERT, `HF_ColBERT` and its settings.
"""

import json
import string
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from modernbert.errors import InputError
from modernbert.model.embedder import Vectors, load_projection, load_vectors
from modernbert.storage import new_folder, write_tensors

__all__ = ["check_stanford", "write_stanford"]

_NOT_COPIED = ("model.safetensors", "config.json", "modules.json", "sentence_bert", "config_sentence")


def check_stanford(vectors: Vectors, projection: int | None) -> None:
    """Check that the library can make the same vectors.

    Raises: InputError naming the field.
    """
    if projection is None:
        raise InputError("projection: found None, but the layout of ColBERT's library has one")
    if not vectors.expand_queries:
        raise InputError("vectors.expand_queries: found false, but ColBERT's library fills queries up")
    for name in ("query_prompt", "document_prompt"):
        prompt = getattr(vectors, name)
        if not prompt.endswith(" ") or not prompt.strip() or " " in prompt[:-1]:
            raise InputError(
                f"vectors.{name}: found {prompt!r}, but ColBERT's library takes one token, then a blank: '[unused0] '"
            )
    if vectors.skip and set(vectors.skip) != set(string.punctuation):
        raise InputError("vectors.skip: found some tokens, but ColBERT's library skips all punctuation or none")


def write_stanford(folder: Path, source: Path, prefix: str) -> None:
    """Write the model of `source`, whose encoder the library's class calls `prefix`, anew; an old folder is replaced.

    Raises: InputError if the disk is full or not writable.
    """
    config = json.loads((source / "config.json").read_text()) | {"architectures": ["HF_ColBERT"]}
    vectors, projection = load_vectors(source), load_projection(source, config["hidden_size"])
    assert projection is not None
    weights = load_file(source / "model.safetensors")
    named = {name if name.startswith(f"{prefix}.") else f"{prefix}.{name}": each for name, each in weights.items()}
    settings: dict[str, Any] = {
        "query_token_id": vectors.query_prompt.strip(), "doc_token_id": vectors.document_prompt.strip(),
        "query_token": "[Q]", "doc_token": "[D]", "dim": projection.out_features, "similarity": "cosine",
        "query_maxlen": vectors.query_length, "doc_maxlen": vectors.document_length,
        "mask_punctuation": bool(vectors.skip), "attend_to_mask_tokens": True, "interaction": "colbert",
    }  # fmt: skip
    with new_folder(folder, replace=True) as partial:
        for path in source.iterdir():
            if path.is_file() and not path.name.startswith(_NOT_COPIED):
                (partial / path.name).write_bytes(path.read_bytes())
        (partial / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        (partial / "artifact.metadata").write_text(json.dumps(settings, indent=2) + "\n")
        tensors = named | {"linear.weight": projection.weight.detach()}
        write_tensors(partial / "model.safetensors", tensors, metadata={"format": "pt"})
