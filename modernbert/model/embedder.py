"""The encoder with vectors of length 1: one a document, or one a token.

In: a batch. Out: vectors, and how similar they are. Beside a published folder, the files from which
sentence-transformers and PyLate build the same thing.
"""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from modernbert.errors import InputError
from modernbert.model.heads import pool
from modernbert.ragged import Batch
from modernbert.storage import write_tensors

__all__ = ["Embedder", "Vectors", "load_projection", "load_vectors", "max_sims", "write_vectors"]

_SETTINGS, _DENSE = "config_sentence_transformers.json", "1_Dense"
_POOLINGS = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token"}


@dataclass(frozen=True)
class Vectors:
    """Say how texts become vectors; lengths are tokens, None is what the model was trained for.

    `pooling` is mean, cls, or tokens: a vector for each, compared by MaxSim. `expand_queries` fills queries up with
    [MASK] to `query_length`; tokens named in `skip` have no vector in documents.
    """

    pooling: str = "mean"
    query_prompt: str = ""
    document_prompt: str = ""
    query_length: int | None = None
    document_length: int | None = None
    expand_queries: bool = False
    skip: list[str] = field(default_factory=list)


class Embedder(nn.Module):
    """The encoder, pooled or not, then a linear layer where there is one."""

    def __init__(self, encoder: nn.Module, pooling: str, projection: nn.Linear | None = None) -> None:
        super().__init__()
        self.model, self.pooling, self.projection = encoder, pooling, projection

    def forward(self, batch: Batch) -> Float[Tensor, "rows E"]:
        """Return a vector for each document; of tokens, for each that `batch.where` names, or for all."""
        hidden = self.model(batch.tokens, batch.layout)
        if self.pooling != "tokens":
            hidden = pool(hidden.float(), batch.layout, self.pooling)
        elif batch.where is not None:
            hidden = hidden.index_select(0, batch.where)
        projected = hidden if self.projection is None else self.projection(hidden.to(self._dtype(hidden)))
        return F.normalize(projected.float(), dim=-1)

    def _dtype(self, hidden: Tensor) -> torch.dtype:
        assert self.projection is not None
        autocast = torch.is_autocast_enabled(hidden.device.type)
        return hidden.dtype if autocast else self.projection.weight.dtype


def max_sims(
    queries: Float[Tensor, "q E"], query_lengths: Int64[Tensor, " Q"], passages: Float[Tensor, "p E"],
    lengths: Int64[Tensor, " P"],
) -> Float[Tensor, "Q P"]:  # fmt: skip
    """Return the late-interaction score of each query with each passage, the tokens of both laid end to end.

    Each token of a query counts with its most similar token of the passage. There is no padding to be left out.

    Source: Khattab & Zaharia 2020 (ColBERT).
    """
    best = torch.segment_reduce(passages @ queries.T, "max", lengths=lengths, axis=0)
    return torch.segment_reduce(best.T.contiguous(), "sum", lengths=query_lengths, axis=0)


