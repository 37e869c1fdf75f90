"""The encoder with vectors of length 1: one a document, or one a token.

In: a batch. Out: vectors, and how similar they are. Beside a published folder, the files from which
sentence-transformers and PyLate build the same thing.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from modernbert.errors import InputError
from modernbert.model.heads import pool
from modernbert.model.weights import WEIGHTS, check_tensor, read_safetensors, refuse_pickles
from modernbert.published import is_there, read_json, read_json_list
from modernbert.ragged import Batch
from modernbert.storage import write_tensors

__all__ = ["Embedder", "Vectors", "load_projection", "load_vectors", "max_sims", "write_vectors"]

_SETTINGS, _DENSE = "config_sentence_transformers.json", "1_Dense"
_POOLINGS = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token"}
# Modules of sentence-transformers and PyLate, by the last part of their names, and where they lie.
_MODULES = (
    ("Transformer", ""), ("Pooling", "1_Pooling"), ("Dense", _DENSE), ("Normalize", "1_Normalize"),
    ("Normalize", "2_Normalize"), ("Normalize", "3_Normalize"),
)  # fmt: skip
_MOST_WIDE = 2**16


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

    Raises: InputError naming the file, for one that is not readable, or asks for what this package does not compute.
    """
    _check_modules(folder)
    found = read_json(folder / _SETTINGS, missing_ok=True)
    if found.get("model_type") == "ColBERT":
        expand = bool(found.get("do_query_expansion", True))
        if expand and not found.get("attend_to_expansion_tokens", False):
            raise InputError(
                f"{folder / _SETTINGS}: attend_to_expansion_tokens is false, expected true, or do_query_expansion "
                "false: without padding a text sees all its tokens"
            )
        skip = found.get("skiplist_words") or []
        if not isinstance(skip, list) or not all(isinstance(word, str) for word in skip):
            raise InputError(f"{folder / _SETTINGS}: skiplist_words is {skip!r}, expected a list of texts")
        return Vectors(
            pooling="tokens", query_prompt=_text(folder, found, "query_prefix"),
            document_prompt=_text(folder, found, "document_prefix"),
            query_length=_whole(folder / _SETTINGS, found, "query_length") or 32,
            document_length=_whole(folder / _SETTINGS, found, "document_length") or 180, expand_queries=expand,
            skip=skip,
        )  # fmt: skip
    prompts = found.get("prompts") or {}
    if not isinstance(prompts, dict):
        raise InputError(f"{folder / _SETTINGS}: prompts is {type(prompts).__name__}, expected names and texts")
    limits = folder / "sentence_bert_config.json"
    return Vectors(
        pooling=_pooling(folder / "1_Pooling" / "config.json"), query_prompt=_text(folder, prompts, "query"),
        document_prompt=_text(folder, prompts, "document"),
        query_length=_whole(folder / _SETTINGS, found, "query_length"),
        document_length=_whole(limits, read_json(limits, missing_ok=True), "max_seq_length"),
    )  # fmt: skip


def load_projection(folder: Path, width: int) -> nn.Linear | None:
    """Read the linear layer behind an encoder of a width, if the folder has one.

    Raises: InputError naming the file, for one that is not readable safetensors, does not fit, or is no plain product.
    """
    dense = folder / _DENSE
    if not is_there(dense / WEIGHTS):
        refuse_pickles(dense)
        return None
    described = read_json(dense / "config.json", missing_ok=True)
    activation = str(described.get("activation_function", "Identity"))
    extras = [key for key in ("bias", "use_residual") if described.get(key)]
    if activation.rpartition(".")[2] != "Identity" or extras:
        said = ", ".join([activation, *extras])
        raise InputError(f"{dense / 'config.json'}: found {said}, expected Identity, no bias and no residual")
    found = read_safetensors(dense / WEIGHTS)
    if list(found) != ["linear.weight"]:
        raise InputError(f"{dense / WEIGHTS}: has {', '.join(found) or 'nothing'}, expected linear.weight alone")
    weight = found["linear.weight"]
    if weight.ndim != 2 or not 1 <= len(weight) <= _MOST_WIDE or weight.shape[1] != width:
        raise InputError(f"{dense / WEIGHTS}: linear.weight is {list(weight.shape)}, expected [any, {width}]")
    check_tensor(dense / WEIGHTS, "linear.weight", weight)
    projection = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    projection.weight = nn.Parameter(weight)
    return projection


def _check_modules(folder: Path) -> None:
    """Check that a folder's vectors are made by what is known here; classes are compared by name, never imported."""
    for module in read_json_list(folder / "modules.json"):
        path, kind = (module.get("path"), module.get("type")) if isinstance(module, dict) else (None, None)
        if (kind.rpartition(".")[2] if isinstance(kind, str) else None, path) not in _MODULES:
            raise InputError(
                f"{folder / 'modules.json'}: found {kind!r} in {path!r}, expected "
                + ", ".join(f"{known} in {place!r}" for known, place in _MODULES if known != "Normalize")
                + ", or Normalize"
            )


def _pooling(file: Path) -> str:
    """Return the one pooling that a file names; `mean` if it names none."""
    found = read_json(file, missing_ok=True)
    chosen = [key for key, value in found.items() if key.startswith("pooling_mode_") and value]
    known = {key: mode for mode, key in _POOLINGS.items()}
    if len(chosen) > 1 or any(key not in known for key in chosen):
        raise InputError(f"{file}: found {', '.join(chosen)}, expected one of {', '.join(known)}")
    named = found.get("pooling_mode", known[chosen[0]] if chosen else "mean")
    if named not in tuple(_POOLINGS):
        raise InputError(f"{file}: pooling_mode is {named!r}, expected {' or '.join(_POOLINGS)}")
    return str(named)


def _whole(file: Path, found: dict[str, Any], key: str) -> int | None:
    value = found.get(key)
    if value is not None and (type(value) is not int or value < 1):
        raise InputError(f"{file}: {key} is {value!r}, expected a number of tokens")
    return value


def _text(folder: Path, found: dict[str, Any], key: str) -> str:
    value = found.get(key)
    if value is not None and not isinstance(value, str):
        raise InputError(f"{folder / _SETTINGS}: {key} is {value!r}, expected a text")
    return value or ""
