"""The model behind the routes: encoding of texts, waiting for the scheduler, ranking, and limits on answers."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import orjson
import torch
from fastapi import Request, Response

from modernbert.errors import InputError, shown
from modernbert.inference.exact_search import similarities
from modernbert.inference.modernbert import ModernBert
from modernbert.inference.outputs import LabelScores, Output, PooledVectors
from modernbert.inference.overflow import apply_overflow, encode_texts
from modernbert.inference.predictor import compared_vectors, text_vectors
from modernbert.inference.text_parts import relocate_error
from modernbert.model.interface import Model
from modernbert.serving.request_guard import Limits
from modernbert.serving.scheduler import Gone, Scheduler
from modernbert.serving.schemas import KINDS
from modernbert.tasks.task import Task, find_task
from modernbert.tokenizer.input_templates import EncodedText, InputTemplate

__all__ = ["ServeSettings", "Service", "Text", "json_response", "listed"]

Text = str | list[int]
"""A text, or its token ids: with [CLS] and [SEP] as they are, else between the two."""

# As many float32 numbers as the vectors of all 8,192 tokens of a text with 1,024 components: bounds an answer's memory.
_MAX_NUMBERS = 2**23
# Numbers that are serialized within milliseconds, in which the event loop answers nobody else.
_MAX_IN_LOOP = 2**16
_FIX = 'send "truncate": true to cut it'


@dataclass(frozen=True)
class ServeSettings:
    """The name of the served model, and the limits of requests."""

    model_id: str
    limits: Limits
    warm_up: bool = True


class Service:
    """A model and its scheduler, as the routes use them."""

    def __init__(self, bert: ModernBert, scheduler: Scheduler, settings: ServeSettings) -> None:
        self.bert, self.scheduler, self.settings = bert, scheduler, settings
        self.is_ready = self.is_closing = False

    def warm_up(self) -> None:
        """Compute a full batch, so that a lack of memory shows before the first client."""
        length = min(self.scheduler.budget_tokens, self.bert.max_length)
        ids = np.full(length, self.bert.tokenizer.ordinary_ids[0], dtype=np.int64)
        self.scheduler.submit([EncodedText(ids)], PooledVectors("mean")).future.result()

    async def compute(self, http: Request, encode: Callable[[], Sequence[EncodedText]], output: Output) -> list[Any]:
        """Encode texts off the event loop and return their outputs; drop a client that leaves or waits too long."""
        texts = await asyncio.get_running_loop().run_in_executor(None, encode)
        request = self.scheduler.submit(texts, output)
        http.scope["modernbert.request"] = request
        future = asyncio.wrap_future(request.future)
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
                request.cancel()

    def check_size(self, num_vectors: int, dimensions: int | None = None) -> None:
        """Check that the vectors of an answer fit its limit.

        Raises:
            InputError: They do not fit.
        """
        width = dimensions or self.bert.vector_width
        if num_vectors * width > _MAX_NUMBERS:
            raise InputError(
                f"found {num_vectors:,} vectors of {width:,} numbers to make, expected at most "
                f"{_MAX_NUMBERS // width:,} at once"
            )

    def check_dimensions(self, dimensions: int | None, width: int) -> None:
        """Check that vectors have as many components as are asked for.

        Raises:
            InputError: They have fewer.
        """
        if dimensions is not None and dimensions > width:
            raise InputError(f"dimensions: found {dimensions}, expected 1 to {width}")

    def template(
        self, prompt_name: str | None, input_type: str | None, prompt: str | None = None
    ) -> InputTemplate | str:
        """Return the template of the kind of text that a client names, or without a name the default prompt.

        `prompt_name` is a kind or one of the folder's prompts; an empty `prompt` turns the default prompt off.

        Raises:
            InputError: Two names differ, or a name is unknown.
        """
        if prompt is not None:
            if prompt_name is not None or input_type is not None:
                raise InputError("prompt: found one beside prompt_name or input_type, expected one of them")
            return InputTemplate(self.bert.max_length, prompt) if prompt else ""
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
            return InputTemplate(self.bert.max_length, prompts[name])
        template = self.bert.query_template if name.endswith("query") else self.bert.document_template
        # A folder may have prompts of these names in addition to its query and document prompts.
        is_other = name not in ("query", "document") and name in prompts
        return replace(template, prompt=prompts[name]) if is_other else template

    def encode(self, texts: Sequence[Text], template: InputTemplate | str, truncate: bool) -> list[EncodedText]:
        """Return the ids of texts, encoded with a template or after a prompt. All texts are strings, or all are ids.

        Raises:
            InputError: A text is too long, or ids are given where a prompt belongs before the text.
        """
        overflow = "truncate" if truncate else "error"
        tokenizer = self.bert.tokenizer
        strings = [each for each in texts if isinstance(each, str)]
        if isinstance(template, InputTemplate):
            if len(strings) < len(texts):
                raise InputError("inputs: found ids, expected texts: ids have no place for a prompt")
            prompt = template.prompt
            found = encode_texts(tokenizer, strings, template.max_length, overflow, prompt=prompt, fix=_FIX)
            return [template.apply(tokenizer, ids) for _, ids in found]
        longest = self.bert.max_length
        if len(strings) == len(texts):
            found = encode_texts(tokenizer, strings, longest, overflow, prompt=template, fix=_FIX)
        else:
            ids = self._complete_ids([each for each in texts if not isinstance(each, str)], template)
            found = apply_overflow(ids, tokenizer, longest, overflow, _FIX)
        return [EncodedText(each) for _, each in found]

    def encode_pairs(self, pairs: Sequence[tuple[str, str]], truncate: bool) -> list[EncodedText]:
        """Return the ids of pairs of texts.

        Raises:
            InputError: A pair is too long; names it.
        """
        overflow = "truncate" if truncate else "error"
        found = encode_texts(self.bert.tokenizer, pairs, self.bert.max_length, overflow, fix=_FIX)
        return [EncodedText(ids) for _, ids in found]

    def _complete_ids(self, rows: Sequence[list[int]], prompt: str) -> list[np.ndarray]:
        tokenizer = self.bert.tokenizer
        bare = next((number for number, ids in enumerate(rows) if not tokenizer.has_special_tokens(ids)), None)
        if prompt and bare is not None:
            raise InputError(
                f"text {bare}: found ids without special tokens, but the prompt {shown(prompt, 80)!r} belongs before "
                'each text of this model. Send the text, ids with prompt and special tokens, or "prompt": "".'
            )
        return [
            np.asarray(ids, dtype=np.int64) if tokenizer.has_special_tokens(ids) else tokenizer.add_special_tokens(ids)
            for ids in rows
        ]

    def text_vectors(self, normalize: bool, dimensions: int | None) -> PooledVectors:
        """Return the output of one vector for each text, as the model was fine-tuned to make them.

        Raises:
            InputError: The vectors have fewer dimensions.
        """
        self.check_dimensions(dimensions, self.bert.width if self.bert.is_late else self.bert.vector_width)
        return replace(text_vectors(self.bert, truncate_dim=dimensions), normalize=normalize)

    def head(self) -> tuple[Model, Task]:
        """Return the model and the task of its head.

        Raises:
            InputError: The model has no head with labels, or one whose answers are not served.
        """
        model = self.bert.model
        if model.task is None or not model.is_classifier:
            raise InputError("this model has no classification head; fine-tune one with `modernbert finetune`")
        task = find_task(model.task)
        if task.answers == "none":
            raise InputError(f"this model has a head for {model.task}, which is not served")
        return model, task

    async def rank(self, http: Request, query: str, texts: list[str], truncate: bool, raw: bool) -> list[float]:
        """Return how well each text answers a query: the score of a cross-encoder, or the similarity of vectors."""
        model = self.bert.model
        if model.task is not None and model.is_ranker:
            pairs = [(query, text) for text in texts]
            found = await self.compute(http, lambda: self.encode_pairs(pairs, truncate), LabelScores(model))
            logits = torch.tensor([float(each[0]) for each in found])
            return (logits if raw else find_task(model.task).activate(logits)).tolist()
        return await self.compare(http, query, texts, truncate)

    async def compare(self, http: Request, source: str, texts: list[str], truncate: bool) -> list[float]:
        """Return the cosine of a text with others, or the MaxSim of a late-interaction model.

        Raises:
            InputError: The model does not compare vectors.
        """
        bert = self.bert

        def encode() -> list[EncodedText]:
            try:
                query = self.encode([source], bert.query_template, truncate)
            except InputError as error:
                raise relocate_error(error, [("the query", source)]) from None
            encoded = [*query, *self.encode(texts, bert.document_template, truncate)]
            if bert.is_late:
                self.check_size(sum(each.num_rows for each in encoded))
            return encoded

        query, *others = await self.compute(http, encode, compared_vectors(bert))
        if bert.is_late:
            return similarities([query], others)[0].tolist()
        return similarities(query[None], np.stack(others))[0].tolist() if others else []


def listed(inputs: Any) -> list[Text]:
    """Return one input or several as a list."""
    if isinstance(inputs, str) or (inputs and isinstance(inputs[0], int)):
        return [inputs]
    return list(inputs)


async def json_response(make: Callable[[], Any], size: int) -> Response:
    """Serialize an answer of `size` numbers. A check against a schema would take as long as computing it."""

    def written() -> bytes:
        return orjson.dumps(make())

    is_small = size <= _MAX_IN_LOOP
    content = written() if is_small else await asyncio.get_running_loop().run_in_executor(None, written)
    return Response(content, media_type="application/json")


async def _left(http: Request) -> None:
    """Wait for the message after the body, which says that the client has left."""
    while (await http.receive())["type"] != "http.disconnect":
        pass
