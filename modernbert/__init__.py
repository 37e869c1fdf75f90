"""ModernBERT encoders, unpadded from text to vectors.

from modernbert import ModernBert, finetune
bert = ModernBert.load("answerdotai/ModernBERT-base")
vectors = bert.embed(["a text", "another"])
folder = finetune("answerdotai/ModernBERT-base", task="classify", train="train.tsv", output="runs/mine")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modernbert.batch import Batch, SequenceLengths
    from modernbert.commands import (
        embed_files,
        evaluate,
        example_data,
        finetune,
        prepare,
        pretrain,
        push,
        quantize,
        serve,
        sweep,
        train_tokenizer,
    )
    from modernbert.errors import InputError
    from modernbert.inference.modernbert import Guess, ModernBert, Ranked
    from modernbert.model.config import ModelConfig
    from modernbert.tasks.tagging import Span
    from modernbert.tokenizer.tokenizer import Tokenizer

__all__ = [
    "Batch",
    "Guess",
    "InputError",
    "SequenceLengths",
    "ModelConfig",
    "ModernBert",
    "Ranked",
    "Span",
    "Tokenizer",
    "embed_files",
    "evaluate",
    "example_data",
    "finetune",
    "prepare",
    "pretrain",
    "push",
    "quantize",
    "serve",
    "sweep",
    "train_tokenizer",
]

__version__ = "0.1.0"

_HOMES = {
    "Batch": "modernbert.batch",
    "Guess": "modernbert.inference.modernbert",
    "InputError": "modernbert.errors",
    "SequenceLengths": "modernbert.batch",
    "ModelConfig": "modernbert.model.config",
    "ModernBert": "modernbert.inference.modernbert",
    "Ranked": "modernbert.inference.modernbert",
    "Span": "modernbert.tasks.tagging",
    "Tokenizer": "modernbert.tokenizer.tokenizer",
    **dict.fromkeys(
        "embed_files evaluate example_data finetune prepare pretrain push quantize serve sweep train_tokenizer".split(),
        "modernbert.commands",
    ),
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that a process that only tokenizes does not import torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'modernbert' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """List the public names, which are imported when they are used."""
    return [*__all__, "__version__"]
