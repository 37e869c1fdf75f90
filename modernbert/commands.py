"""The commands as Python functions; their arguments are the options of the command line.

A single value, such as `train="train.tsv"`, is a list of one. Groups of options are dictionaries, such as
`columns={"text": "sentence"}`; `config` names a YAML file or a shipped config, as `--config` does.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modernbert.checkpoints.push_options import PushConfig
from modernbert.config_files import resolve, takes_options, takes_options_of, value_of
from modernbert.data.example_data import ExampleDataConfig
from modernbert.data.prepare_options import PrepareConfig, TokenizerConfig
from modernbert.errors import InputError
from modernbert.evaluation.retrieval_options import RetrievalConfig
from modernbert.inference.quantize_options import QuantizeConfig
from modernbert.inference.text_options import EmbedConfig
from modernbert.serving.serve_options import ServeConfig
from modernbert.training.command_options import (
    FinetuneSweepConfig,
    GlueConfig,
    RetrieverSweepConfig,
    schema_of,
    sweep_schema_of,
)
from modernbert.training.finetuning_config import FinetuneConfig
from modernbert.training.pretraining_config import PretrainConfig
from modernbert.training.retriever_config import RetrieverConfig

__all__ = [
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


@takes_options(ExampleDataConfig)
def example_data(options: ExampleDataConfig) -> Path:
    """Write the small data sets that the documentation and the examples use, and return their folder."""
    from modernbert.data.example_data import run

    return run(options)


@takes_options(QuantizeConfig)
def quantize(options: QuantizeConfig) -> Path:
    """Write a model folder with int8 layers, and return it."""
    from modernbert.inference.quantize_model import run

    return run(options)


@takes_options(TokenizerConfig)
def train_tokenizer(options: TokenizerConfig) -> Path:
    """Train a tokenizer on text, and return its folder."""
    from modernbert.data.tokenizer_training import run

    return run(options)


@takes_options(PrepareConfig)
def prepare(options: PrepareConfig) -> Path:
    """Tokenize documents into shards, and return the folder that has them in `train` and `heldout`."""
    from modernbert.data.prepare import run

    return run(options)


@takes_options(PretrainConfig)
def pretrain(options: PretrainConfig) -> Path:
    """Pretrain a model, continue the pretraining of one, or continue a stopped run; return the model folder."""
    from modernbert.training.pretraining import run

    return run(options)


def _finetune_options(given: Mapping[str, Any], config: str | Path | None) -> type:
    return schema_of(_task(config, given))


def _sweep_options(given: Mapping[str, Any], config: str | Path | None) -> type:
    return sweep_schema_of(_task(config, given))


@takes_options_of(_finetune_options, FinetuneConfig, RetrieverConfig)
def finetune(options: FinetuneConfig | RetrieverConfig) -> Path:
    """Fine-tune a model, or continue a stopped run; return the model folder.

    Which of the options there are depends on the task, as `modernbert finetune --task TASK --help` shows.

    >>> finetune("runs/base/model", task="classify", train="train.tsv", output="runs/sst2")  # doctest: +SKIP

    Raises:
        InputError: For options or inputs that cannot be used, before anything is written.
    """
    from modernbert.training.finetune_command import run

    return run(options)


@takes_options_of(_sweep_options, FinetuneSweepConfig, RetrieverSweepConfig)
def sweep(options: FinetuneSweepConfig | RetrieverSweepConfig) -> Path:
    """Fine-tune with each combination of values, and return the folder of the best model.

    Which of the options there are depends on the task, as `modernbert sweep --task TASK --help` shows.

    >>> sweep("runs/base/model", task="classify", train="train.tsv", dev="dev.tsv", output="runs/sweep",
    ...       sweep={"lr": [1e-5, 3e-5, 8e-5]})  # doctest: +SKIP

    Raises:
        InputError: For options or inputs that cannot be used, before anything is written.
    """
    from modernbert.training.sweep_command import run

    return run(options)


def evaluate(
    benchmark: str, model: str | Path | None = None, *, config: str | Path | None = None, **options: Any
) -> Any:
    """Evaluate a model, print a table, and return its content.

    >>> evaluate("retrieval", "runs/search/model", collections=["scifact/"])  # doctest: +SKIP

    Args:
        benchmark: `retrieval`, which returns a row for each collection, or `glue`, which returns scores by task.
        model: Model folder, or name of a model on the Hub.
        config: YAML file with options.
        options: The options of `modernbert evaluate BENCHMARK --help`.

    Raises:
        InputError: For an unknown benchmark, and options or inputs that cannot be used.
    """
    given = options if model is None else {"model": model, **options}
    if benchmark == "retrieval":
        from modernbert.evaluation.evaluate_retrieval import run as evaluate_retrieval

        return evaluate_retrieval(resolve(RetrievalConfig, given, config))
    if benchmark == "glue":
        from modernbert.training.glue import run as evaluate_glue

        return evaluate_glue(resolve(GlueConfig, given, config))
    raise InputError(f"benchmark: found {benchmark!r}, expected 'retrieval' or 'glue'.")


@takes_options(EmbedConfig)
def embed_files(options: EmbedConfig) -> Path | None:
    """Embed texts or files of any size into a file, and return it; without `output`, print a JSON line for each text.

    `ModernBert.embed` returns vectors in memory.
    """
    from modernbert.inference.embed_files import run

    run(options)
    return options.output


@takes_options(PushConfig)
def push(options: PushConfig) -> str:
    """Upload a model folder to the Hugging Face Hub in one commit, and return its address.

    >>> push("runs/sst2/model", "me/sst2", private=True)  # doctest: +SKIP

    Raises:
        InputError: For a folder that is not a model folder, or an upload that the Hub refuses.
    """
    from modernbert.checkpoints.push import run

    return run(options)


@takes_options(ServeConfig)
def serve(options: ServeConfig) -> None:
    """Serve a model over HTTP, until SIGTERM or an interrupt."""
    from modernbert.serving.serve import run

    run(options)


def _task(config: str | Path | None, options: Mapping[str, Any]) -> str:
    """Return the task of given options, or of the config file; empty if neither has one, which is then reported."""
    found = options.get("task") or (value_of("task", config) if config is not None else None)
    return found if isinstance(found, str) else ""
