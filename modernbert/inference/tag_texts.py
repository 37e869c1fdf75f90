"""`modernbert tag`: print the spans a tagger finds in texts."""

import json
from dataclasses import asdict

from modernbert.inference.modernbert import ModernBert
from modernbert.inference.text_inputs import answers_of, gather_rows, visible
from modernbert.inference.text_options import TagConfig
from modernbert.tasks.tagging import Span

__all__ = ["TagConfig", "run"]


def run(config: TagConfig) -> None:
    """Print a line a span: number of the text, first character, the one behind the last, label, probability, the span.

    Or a JSON object a text, with its spans.

    Raises: InputError for a model without tags, or a row that cannot be used.
    """
    rows = gather_rows(config.texts, config.input, text_field=config.text_field, on_error=config.on_error)
    bert = ModernBert.load(
        config.model, revision=config.revision, device=config.device, dtype=config.dtype, engine=config.engine
    )

    def work(texts: list[str]) -> list[list[Span]]:
        return bert.tag(texts, overflow=config.overflow)  # type: ignore[return-value]

    for number, row, spans in answers_of(rows, work, config.on_error):
        if config.json:
            told = {"index": number, "text": row.text, "spans": [asdict(span) for span in spans]}
            print(json.dumps(told, ensure_ascii=False))
            continue
        for span in spans:
            shown = visible(" ".join(span.text.split()))
            print(number, span.start, span.end, span.label, f"{span.score:.3f}", shown, sep="\t")
