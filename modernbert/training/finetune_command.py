"""`modernbert finetune`: fine-tune a model on labeled rows, or on queries and the passages that answer them."""

from pathlib import Path

from modernbert.training.distributed import first_process_prints
from modernbert.training.finetuning import FinetuneConfig, finetune
from modernbert.training.retriever_finetuning import RetrieverConfig, finetune_retriever

__all__ = ["run"]


@first_process_prints()
def run(config: FinetuneConfig | RetrieverConfig) -> Path:
    """Fine-tune a model and print its folder.

    Raises: InputError for inputs that cannot be learned from, before anything is written.
    """
    folder = finetune_retriever(config) if isinstance(config, RetrieverConfig) else finetune(config)
    print(f"model: {folder}")
    return folder
