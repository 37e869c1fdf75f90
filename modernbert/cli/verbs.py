"""The commands: their names, their option classes and their functions, imported when a command is called."""

from dataclasses import dataclass
from importlib import import_module
from typing import Any

__all__ = ["GROUPS", "SECTIONS", "VERBS", "Verb"]


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

    def load_options(self) -> type:
        """Import the class of options."""
        return _load(self.options)

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
    "report": Verb(
        "Tools",
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
