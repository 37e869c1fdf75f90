"""ModernBERT encoders, unpadded from text to vectors.

    from modernbert import ModernBert
    bert = ModernBert.load("answerdotai/ModernBERT-base")
    vectors = bert.embed(["a text", "another"])
"""

from modernbert.errors import InputError
from modernbert.infer.pipeline import Guess, ModernBert
from modernbert.model.config import ModelConfig
from modernbert.ragged import Batch, Layout
from modernbert.text.tokenizer import Tokenizer

__all__ = ["Batch", "Guess", "InputError", "Layout", "ModelConfig", "ModernBert", "Tokenizer"]
