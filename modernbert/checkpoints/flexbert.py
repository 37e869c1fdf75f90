"""Checkpoints of the reference repository (FlexBERT): their tensors by published names, and their settings as a config.

Reads the content of a Composer checkpoint or a `pytorch_model.bin`. Settings of other FlexBERT variants than the
published one are refused by name, since the weights alone do not show them.

Source: github.com/AnswerDotAI/ModernBERT, `src/bert_layers`; Composer's `HuggingFaceModel.get_metadata`.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from modernbert.checkpoints.torch_file import StoredTensor, TorchFile, stored_tensor
from modernbert.errors import InputError

__all__ = [
    "Found",
    "fields_of_settings",
    "fields_of_shapes",
    "find_weights",
    "named_tensors",
    "without_tied_decoder",
    "write_tokenizer_files",
]

# Parts that wrappers insert into names, and prefixes of the whole model.
_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_OUTER = ("module", "model", "bert")
_EMBEDDING, _DECODER = "embeddings.tok_embeddings.weight", "decoder.weight"

# Settings that change the outputs but not the tensors: the value of ModernBERT, and FlexBERT's default.
_FIXED: dict[str, tuple[Any, Any]] = {
    "attention_layer": ("rope", "base"),
    "bert_layer": ("prenorm", "prenorm"),
    "embedding_layer": ("sans_pos", "absolute_pos"),
    "mlp_layer": ("glu", "mlp"),
    "normalization": ("layernorm", "rmsnorm"),
    "hidden_act": ("gelu", "gelu"),
    "head_pred_act": ("gelu", "silu"),
    "rotary_emb_interleaved": (False, False),
    "rotary_emb_scale_base": (None, None),
    "initial_attention_layer": (None, None),
    "initial_bert_layer": (None, None),
    "initial_mlp_layer": (None, None),
}
_IMPLEMENTATIONS = ("unpadded_", "padded_", "compile_", "triton_")
# Patterns of tensors that no published ModernBERT has, and their meaning.
_FOREIGN = {
    r"^classifier\.": "a fine-tuned head, which differs in the reference repository",
    r"^layers\.0\.attn_norm\.": "a norm before the attention of the first layer (skip_first_prenorm false)",
    r"(?<!^decoder)\.bias$": "a bias, where published models have none",
    r"position_embeddings\.": "position embeddings",
    r"\.Wqkvff\.": "attention and feed-forward in parallel",
    r"\.attn\.(Wq|Wk|Wv|Wkv)\.": "separate projections of queries, keys and values",
    r"^embeddings\.(word|token_type)_embeddings\.": "a BERT or MosaicBERT",
}
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
_MAX_JSON = 64 * 2**20
_HEAD = ("head.dense.weight", "head.norm.weight", "decoder.bias")
_SHAPES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


@dataclass(frozen=True)
class Found:
    """The content of a checkpoint: tensors by published names, settings, and the files of its tokenizer, if any."""

    tensors: dict[str, StoredTensor]
    settings: Mapping[str, Any] | None
    tokenizer: Mapping[str, Any]


def find_weights(file: TorchFile, origin: str) -> Found:
    """Find the model in a checkpoint: Composer's `state.model`, or a file with tensors only.

    Raises: InputError if there is none, or an entry is not a tensor.
    """
    state = _under(file.content, "state")
    tensors: dict[str, StoredTensor] = {}
    for name, described in named_tensors(_under(state, "model") if state else file.content, origin).items():
        published = published_name(name)
        if published.endswith("rotary_emb.inv_freq"):
            continue  # computed from theta
        if published in tensors:
            raise InputError(f"{origin}: has {published[:80]!r} twice")
        tensors[published] = described
    if tensors.get(_DECODER) == tensors.get(_EMBEDDING):
        tensors.pop(_DECODER, None)  # tied to the embedding
    library = _under(_under(state, "integrations"), "huggingface")
    settings = _under(_under(_under(library, "model"), "config"), "content")
    return Found(tensors, settings or None, _under(library, "tokenizer"))


def named_tensors(content: Any, origin: str) -> dict[str, StoredTensor]:
    """Return the tensors of a dict that has tensors only.

    Raises: InputError naming an entry that is not a tensor.
    """
    if not isinstance(content, dict) or not content:
        raise InputError(f"{origin}: has neither state.model nor tensors by name, expected one of them")
    try:
        return {name: stored_tensor(value, name) for name, value in content.items()}
    except InputError as error:
        raise InputError(f"{origin}: {error}") from None


def published_name(name: str) -> str:
    """Return the name of a tensor in a published folder, without the prefix of the model.

    >>> published_name("model.bert.encoder.layers.3._orig_mod.attn.Wqkv.weight")
    'layers.3.attn.Wqkv.weight'
    """
    parts = [part for part in name.split(".") if part not in _WRAPPERS]
    while len(parts) > 1 and parts[0] in _OUTER:
        parts = parts[1:]
    return ".".join(parts[1:] if parts[:2] == ["encoder", "layers"] else parts)


def fields_of_shapes(tensors: Mapping[str, StoredTensor], origin: str) -> dict[str, Any]:
    """Return the sizes of a model from the shapes of its tensors.

    Raises: InputError for a tensor that no published ModernBERT has, or a missing one.
    """
    for name in tensors:
        sign = next((sign for pattern, sign in _FOREIGN.items() if re.search(pattern, name)), None)
        if sign is not None:
            raise InputError(f"{origin}: has {name[:80]!r} ({sign}), which no published ModernBERT has")
    wanted = (_EMBEDDING, "layers.0.mlp.Wo.weight")
    for name in wanted:
        if name not in tensors or len(tensors[name].shape) != 2:
            raise InputError(f"{origin}: has no two-dimensional {name}, expected a ModernBERT")
    head = [name for name in tensors if name.startswith(("head.", "decoder."))]
    lacking = [name for name in _HEAD if head and name not in tensors]
    if lacking:
        raise InputError(f"{origin}: has no {lacking[0]} beside {head[0]}, expected the whole head")
    layers = {found[1] for name in tensors if (found := re.match(r"layers\.(\d{1,6})\.", name))}
    if layers != {str(number) for number in range(len(layers))}:
        raise InputError(f"{origin}: has {len(layers)} layers that are not numbered from 0")
    (vocabulary, width), feed_forward = tensors[_EMBEDDING].shape, tensors["layers.0.mlp.Wo.weight"].shape[1]
    return {
        "vocab_size": vocabulary, "hidden_size": width, "intermediate_size": feed_forward,
        "num_hidden_layers": len(layers),
    }  # fmt: skip


def fields_of_settings(settings: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """Return the fields of a `ModelConfig` from FlexBERT's settings, with FlexBERT's defaults for missing ones.

    Raises: InputError naming a setting that differs from the published models.
    """
    for key, (expected, default) in _FIXED.items():
        found = settings.get(key, default)
        if _plain(found) != expected:
            said = f"found {str(found)[:60]!r}" + ("" if key in settings else ", which is FlexBERT's default")
            raise InputError(f"{origin}: {key}: {said}, expected {expected!r}")
    fields = {key: settings[key] for key in _SHAPES if settings.get(key) is not None}
    norm = settings.get("norm_kwargs")
    fields["norm_eps"] = norm.get("eps", 1e-5) if isinstance(norm, dict) else 1e-5
    fields["attention_output_dropout"] = settings.get("attn_out_dropout_prob", 0.0)
    fields |= _attention(settings, origin)
    for name, value in fields.items():
        if type(value) not in (int, float):
            raise InputError(f"{origin}: {name} is a {type(value).__name__.lower()}, expected a number")
    for key in ("rotary_emb_dim", "local_attn_rotary_emb_dim"):
        width = fields.get("hidden_size", 0) / (fields.get("num_attention_heads", 0) or 1)
        if settings.get(key) is not None and settings[key] != width:
            raise InputError(f"{origin}: {key}: found {str(settings[key])[:40]!r}, expected the width of a head")
    return fields


def write_tokenizer_files(folder: Path, files: Mapping[str, Any], origin: str) -> None:
    """Write the JSON files of a checkpoint's tokenizer to a folder.

    Raises: InputError if one of them is too large or not JSON.
    """
    for name in _TOKENIZER_FILES:
        # Older versions of Composer omit the suffix.
        entry = files.get(name, files.get(name.removesuffix(".json")))
        if isinstance(entry, dict) and "content" in entry:
            (folder / name).write_text(_as_json(entry["content"], f"{origin}: {name}"), encoding="utf-8")


def _as_json(content: Any, origin: str) -> str:
    """Return JSON of a bounded size; the content can contain one list many times."""
    pieces, size = [], 0
    try:
        for piece in json.JSONEncoder(ensure_ascii=False).iterencode(content):
            pieces.append(piece)
            size += len(piece)
            if size > _MAX_JSON:
                raise InputError(f"{origin} has more than {_MAX_JSON:,} characters")
    except InputError:
        raise
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{origin} is not JSON ({' '.join(str(error).split())[:80]})") from None
    return "".join(pieces)


def without_tied_decoder(weights: Mapping[str, Tensor], origin: str) -> dict[str, Tensor]:
    """Return the weights without the decoder, which is tied to the embedding.

    Raises: InputError if the two differ.
    """
    decoder, embedding = weights.get(_DECODER), weights.get(_EMBEDDING)
    if decoder is not None and (embedding is None or not decoder.equal(embedding)):
        raise InputError(f"{origin}: {_DECODER} differs from the embedding, expected tied weights")
    return {name: tensor for name, tensor in weights.items() if name != _DECODER}


def _attention(settings: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """Return the interval of global layers, the window of local ones, and both thetas."""
    window, every = settings.get("sliding_window", -1), settings.get("global_attn_every_n_layers", -1)
    theta, local = settings.get("rotary_emb_base", 10_000.0), settings.get("local_attn_rotary_emb_base", -1)
    if window == -1:
        # All layers are global; the values for local layers are not used.
        every, window, local = 1, 128, -1
    elif every == -1:
        raise InputError(f"{origin}: global_attn_every_n_layers: found -1, expected the interval of global layers")
    return {
        "global_attn_every_n_layers": every,
        "local_attention": window,
        "global_rope_theta": theta,
        "local_rope_theta": theta if local in (-1, None) else local,
    }


def _plain(found: Any) -> Any:
    """Return a setting without the prefix of its implementation."""
    if isinstance(found, str):
        for start in _IMPLEMENTATIONS:
            found = found.removeprefix(start)
    return found


def _under(table: Any, key: str) -> dict[str, Any]:
    found = table.get(key) if isinstance(table, dict) else None
    return found if isinstance(found, dict) else {}
