"""Late-interaction folders of PyLate and of Stanford's ColBERT library.

PyLate has its settings in config_sentence_transformers.json. Stanford's library has the encoder and the projection in
one weights file, and its settings in `artifact.metadata`; it puts one marker token before each text, fills queries up
with [MASK], and skips all punctuation or none.

Source: github.com/stanford-futuredata/ColBERT, `HF_ColBERT` and `ColBERTConfig`.
"""

import json
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import nn

from modernbert.checkpoints.json_values import count_of, string_of, strings_of
from modernbert.errors import InputError, shown
from modernbert.files import new_folder, write_tensors
from modernbert.model.embedding_config import EmbeddingConfig
from modernbert.safe_files import FolderFiles

__all__ = [
    "LINEAR",
    "check_stanford",
    "config_of_pylate",
    "config_of_stanford",
    "is_stanford",
    "pylate_settings",
    "stanford_settings",
    "write_stanford",
]

ARCHITECTURE, LINEAR = "HF_ColBERT", "linear.weight"
_METADATA = "artifact.metadata"
# All settings of the library. Most are for training, indexing and search.
_KEYS = frozenset(
    "query_token_id doc_token_id query_token doc_token dim doc_maxlen mask_punctuation query_maxlen similarity "
    "attend_to_mask_tokens interaction overwrite root experiment index_root name rank nranks amp gpus "
    "total_visible_gpus avoid_fork_if_possible checkpoint triples collection queries index_name bsize accumsteps lr "
    "maxsteps save_every resume warmup warmup_bert relu nway use_ib_negatives reranker distillation_alpha "
    "ignore_scores model_name index_path index_bsize nbits kmeans_niters pool_factor clustering_mode protected_tokens "
    "ncells centroid_score_threshold ndocs load_index_with_mmap meta".split()
)

_NOT_COPIED = ("model.safetensors", "config.json", "modules.json", "sentence_bert", "config_sentence", "README.md")


def config_of_pylate(settings: Mapping[str, Any], prompts: tuple[str, str], place: Path) -> EmbeddingConfig:
    """Return how texts become vectors by config_sentence_transformers.json of PyLate.

    Args:
        settings: The content of the file.
        prompts: The prompts of queries and of documents in it.
        place: The file, for messages.

    Raises: InputError for queries that do not attend to their expansion tokens, or prompts beside prefixes.
    """
    expand = bool(settings.get("do_query_expansion", True))
    if expand and not settings.get("attend_to_expansion_tokens", False):
        raise InputError(
            f"{place}: attend_to_expansion_tokens is false, expected true, or do_query_expansion "
            "false: this package has no attention mask within a text"
        )
    # PyLate inserts prefixes as tokens. sentence-transformers puts these prompts behind them, PyLate only if asked.
    for name, prompt in zip(("query", "document"), prompts, strict=True):
        if prompt not in ("", settings.get(f"{name}_prefix")):
            given = shown(repr(prompt), 60)
            raise InputError(f"{place}: prompts.{name} is {given}, expected none beside {name}_prefix")
    if settings.get("default_prompt_name") is not None:
        given = shown(repr(settings["default_prompt_name"]), 60)
        raise InputError(f"{place}: default_prompt_name is {given}, expected null beside query_prefix")
    return EmbeddingConfig(
        pooling="tokens", query_prompt=string_of("query_prefix", settings, place),
        document_prompt=string_of("document_prefix", settings, place),
        query_length=count_of("query_length", settings, place) or 32,
        document_length=count_of("document_length", settings, place) or 180, expand_queries=expand,
        skip=strings_of("skiplist_words", settings, place),
    )  # fmt: skip


def pylate_settings(vectors: EmbeddingConfig, max_length: int) -> dict[str, Any]:
    """Return the content of config_sentence_transformers.json of PyLate."""
    return {
        "model_type": "ColBERT", "similarity_fn_name": "MaxSim", "query_prefix": vectors.query_prompt,
        "document_prefix": vectors.document_prompt, "query_length": vectors.query_length or max_length,
        "document_length": vectors.document_length or max_length, "attend_to_expansion_tokens": True,
        "do_query_expansion": vectors.expand_queries, "skiplist_words": list(vectors.skip),
    }  # fmt: skip


