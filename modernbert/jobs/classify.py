"""`modernbert classify`: print the labels of texts."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from modernbert.infer.pipeline import ModernBert
from modernbert.infer.texts import visible

__all__ = ["ClassifyConfig", "run"]


@dataclass(frozen=True)
class ClassifyConfig:
    """What to load and what to label; `top_k` labels a text are shown, all if None."""

    model: str
    texts: Sequence[str]
    top_k: int | None = 1
    json_lines: bool = False
    overflow: str = "error"
    device: str = "auto"
    dtype: str = "auto"
    backend: str = "auto"


def run(config: ClassifyConfig) -> None:
    """Print a line a text: its likeliest labels with their probabilities, a tab, the text; or a JSON object.

    Raises: InputError for a model without labels, or a text that is too long.
    """
    bert = ModernBert.load(config.model, device=config.device, dtype=config.dtype, backend=config.backend)
    found: list[dict[str, float]] = bert.classify(list(config.texts), overflow=config.overflow)  # type: ignore[assignment]
    for text, labels in zip(config.texts, found, strict=True):
        if config.json_lines:
            print(json.dumps({"text": text, "labels": labels}, ensure_ascii=False))
        else:
            shown = list(labels.items())[: config.top_k]
            print(
                "  ".join(f"{label} {score:.3f}" for label, score in shown), visible(" ".join(text.split())), sep="\t"
            )
