"""The config of the model that a pretraining run trains."""

from dataclasses import asdict
from typing import Any

from modernbert.errors import InputError
from modernbert.model.config import ModelConfig
from modernbert.tokenizer.tokenizer import Tokenizer
from modernbert.training.pretraining_config import PretrainConfig

__all__ = ["model_config"]

# Fields that decide the shapes of the weights and how they are used.
_SHAPE = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "global_attn_every_n_layers",
)
# Fields of the model that follow from a phase or the tokenizer.
_DECIDED = {
    "max_position_embeddings": "max_len of the last phase",
    "global_rope_theta": "global_rope_theta of each phase",
    "local_rope_theta": "local_rope_theta of each phase",
    "pad_token_id": "the tokenizer",
    "cls_token_id": "the tokenizer",
    "sep_token_id": "the tokenizer",
}


def model_config(config: PretrainConfig, tokenizer: Tokenizer, start: ModelConfig | None = None) -> ModelConfig:
    """Return the config of the model after the last phase, with the shape of `start` if the run starts from a model.

    Raises: InputError for an unknown preset or field, a vocabulary too small for the tokenizer, or a shape that the
    model to start from does not have.
    """
    changes = {str(key): value for key, value in config.model.items()}
    for key, decider in _DECIDED.items():
        if key in changes:
            raise InputError(f"model.{key}: found {changes[key]}, but it follows from {decider}; leave it out")
    if start is not None:
        _check_shape(config, changes, start)
        shape = asdict(start)
        if config.new_vocabulary:
            del shape["vocab_size"]  # follows from the new tokenizer, unless named
        changes = {**shape, **changes}
    for key in _DECIDED:
        changes.pop(key, None)
    preset = changes.pop("preset", "base")
    vocab_size = changes.setdefault("vocab_size", -(-tokenizer.vocab_size // 64) * 64)
    if not isinstance(vocab_size, int) or vocab_size < tokenizer.vocab_size:
        expected = f"at least the {tokenizer.vocab_size:,} of {config.tokenizer or config.init_from}"
        raise InputError(f"model.vocab_size: found {vocab_size}, expected {expected}")
    last = list(config.phases.values())[-1]
    try:
        return ModelConfig.preset(
            str(preset),
            **changes,
            max_position_embeddings=last.max_len,
            global_rope_theta=last.global_rope_theta,
            local_rope_theta=last.local_rope_theta,
            pad_token_id=tokenizer.pad_id,
            cls_token_id=tokenizer.cls_id,
            sep_token_id=tokenizer.sep_id,
        )
    except InputError as error:
        # The message begins with the field of the model, which is in a group here.
        raise InputError(f"model.{str(error).removeprefix('model.')}") from None


def _check_shape(config: PretrainConfig, changes: dict[str, Any], start: ModelConfig) -> None:
    """Refuse changes to the shape of the model to start from; fields without weights may change."""
    if "preset" in changes:
        raise InputError(
            f"model.preset: found {changes['preset']}, but the shape is that of {config.init_from}; leave it out"
        )
    for key, value in changes.items():
        found = getattr(start, key, value)
        if key in _SHAPE and value != found and not (key == "vocab_size" and config.new_vocabulary):
            raise InputError(f"model.{key}: found {value}, expected {found}, as in {config.init_from}")
