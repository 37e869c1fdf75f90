"""`modernbert classify`: print the labels of texts, or of pairs of texts."""

import json

from modernbert.errors import InputError
from modernbert.inference.modernbert import ModernBert
from modernbert.inference.text_inputs import answers_of, gather_rows, visible
from modernbert.inference.text_options import ClassifyConfig

__all__ = ["ClassifyConfig", "run"]


def run(config: ClassifyConfig) -> None:
    """Print a line a text: its likeliest labels with their probabilities, a tab, the text; or a JSON object.

    Raises: InputError for a model without labels, single texts for a model of pairs, or a row that cannot be used.
    """
    rows = gather_rows(
        config.texts, config.input, text_field=config.text_field, pair_field=config.pair_field, on_error=config.on_error
    )
    bert = ModernBert.load(
        config.model, revision=config.revision, device=config.device, dtype=config.dtype, engine=config.engine
    )
    if bert.reads_pairs and config.pair_field is None:
        raise InputError(
            f"{config.model}: was trained on pairs of texts, found single texts; "
            "pass `input=FILE` and `pair_field=FIELD`"
        )

    def work(items: list[str] | list[tuple[str, str]]) -> list[dict[str, float]]:
        return bert.classify(items, overflow=config.overflow)  # type: ignore[return-value]

    for number, row, labels in answers_of(rows, work, config.on_error):
        texts = [each for each in (row.text, row.pair) if each is not None]
        if config.json:
            named = dict(zip(("text", "pair"), texts, strict=False))
            print(json.dumps({"index": number, **named, "labels": labels}, ensure_ascii=False))
        else:
            shown = list(labels.items())[: config.top_k]
            said = "  ".join(f"{label} {score:.3f}" for label, score in shown)
            print(said, *(visible(" ".join(text.split())) for text in texts), sep="\t")
