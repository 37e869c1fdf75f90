"""`modernbert fill-mask`: print what the model would put in place of each mask."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from modernbert.inference.modernbert import Guess, ModernBert
from modernbert.inference.text_inputs import answers_of, gather_rows, visible

__all__ = ["FillMaskConfig", "run"]


@dataclass(frozen=True)
class FillMaskConfig:
    """What to load and what to fill: `texts`, the rows of `file`, or lines of standard input.

    `on_error` says what to do with rows that have no text or that the model refuses: fail or skip.
    """

    model: str
    texts: Sequence[str] = ()
    file: Path | None = None
    text_field: str = "text"
    on_error: str = "fail"
    top_k: int = 5
    json_lines: bool = False
    device: str = "auto"
    dtype: str = "auto"
    engine: str = "auto"


def run(config: FillMaskConfig) -> None:
    """Print the guesses for every mask of every text, as a table or as one JSON object a line.

    Raises: InputError for a row that cannot be used, as a text without a mask, or a folder without the head.
    """
    rows = gather_rows(config.texts, config.file, text_field=config.text_field, on_error=config.on_error)
    bert = ModernBert.load(config.model, device=config.device, dtype=config.dtype, engine=config.engine)

    def work(texts: list[str]) -> list[list[list[Guess]]]:
        return bert.fill_mask(texts, config.top_k)  # type: ignore[return-value]

    console = Console(highlight=False, soft_wrap=True)
    for number, row, masks in answers_of(rows, work, config.on_error):
        if config.json_lines:
            told = [[asdict(guess) for guess in guesses] for guesses in masks]
            print(json.dumps({"index": number, "text": row.text, "masks": told}))
            continue
        console.print(f"[bold]{escape(visible(row.text or ''))}[/bold]")
        for mask, guesses in enumerate(masks, 1):
            for guess in guesses:
                label = f"mask {mask}" if len(masks) > 1 else ""
                console.print(f"  {label:6s} {guess.probability:7.3f}  {escape(repr(guess.text))}")
