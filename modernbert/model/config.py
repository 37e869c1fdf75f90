"""`ModelConfig`, the sizes of a ModernBERT, and the published sizes by name.

Fields are named as in config.json. Only settings that differ between published models are fields.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from modernbert.errors import InputError
from modernbert.options import did_you_mean

__all__ = ["PRESETS", "ModelConfig"]


@dataclass(frozen=True)
class ModelConfig:
    """The sizes of an encoder; the defaults are ModernBERT-base after context extension.

    Source: paper, tables 3 and 4; the training configs of the authors.
    """

    vocab_size: int = 50_368
    hidden_size: int = 768
    intermediate_size: int = 1_152
    num_hidden_layers: int = 22
    num_attention_heads: int = 12
    max_position_embeddings: int = 8_192
    global_attn_every_n_layers: int = 3
    local_attention: int = 128
    global_rope_theta: float = 160_000.0
    local_rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    # The paper applies dropout of 10 % to the attention output in all three phases, and none elsewhere.
    attention_output_dropout: float = 0.1
    initializer_range: float = 0.02
    initializer_cutoff_factor: float = 2.0
    classifier_pooling: str = "mean"
    # The model does not use these; they are written to config.json. None: unknown.
    pad_token_id: int | None = 50_283
    cls_token_id: int | None = 50_281
    sep_token_id: int | None = 50_282

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            number = getattr(self, name)
            _expect(0 < number < math.inf, name, number, "a finite number above 0")
        for name, most in _MAX.items():
            _expect(getattr(self, name) <= most, name, getattr(self, name), f"at most {most:,}")
        heads, width = self.num_attention_heads, self.hidden_size
        _expect(
            width % (2 * heads) == 0, "hidden_size", width, f"a multiple of {2 * heads} for {heads} heads of even width"
        )
        cutoff = self.initializer_cutoff_factor
        _expect(cutoff >= 0.1, "initializer_cutoff_factor", cutoff, "at least 0.1 standard deviations")
        _expect(self.local_attention % 2 == 0, "local_attention", self.local_attention, "an even number")
        _expect(
            0 <= self.attention_output_dropout < 1, "attention_output_dropout", self.attention_output_dropout, "0 to 1"
        )
        _expect(
            self.classifier_pooling in ("cls", "mean"), "classifier_pooling", self.classifier_pooling, "cls or mean"
        )
        for name in ("pad_token_id", "cls_token_id", "sep_token_id"):
            number = getattr(self, name)
            _expect(
                number is None or 0 <= number < self.vocab_size,
                name,
                number,
                f"an id below the vocabulary of {self.vocab_size:,}",
            )

    @staticmethod
    def preset(name: str, **changes: Any) -> "ModelConfig":
        """Return a published config by name, with some fields changed.

        >>> ModelConfig.preset("large").num_hidden_layers
        28

        Raises:
            InputError: For an unknown name or field, with the nearest known one.
        """
        if name not in PRESETS:
            raise InputError(
                f"model.preset: found {name!r}, expected one of {', '.join(PRESETS)}.{did_you_mean(name, PRESETS)}"
            )
        known = [field.name for field in fields(ModelConfig)]
        for key in changes:
            if key not in known:
                raise InputError(f"model.{key}: no such field of a model.{did_you_mean(key, known)}")
        return replace(PRESETS[name], **_typed(changes))

    @staticmethod
    def from_fields(values: Mapping[str, Any]) -> "ModelConfig":
        """Return a config from parsed JSON or YAML, whose values may be of any type.

        Raises:
            InputError: For a value of the wrong type, or impossible sizes; names the first such field.
        """
        return ModelConfig(**_typed(values))

    @property
    def head_width(self) -> int:
        """Width of one attention head, K."""
        return self.hidden_size // self.num_attention_heads

    @property
    def window(self) -> tuple[int, int]:
        """Numbers of keys to the left and right of a query that a local layer attends to, both inclusive."""
        return (self.local_attention // 2, self.local_attention // 2)

    def is_global(self, layer: int) -> bool:
        """Return whether a layer attends to the whole document: every n-th layer, starting with the first."""
        return layer % self.global_attn_every_n_layers == 0

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as plain data."""
        return asdict(self)


_POSITIVE = [
    field.name
    for field in fields(ModelConfig)
    if field.type in (int, float) and field.name != "attention_output_dropout"
]
# Far above any published encoder, and low enough to fail quickly.
_MAX = {
    "vocab_size": 2**22,
    "hidden_size": 2**15,
    "intermediate_size": 2**17,
    "num_hidden_layers": 2**10,
    "num_attention_heads": 2**10,
    "max_position_embeddings": 2**20,
    "global_attn_every_n_layers": 2**20,
    "local_attention": 2**12,
    "initializer_range": 1_000,
}


def _typed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return fields in their declared types; booleans and strings are not numbers."""
    kinds: dict[str, Any] = {field.name: field.type for field in fields(ModelConfig)}
    typed = {}
    for name, value in values.items():
        kind = kinds[name]
        typed[name] = float(value) if kind is float and type(value) is int and abs(value) < 2**53 else value
        if isinstance(value, bool) or not isinstance(typed[name], kind):
            raise InputError(f"{name}: found {value!r}, expected {getattr(kind, '__name__', kind)}")
    return typed


def _expect(holds: bool, name: str, found: Any, expected: str) -> None:
    if not holds:
        raise InputError(f"{name}: found {found!r}, expected {expected}")


def _ettin(layers: int, width: int, feed_forward: int, heads: int) -> ModelConfig:
    """Ettin: theta 160,000 in all layers, 7,999 positions (arXiv 2507.11412)."""
    return ModelConfig(
        num_hidden_layers=layers,
        hidden_size=width,
        intermediate_size=feed_forward,
        num_attention_heads=heads,
        local_rope_theta=160_000.0,
        max_position_embeddings=7_999,
    )


def _mmbert(width: int, heads: int) -> ModelConfig:
    """mmBERT: 22 layers, the vocabulary of Gemma 2, theta 160,000 in all layers (arXiv 2509.06888)."""
    return ModelConfig(
        vocab_size=256_000,
        hidden_size=width,
        num_attention_heads=heads,
        local_rope_theta=160_000.0,
        pad_token_id=0,
        cls_token_id=2,
        sep_token_id=1,
    )


PRESETS: dict[str, ModelConfig] = {
    # For the demo: it learns within minutes on two cores. As in all presets, the first and the last layer are global.
    "tiny": ModelConfig(
        vocab_size=4_096,
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=4,
        num_attention_heads=2,
        # 0.02 of base, scaled by the square root of the width: activations keep their size.
        initializer_range=0.05,
        pad_token_id=4_011,
        cls_token_id=4_009,
        sep_token_id=4_010,
    ),
    "base": ModelConfig(),
    "large": ModelConfig(num_hidden_layers=28, hidden_size=1_024, intermediate_size=2_624, num_attention_heads=16),
    "ettin-17m": _ettin(7, 256, 384, 4),
    "ettin-32m": _ettin(10, 384, 576, 6),
    "ettin-68m": _ettin(19, 512, 768, 8),
    "ettin-1b": _ettin(28, 1_792, 3_840, 28),
    "mmbert-small": _mmbert(384, 6),
    "mmbert-base": _mmbert(768, 12),
}
