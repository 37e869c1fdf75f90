"""`modernbert finetune`: labelled rows, or queries and their answers -> a tuned model."""

from collections.abc import Sequence
from pathlib import Path

from modernbert import config_files as configs
from modernbert.training.finetuning import FinetuneConfig, finetune
from modernbert.training.retriever_finetuning import TASKS, RetrieverConfig, finetune_retriever

__all__ = ["run", "schema_of"]


def schema_of(path: str | None, words: Sequence[str]) -> type[FinetuneConfig] | type[RetrieverConfig]:
    """Return the kind of config that a file and words are for, by their `task`.

    Raises: InputError for a file that is absent or is not YAML.
    """
    return RetrieverConfig if configs.value_of("task", path, words) in TASKS else FinetuneConfig


def run(config: FinetuneConfig | RetrieverConfig) -> Path:
    """Fine-tune and say where the model is.

    Raises: InputError for what cannot be learned from, before anything is written.
    """
    folder = finetune_retriever(config) if isinstance(config, RetrieverConfig) else finetune(config)
    print(f"model: {folder}")
    return folder
