"""`modernbert fill-mask`: print the likeliest tokens for each mask."""

import json
from dataclasses import asdict

from rich.console import Console
from rich.markup import escape

from modernbert.inference.modernbert import ModernBert
from modernbert.inference.results import Guess
from modernbert.inference.text_inputs import answers_of, gather_rows, visible
from modernbert.inference.text_options import FillMaskConfig

__all__ = ["FillMaskConfig", "run"]


def run(config: FillMaskConfig) -> None:
    """Print the guesses for every mask of every text, as a table or as one JSON object a line.

    Raises: InputError for a row that cannot be used, as a text without a mask, or a folder without the head.
    """
    rows = gather_rows(config.texts, config.input, text_field=config.text_field, on_error=config.on_error)
    bert = ModernBert.load(
        config.model, revision=config.revision, device=config.device, dtype=config.dtype, engine=config.engine
    )

    def work(texts: list[str]) -> list[list[list[Guess]]]:
        return bert.fill_mask(texts, config.top_k)  # type: ignore[return-value]

    console = Console(highlight=False, soft_wrap=True)
    for number, row, masks in answers_of(rows, work, config.on_error):
        if config.json:
            told = [[asdict(guess) for guess in guesses] for guesses in masks]
            print(json.dumps({"index": number, "text": row.text, "masks": told}))
            continue
        console.print(f"[bold]{escape(visible(row.text or ''))}[/bold]")
        for mask, guesses in enumerate(masks, 1):
            for guess in guesses:
                label = f"mask {mask}" if len(masks) > 1 else ""
                console.print(f"  {label:6s} {guess.probability:7.3f}  {escape(repr(guess.text))}")
