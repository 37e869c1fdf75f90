"""`modernbert finetune`: fine-tune a model on labeled rows, or on queries and the passages that answer them."""

from collections.abc import Sequence
from pathlib import Path

from modernbert import config_files as configs
from modernbert.tasks.task import RetrievalTask, known_tasks
from modernbert.training.finetuning import FinetuneConfig, finetune
from modernbert.training.retriever_finetuning import RetrieverConfig, finetune_retriever

__all__ = ["run", "schema_of"]


def schema_of(path: str | None, words: Sequence[str]) -> type[FinetuneConfig] | type[RetrieverConfig]:
    """Return the class of the config that a file and words set, by their `task`.

    Raises: InputError for a file that is absent or is not YAML.
    """
    task = known_tasks().get(str(configs.value_of("task", path, words)))
    return RetrieverConfig if isinstance(task, RetrievalTask) else FinetuneConfig


def run(config: FinetuneConfig | RetrieverConfig) -> Path:
    """Fine-tune a model and print its folder.

    Raises: InputError for inputs that cannot be learned from, before anything is written.
    """
    folder = finetune_retriever(config) if isinstance(config, RetrieverConfig) else finetune(config)
    print(f"model: {folder}")
    return folder
