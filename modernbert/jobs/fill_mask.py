"""`modernbert fill-mask`: print what the model would put in place of each mask."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.markup import escape

from modernbert.infer.pipeline import Guess, ModernBert
from modernbert.infer.texts import visible

__all__ = ["FillMaskConfig", "run"]


@dataclass(frozen=True)
class FillMaskConfig:
    """What to load and what to fill."""

    model: str
    texts: Sequence[str]
    top_k: int = 5
    json_lines: bool = False
    device: str = "auto"
    dtype: str = "auto"
    backend: str = "auto"


def run(config: FillMaskConfig) -> None:
    """Print the guesses for every mask of every text, as a table or as one JSON object a line.

    Raises: InputError for a text without a mask, or a folder without the head.
    """
    bert = ModernBert.load(config.model, device=config.device, dtype=config.dtype, backend=config.backend)
    filled: list[list[list[Guess]]] = bert.fill_mask(list(config.texts), config.top_k)  # type: ignore[assignment]
    if config.json_lines:
        for text, masks in zip(config.texts, filled, strict=True):
            print(json.dumps({"text": text, "masks": [[asdict(guess) for guess in guesses] for guesses in masks]}))
        return
    console = Console(highlight=False, soft_wrap=True)
    for text, masks in zip(config.texts, filled, strict=True):
        console.print(f"[bold]{escape(visible(text))}[/bold]")
        for number, guesses in enumerate(masks, 1):
            for guess in guesses:
                label = f"mask {number}" if len(masks) > 1 else ""
                console.print(f"  {label:6s} {guess.probability:7.3f}  {escape(repr(guess.text))}")
