"""The page at `/`: a person asks what programs ask, by the same routes.

In: a browser. Out: three files as they lie beside this one, without a build step, and in `/info` what they need to know
of the model. A file of its own because nothing here computes.
"""

from pathlib import Path
from typing import Any

from fastapi import FastAPI, Response

from modernbert.checkpoints.transformers_models import ForeignEncoder
from modernbert.inference.modernbert import ModernBert
from modernbert.model.heads import Classifier, MaskedLM
from modernbert.tasks.task import find_task

__all__ = ["HEADERS", "add_page", "facts_of"]

_FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}

# What the page may do: ask this server, and run what this server sent. It never writes HTML, and may not.
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


def add_page(app: FastAPI) -> None:
    """Add the page and its two files; they are read once."""
    for path, (name, kind) in _FILES.items():
        _add_file(app, path, (Path(__file__).parent / name).read_bytes(), kind)


def _add_file(app: FastAPI, path: str, content: bytes, kind: str) -> None:
    async def file() -> Response:
        return Response(content, media_type=kind, headers=HEADERS)

    app.add_api_route(path, file, methods=["GET", "HEAD"], include_in_schema=False)


def facts_of(bert: ModernBert) -> dict[str, Any]:
    """Return what a model is made to answer, how its scores read, its mask, and how far its layers see.

    `window` counts the tokens beside a token that a local layer sees, half of them on each side.
    """
    model, tokenizer = bert.model, bert.tokenizer
    if isinstance(model, Classifier):
        task = find_task(model.task)
        answers = {"ranking": ["rerank"], "none": []}.get(task.answers, ["predict"])
        if model.is_ranker and task.answers != "ranking":
            answers = [*answers, "rerank"]
    else:
        answers = [*(["fill-mask"] if isinstance(model, MaskedLM) else []), "rerank", "similarity"]
    scores = "MaxSim" if bert.is_late else "cosine"
    if isinstance(model, Classifier) and model.is_ranker:
        scores = "probability" if find_task(model.task).gives_probabilities else "score"
    mask = tokenizer.text_of(tokenizer.mask_id)
    # A mask that takes the blank before it in stands for a word with its blank.
    takes_blank = any(place is not None and place[0] == 1 for _, place in tokenizer.located(f"a {mask}"))
    attention = None
    if not isinstance(bert.encoder, ForeignEncoder):
        config = bert.encoder.config
        attention = {
            "layers": config.num_hidden_layers, "global_every": config.global_attn_every_n_layers,
            "window": config.local_attention,
        }  # fmt: skip
    return {
        "answers": answers, "scores": scores,
        "mask": {"text": mask, "takes_blank": takes_blank}, "attention": attention,
    }  # fmt: skip
