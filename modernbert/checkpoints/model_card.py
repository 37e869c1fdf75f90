"""Model cards: the README.md of a model folder, with the metadata that the Hub reads.

A card depends only on the model and on how it was made: it has no date, no folder of this machine and no secret.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from modernbert.checkpoints.command_line import public_name
from modernbert.checkpoints.loading_examples import examples_of
from modernbert.data.hub_datasets import name_of_dataset
from modernbert.errors import shown
from modernbert.hub_download import name_on_hub
from modernbert.model.embedding_config import EmbeddingConfig
from modernbert.model.int8_linear import int8_layers, is_int8
from modernbert.model.interface import FILL_MASK, MODERNBERT, Model
from modernbert.safe_files import read_bytes
from modernbert.tasks.task import ClassifierTask, find_task

__all__ = ["CARD", "ModelCard", "ModelFacts", "Scores", "read_card"]

CARD = "README.md"
_MOST_BYTES = 2**22
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_MOST_LABELS, _MOST_CHARS = 40, 200
_PIPELINES = {
    "SequenceClassification": "text-classification",
    "TokenClassification": "token-classification",
    "QuestionAnswering": "question-answering",
    "MultipleChoice": "multiple-choice",
}
_TITLES = {
    "fill-mask": "Masked language model",
    "feature-extraction": "Encoder",
    "sentence-similarity": "Embedding model",
    "text-ranking": "Cross-encoder for reranking",
    "text-classification": "Text classification model",
    "token-classification": "Token classification model",
    "question-answering": "Question answering model",
    "multiple-choice": "Multiple choice model",
}
# Cards of the Hub have these names of metrics.
_METRICS = {"matthews": "matthews_correlation", "pearson": "pearsonr", "spearman": "spearmanr"}


@dataclass(frozen=True)
class Scores:
    """The scores of a split.

    Attributes:
        split: Name of the split.
        values: Scores by metric.
        data: The files or data sets.
    """

    split: str
    values: Mapping[str, float]
    data: Sequence[str] = ()


@dataclass(frozen=True)
class ModelCard:
    """How a model was made, filled in by the writer of its folder; unknown facts are left out.

    Attributes:
        method: The method, as a sentence.
        command: The command that does it again.
        bases: The models that it started from: folders, or names on the Hub.
        relation: How it relates to them, in the Hub's words.
        data: Files, folders or data sets on the Hub that it was trained on.
        settings: Numbers and settings of the training by name.
        scores: Scores of its splits.
    """

    method: str
    command: str = ""
    bases: Sequence[str] = ()
    relation: Literal["finetune", "merge", "quantized"] | None = None
    data: Sequence[str] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    scores: Sequence[Scores] = ()

    def text(self, facts: "ModelFacts") -> str:
        """Return the content of README.md."""
        title = facts.title + (", in ONNX" if facts.is_onnx else ", in int8" if facts.is_int8 else "")
        lines = [f"# {title}", "", self.method, "", *self._facts(facts)]
        examples = examples_of(facts)
        if examples:
            lines += ["", "## Load", ""]
            for library, code in examples.items():
                lines += [f"With {library}:", "", *_block("python", code), ""]
        if self.data or self.settings:
            lines += ["", "## Training", ""]
            if self.data:
                lines += [f"- Data: {', '.join(map(_source, self.data))}"]
            lines += [f"- {name}: {_value(value)}" for name, value in self.settings.items()]
        if self.scores:
            lines += ["", "## Scores", "", "| split | data | metric | score |", "| --- | --- | --- | --- |"]
            lines += [_row(split, metric, value) for split, metric, value in self._all_scores()]
        lines += ["", "## Origin", ""]
        if self.command:
            lines += [*_block("sh", shown(self.command, 20_000)), ""]
        lines += [f"Made with {_versions(facts)}."]
        body = re.sub(r"\n{3,}", "\n\n", "\n".join(lines))
        return f"---\n{self._metadata(facts, title)}\n---\n\n{body}\n"

    def _metadata(self, facts: "ModelFacts", title: str) -> str:
        """Return the YAML header."""
        from huggingface_hub import EvalResult, ModelCardData

        bases = list(dict.fromkeys(name for each in self.bases for name in _models_on_hub(each)))
        datasets = [name for each in self.data if (name := name_of_dataset(each))]
        results = [
            EvalResult(
                task_type=facts.pipeline,
                dataset_type=next((name for each in split.data if (name := name_of_dataset(each))), "unknown"),
                dataset_name=", ".join(map(public_name, split.data)) or "unknown",
                dataset_split=split.split,
                metric_type=_METRICS.get(metric, metric),
                metric_name=metric,
                metric_value=value,
            )
            for split, metric, value in self._all_scores()
        ]
        data = ModelCardData(
            base_model=bases[0] if len(bases) == 1 else bases or None,
            datasets=list(dict.fromkeys(datasets)) or None,
            library_name=facts.library,
            pipeline_tag=facts.pipeline,
            tags=facts.tags,
            model_name=title if results else None,
            eval_results=results or None,
        )
        if bases and self.relation:
            data["base_model_relation"] = self.relation
        return data.to_yaml(line_break="\n")

    def _facts(self, facts: "ModelFacts") -> Iterator[str]:
        if self.bases:
            yield f"- Started from: {', '.join(map(_base, self.bases))}"
        if facts.task:
            yield f"- Task: {_code(facts.task)}"
        if facts.labels:
            left = len(facts.labels) - _MOST_LABELS
            more = f" and {left:,} more" if left > 0 else ""
            named = ", ".join(map(_code, facts.labels[:_MOST_LABELS]))
            yield f"- Labels ({len(facts.labels):,}): {named}{more}"
        if facts.vectors is not None:
            vectors, size = facts.vectors, facts.vectors.truncate_dim or facts.vector_size
            per = "token, compared by MaxSim" if facts.is_late else f"text (pooling {_code(vectors.pooling)})"
            yield f"- Vectors: {size:,} components for each {per}"
            for name in ("query", "document"):
                if prompt := getattr(vectors, f"{name}_prompt"):
                    yield f"- Prompt of a {name}: {_code(prompt)}"
                if length := getattr(vectors, f"{name}_length"):
                    yield f"- Maximum length of a {name}: {length:,} tokens"
        yield f"- Maximum length: {facts.max_length:,} tokens"
        yield f"- Parameters: {facts.num_parameters:,}"

    def _all_scores(self) -> Iterator[tuple[Scores, str, float]]:
        """Yield each split with the name and the value of a score; a score that is not a number has no value."""
        for split in self.scores:
            for metric, value in split.values.items():
                if math.isfinite(value):
                    yield split, metric, float(value)


@dataclass(frozen=True)
class ModelFacts:
    """The facts of a model folder that its card shows.

    Attributes:
        task: Name of the task of the head; None without a head.
        head: Name of the head in the classes of transformers, such as `MaskedLM`; empty without a head.
        answers: The kind of answers of `tasks.task.Answers`.
        labels: The labels that users see.
        num_parameters: Number of weights.
        vector_size: Components of a vector.
        max_length: The most tokens of a text.
        family: The `model_type` of config.json.
        vectors: How texts become vectors, if the folder says so.
        reads_pairs: Whether the head scores pairs of texts.
        mask: The mask token; None for a folder without a tokenizer.
        is_onnx: Whether the folder has ONNX graphs instead of weights.
        is_int8: Whether its layers are int8, which this package alone loads.
    """

    task: str | None
    head: str
    answers: str | None
    labels: Sequence[str]
    num_parameters: int
    vector_size: int
    max_length: int
    family: str = MODERNBERT
    vectors: EmbeddingConfig | None = None
    reads_pairs: bool = False
    mask: str | None = None
    is_onnx: bool = False
    is_int8: bool = False

    @staticmethod
    def of(
        model: Model,
        max_length: int,
        vectors: EmbeddingConfig | None = None,
        projection: nn.Linear | None = None,
        mask: str | None = None,
        *,
        is_onnx: bool = False,
    ) -> "ModelFacts":
        """Return the facts of a model and its settings."""
        parts = [model, *([projection] if projection is not None and model.pooling is None else [])]
        weights = {id(weight): weight.numel() for part in parts for weight in _weights(part)}
        named = find_task(model.task) if model.task not in (None, FILL_MASK) else None
        task = named if isinstance(named, ClassifierTask) else None
        head = task.head if task else "MaskedLM" if model.task == FILL_MASK else ""
        return ModelFacts(
            task=model.task if task else _retrieval_task(vectors),
            head=head,
            answers=task.answers if task else None,
            labels=model.labels if task and not task.fixed_labels and len(model.labels) > 1 else (),
            num_parameters=sum(weights.values()),
            vector_size=model.hidden_size if projection is None else projection.out_features,
            max_length=max_length,
            family=model.family,
            vectors=vectors,
            reads_pairs=model.reads_pairs,
            mask=mask,
            is_onnx=is_onnx,
            is_int8=is_int8(model),
        )

    @property
    def is_late(self) -> bool:
        """Whether a text has a vector for each token."""
        return self.vectors is not None and self.vectors.pooling == "tokens"

    @property
    def pipeline(self) -> str:
        """The `pipeline_tag` of the Hub."""
        if self.answers == "ranking":
            return "text-ranking"
        if self.answers is not None:
            return _PIPELINES.get(self.head, "text-classification")
        if self.vectors is not None:
            return "sentence-similarity"
        return "fill-mask" if self.head else "feature-extraction"

    @property
    def library(self) -> str | None:
        """The `library_name` of the Hub."""
        if self.is_onnx or self.is_int8:
            return None
        if self.is_late:
            return "PyLate"
        is_theirs = self.pipeline in ("sentence-similarity", "text-ranking")
        return "sentence-transformers" if is_theirs else "transformers"

    @property
    def tags(self) -> list[str]:
        """The tags of the Hub."""
        found = [self.family]
        if self.is_late:
            found += ["PyLate", "ColBERT", "late-interaction"]
        elif self.library == "sentence-transformers":
            found += ["sentence-transformers", "cross-encoder" if self.head else "feature-extraction"]
        return [*found, *(["onnx"] if self.is_onnx else []), *(["int8"] if self.is_int8 else [])]

    @property
    def title(self) -> str:
        """The heading of the card."""
        return "Late-interaction model" if self.is_late else _TITLES[self.pipeline]


def _weights(model: nn.Module) -> Iterator[Tensor]:
    """Yield the parameters of a model, and the weights of its int8 layers."""
    yield from model.parameters()
    yield from (layer.weight for _, layer in int8_layers(model))


def _retrieval_task(vectors: EmbeddingConfig | None) -> str | None:
    return None if vectors is None else "late" if vectors.pooling == "tokens" else "embed"


def read_card(folder: Path) -> bytes | None:
    """Return the card of a local folder; None without one.

    Raises: InputError if it is not a file, or too large.
    """
    path = folder / CARD
    return read_bytes(path, _MOST_BYTES) if path.exists() else None


def _models_on_hub(name: str) -> list[str]:
    """Return the name of a model on the Hub; of a local folder, the models that its card names as its bases."""
    if found := name_on_hub(name):
        return [found]
    from huggingface_hub import metadata_load

    try:
        metadata = metadata_load(Path(name) / CARD) if read_card(Path(name)) else None
        bases = (metadata or {}).get("base_model") or []
    except Exception:  # an edited card can have anything
        return []
    listed = [bases] if isinstance(bases, str) else bases
    return [each for each in listed if isinstance(each, str) and _HUB_NAME.fullmatch(each)]


def _base(name: str) -> str:
    found = name_on_hub(name)
    return (
        f"[{_code(found)}](https://huggingface.co/{found})" if found else f"{_code(public_name(name))} (a local folder)"
    )


def _source(name: str) -> str:
    found = name_of_dataset(name)
    return f"[{_code(found)}](https://huggingface.co/datasets/{found})" if found else _code(public_name(name))


def _row(scores: Scores, metric: str, value: float) -> str:
    data = ", ".join(_code(public_name(each)) for each in scores.data).replace("|", "\\|")
    return f"| {scores.split} | {data} | {_code(metric)} | {value:.4f} |"


def _value(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return _code(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _code(text: Any) -> str:
    """Return text as code in Markdown: one line of a bounded length, whatever is in it.

    >>> _code("a"), _code("`a` or b"), _code("a\\n---")
    ('`a`', '`` `a` or b ``', '`a\\\\n---`')
    """
    line = shown(str(text), _MOST_CHARS)
    fence = "`" * (_longest_run(line) + 1)
    space = " " if not line.strip(" `") or line[0] in " `" or line[-1] in " `" else ""
    return f"{fence}{space}{line or '(empty)'}{space}{fence}"


def _block(language: str, code: str) -> list[str]:
    fence = "`" * max(3, _longest_run(code) + 1)
    return [f"{fence}{language}", code, fence]


def _longest_run(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)


def _versions(facts: ModelFacts) -> str:
    libraries = ["modernbert", "torch"] + (["onnx"] if facts.is_onnx else [])
    libraries += ["transformers"] if facts.family != MODERNBERT else []
    return ", ".join(f"{each} {version(each)}" for each in libraries)
