"""The published `config.json`, in its two dialects, to and from `ModelConfig`.

In: the parsed JSON of a model folder. Out: a checked `ModelConfig`, and back. A file of its own because readers differ:
transformers 5 wants `layer_types` and `rope_parameters`; text-embeddings-inference, candle and vLLM insist on
`global_attn_every_n_layers`, the two thetas and `layer_norm_eps`. We read either and write both.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from modernbert.errors import InputError
from modernbert.model.config import ModelConfig

__all__ = ["check_head", "config_from_json", "config_to_json"]

# What every published model has in common. A folder that says otherwise is another architecture under the same name.
_FIXED = {
    "model_type": "modernbert",
    "hidden_activation": "gelu",
    "norm_bias": False,
    "attention_bias": False,
    "mlp_bias": False,
    "decoder_bias": True,
    "tie_word_embeddings": True,
}
# The same of a head; of a folder that has none it does not matter.
_FIXED_OF_HEAD = {"classifier_activation": "gelu", "classifier_bias": False}
_ROLES = {"cls_token_id": "bos_token_id", "sep_token_id": "eos_token_id"}
_FULL, _SLIDING = "full_attention", "sliding_attention"


def config_from_json(found: Mapping[str, Any], origin: str) -> ModelConfig:
    """Read a published config; unknown keys are ignored.

    Raises: InputError naming `origin` and the key, for a value of the wrong type, an impossible shape, or a switch that
    no published ModernBERT uses.
    """
    try:
        _check(found, _FIXED)
        known = {field.name for field in fields(ModelConfig)}
        values = {key: value for key, value in found.items() if key in known and value is not None}
        # As transformers has it; a config that is made here says it, and has another default.
        values.setdefault("classifier_pooling", "cls")
        values |= _aliases(found)
        values |= _thetas(found)
        values |= _interval(found)
        return ModelConfig.from_fields(values)
    except InputError as error:
        raise InputError(f"{origin}: {error}") from None


def check_head(found: Mapping[str, Any], origin: str) -> None:
    """Check what a published config says of its head.

    Raises: InputError naming `origin` and the key, for a head of another architecture.
    """
    try:
        _check(found, _FIXED_OF_HEAD)
    except InputError as error:
        raise InputError(f"{origin}: {error}") from None


def _check(found: Mapping[str, Any], fixed: Mapping[str, Any]) -> None:
    for key, expected in fixed.items():
        if found.get(key, expected) != expected:
            raise InputError(f"{key}: found {found[key]!r}, expected {expected!r}")


def config_to_json(config: ModelConfig, architecture: str, dtype: str) -> dict[str, Any]:
    """Write a config that old and new readers take unedited.

    `architecture` is the class other libraries should build, `dtype` the precision of the stored weights.
    """
    kinds = [_FULL if config.is_global(layer) else _SLIDING for layer in range(config.num_hidden_layers)]
    thetas = {_FULL: config.global_rope_theta, _SLIDING: config.local_rope_theta}
    return {
        **_FIXED,
        **_FIXED_OF_HEAD,
        **config.as_dict(),
        "architectures": [architecture],
        "bos_token_id": config.cls_token_id,
        "eos_token_id": config.sep_token_id,
        "layer_types": kinds,
        "rope_parameters": {kind: {"rope_type": "default", "rope_theta": theta} for kind, theta in thetas.items()},
        "layer_norm_eps": config.norm_eps,
        # transformers has one key for two dropouts, on attention weights and on the output. The paper uses only the
        # latter, which other readers do not know; zero is what they would run with.
        "attention_dropout": 0.0,
        "embedding_dropout": 0.0,
        "mlp_dropout": 0.0,
        "classifier_dropout": 0.0,
        "dtype": dtype,
        "torch_dtype": dtype,
        "transformers_version": "4.48.0",
    }


def _aliases(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return fields that some writers spell otherwise."""
    values: dict[str, Any] = {}
    if found.get("norm_eps") is None and found.get("layer_norm_eps") is not None:
        values["norm_eps"] = found["layer_norm_eps"]
    for name, alias in _ROLES.items():
        if found.get(name) is None:
            values[name] = found.get(alias)
    values.setdefault("pad_token_id", found.get("pad_token_id"))
    # A config of another library says nothing of the output dropout but in this key; in ours the two differ.
    if "attention_output_dropout" not in found:
        values["attention_output_dropout"] = found.get("attention_dropout", 0.0)
    return values


def _thetas(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return both thetas, from the new keys or the old ones."""
    if found.get("rope_scaling"):
        raise InputError(
            f"rope_scaling: found {found['rope_scaling']!r}, expected null; ModernBERT scales by theta alone"
        )
    values = {"global_rope_theta": found.get("global_rope_theta"), "local_rope_theta": found.get("local_rope_theta")}
    parameters = found.get("rope_parameters") or {}
    if not isinstance(parameters, Mapping):
        raise InputError(f"rope_parameters: found {parameters!r}, expected one entry per layer type")
    for name, kind in (("global_rope_theta", _FULL), ("local_rope_theta", _SLIDING)):
        entry = parameters.get(kind) or {}
        if not isinstance(entry, Mapping):
            raise InputError(f"rope_parameters.{kind}: found {entry!r}, expected rope_type and rope_theta")
        if entry.get("rope_type", "default") != "default":
            raise InputError(f"rope_parameters.{kind}.rope_type: found {entry['rope_type']!r}, expected 'default'")
        values[name] = entry.get("rope_theta", values[name])
    # A null local theta is the old way to say "as in global layers".
    if "local_rope_theta" in found and values["local_rope_theta"] is None:
        values["local_rope_theta"] = values["global_rope_theta"]
    return {name: theta for name, theta in values.items() if theta is not None}


def _interval(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return n where every n-th layer is global, if the list of layer types says so."""
    old, kinds = found.get("global_attn_every_n_layers"), found.get("layer_types")
    if kinds is None:
        return {}
    if not isinstance(kinds, list) or not all(kind in (_FULL, _SLIDING) for kind in kinds):
        raise InputError(f"layer_types: found {str(kinds)[:80]}, expected a list of {_FULL!r} and {_SLIDING!r}")
    if isinstance(found.get("num_hidden_layers"), int) and len(kinds) != found["num_hidden_layers"]:
        raise InputError(
            f"layer_types: found {len(kinds)} entries, expected num_hidden_layers = {found['num_hidden_layers']}"
        )
    second = next((layer for layer, kind in enumerate(kinds) if kind == _FULL and layer > 0), len(kinds))
    if kinds != [_FULL if layer % second == 0 else _SLIDING for layer in range(len(kinds))]:
        raise InputError("layer_types: found an irregular pattern, expected every n-th layer global from the first on")
    # A model too shallow to show its interval keeps the one it names.
    if isinstance(old, int) and old >= len(kinds) and second == len(kinds):
        return {}
    return {"global_attn_every_n_layers": second}
