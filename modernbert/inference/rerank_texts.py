"""`modernbert rerank`: print texts in the order in which they answer a query."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from modernbert.inference.modernbert import ModernBert
from modernbert.inference.text_inputs import answers_of, gather_rows, visible

__all__ = ["RerankConfig", "run"]


@dataclass(frozen=True)
class RerankConfig:
    """The model, the query, and the texts to rank: `texts`, the rows of `file`, or lines of standard input.

    `on_error` says what to do with rows that have no text or that the model refuses: fail or skip.
    """

    model: str
    query: str
    texts: Sequence[str] = ()
    file: Path | None = None
    text_field: str = "text"
    on_error: str = "fail"
    top_k: int | None = None
    json_lines: bool = False
    overflow: str = "error"
    device: str = "auto"
    dtype: str = "auto"
    engine: str = "auto"


def run(config: RerankConfig) -> None:
    """Print a line a text, the best first: its score, a tab, the text; or a JSON object with its place in the input.

    Raises: InputError for a row that cannot be used, as a pair that is too long, or a model that cannot compare.
    """
    rows = gather_rows(config.texts, config.file, text_field=config.text_field, on_error=config.on_error)
    bert = ModernBert.load(config.model, device=config.device, dtype=config.dtype, engine=config.engine)

    def scores(texts: list[str]) -> list[float]:
        ranked = bert.rerank(config.query, texts, overflow=config.overflow)
        return [each.score for each in sorted(ranked, key=lambda each: each.index)]

    found = sorted(answers_of(rows, scores, config.on_error), key=lambda each: -each[2])
    for number, row, score in found[: config.top_k]:
        text = row.text or ""
        if config.json_lines:
            print(json.dumps({"index": number, "score": score, "text": text}, ensure_ascii=False))
        else:
            print(f"{score:.3f}", visible(" ".join(text.split())), sep="\t")
