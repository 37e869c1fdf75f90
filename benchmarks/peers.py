"""The models of the efficiency table, with random weights: of this package and of `transformers`."""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.gte import Gte, GteShape
from modernbert.batch import Batch
from modernbert.engines.registry import choose_engine
from modernbert.errors import InputError
from modernbert.inference.loading import permit_plans
from modernbert.model.config import ModelConfig
from modernbert.model.encoder import Encoder
from modernbert.model.initialization import initialize

__all__ = ["MODELS", "Absent", "Documents", "Loaded", "check_takes", "load", "pad"]

Documents = Sequence[np.ndarray]


class Absent(InputError):
    """A library or a model is not installed."""


@dataclass(frozen=True)
class Loaded:
    """A loaded model; `encode` returns the hidden states of a batch, with padding if the model pads."""

    num_parameters: int
    setting: str
    encode: Callable[[Documents], Tensor]


@dataclass(frozen=True)
class Made:
    """A function that makes a model, and the maximum tokens of its documents."""

    longest: int
    make: Callable[[torch.device, torch.dtype], Loaded]


def load(name: str, device: torch.device, dtype: torch.dtype) -> Loaded:
    """Make a model with random weights.

    Raises: InputError for an unknown name; Absent if its library is not installed.
    """
    check_takes(name, 1)
    return MODELS[name].make(device, dtype)


def check_takes(name: str, longest: int) -> None:
    """Raises: InputError for an unknown name, or documents that are too long for the model."""
    if name not in MODELS:
        raise InputError(f"models: found {name!r}, expected {', '.join(MODELS)}")
    if longest > MODELS[name].longest:
        raise InputError(f"takes {MODELS[name].longest:,} tokens, the set has documents of {longest:,}")


def _ours(preset: str) -> Made:
    config = ModelConfig.preset(preset)

    def make(device: torch.device, dtype: torch.dtype) -> Loaded:
        engine = choose_engine("auto", device, dtype, config)
        model = Encoder(config, engine)
        initialize(model, config, seed=0)
        num_parameters = _count(model)
        fitted = permit_plans(model.to(device, dtype).eval()).encoder
        return Loaded(num_parameters, engine.name, _ragged(fitted, device))

    return Made(config.max_position_embeddings, make)


def _gte_unpadded(shape: GteShape) -> Made:
    def make(device: torch.device, dtype: torch.dtype) -> Loaded:
        engine = choose_engine("auto", device, dtype, ModelConfig.preset("base"))
        model = Gte(shape, engine).to(device, dtype).eval()
        return Loaded(_count(model), f"unpadded, {engine.name}", _ragged(model, device))

    return Made(8192, make)


def _of_transformers(config_name: str, model_name: str, longest: int, **fields: Any) -> Made:
    def make(device: torch.device, dtype: torch.dtype) -> Loaded:
        try:
            library = importlib.import_module("transformers")
            config = getattr(library, config_name)(**fields)
            model_class = getattr(library, model_name)
        except ImportError:
            raise Absent("transformers is not installed: pip install --group peers") from None
        except AttributeError:
            raise Absent(f"this transformers has no {model_name}") from None
        for attention in ("sdpa", "eager"):
            try:
                model = model_class._from_config(config, attn_implementation=attention, dtype=dtype)
                break
            except ValueError:  # no such attention for this architecture
                continue
        model = model.to(device).eval()
        return Loaded(_count(model), f"padded, {attention}", _padded(model, device))

    return Made(longest, make)


def _ragged(model: nn.Module, device: torch.device) -> Callable[[Documents], Tensor]:
    def encode(documents: Documents) -> Tensor:
        batch = Batch.from_documents(documents).to(device)
        return model(batch.tokens, batch.layout)  # type: ignore[no-any-return]

    return encode


def _padded(model: nn.Module, device: torch.device) -> Callable[[Documents], Tensor]:
    def encode(documents: Documents) -> Tensor:
        ids, mask = map(torch.from_numpy, pad(documents))
        # Without padding, no mask: the fastest path of all models.
        seen = None if bool(mask.all()) else mask.to(device)
        return model(input_ids=ids.to(device), attention_mask=seen).last_hidden_state  # type: ignore[no-any-return]

    return encode


def pad(documents: Documents) -> tuple[np.ndarray, np.ndarray]:
    """Return ids and mask, padded to the longest document."""
    longest = max(map(len, documents))
    ids, mask = (np.zeros((len(documents), longest), dtype=np.int64) for _ in range(2))
    for row, document in enumerate(documents):
        ids[row, : len(document)] = document
        mask[row, : len(document)] = 1
    return ids, mask


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
_BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
_DEBERTA_V3 = {
    "vocab_size": 128_100, "type_vocab_size": 0, "layer_norm_eps": 1e-7, "relative_attention": True,
    "position_buckets": 256, "max_relative_positions": -1, "position_biased_input": False, "norm_rel_ebd": "layer_norm",
    "share_att_key": True, "pos_att_type": ["p2c", "c2p"],
}  # fmt: skip
_GTE = {"vocab_size": 30_528, "type_vocab_size": 0, "pad_token_id": 0}
_ROBERTA = {"vocab_size": 50_265, "max_position_embeddings": 514, "type_vocab_size": 1, "pad_token_id": 1}

MODELS: dict[str, Made] = {
    "modernbert-base": _ours("base"),
    "modernbert-base-transformers": _of_transformers("ModernBertConfig", "ModernBertModel", 8192),
    "bert-base": _of_transformers("BertConfig", "BertModel", 512),
    "roberta-base": _of_transformers("RobertaConfig", "RobertaModel", 512, **_ROBERTA),
    "deberta-v3-base": _of_transformers("DebertaV2Config", "DebertaV2Model", 512, **_DEBERTA_V3, **_BASE),
    "nomic-bert": _of_transformers("NomicBertConfig", "NomicBertModel", 8192, max_position_embeddings=8192),
    "gte-en-mlm-base": _of_transformers("GteConfig", "GteModel", 8192, **_GTE),
    "gte-en-mlm-base-unpadded": _gte_unpadded(GteShape()),
    "modernbert-large": _ours("large"),
    "modernbert-large-transformers": _of_transformers(
        "ModernBertConfig", "ModernBertModel", 8192, hidden_size=1024, num_hidden_layers=28, num_attention_heads=16,
        intermediate_size=2624,
    ),
    "bert-large": _of_transformers("BertConfig", "BertModel", 512, **_LARGE),
    "roberta-large": _of_transformers("RobertaConfig", "RobertaModel", 512, **_ROBERTA, **_LARGE),
    "deberta-v3-large": _of_transformers("DebertaV2Config", "DebertaV2Model", 512, **_DEBERTA_V3, **_LARGE),
    "gte-en-mlm-large": _of_transformers("GteConfig", "GteModel", 8192, **_GTE, **_LARGE),
    "gte-en-mlm-large-unpadded": _gte_unpadded(GteShape(24, 1024, 4096)),
}  # fmt: skip
