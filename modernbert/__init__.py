"""ModernBERT encoders, unpadded from text to vectors.

from modernbert import ModernBert
bert = ModernBert.load("answerdotai/ModernBERT-base")
vectors = bert.embed(["a text", "another"])
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modernbert.errors import InputError
    from modernbert.infer.answers import Span
    from modernbert.infer.pipeline import Guess, ModernBert, Ranked
    from modernbert.model.config import ModelConfig
    from modernbert.ragged import Batch, Layout
    from modernbert.text.tokenizer import Tokenizer

__all__ = ["Batch", "Guess", "InputError", "Layout", "ModelConfig", "ModernBert", "Ranked", "Span", "Tokenizer"]

_HOMES = {
    "Batch": "modernbert.ragged",
    "Guess": "modernbert.infer.pipeline",
    "InputError": "modernbert.errors",
    "Layout": "modernbert.ragged",
    "ModelConfig": "modernbert.model.config",
    "ModernBert": "modernbert.infer.pipeline",
    "Ranked": "modernbert.infer.pipeline",
    "Span": "modernbert.infer.answers",
    "Tokenizer": "modernbert.text.tokenizer",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: a process that only tokenises never waits for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'modernbert' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
