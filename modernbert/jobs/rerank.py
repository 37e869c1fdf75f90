"""`modernbert rerank`: print texts in the order in which they answer a query."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from modernbert.infer.pipeline import ModernBert
from modernbert.infer.texts import visible

__all__ = ["RerankConfig", "run"]


@dataclass(frozen=True)
class RerankConfig:
    """What to load, what is asked, and what to rank."""

    model: str
    query: str
    texts: Sequence[str]
    top_k: int | None = None
    json_lines: bool = False
    overflow: str = "error"
    device: str = "auto"
    dtype: str = "auto"
    backend: str = "auto"


def run(config: RerankConfig) -> None:
    """Print a line a text, the best first: its score, a tab, the text; or a JSON object with its place in the input.

    Raises: InputError for a pair that is too long, or a model that cannot compare.
    """
    bert = ModernBert.load(config.model, device=config.device, dtype=config.dtype, backend=config.backend)
    for each in bert.rerank(config.query, config.texts, top_k=config.top_k, overflow=config.overflow):
        text = config.texts[each.index]
        if config.json_lines:
            print(json.dumps({"index": each.index, "score": each.score, "text": text}, ensure_ascii=False))
        else:
            print(f"{each.score:.3f}", visible(" ".join(text.split())), sep="\t")