def write_vectors(folder: Path, vectors: Vectors, projection: nn.Linear | None, longest: int) -> None:
    """Write what sentence-transformers reads beside a model, in PyLate's layout where tokens have vectors.

    For `new_folder`. Raises: OSError with the system's number if the disk is full or not writable.
    """
    late = vectors.pooling == "tokens"
    modules: list[tuple[str, str]] = [("", "sentence_transformers.models.Transformer")]
    settings: dict[str, Any] = {
        "prompts": {"query": vectors.query_prompt, "document": vectors.document_prompt},
        "default_prompt_name": None,
        "similarity_fn_name": "cosine",
        # Which sentence-transformers has no word for, and passes over.
        "query_length": vectors.query_length,
    }
    if late:
        settings = {
            "model_type": "ColBERT", "similarity_fn_name": "MaxSim", "query_prefix": vectors.query_prompt,
            "document_prefix": vectors.document_prompt, "query_length": vectors.query_length or longest,
            "document_length": vectors.document_length or longest, "attend_to_expansion_tokens": True,
            "do_query_expansion": vectors.expand_queries, "skiplist_words": list(vectors.skip),
        }  # fmt: skip
    else:
        modules += [("1_Pooling", "sentence_transformers.models.Pooling")]
        modules += [("2_Normalize", "sentence_transformers.models.Normalize")]
        width = json.loads((folder / "config.json").read_text())["hidden_size"]
        pooling = {
            "word_embedding_dimension": width,
            **{key: mode == vectors.pooling for mode, key in _POOLINGS.items()},
        }
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling, indent=2) + "\n")
        (folder / "2_Normalize").mkdir()
    if projection is not None:
        modules += [(_DENSE, "pylate.models.Dense.Dense")]
        described = {
            "in_features": projection.in_features, "out_features": projection.out_features, "bias": False,
            "activation_function": "torch.nn.modules.linear.Identity",
        }  # fmt: skip
        (folder / _DENSE).mkdir()
        (folder / _DENSE / "config.json").write_text(json.dumps(described, indent=2) + "\n")
        write_tensors(folder / _DENSE / "model.safetensors", {"linear.weight": projection.weight.detach().cpu()})
    listed = [{"idx": n, "name": str(n), "path": path, "type": kind} for n, (path, kind) in enumerate(modules)]
    (folder / "modules.json").write_text(json.dumps(listed, indent=2) + "\n")
    (folder / _SETTINGS).write_text(json.dumps(settings, indent=2) + "\n")
    limits = {"max_seq_length": vectors.document_length or longest, "do_lower_case": False}
    (folder / "sentence_bert_config.json").write_text(json.dumps(limits, indent=2) + "\n")


def load_vectors(folder: Path) -> Vectors:
    """Read how a folder's texts become vectors; the defaults where it does not say.

    Raises: InputError naming the file, for one that is not readable.
    """
    found = _read(folder / _SETTINGS)

    def whole(key: str, said: dict[str, Any] = found, name: str = _SETTINGS) -> int | None:
        value = said.get(key)
        if value is not None and (type(value) is not int or value < 1):
            raise InputError(f"{folder / name}: {key} is {value!r}, expected a number of tokens")
        return value

    if found.get("model_type") == "ColBERT":
        expand = bool(found.get("do_query_expansion", True))
        if expand and not found.get("attend_to_expansion_tokens", False):
            raise InputError(
                f"{folder / _SETTINGS}: attend_to_expansion_tokens is false, expected true, or do_query_expansion "
                "false: without padding a text sees all its tokens"
            )
        return Vectors(
            pooling="tokens", query_prompt=str(found.get("query_prefix") or ""),
            document_prompt=str(found.get("document_prefix") or ""), query_length=whole("query_length") or 32,
            document_length=whole("document_length") or 180, expand_queries=expand,
            skip=list(found.get("skiplist_words") or ()),
        )  # fmt: skip
    prompts = found.get("prompts") or {}
    if not isinstance(prompts, dict):
        raise InputError(f"{folder / _SETTINGS}: prompts is {type(prompts).__name__}, expected names and texts")
    limits = "sentence_bert_config.json"
    vectors = Vectors(
        query_prompt=str(prompts.get("query") or ""), document_prompt=str(prompts.get("document") or ""),
        query_length=whole("query_length"), document_length=whole("max_seq_length", _read(folder / limits), limits),
    )  # fmt: skip
    modes = _read(folder / "1_Pooling" / "config.json")
    return replace(vectors, pooling=next((mode for mode, key in _POOLINGS.items() if modes.get(key)), "mean"))


def load_projection(folder: Path, width: int) -> nn.Linear | None:
    """Read the linear layer behind an encoder of a width, if the folder has one.

    Raises: InputError naming the file, for one that is not readable safetensors, or does not fit.
    """
    path = folder / _DENSE / "model.safetensors"
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            weight = file.get_tensor("linear.weight")
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path}: is not a readable safetensors file ({' '.join(str(error).split())})") from None
    if weight.ndim != 2 or weight.shape[1] != width:
        raise InputError(f"{path}: linear.weight is {list(weight.shape)}, expected [any, {width}] for this model")
    projection = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    projection.weight = nn.Parameter(weight)
    return projection


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise InputError(f"{path}: is not readable JSON ({error})") from None
    if not isinstance(found, dict):
        raise InputError(f"{path}: found {type(found).__name__}, expected an object")
    return found
