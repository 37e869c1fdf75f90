"""How the texts of a folder become vectors: the files of sentence-transformers (single and multi-vector) and PyLate.

Reads them as an `EmbeddingConfig` and writes them. Settings that this package does not support are refused, since
vectors that are almost equal to the model's are wrong.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from modernbert.checkpoints.colbert_format import (
    config_of_pylate,
    config_of_stanford,
    pylate_settings,
    stanford_settings,
)
from modernbert.checkpoints.json_values import count_of, string_of
from modernbert.checkpoints.sentence_transformers_modules import (
    POOLINGS,
    SENTENCE,
    TOKENS,
    listed_modules,
    normalizes,
    pooling_of,
    skipped_tokens,
)
from modernbert.errors import InputError, shown
from modernbert.files import write_tensors
from modernbert.model.embedding_config import EmbeddingConfig
from modernbert.safe_files import FolderFiles, check_keys, is_there

__all__ = [
    "SentenceTransformersSettings",
    "check_no_default_prompt",
    "read_settings",
    "read_embedding_config",
    "max_length_of",
    "unused_head_of",
    "write_embedding_config",
]

_SETTINGS, _LIMITS = "config_sentence_transformers.json", "sentence_bert_config.json"
_TOKENIZER = "tokenizer_config.json"
# Names of _LIMITS in old folders, which sentence-transformers reads too.
_OLDER_LIMITS = tuple(
    f"sentence_{family}_config.json"
    for family in ("roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
# Suffixes of transformers' classes whose head has labels.
_HEADS = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForMultipleChoice")
# Tokenizers of transformers write a number of thirty digits for "no limit".
_NO_LIMIT = 10**6
# Known keys, which are read or change no vector: of config_sentence_transformers.json by kind of model, of
# sentence_bert_config.json and of 1_Pooling/config.json.
_EVERY_MODEL = (
    "__version__", "requirements", "model_type", "prompts", "default_prompt_name", "similarity_fn_name", "truncate_dim",
)  # fmt: skip
_KEYS_OF = {
    None: (*_EVERY_MODEL, "query_length"),
    "SentenceTransformer": (*_EVERY_MODEL, "query_length"),
    "MultiVectorEncoder": _EVERY_MODEL,
    "CrossEncoder": (*_EVERY_MODEL, "activation_fn", "keep_in_fp32_modules"),
    "ColBERT": (
        *_EVERY_MODEL, "query_prefix", "document_prefix", "query_length", "document_length",
        "attend_to_expansion_tokens", "do_query_expansion", "skiplist_words",
    ),
}  # fmt: skip
_LIMITS_KEYS = (
    "max_seq_length", "do_lower_case", "query_length", "document_length", "query_expansion", "transformer_task",
    "modality_config", "module_output_name", "processing_kwargs", "unpad_inputs", "model_args", "tokenizer_args",
    "config_args", "model_kwargs", "processor_kwargs", "config_kwargs",
)  # fmt: skip
# Options of loading, which do not change the outputs of a model.
_LOADING = ("trust_remote_code", "attn_implementation", "torch_dtype", "dtype", "low_cpu_mem_usage", "device_map")


@dataclass(frozen=True)
class SentenceTransformersSettings:
    """The settings of sentence-transformers that `EmbeddingConfig` does not have; `save` writes them again.

    Attributes:
        normalize: Whether vectors are scaled to length 1; None if the folder does not say.
        similarity: The name of the similarity function, if the folder has one.
        prompts: The prompts of the folder by name.
        default_prompt: The name of the prompt that `embed` puts before each text.
        unsupported_similarity: Why this package cannot compare vectors as that library does, or None if it can.
    """

    normalize: bool | None = None
    similarity: str | None = None
    prompts: Mapping[str, Any] = field(default_factory=dict)
    default_prompt: str | None = None
    unsupported_similarity: str | None = None

    @property
    def prompt(self) -> str:
        """The text of the default prompt."""
        return "" if self.default_prompt is None else str(self.prompts.get(self.default_prompt) or "")


def write_embedding_config(
    folder: Path,
    vectors: EmbeddingConfig,
    projection: nn.Linear | None,
    max_length: int,
    settings: SentenceTransformersSettings | None = None,
) -> None:
    """Write the files that sentence-transformers reads beside a model, or PyLate for vectors of tokens.

    Call it inside `new_folder`.

    Raises: OSError if the disk is full or not writable. InputError if PyLate's format cannot express the model.
    """
    late, settings = vectors.pooling == "tokens", settings or SentenceTransformersSettings()
    if late and settings.unsupported_similarity is not None:
        raise InputError(f"{settings.unsupported_similarity}: cannot be saved in PyLate's format")
    modules: list[tuple[str, str]] = [("", "sentence_transformers.models.Transformer")]
    written: dict[str, Any] = {
        "prompts": {**settings.prompts, "query": vectors.query_prompt, "document": vectors.document_prompt},
        "default_prompt_name": settings.default_prompt,
        "similarity_fn_name": settings.similarity or "cosine",
        # sentence-transformers ignores this key.
        "query_length": vectors.query_length,
    }
    if vectors.truncate_dim is not None:
        written["truncate_dim"] = vectors.truncate_dim
    if late:
        written = pylate_settings(vectors, max_length)
    else:
        width = json.loads((folder / "config.json").read_text())["hidden_size"]
        pooling = {key: mode == vectors.pooling for mode, key in POOLINGS.items()}
        modules += [("1_Pooling", "sentence_transformers.models.Pooling")]
        _write_module(folder / "1_Pooling", {"word_embedding_dimension": width, **pooling})
    if projection is not None:
        place = f"{len(modules)}_Dense"
        modules += [(place, "pylate.models.Dense.Dense" if late else "sentence_transformers.models.Dense")]
        described = {
            "in_features": projection.in_features, "out_features": projection.out_features, "bias": False,
            "activation_function": "torch.nn.modules.linear.Identity",
        }  # fmt: skip
        _write_module(folder / place, described)
        write_tensors(folder / place / "model.safetensors", {"linear.weight": projection.weight.detach().cpu()})
    if not late and settings.normalize is not False:
        modules += [(f"{len(modules)}_Normalize", "sentence_transformers.models.Normalize")]
        (folder / modules[-1][0]).mkdir()
    listed = [{"idx": n, "name": str(n), "path": path, "type": kind} for n, (path, kind) in enumerate(modules)]
    (folder / "modules.json").write_text(json.dumps(listed, indent=2) + "\n")
    (folder / _SETTINGS).write_text(json.dumps(written, indent=2) + "\n")
    limits = {"max_seq_length": vectors.document_length or max_length, "do_lower_case": False}
    (folder / "sentence_bert_config.json").write_text(json.dumps(limits, indent=2) + "\n")


def _write_module(place: Path, settings: dict[str, Any]) -> None:
    place.mkdir()
    (place / "config.json").write_text(json.dumps(settings, indent=2) + "\n")


def read_embedding_config(folder: FolderFiles) -> EmbeddingConfig:
    """Read how the texts of a folder become vectors, with the defaults of its library.

    Raises: InputError naming the file, if it is not readable or has an unsupported setting.
    """
    if (stanford := stanford_settings(folder)) is not None:
        return config_of_stanford(stanford, folder)
    found, limits = folder.read_json(_SETTINGS, missing_ok=True), folder.read_json(_LIMITS, missing_ok=True)
    kind = _kind_of(found, folder)
    _check_transformer(limits, folder / _LIMITS)
    if kind == "ColBERT":
        return config_of_pylate(found, _prompts(found, folder), folder / _SETTINGS)
    if found.get("model_type") == "MultiVectorEncoder":
        return _of_multi_vector(found, folder)
    query, document = _prompts(found, folder)
    # Without a length of their own, queries have the limit of documents.
    length = _text_limit(folder)
    asked = count_of("query_length", limits, folder / _LIMITS) or length
    if "query_length" in found:
        asked = count_of("query_length", found, folder / _SETTINGS)
    length = count_of("document_length", limits, folder / _LIMITS) or length
    return EmbeddingConfig(
        pooling=pooling_of(folder), query_prompt=query, document_prompt=document, query_length=asked,
        document_length=length, truncate_dim=count_of("truncate_dim", found, folder / _SETTINGS, "components"),
    )  # fmt: skip


def read_settings(folder: FolderFiles) -> SentenceTransformersSettings:
    """Read the other settings of a folder of sentence-transformers; the defaults for a folder of another format.

    Raises: InputError naming the file, if it is not readable.
    """
    found = folder.read_json(_SETTINGS, missing_ok=True)
    late, place = found.get("model_type") == "MultiVectorEncoder", folder / _SETTINGS
    others = _kind_of(found, folder) == "ColBERT" or stanford_settings(folder) is not None
    if others or not (folder / "modules.json").exists():
        return SentenceTransformersSettings()
    normalize = normalizes(folder, TOKENS if late else SENTENCE)
    similarity = string_of("similarity_fn_name", found, place) or None
    expected, unsupported = "maxsim" if late else "cosine", None
    if similarity not in (None, expected) and not (similarity == "dot" and normalize):
        unsupported = f"{place}: similarity_fn_name is {str(similarity)[:60]!r}, expected {expected}"
    elif late and not normalize:
        unsupported = f"{folder / 'modules.json'}: lists no Normalize of {TOKENS}, expected one"
    _prompts(found, folder)  # checks them
    return SentenceTransformersSettings(
        normalize, similarity, found.get("prompts") or {}, _default_prompt(found, place), unsupported
    )


def check_no_default_prompt(folder: FolderFiles) -> None:
    """Check that sentence-transformers puts no prompt before the texts that a fine-tuned head scores.

    Raises: InputError for a default prompt.
    """
    place = folder / _SETTINGS
    found = folder.read_json(_SETTINGS, missing_ok=True)
    name = _default_prompt(found, place)
    if name is not None and (found.get("prompts") or {}).get(name):
        raise InputError(
            f"{place}: default_prompt_name is {name!r}, expected none: this package puts no prompt before the texts of "
            "a head with labels"
        )


def unused_head_of(folder: FolderFiles) -> str | None:
    """Return the head with labels that config.json names, if no file says how texts become vectors.

    Raises: InputError naming the file, if it is not readable.
    """
    if stanford_settings(folder) is not None or any(each.kind != "Transformer" for each in listed_modules(folder)):
        return None
    place = folder / "config.json"
    named = folder.read_json("config.json").get("architectures")
    heads = [each for each in named if str(each).endswith(_HEADS)] if isinstance(named, list) else []
    return f"{place}: architectures names {str(heads[0])[:80]}" if heads else None


def max_length_of(folder: FolderFiles) -> int | None:
    """Return the most tokens of a text that a folder allows, or None if it sets no limit.

    The limit is `max_seq_length` in sentence_bert_config.json, else `model_max_length` in tokenizer_config.json.

    Raises: InputError naming the file, if the limit is not a number of tokens, or the file has an old name.

    Source: `Transformer` of sentence-transformers 6, `PreTrainedTokenizerBase` of transformers 5.
    """
    place = folder / _LIMITS
    for older in () if is_there(place) else _OLDER_LIMITS:
        if is_there(folder / older):
            raise InputError(f"{folder / older}: has settings under an old name, expected {_LIMITS}; rename the file")
    limits = folder.read_json(_LIMITS, missing_ok=True)
    for key in ("processor_kwargs", "tokenizer_args"):
        # Arguments of the tokenizer override max_seq_length.
        given = limits.get(key)
        if isinstance(given, dict) and given.get("model_max_length") is not None:
            return _limit("model_max_length", given, place)
    if limits.get("max_seq_length") is not None:
        return _limit("max_seq_length", limits, place)
    place = folder / _TOKENIZER
    found = folder.read_json(_TOKENIZER, missing_ok=True)
    # The name in older versions of transformers is max_len.
    key = "model_max_length" if found.get("model_max_length") is not None else "max_len"
    return _limit(key, found, place)


def _kind_of(found: Mapping[str, Any], folder: FolderFiles) -> str | None:
    """Return the `model_type` of the settings; early versions of PyLate did not write it."""
    kind = found.get("model_type")
    if kind is None and ("query_prefix" in found or "document_prefix" in found):
        kind = "ColBERT"
    if not isinstance(kind, str | None) or kind not in _KEYS_OF:
        known = ", ".join(str(each) for each in _KEYS_OF if each)
        raise InputError(f"{folder / _SETTINGS}: model_type is {shown(repr(kind), 60)}, expected one of {known}")
    check_keys(found, _KEYS_OF[kind], str(folder / _SETTINGS))
    return kind


def _check_transformer(limits: Mapping[str, Any], place: Path) -> None:
    """Refuse settings of the encoder in sentence_bert_config.json that would change its vectors.

    Raises: InputError naming the file and the key.
    """
    check_keys(limits, _LIMITS_KEYS, str(place))
    modalities = limits.get("modality_config") or {}
    text = modalities.get("text", {}) if isinstance(modalities, Mapping) else modalities
    if not isinstance(text, Mapping):
        raise InputError(f"{place}: modality_config is {shown(repr(modalities), 60)}, expected an entry for text")
    for key, found, expected in (
        ("transformer_task", limits.get("transformer_task"), "feature-extraction"),
        ("modality_config.text.method", text.get("method"), "forward"),
        ("modality_config.text.method_output_name", text.get("method_output_name"), "last_hidden_state"),
        ("module_output_name", limits.get("module_output_name"), TOKENS),
    ):
        if found not in (None, expected):
            raise InputError(f"{place}: {key} is {shown(repr(found), 60)}, expected {expected!r}")
    for key in ("model_args", "model_kwargs", "config_args", "config_kwargs", "tokenizer_args", "processor_kwargs"):
        given = limits.get(key) or {}
        if not isinstance(given, Mapping):
            raise InputError(f"{place}: {key} is {shown(repr(given), 60)}, expected an object")
        limit = ("model_max_length",) if key in ("tokenizer_args", "processor_kwargs") else ()
        check_keys(given, (*_LOADING, *limit), f"{place}: {key}")
    if limits.get("processing_kwargs"):
        given = shown(repr(limits["processing_kwargs"]), 60)
        raise InputError(f"{place}: processing_kwargs is {given}, expected none: only tokenizer.json encodes texts")


def _of_multi_vector(found: dict[str, Any], folder: FolderFiles) -> EmbeddingConfig:
    """Read a multi-vector model of sentence-transformers, whose modules have its settings."""
    limits = folder.read_json(_LIMITS, missing_ok=True)
    length = count_of("query_length", limits, folder / _LIMITS) or _text_limit(folder)
    expansion = limits.get("query_expansion")
    if expansion is not None:
        if not isinstance(expansion, dict) or expansion.get("strategy") != "fixed" or expansion.get("token"):
            raise InputError(
                f"{folder / _LIMITS}: query_expansion is not supported, expected [MASK] up to a fixed length"
            )
        check_keys(expansion, ("strategy", "token", "attend", "length"), f"{folder / _LIMITS}: query_expansion")
        if not expansion.get("attend", False):
            raise InputError(
                f"{folder / _LIMITS}: query_expansion.attend is false, expected true: this package has no attention "
                "mask within a text"
            )
        length = count_of("length", expansion, folder / _LIMITS)
    query, document = _prompts(found, folder)
    return EmbeddingConfig(
        pooling="tokens", query_prompt=query, document_prompt=document, query_length=length,
        document_length=count_of("document_length", limits, folder / _LIMITS) or _text_limit(folder),
        expand_queries=expansion is not None, skip=skipped_tokens(folder),
    )  # fmt: skip


def _prompts(found: dict[str, Any], folder: FolderFiles) -> tuple[str, str]:
    """Return the prompts of queries and of documents."""
    prompts = found.get("prompts") or {}
    if not isinstance(prompts, dict):
        raise InputError(f"{folder / _SETTINGS}: prompts is {type(prompts).__name__}, expected names and texts")
    for name in prompts:
        string_of(name, prompts, folder / _SETTINGS)
    # The library takes the first of these that exists, even if it is empty.
    name = next((name for name in ("document", "passage", "corpus") if prompts.get(name) is not None), "document")
    return prompts.get("query") or "", prompts.get(name) or ""


def _default_prompt(found: dict[str, Any], place: Path) -> str | None:
    """Return the name of the default prompt, or None."""
    name, prompts = found.get("default_prompt_name"), found.get("prompts") or {}
    if name is None:
        return None
    # The library adds these two, empty, if they are missing.
    known = [*prompts, *(each for each in ("query", "document") if each not in prompts)]
    if not isinstance(name, str) or name not in known:
        raise InputError(
            f"{place}: default_prompt_name is {str(name)[:60]!r}, expected one of prompts: "
            f"{shown(', '.join(known), 200)}"
        )
    return name


def _text_limit(folder: FolderFiles) -> int | None:
    """Return the length limit of queries and documents without one of their own."""
    has_limits = (folder / "modules.json").exists() or (folder / _LIMITS).exists()
    return max_length_of(folder) if has_limits else None


def _limit(key: str, found: dict[str, Any], place: Path) -> int | None:
    """Return a number of tokens; None for no limit, which transformers writes as a huge number."""
    value = found.get(key)
    # 1e30 is parsed as a float.
    if value is None or (type(value) in (int, float) and value >= _NO_LIMIT):
        return None
    if type(value) is not int or value < 1:
        raise InputError(f"{place}: {key} is {repr(value)[:60]}, expected a number of tokens")
    return value
