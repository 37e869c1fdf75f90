"""`modernbert tag`: print the spans a tagger finds in texts."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from modernbert.infer.answers import Span
from modernbert.infer.pipeline import ModernBert
from modernbert.infer.texts import visible

__all__ = ["TagConfig", "run"]


@dataclass(frozen=True)
class TagConfig:
    """What to load and what to tag."""

    model: str
    texts: Sequence[str]
    json_lines: bool = False
    overflow: str = "error"
    device: str = "auto"
    dtype: str = "auto"
    backend: str = "auto"


def run(config: TagConfig) -> None:
    """Print a line a span: number of the text, first character, the one behind the last, label, probability, the span.

    Or a JSON object a text, with its spans.

    Raises: InputError for a model without tags, or a text that is too long.
    """
    bert = ModernBert.load(config.model, device=config.device, dtype=config.dtype, backend=config.backend)
    found: list[list[Span]] = bert.tag(list(config.texts), overflow=config.overflow)  # type: ignore[assignment]
    for number, (text, spans) in enumerate(zip(config.texts, found, strict=True)):
        if config.json_lines:
            print(json.dumps({"text": text, "spans": [asdict(span) for span in spans]}, ensure_ascii=False))
            continue
        for span in spans:
            shown = visible(" ".join(span.text.split()))
            print(number, span.start, span.end, span.label, f"{span.score:.3f}", shown, sep="\t")
