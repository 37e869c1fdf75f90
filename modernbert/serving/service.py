"""The engine and the model behind the routes: a request waits for its answers, or is let go.

In: texts of one HTTP request. Out: vectors, scores, ranks. A file of its own because routes of every kind ask for the
same few things.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import orjson
import torch
from fastapi import Request, Response

from modernbert.errors import InputError, shown
from modernbert.inference.modernbert import ModernBert
from modernbert.inference.outputs import rank_scores
from modernbert.inference.text_parts import relocate_error
from modernbert.model.heads import Classifier
from modernbert.serving import work
from modernbert.serving.request_guard import Limits
from modernbert.serving.scheduler import Finish, Gone, Scheduler
from modernbert.serving.schemas import KINDS
from modernbert.tokenizer.input_templates import EncodedText, InputTemplate

__all__ = ["ServeSettings", "Service", "json_response", "listed"]

# So many numbers of float32 are the answer to one text of 8,192 tokens, a vector of 1,024 each; memory shall not depend
# on what is asked for.
_MOST_NUMBERS = 2**23
# Numbers that are written in some milliseconds, in which nobody else is answered.
_MOST_AT_ONCE = 2**16


@dataclass(frozen=True)
class ServeSettings:
    """What a server is called, and what it takes."""

    model_id: str
    limits: Limits
    warm_up: bool = True


class Service:
    """The engine and the model behind the routes."""

    def __init__(self, bert: ModernBert, engine: Scheduler, settings: ServeSettings) -> None:
        self.bert, self.engine, self.settings = bert, engine, settings
        self.is_ready = self.is_closing = False

    def warm_up(self) -> None:
        """Compute a full batch, so that what does not fit fails before there is a client."""
        length = min(self.engine.budget_tokens, self.bert.longest)
        ids = np.full(length, self.bert.tokenizer.ordinary_ids[0], dtype=np.int64)
        self.engine.submit([ids], work.Pooled(self.bert, "mean")).future.result()

    async def compute(self, http: Request, make: Callable[[], Sequence[np.ndarray]], finish: Finish) -> list[Any]:
        """Tokenise, wait for the engine, and return the answers; whoever leaves or waits too long is dropped."""
        documents = await asyncio.get_running_loop().run_in_executor(None, make)
        job = self.engine.submit(documents, finish)
        http.scope["modernbert.job"] = job
        future = asyncio.wrap_future(job.future)
        leaving = asyncio.ensure_future(_left(http))
        waiting: set[asyncio.Future[Any]] = {future, leaving}
        try:
            done, _ = await asyncio.wait(
                waiting, timeout=self.settings.limits.timeout_s, return_when=asyncio.FIRST_COMPLETED
            )
            if future not in done:
                raise Gone("the client has left" if leaving in done else "took too long")
            return future.result()
        finally:
            leaving.cancel()
            if not future.done():
                job.cancel()

    def check_size(self, num_vectors: int, dimensions: int | None = None) -> None:
        """Refuse what would be answered with more numbers than are held at a time.

        Raises: InputError.
        """
        width = dimensions or self.bert.vector_width
        if num_vectors * width > _MOST_NUMBERS:
            raise InputError(
                f"found {num_vectors:,} vectors of {width:,} numbers to make, expected at most "
                f"{_MOST_NUMBERS // width:,} at once"
            )

    def form(self, prompt_name: str | None, input_type: str | None, prompt: str | None = None) -> InputTemplate | str:
        """Return the input template of a kind of text, or the prompt for texts whose kind the client does not name.

        `prompt_name` is a kind or one of the folder's prompts; an empty `prompt` turns the default off.

        Raises: InputError for two that differ, or an unknown name.
        """
        if prompt is not None:
            if prompt_name is not None or input_type is not None:
                raise InputError("prompt: found one beside prompt_name or input_type, expected one of them")
            return InputTemplate(self.bert.longest, prompt) if prompt else ""
        prompts = self.bert.prompts
        names = [name for name in (prompt_name, input_type) if name is not None]
        unknown = [name for name in names if name not in KINDS and name not in prompts]
        if unknown:
            expected = ", ".join(dict.fromkeys((*KINDS, *prompts)))
            raise InputError(f"prompt_name: found {shown(unknown[0], 60)!r}, expected one of {shown(expected, 300)}")
        if len({name.endswith("query") if name in KINDS else name for name in names}) > 1:
            raise InputError(f"input_type: found {input_type!r} beside prompt_name {prompt_name!r}, expected one")
        if not names:
            return self.bert.default_prompt
        name = names[0]
        if name not in KINDS:
            return InputTemplate(self.bert.longest, prompts[name])
        form = self.bert.query_form if name.endswith("query") else self.bert.document_form
        # A folder may have other prompts of such names beside those of its queries and documents.
        is_other = name not in ("query", "document") and name in prompts
        return replace(form, prompt=prompts[name]) if is_other else form

    def lay(self, texts: Sequence[work.Text], form: InputTemplate | str, truncate: bool) -> list[EncodedText]:
        """Return token ids of texts, encoded with an input template or after a prompt.

        Raises: InputError naming the text that is too long.
        """
        if isinstance(form, InputTemplate):
            return work.forms_of(self.bert, form, texts, truncate)
        return [EncodedText(ids) for ids in work.documents_of(self.bert, texts, truncate, prompt=form)]

    def check_dimensions(self, dimensions: int | None, width: int) -> None:
        """Refuse more numbers of a vector than it has.

        Raises: InputError.
        """
        if dimensions is not None and dimensions > width:
            raise InputError(f"dimensions: found {dimensions}, expected 1 to {width}")

    def finish_vectors(self, normalize: bool, dimensions: int | None) -> Finish:
        """Return what makes vectors as the model was tuned."""
        bert = self.bert
        self.check_dimensions(dimensions, bert.width if bert.is_late else bert.vector_width)
        return work.Pooled(bert, "mean" if bert.is_late else bert.vectors.pooling, normalize, dimensions)

    def classifier(self) -> Classifier:
        """Return the model if it has labels for texts or their words.

        Raises: InputError if it has none.
        """
        if not isinstance(self.bert.model, Classifier):
            raise InputError("this model has no head with labels")
        if self.bert.model.task in ("choose", "extract"):
            raise InputError(f"this model has a head for {self.bert.model.task}, which is not served")
        return self.bert.model

    async def rank(self, http: Request, query: str, texts: list[str], truncate: bool, raw: bool) -> list[float]:
        """Return how well each text answers a query: by the score of a head, see `ModernBert.rerank`, or by vectors."""
        model = self.bert.model
        if isinstance(model, Classifier) and model.is_ranker:
            pairs = [(query, text) for text in texts]
            made = await self.compute(http, lambda: work.pairs_of(self.bert, pairs, truncate), work.scored(model))
            logits = torch.tensor([float(each[0]) for each in made])
            return (logits if raw else rank_scores(model, logits)).tolist()
        return await self.compare(http, query, texts, truncate)

    async def compare(self, http: Request, source: str, texts: list[str], truncate: bool) -> list[float]:
        """Return the cosine of a text with others, or MaxSim of a late-interaction model.

        Raises: InputError for a model that does not compare vectors.
        """
        bert, laid = self.bert, list[EncodedText]()

        def documents() -> list[np.ndarray]:
            try:
                laid.extend(self.lay([source], bert.query_form, truncate))
            except InputError as error:
                raise relocate_error(error, [("the query", source)]) from None
            laid.extend(self.lay(texts, bert.document_form, truncate))
            if bert.is_late:
                self.check_size(sum(len(each.tokens) for each in laid))
            return [each.tokens for each in laid]

        finish = work.token_vectors(bert, True) if bert.is_late else self.finish_vectors(True, None)
        query, *others = await self.compute(http, documents, finish)
        if not bert.is_late:
            return [float(query @ other) for other in others]
        rows = [
            other if each.label_positions is None else other[each.label_positions]
            for other, each in zip(others, laid[1:], strict=True)
        ]
        return [float((query @ of_text.T).max(axis=1).sum()) for of_text in rows]


def listed(inputs: Any) -> list[work.Text]:
    """Return one input or several as a list."""
    if isinstance(inputs, str) or (inputs and isinstance(inputs[0], int)):
        return [inputs]
    return list(inputs)


async def json_response(make: Callable[[], Any], size: int) -> Response:
    """Write an answer of so many numbers as it is: to check each against a schema takes as long as to compute it."""

    def written() -> bytes:
        return orjson.dumps(make())

    few = size <= _MOST_AT_ONCE
    content = written() if few else await asyncio.get_running_loop().run_in_executor(None, written)
    return Response(content, media_type="application/json")


async def _left(http: Request) -> None:
    """Wait for what comes behind the body: that the client has left."""
    while (await http.receive())["type"] != "http.disconnect":
        pass