def check_stanford(vectors: EmbeddingConfig, projection: int | None) -> None:
    """Check that the library can compute the same vectors.

    Raises: InputError naming the field.
    """
    if projection is None:
        raise InputError("projection: found None, but Stanford's ColBERT format requires one")
    if not vectors.expand_queries:
        raise InputError("vectors.expand_queries: found false, but Stanford's ColBERT always expands queries")
    for name in ("query_prompt", "document_prompt"):
        prompt = getattr(vectors, name)
        if not prompt.endswith(" ") or not prompt.strip() or " " in prompt[:-1]:
            raise InputError(
                f"vectors.{name}: found {prompt!r}, expected one token and a space for Stanford's ColBERT: '[unused0] '"
            )
    if vectors.skip and set(vectors.skip) != set(string.punctuation):
        raise InputError("vectors.skip: found some tokens, but Stanford's ColBERT skips all punctuation or none")


def write_stanford(folder: Path, source: Path, prefix: str, vectors: EmbeddingConfig, projection: nn.Linear) -> None:
    """Write the model of a folder in PyLate's format again, in the library's; an existing folder is replaced.

    Args:
        folder: The folder to write.
        source: The folder to read.
        prefix: The name of the encoder in the library's class, see `Model.base_model_prefix`.
        vectors: How queries and documents become vectors.
        projection: The linear layer behind the encoder.

    Raises: InputError if the disk is full or not writable.
    """
    config = json.loads((source / "config.json").read_text()) | {"architectures": [ARCHITECTURE]}
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
        (partial / _METADATA).write_text(json.dumps(settings, indent=2) + "\n")
        tensors = named | {LINEAR: projection.weight.detach()}
        write_tensors(partial / "model.safetensors", tensors, metadata={"format": "pt"})


def is_stanford(config: Mapping[str, Any]) -> bool:
    """Return whether a `config.json` names the library's class."""
    named = config.get("architectures")
    return isinstance(named, list) and ARCHITECTURE in named


def stanford_settings(folder: FolderFiles) -> dict[str, Any] | None:
    """Return the settings in `artifact.metadata`; None for a folder of another format.

    Raises: InputError naming the file, if it is not readable.
    """
    if not is_stanford(folder.read_json("config.json", missing_ok=True)):
        return None
    found = folder.read_json(_METADATA, missing_ok=True)
    inner = found.get("config", found)  # the metadata of an index has the settings one level down
    if not isinstance(inner, dict):
        raise InputError(f"{folder / _METADATA}: config is {str(inner)[:60]!r}, expected settings")
    unknown = [key for key in inner if key not in _KEYS and inner[key] is not None]
    if unknown:
        raise InputError(
            f"{folder / _METADATA}: found the unknown key {unknown[0][:60]!r}, expected settings of ColBERT"
        )
    return inner


def config_of_stanford(settings: Mapping[str, Any], folder: FolderFiles) -> EmbeddingConfig:
    """Return how texts become vectors, with the library's defaults for missing settings.

    Raises: InputError for an unknown value, and for queries that do not attend to their expansion tokens.
    """
    place = folder / _METADATA
    if not settings.get("attend_to_mask_tokens", False):
        raise InputError(
            f"{place}: attend_to_mask_tokens is false, expected true: this package has no attention mask within a text"
        )
    for key, expected in (("similarity", "cosine"), ("interaction", "colbert")):
        if settings.get(key, expected) != expected:
            raise InputError(f"{place}: {key} is {str(settings[key])[:60]!r}, expected {expected!r}")
    lengths = {key: settings.get(key) or usual for key, usual in (("query_maxlen", 32), ("doc_maxlen", 220))}
    for key, length in lengths.items():
        if type(length) is not int or length < 1:
            raise InputError(f"{place}: {key} is {str(length)[:60]!r}, expected a number of tokens")
    return EmbeddingConfig(
        pooling="tokens",
        # The library tokenizes ". " before a text and replaces the dot by the marker.
        query_prompt=f"{settings.get('query_token_id') or '[unused0]'} ",
        document_prompt=f"{settings.get('doc_token_id') or '[unused1]'} ",
        query_length=lengths["query_maxlen"],
        document_length=lengths["doc_maxlen"],
        expand_queries=True,
        skip=list(string.punctuation) if settings.get("mask_punctuation", True) else [],
    )
