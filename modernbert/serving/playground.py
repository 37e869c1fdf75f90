"""The playground page at `/`: three static files without a build step, and the facts about the model that it shows."""

from pathlib import Path
from typing import Any

from fastapi import FastAPI, Response

from modernbert.inference.modernbert import ModernBert
from modernbert.model.interface import FILL_MASK, MODERNBERT
from modernbert.tasks.task import classifier_task

__all__ = ["HEADERS", "add_file", "add_page", "facts_of"]

_FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}

# The page may load files of this server and send requests to it, and may not write HTML.
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
    """Add the page and its two files, which are read once."""
    for path, (name, kind) in _FILES.items():
        add_file(app, path, (Path(__file__).parent / name).read_bytes(), kind)


def add_file(app: FastAPI, path: str, content: bytes, kind: str) -> None:
    """Serve a file of the page at a path."""

    async def file() -> Response:
        return Response(content, media_type=kind, headers=HEADERS)

    app.add_api_route(path, file, methods=["GET", "HEAD"], include_in_schema=False)


def facts_of(bert: ModernBert) -> dict[str, Any]:
    """Return the routes that suit a model, the kinds of its scores and labels, its mask token, and its attention.

    `labels` is `one` (of several classes), `several` or `spans`. `window` is the number of neighbors that a token
    attends to in a local layer, half of them on each side.
    """
    model, tokenizer = bert.model, bert.tokenizer
    scores, labels = "MaxSim" if bert.is_late else "cosine", None
    if model.task is None or not model.is_classifier:
        answers = [*(["fill-mask"] if model.task == FILL_MASK else []), "rerank", "similarity"]
    else:
        task = classifier_task(model.task)
        answers = ["predict"] if task.answers in ("labels", "spans") else []
        labels = "spans" if task.answers == "spans" else "one" if task.has_classes else "several"
        if model.is_ranker:
            answers.append("rerank")
            scores = "probability" if task.gives_probabilities else "score"
    mask = tokenizer.text_of(tokenizer.mask_id)
    # A mask token that includes the space before it replaces a word with its space.
    takes_space = any(place is not None and place[0] == 1 for _, place in tokenizer.encode_with_offsets(f"a {mask}"))
    attention = None
    if model.family == MODERNBERT:
        config = bert.encoder.config
        attention = {
            "layers": config.num_hidden_layers, "global_every": config.global_attn_every_n_layers,
            "window": config.local_attention,
        }  # fmt: skip
    return {
        "answers": answers, "scores": scores, "labels": labels,
        "mask": {"text": mask, "takes_space": takes_space}, "attention": attention,
    }  # fmt: skip
