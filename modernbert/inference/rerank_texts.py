"""`modernbert rerank`: print texts in the order in which they answer a query."""

import json

from modernbert.inference.modernbert import ModernBert
from modernbert.inference.text_inputs import answers_of, gather_rows, visible
from modernbert.inference.text_options import RerankConfig

__all__ = ["RerankConfig", "run"]


def run(config: RerankConfig) -> None:
    """Print a line a text, the best first: its score, a tab, the text; or a JSON object with its place in the input.

    Raises: InputError for a row that cannot be used, as a pair that is too long, or a model that cannot compare.
    """
    rows = gather_rows(config.texts, config.input, text_field=config.text_field, on_error=config.on_error)
    bert = ModernBert.load(
        config.model, revision=config.revision, device=config.device, dtype=config.dtype, engine=config.engine
    )

    def scores(texts: list[str]) -> list[float]:
        ranked = bert.rerank(config.query, texts, overflow=config.overflow)
        return [each.score for each in sorted(ranked, key=lambda each: each.index)]

    found = sorted(answers_of(rows, scores, config.on_error), key=lambda each: -each[2])
    for number, row, score in found[: config.top_k]:
        text = row.text or ""
        if config.json:
            print(json.dumps({"index": number, "score": score, "text": text}, ensure_ascii=False))
        else:
            print(f"{score:.3f}", visible(" ".join(text.split())), sep="\t")
