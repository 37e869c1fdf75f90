"""`config.json` of transformers as `ModelConfig`, and as the task and labels of a head; and back.

Reads the keys of transformers 5 (`layer_types`, `rope_parameters`) and of earlier versions, text-embeddings-inference,
candle and vLLM (`global_attn_every_n_layers`, two thetas, `layer_norm_eps`), and writes both.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from modernbert.errors import InputError, shown
from modernbert.model.config import ModelConfig
from modernbert.model.interface import Model
from modernbert.safe_files import check_keys, is_one_line, read_json
from modernbert.tasks.task import ClassifierTask, classifier_task, known_tasks, task_of_config

__all__ = [
    "INT8_FAMILY",
    "check_head",
    "config_from_json",
    "config_to_json",
    "head_to_json",
    "is_int8_json",
    "labels_of_json",
    "reads_pairs_of_json",
    "task_of_json",
    "unused_dropouts",
]

# Values that all published models share. A folder with another value has another architecture.
_FIXED = {
    "model_type": "modernbert",
    "hidden_activation": "gelu",
    "norm_bias": False,
    "attention_bias": False,
    "mlp_bias": False,
    "decoder_bias": True,
    "tie_word_embeddings": True,
}
# The same for heads; ignored in a folder without a head.
_FIXED_OF_HEAD = {"classifier_activation": "gelu", "classifier_bias": False}
# Keys that other families read, and the only value under which they change nothing here.
_NO_EFFECT: dict[str, Any] = {
    "hidden_act": "gelu",
    "is_causal": False,
    "causal_mask": False,
    "is_decoder": False,
    "add_cross_attention": False,
    "is_encoder_decoder": False,
    "partial_rotary_factor": 1.0,
    "pruned_heads": {},
    "per_layer_config": None,
    "quantization_config": None,
    "transformers_weights": "model.safetensors",
}
# Dropouts that transformers applies in training and this package does not have. They change nothing at inference.
_UNUSED_DROPOUTS = ("embedding_dropout", "mlp_dropout")
# Of a folder with int8 layers. With `modernbert`, transformers would read the numbers as weights, after a warning.
INT8_FAMILY = "modernbert_int8"
_INT8 = {"model_type": INT8_FAMILY, "quantization_config": {"quant_method": INT8_FAMILY, "rotation": "hadamard"}}
_ROLES = {"cls_token_id": "bos_token_id", "sep_token_id": "eos_token_id"}
# Fields that may be null; transformers refuses null in every other number.
_MAY_BE_NULL = ("norm_eps", "local_rope_theta", "pad_token_id", *_ROLES)
_FULL, _SLIDING = "full_attention", "sliding_attention"
# Our keys, which other libraries ignore, and keys that sentence-transformers writes for a CrossEncoder.
_PAIRS = "text_pairs"
_TASK = "modernbert_task"
_OF_CROSS_ENCODERS = ("sentence_transformers", "sbert_ce_default_activation_function")


def config_from_json(found: Mapping[str, Any], origin: str) -> ModelConfig:
    """Read the content of a config.json.

    Keys that transformers does not read either are ignored. Unsupported keys that change the outputs are refused.

    Raises: InputError naming `origin` and the key, for a value of the wrong type, an impossible shape, or an
        option that no published ModernBERT uses.
    """
    origins: dict[str, str] = {}
    try:
        if is_int8_json(found):
            found = {key: value for key, value in found.items() if key not in _INT8}
        _check(found, _FIXED)
        _check({key: value for key, value in found.items() if value is not None}, _NO_EFFECT)
        known = [field.name for field in fields(ModelConfig)]
        may_be_null = (*_MAY_BE_NULL, *(["global_attn_every_n_layers"] if found.get("layer_types") else []))
        for key in known:
            if key not in may_be_null and key in found and found[key] is None:
                raise InputError(f"{key}: found None, expected a value, or no such key")
        values = {key: value for key, value in found.items() if key in known and value is not None}
        # The default of transformers. This package has another default and always writes the key.
        values.setdefault("classifier_pooling", "cls")
        values |= _aliases(found, origins)
        values |= _window(found, values)
        values |= _thetas(found, origins)
        values |= _interval(found)
        config = ModelConfig.from_fields(values)
        _check_heads(found, config)
    except InputError as error:
        raise InputError(f"{origin}: {_renamed(str(error), origins)}") from None
    return config


def unused_dropouts(found: Mapping[str, Any], origin: str) -> list[str]:
    """Return a warning for each dropout of a config.json that this package does not apply in training.

    Raises: InputError naming `origin` and the key, for a value that is not a rate.
    """
    rates = {key: found.get(key, 0.0) for key in _UNUSED_DROPOUTS}
    for key, rate in rates.items():
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate < 1:
            raise InputError(f"{origin}: {key}: found {shown(repr(rate), 80)}, expected a number from 0 to below 1")
    return [f"{origin}: {key} is {rate}; training does not apply it" for key, rate in rates.items() if rate]


def _renamed(message: str, origins: Mapping[str, str]) -> str:
    """Replace the name of a field by that of the key it was read from."""
    field, separator, rest = message.partition(":")
    return f"{origins.get(field, field)}{separator}{rest}"


def check_head(found: Mapping[str, Any], origin: str) -> None:
    """Check the keys of a config.json that describe its head.

    Raises: InputError naming `origin` and the key, for a head of another architecture.
    """
    try:
        _check(found, _FIXED_OF_HEAD)
    except InputError as error:
        raise InputError(f"{origin}: {error}") from None


def _check(found: Mapping[str, Any], fixed: Mapping[str, Any]) -> None:
    for key, expected in fixed.items():
        if found.get(key, expected) != expected:
            wanted = "no such key" if expected is None else repr(expected)
            raise InputError(f"{key}: found {shown(repr(found[key]), 80)}, expected {wanted}")


def _check_heads(found: Mapping[str, Any], config: ModelConfig) -> None:
    """Refuse attention heads of another width, and grouped-query attention."""
    for key, expected in (("head_dim", config.head_width), ("num_key_value_heads", config.num_attention_heads)):
        if found.get(key) not in (None, expected):
            raise InputError(f"{key}: found {found[key]!r}, expected {expected}, as in every published ModernBERT")


def is_int8_json(found: Mapping[str, Any]) -> bool:
    """Return whether a config.json is of a model with int8 layers."""
    return all(found.get(key) == value for key, value in _INT8.items())


def config_to_json(config: ModelConfig, architecture: str, dtype: str, *, int8: bool = False) -> dict[str, Any]:
    """Return the content of a config.json that old and new readers load unedited.

    Args:
        config: The shape.
        architecture: The class that transformers builds.
        dtype: The precision of the stored weights.
        int8: Whether the layers are int8, and `dtype` is that of the other weights.
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
        # latter, which other readers do not have.
        "attention_dropout": 0.0,
        "embedding_dropout": 0.0,
        "mlp_dropout": 0.0,
        "classifier_dropout": 0.0,
        "dtype": dtype,
        "torch_dtype": dtype,
        "transformers_version": "4.48.0",
        **(_INT8 if int8 else {}),
    }


