"""`modernbert search`: print the passages of indexed files that answer a query."""

import json
from dataclasses import asdict

from rich.console import Console
from rich.markup import escape

from modernbert.checkpoints.folder import ModelFolder
from modernbert.errors import InputError, shown
from modernbert.inference.modernbert import ModernBert, load_folder
from modernbert.inference.text_inputs import visible
from modernbert.search.passage_index import PassageIndex
from modernbert.search.search_options import SearchConfig

__all__ = ["SearchConfig", "run"]

_LINES_SHOWN = 8


def run(config: SearchConfig) -> None:
    """Print the best passages: score, file and line, text; or a JSON object each.

    Raises:
        InputError: The folder is not an index, or its model is missing or has changed.
    """
    index = PassageIndex.open(config.index)
    of_reranker = None if config.rerank is None else ModelFolder.open(config.rerank)
    bert = _model(index, config)
    reranker = None
    if of_reranker is not None:
        reranker = load_folder(of_reranker, device=config.device, dtype=config.dtype)
    console = Console(highlight=False, soft_wrap=True)
    for number, hit in enumerate(index.search(bert, config.query, config.top_k, config.how, reranker), 1):
        if config.json:
            print(json.dumps(asdict(hit), ensure_ascii=False))
            continue
        lines = visible(hit.text).split("\n")
        more = ["..."] if len(lines) > _LINES_SHOWN else []
        console.print(f"[bold]{number}[/bold]  {hit.score:.3f}  [cyan]{escape(shown(hit.origin))}:{hit.line}[/cyan]")
        console.print("\n".join(f"    {escape(line)}" for line in [*lines[:_LINES_SHOWN], *more]))


def _model(index: PassageIndex, config: SearchConfig) -> ModernBert | None:
    """Load the model of the index, if the search needs it."""
    if config.how == "words" and config.model is None and config.revision is None:
        index.check({})
        return None
    folder = _model_folder(index, config)
    index.check({"model_files": folder.digest})
    if config.how == "words":
        return None
    bert = load_folder(folder, device=config.device, dtype=config.dtype)
    index.check({"vectors": asdict(bert.vectors)})
    return bert


def _model_folder(index: PassageIndex, config: SearchConfig) -> ModelFolder:
    if config.model is not None:
        return ModelFolder.open(config.model, config.revision)
    try:
        return ModelFolder.open(str(index.about["model"]), config.revision)
    except InputError as error:
        raise InputError(f"{error}; if the model was moved, name its folder with `model`") from None
