"""The commands: their names, their option classes and their functions, imported when a command is called."""

from dataclasses import dataclass, field
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
    examples: tuple[str, ...] = field(kw_only=True)
    """Command lines for the help, on the data of `modernbert example-data`."""

    def load_options(self, task: str | None = None) -> type:
        """Import the class of options, that for a task if there are several."""
        return _load(self.by_task)(task) if task and self.by_task else _load(self.options)

    def examples_for(self, task: str | None = None) -> tuple[str, ...]:
        """Return the examples of a task; for no task, or one without an example, the first two."""
        return tuple(each for each in self.examples if f"--task {task} " in each) or self.examples[:2]

    def load_function(self) -> Any:
        """Import the function."""
        return _load(self.function)


def _load(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(f"modernbert.{module}"), name)


VERBS = {
    "embed": Verb(
        "Use",
        "Compute one embedding for each text.",
        "inference.text_options:EmbedConfig",
        "inference.embed_files:run",
        examples=(
            "modernbert embed nomic-ai/modernbert-embed-base --input data/tickets-dev.tsv --output vectors.npy",
            'modernbert embed nomic-ai/modernbert-embed-base "a text" "another text"',
        ),
    ),
    "classify": Verb(
        "Use",
        "Print the labels of texts with their probabilities.",
        "inference.text_options:ClassifyConfig",
        "inference.classify_texts:run",
        examples=(
            'modernbert classify runs/tickets/model "I was charged twice" "it never came"',
            "modernbert classify runs/tickets/model --input data/tickets-dev.tsv --json",
        ),
    ),
    "tag": Verb(
        "Use",
        "Print the spans that a tagger finds: names, products, places.",
        "inference.text_options:TagConfig",
        "inference.tag_texts:run",
        examples=('modernbert tag runs/orders/model "I ordered a blue sofa from Oslo"',),
    ),
    "rerank": Verb(
        "Use",
        "Print texts in the order of their relevance to a query.",
        "inference.text_options:RerankConfig",
        "inference.rerank_texts:run",
        examples=(
            'modernbert rerank Alibaba-NLP/gte-modernbert-base "can I pay in parts" '
            "--input data/faq/corpus.jsonl --top-k 3",
        ),
    ),
    "fill-mask": Verb(
        "Use",
        "Print the most probable tokens for each [MASK].",
        "inference.text_options:FillMaskConfig",
        "inference.fill_mask_texts:run",
        examples=('modernbert fill-mask answerdotai/ModernBERT-base "Paris is a [MASK]." --top-k 3',),
    ),
    "index": Verb(
        "Use",
        "Index files for search.",
        "search.search_options:IndexConfig",
        "search.index_files:run",
        examples=("modernbert index nomic-ai/modernbert-embed-base --input data/articles --output articles.index",),
    ),
    "search": Verb(
        "Use",
        "Print the passages of indexed files that match a query.",
        "search.search_options:SearchConfig",
        "search.search_files:run",
        examples=('modernbert search articles.index "my bank card does not work" --top-k 3',),
    ),
    "serve": Verb(
        "Use",
        "Serve a model over HTTP.",
        "serving.serve_options:ServeConfig",
        "serving.serve:run",
        examples=("modernbert serve nomic-ai/modernbert-embed-base --port 8080",),
    ),
    "export": Verb(
        "Tools",
        "Export a model to ONNX.",
        "export.export_options:ExportConfig",
        "export.export_model:run",
        examples=("modernbert export answerdotai/ModernBERT-base --output onnx --input data/tickets-dev.tsv",),
    ),
    "tokenizer": Verb(
        "Train",
        "Train a tokenizer on text.",
        "data.prepare_options:TokenizerConfig",
        "data.tokenizer_training:run",
        examples=("modernbert tokenizer --input data/articles --output tokenizer --vocab-size 512",),
    ),
    "prepare": Verb(
        "Train",
        "Tokenize documents into shards for pretraining.",
        "data.prepare_options:PrepareConfig",
        "data.prepare:run",
        examples=(
            "modernbert prepare --input data/articles --tokenizer answerdotai/ModernBERT-base "
            "--output shards --heldout 0.1",
        ),
    ),
    "pretrain": Verb(
        "Train",
        "Pretrain a model, or continue the pretraining of one.",
        "training.pretraining_config:PretrainConfig",
        "training.pretraining:run",
        examples=(
            "modernbert pretrain --config pretrain/adapt --init-from answerdotai/ModernBERT-base "
            "--text data/articles --output runs/adapted --phases.adapt.tokens 65536",
            "modernbert pretrain --config pretrain/base --tokenizer answerdotai/ModernBERT-base "
            "--data.sources.mix shards/train --data.heldout.mix shards/heldout --output runs/base",
        ),
    ),
    "finetune": Verb(
        "Train",
        "Fine-tune a model to classify, tag, rerank or embed texts.",
        "training.finetuning_config:FinetuneConfig",
        "training.finetune_command:run",
        "training.command_options:schema_of",
        examples=(
            "modernbert finetune answerdotai/ModernBERT-base --task classify --train data/tickets-train.tsv "
            "--dev data/tickets-dev.tsv --output runs/tickets",
            "modernbert finetune answerdotai/ModernBERT-base --task embed --train data/questions-train.jsonl "
            "--dev data/faq --dev-split test --output runs/faq",
            "modernbert finetune answerdotai/ModernBERT-base --task tag --train data/orders-train.conll "
            "--dev data/orders-dev.conll --output runs/orders",
            "modernbert finetune answerdotai/ModernBERT-base --task late --train data/questions-train.jsonl "
            "--dev data/faq --dev-split test --output runs/colbert",
        ),
    ),
    "sweep": Verb(
        "Train",
        "Fine-tune with several hyperparameters, and keep the best model.",
        "training.command_options:FinetuneSweepConfig",
        "training.sweep_command:run",
        "training.command_options:sweep_schema_of",
        examples=(
            "modernbert sweep answerdotai/ModernBERT-base --task classify --train data/tickets-train.tsv "
            "--dev data/tickets-dev.tsv --output runs/sweep-tickets --sweep.lr 3e-5 --sweep.lr 8e-5",
            "modernbert sweep answerdotai/ModernBERT-base --task embed --train data/questions-train.jsonl "
            "--dev data/faq --dev-split test --output runs/sweep-faq --sweep.lr 3e-5 --sweep.lr 8e-5",
        ),
    ),
    "grow": Verb(
        "Train",
        "Initialize a larger model with the weights of a trained one.",
        "training.command_options:GrowConfig",
        "training.grow_folder:run",
        examples=("modernbert grow answerdotai/ModernBERT-base --preset large --output large-start",),
    ),
    "average": Verb(
        "Train",
        "Average the weights of checkpoints.",
        "training.command_options:AverageConfig",
        "training.average_checkpoints:run",
        examples=("modernbert average --run runs/adapted --best 3 --output averaged",),
    ),
    "plan": Verb(
        "Train",
        "Forecast memory, speed and hours of pretraining.",
        "planning.plan_options:PlanConfig",
        "planning.plan:run",
        examples=(
            "modernbert plan --config pretrain/base --device h100 --count 8",
            "modernbert plan --config pretrain/adapt --init-from answerdotai/ModernBERT-base "
            "--phases.adapt.tokens 65536 --device cpu",
        ),
    ),
    "evaluate retrieval": Verb(
        "Evaluate",
        "Score a model on retrieval: nDCG@10, MRR@10, recall@100.",
        "evaluation.retrieval_options:RetrievalConfig",
        "evaluation.evaluate_retrieval:run",
        examples=("modernbert evaluate retrieval nomic-ai/modernbert-embed-base data/faq --bm25",),
    ),
    "evaluate glue": Verb(
        "Evaluate",
        "Fine-tune a model on the tasks of GLUE, and score it.",
        "training.command_options:GlueConfig",
        "training.glue:run",
        examples=("modernbert evaluate glue answerdotai/ModernBERT-base glue --tasks sst2 --output runs/glue",),
    ),
    "report": Verb(
        "Evaluate",
        "Draw the charts of training runs on an HTML page.",
        "reporting.report_options:ReportConfig",
        "reporting.report:run",
        examples=("modernbert report runs/adapted runs/tickets --output report.html",),
    ),
    "bench": Verb(
        "Tools",
        "Measure the speed, latency and memory of a model.",
        "planning.bench_options:BenchConfig",
        "planning.bench_model:bench",
        examples=("modernbert bench answerdotai/ModernBERT-base --sets short-variable",),
    ),
    "convert": Verb(
        "Tools",
        "Convert a checkpoint of another program to a model folder.",
        "checkpoints.convert_options:ConvertConfig",
        "checkpoints.convert:run",
        examples=("modernbert convert ep0-ba1000-rank0.pt --tokenizer answerdotai/ModernBERT-base --output converted",),
    ),
    "quantize": Verb(
        "Tools",
        "Write a model with int8 layers, for inference on a CPU.",
        "inference.quantize_options:QuantizeConfig",
        "inference.quantize_model:run",
        examples=("modernbert quantize runs/tickets/model --output tickets-int8 --texts data/tickets-train.tsv",),
    ),
    "push": Verb(
        "Tools",
        "Upload a model folder to the Hugging Face Hub.",
        "checkpoints.push_options:PushConfig",
        "checkpoints.push:run",
        examples=("modernbert push runs/tickets/model me/tickets --private",),
    ),
    "doctor": Verb(
        "Tools",
        "Print versions, engines and folders, for a bug report.",
        "doctor:DoctorConfig",
        "doctor:run",
        examples=("modernbert doctor",),
    ),
    "example-data": Verb(
        "Tools",
        "Write the small data sets that the documentation uses.",
        "data.example_data:ExampleDataConfig",
        "data.example_data:run",
        examples=("modernbert example-data",),
    ),
    "demo": Verb(
        "Tools",
        "Pretrain and fine-tune a small model on text of this machine.",
        "demo.demo_options:DemoConfig",
        "demo.demo_steps:run",
        examples=("modernbert demo --quick",),
    ),
}

SECTIONS = ("Use", "Train", "Evaluate", "Tools")
"""Headings of the list of commands."""

GROUPS = {"evaluate": "Evaluate a model on tasks with known answers."}
"""Commands of two words, by the first."""

TASKS = ("classify", "embed")
"""A task of each class of options, for the commands whose options depend on the task."""
