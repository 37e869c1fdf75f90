"""The commands: their names, their option classes and their functions, imported when a command is called."""

from dataclasses import dataclass
from importlib import import_module
from typing import Any

__all__ = ["GROUPS", "SECTIONS", "TASKS", "VERBS", "Verb"]


@dataclass(frozen=True)
class Verb:
    """A command."""

    section: str
    """Heading in the list of commands."""
    summary: str
    """One line for the list of commands."""
    options: str
    """`module:Class` of its options, in a module that imports no torch, so that help and errors are immediate."""
    function: str
    """`module:name` of the function that takes the options."""
    by_task: str | None = None
    """`module:name` of a function that returns the class of the options for a `--task`."""

    def load_options(self, task: str | None = None) -> type:
        """Import the class of options, that for a task if there are several."""
        return _load(self.by_task)(task) if task and self.by_task else _load(self.options)

    def load_function(self) -> Any:
        """Import the function."""
        return _load(self.function)


def _load(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(f"modernbert.{module}"), name)


VERBS = {
    "embed": Verb(
        "Use",
        "Write one embedding for each text.",
        "inference.text_options:EmbedConfig",
        "inference.embed_files:run",
    ),
    "classify": Verb(
        "Use",
        "Print the labels of texts with their probabilities.",
        "inference.text_options:ClassifyConfig",
        "inference.classify_texts:run",
    ),
    "tag": Verb(
        "Use",
        "Print the spans that a token classification model finds.",
        "inference.text_options:TagConfig",
        "inference.tag_texts:run",
    ),
    "rerank": Verb(
        "Use",
        "Print texts in the order of their relevance to a query.",
        "inference.text_options:RerankConfig",
        "inference.rerank_texts:run",
    ),
    "fill-mask": Verb(
        "Use",
        "Print the most probable tokens for each [MASK].",
        "inference.text_options:FillMaskConfig",
        "inference.fill_mask_texts:run",
    ),
    "index": Verb(
        "Use",
        "Index files for search.",
        "search.search_options:IndexConfig",
        "search.index_files:run",
    ),
    "search": Verb(
        "Use",
        "Print the passages of indexed files that match a query.",
        "search.search_options:SearchConfig",
        "search.search_files:run",
    ),
    "serve": Verb(
        "Use",
        "Serve a model over HTTP.",
        "serving.serve_options:ServeConfig",
        "serving.serve:run",
    ),
    "export": Verb(
        "Tools",
        "Write a model for ONNX Runtime.",
        "export.export_options:ExportConfig",
        "export.export_model:run",
    ),
    "tokenizer": Verb(
        "Train",
        "Train a tokenizer on text.",
        "data.prepare_options:TokenizerConfig",
        "data.tokenizer_training:run",
    ),
    "prepare": Verb(
        "Train",
        "Tokenize documents into shards for pretraining.",
        "data.prepare_options:PrepareConfig",
        "data.prepare:run",
    ),
    "pretrain": Verb(
        "Train",
        "Pretrain a model, or continue the pretraining of one.",
        "training.pretraining_config:PretrainConfig",
        "training.pretraining:run",
    ),
    "finetune": Verb(
        "Train",
        "Fine-tune a model: classify, tag, rerank, embed, late, ...",
        "training.finetuning_config:FinetuneConfig",
        "training.finetune_command:run",
        "training.command_options:schema_of",
    ),
    "sweep": Verb(
        "Train",
        "Fine-tune with several hyperparameters, and keep the best model.",
        "training.command_options:FinetuneSweepConfig",
        "training.sweep_command:run",
        "training.command_options:sweep_schema_of",
    ),
    "grow": Verb(
        "Train",
        "Initialize a larger model with the weights of a trained one.",
        "training.command_options:GrowConfig",
        "training.grow_folder:run",
    ),
    "average": Verb(
        "Train",
        "Average the weights of checkpoints.",
        "training.command_options:AverageConfig",
        "training.average_checkpoints:run",
    ),
    "plan": Verb(
        "Train",
        "Forecast memory, speed and hours of pretraining.",
        "planning.plan_options:PlanConfig",
        "planning.plan:run",
    ),
    "evaluate retrieval": Verb(
        "Evaluate",
        "Score the ranking of documents: nDCG@10, MRR@10, recall@100.",
        "evaluation.retrieval_options:RetrievalConfig",
        "evaluation.evaluate_retrieval:run",
    ),
    "evaluate glue": Verb(
        "Evaluate",
        "Fine-tune on the tasks of GLUE, and print the scores.",
        "training.command_options:GlueConfig",
        "training.glue:run",
    ),
    "report": Verb(
        "Evaluate",
        "Write an HTML page about runs.",
        "reporting.report_options:ReportConfig",
        "reporting.report:run",
    ),
    "bench": Verb(
        "Tools",
        "Measure the speed, latency and memory of a model.",
        "planning.bench_options:BenchConfig",
        "planning.bench_model:bench",
    ),
    "convert": Verb(
        "Tools",
        "Convert a checkpoint to a model folder.",
        "checkpoints.convert_options:ConvertConfig",
        "checkpoints.convert:run",
    ),
    "doctor": Verb(
        "Tools",
        "Print versions, processor, engines, extras and folders, for a bug report.",
        "doctor:DoctorConfig",
        "doctor:run",
    ),
    "example-data": Verb(
        "Tools",
        "Write the small data sets that the documentation uses.",
        "data.example_data:ExampleDataConfig",
        "data.example_data:run",
    ),
    "demo": Verb(
        "Tools",
        "Pretrain and fine-tune a small model on text found on this machine.",
        "demo.demo_options:DemoConfig",
        "demo.demo_steps:run",
    ),
}

SECTIONS = ("Use", "Train", "Evaluate", "Tools")
"""Headings of the list of commands."""

GROUPS = {"evaluate": "Evaluate a model on tasks with known answers."}
"""Commands of two words, by the first."""

TASKS = ("classify", "embed")
"""A task of each class of options, for the commands whose options depend on the task."""