def _aliases(found: Mapping[str, Any], origins: dict[str, str]) -> dict[str, Any]:
    """Return fields with other names in some configs; `origins` gets the key that each was read from."""
    values: dict[str, Any] = {}

    def take(name: str, alias: str, usual: Any = None) -> None:
        values[name], origins[name] = found.get(alias, usual), alias

    if found.get("norm_eps") is None:
        if found.get("layer_norm_eps") is not None:
            take("norm_eps", "layer_norm_eps")
        elif "norm_eps" in found:
            raise InputError("norm_eps: found None, expected a value, or no such key")
    for name, alias in _ROLES.items():
        if found.get(name) is None:
            take(name, alias)
    values.setdefault("pad_token_id", found.get("pad_token_id"))
    # Other libraries write the output dropout under this key only; our configs have both.
    if "attention_output_dropout" not in found:
        take("attention_output_dropout", "attention_dropout", 0.0)
    return values


def _window(found: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the window of local layers from `sliding_window`, where transformers writes half of it."""
    half = found.get("sliding_window")
    if half is None:
        return {}
    if type(half) is not int:
        raise InputError(f"sliding_window: found {shown(repr(half), 80)}, expected int")
    if values.get("local_attention", 2 * half) != 2 * half:
        raise InputError(
            f"sliding_window: found {half}, expected half of local_attention ({values['local_attention']})"
        )
    return {"local_attention": 2 * half}


def _thetas(found: Mapping[str, Any], origins: dict[str, str]) -> dict[str, Any]:
    """Return both thetas as transformers reads them: from `rope_parameters`, else from the old keys.

    Source: transformers 5.24, `ModernBertConfig.convert_rope_params_to_dict`. It refuses a flat `rope_parameters`, and
    ignores `rope_theta`; here the latter is refused where it would decide.
    """
    if found.get("rope_scaling"):
        scaling = shown(repr(found["rope_scaling"]), 80)
        raise InputError(f"rope_scaling: found {scaling}, expected null; ModernBERT scales by theta alone")
    names = {"global_rope_theta": _FULL, "local_rope_theta": _SLIDING}
    values = {name: found.get(name) for name in names}
    for name, kind in names.items():
        theta = _theta_of(found.get("rope_parameters"), kind)
        if theta is not None:
            values[name], origins[name] = theta, f"rope_parameters.{kind}.rope_theta"
    # In older configs, a null local theta means that of global layers.
    if "local_rope_theta" in found and values["local_rope_theta"] is None:
        values["local_rope_theta"] = values["global_rope_theta"]
    if (bare := found.get("rope_theta")) is not None and [bare, bare] != list(values.values()):
        raise InputError(
            f"rope_theta: found {shown(repr(bare), 80)}, which does not name a layer type; expected "
            "global_rope_theta and local_rope_theta, or rope_parameters with an entry per layer type"
        )
    return {name: theta for name, theta in values.items() if theta is not None}


def _theta_of(parameters: Any, kind: str) -> Any:
    """Return the theta that `rope_parameters` has for a layer type, or None."""
    expected = f"{{{_FULL!r}: {{'rope_type': 'default', 'rope_theta': ...}}, {_SLIDING!r}: ...}}"
    if parameters is None:
        return None
    if not isinstance(parameters, Mapping):
        raise InputError(f"rope_parameters: found {shown(repr(parameters), 80)}, expected {expected}")
    if "rope_type" in parameters or "rope_theta" in parameters:
        flat = shown(repr(dict(parameters)), 80)
        raise InputError(f"rope_parameters: found {flat}, without layer types, expected {expected}")
    check_keys(parameters, (_FULL, _SLIDING), "rope_parameters")
    if kind not in parameters:
        return None
    entry, place = parameters[kind], f"rope_parameters.{kind}"
    if not isinstance(entry, Mapping):
        raise InputError(f"{place}: found {shown(repr(entry), 80)}, expected rope_type and rope_theta")
    for key in ("rope_type", "type"):
        if entry.get(key, "default") != "default":
            raise InputError(f"{place}.{key}: found {shown(repr(entry[key]), 80)}, expected 'default'")
    if entry.get("partial_rotary_factor", 1.0) != 1.0:
        factor = shown(repr(entry["partial_rotary_factor"]), 80)
        raise InputError(f"{place}.partial_rotary_factor: found {factor}, expected 1.0")
    check_keys(entry, ("rope_type", "type", "rope_theta", "partial_rotary_factor"), place)
    if "rope_theta" in entry and entry["rope_theta"] is None:
        raise InputError(f"{place}.rope_theta: found None, expected a number")
    return entry.get("rope_theta")


def _interval(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the interval of global layers from `layer_types`."""
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
    # A model with fewer layers than its interval keeps the interval in the config.
    if isinstance(old, int) and old >= len(kinds) and second == len(kinds):
        return {}
    return {"global_attn_every_n_layers": second}


def task_of_json(found: Mapping[str, Any], num_labels: int, folder: Path) -> ClassifierTask | None:
    """Return the task that a config is for: by our key, or by the architecture and the problem type.

    Raises: InputError for a key with an unknown task.
    """
    if (name := found.get(_TASK)) is not None:
        if name not in known_tasks():
            raise InputError(
                f"{folder / 'config.json'}: {_TASK} is {name!r}, expected {', '.join(known_tasks())}; a task of "
                "another package is known once its module is imported"
            )
        return classifier_task(str(name))
    architectures, problem = found.get("architectures"), found.get("problem_type")
    listed = architectures if isinstance(architectures, list) else []
    return task_of_config(listed, problem, num_labels)


def reads_pairs_of_json(found: Mapping[str, Any], folder: Path) -> bool:
    """Return whether a folder's head scores pairs of texts: by our key in config.json, or as a CrossEncoder.

    Raises: InputError if our key has another type.
    """
    if (said := found.get(_PAIRS)) is not None:
        if not isinstance(said, bool):
            raise InputError(f"{folder / 'config.json'}: {_PAIRS}: found {said!r}, expected true or false")
        return said
    settings = read_json(folder / "config_sentence_transformers.json", missing_ok=True)
    # sentence-transformers adds its own keys to the config.json of a CrossEncoder, and of no other model.
    return settings.get("model_type") == "CrossEncoder" or any(key in found for key in _OF_CROSS_ENCODERS)


def labels_of_json(found: Mapping[str, Any], num_labels: int, folder: Path) -> list[str]:
    """Return the labels of a head, `LABEL_0` and so on if config.json names none.

    Raises: InputError for labels of another number, several lines of text, or a repetition.
    """
    named = found.get("id2label")
    if named is None:
        return [f"LABEL_{number}" for number in range(num_labels)]
    labels = [named.get(str(number)) for number in range(num_labels)] if isinstance(named, dict) else []
    if not labels or len(named) != num_labels or not all(isinstance(label, str) for label in labels):
        count = f"{len(named)} labels" if isinstance(named, dict) else f"{type(named).__name__}"
        raise InputError(f"{folder / 'config.json'}: id2label has {count}, expected {num_labels} by weights")
    texts = [str(label) for label in labels]
    for label in texts:
        if not is_one_line(label):  # labels are printed unescaped
            raise InputError(f"{folder / 'config.json'}: id2label has {label!r}, expected text of one line")
    if len(set(texts)) < num_labels:  # outputs are keyed by label
        twice = next(label for label, count in Counter(texts).items() if count > 1)
        raise InputError(f"{folder / 'config.json'}: id2label has {twice!r} twice, expected different labels")
    return texts


def head_to_json(model: Model) -> dict[str, Any]:
    """Return the keys of config.json that describe the head of a fine-tuned model; none without such a head."""
    if model.task is None or not model.is_classifier:
        return {}
    task = classifier_task(model.task)
    return {
        "id2label": {str(number): label for number, label in enumerate(model.labels)},
        "label2id": {label: number for number, label in enumerate(model.labels)},
        "num_labels": len(model.labels),
        "problem_type": task.problem_type,
        **({} if task.is_published else {_TASK: task.name}),
        **({_PAIRS: True} if model.reads_pairs else {}),
    }
