"""Fine-tuning for retrieval, with one vector per text or one per token.

The run folder has `config.yaml`, `log.jsonl`, `timing.jsonl`, and at the end `model/`, with the weights that score best
on the dev collections, and `scores.json`. sentence-transformers loads the model folder; one for late interaction has
the format of PyLate. A run that is stopped and started again continues from its last checkpoint.

Source: section 3.1.2 and appendix E.2 of the paper.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from hashlib import sha256
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from modernbert.batch import Batch, batch_by_size
from modernbert.checkpoints.colbert_format import write_stanford
from modernbert.checkpoints.folder import ModelFolder
from modernbert.checkpoints.model_card import CARD, Scores
from modernbert.data.example_sampler import ExampleSampler
from modernbert.devices import autocast, dtype_name, keep_freed_memory
from modernbert.engines.registry import PORTABLE
from modernbert.errors import counted
from modernbert.evaluation.retrieval_eval import Retrieval, rank_by_model, score_collection
from modernbert.files import write_file
from modernbert.inference.modernbert import ModernBert
from modernbert.model.embedder import Embedder
from modernbert.model.interface import Model
from modernbert.tasks.retrieval_examples import (
    RetrievalExample,
    step_of,
)
from modernbert.tasks.task import retrieval_task
from modernbert.tokenizer.input_templates import EncodedText, collate_texts
from modernbert.training.distributed import World
from modernbert.training.finetuning_loop import (
    FinetuneRecipe,
    FinetuneResult,
    StepBatches,
    StopRule,
    card_of,
    check_finished,
    digest_of_rows,
)
from modernbert.training.retrieval_losses import Comparison, RetrievalLoss
from modernbert.training.retriever_config import RetrieverConfig
from modernbert.training.retriever_inputs import RetrieverInputs, open_inputs
from modernbert.training.training_loop import derive_seed
from modernbert.training.training_run import TrainingRun, run_in_folder

__all__ = ["RetrieverConfig", "finetune_retriever"]

_METRICS = ("ndcg_10", "mrr_10", "recall_100")


def finetune_retriever(config: RetrieverConfig, stop_rule: StopRule | None = None) -> Path:
    """Fine-tune, or continue a run that was stopped, and return the model folder.

    Args:
        config: Options of the run.
        stop_rule: Decides after each scoring whether the run stops.

    Raises:
        InputError: For inputs that cannot be learned from or do not fit together, before the run folder is touched; and
            for failures of the run, such as a loss that is not finite.
    """
    return run_in_folder(
        config, "scores.json", lambda world, device: open_inputs(config, device),
        lambda inputs, world: _finetune(config, inputs, world, stop_rule),
        check_finished=lambda inputs: check_finished(config, _digests(config, inputs)),
    )  # fmt: skip


def _finetune(config: RetrieverConfig, inputs: RetrieverInputs, world: World, stop_rule: StopRule | None) -> None:
    """Train from the last checkpoint on, keep the best weights, and write the results."""
    keep_freed_memory()
    model = _start(config, inputs).to(inputs.device)
    engine = inputs.engine.name if inputs.engine else "transformers"
    print(f"{config.task}: {counted(len(inputs.examples), 'example')}, device {inputs.device}, "
          f"dtype {dtype_name(inputs.dtype)}, engine {engine}")  # fmt: skip
    temperature = config.temperature or retrieval_task(config.task).default_temperature
    loss = RetrievalLoss(temperature, config.normalize_scores)
    batches = _Steps(config, inputs, loss, world)
    recipe = FinetuneRecipe(
        config, model, loss, config.projection_lr, batches,
        rows=_digest_of_train(config, inputs),
        num_tokens=config.epochs * sum(batches.sampler.lengths), engine=engine, dtype=inputs.dtype,
        metric=config.metric, score=(lambda plain: _mean(_scores(inputs, plain, "dev"))) if config.dev else None,
        stop_rule=stop_rule,
    )  # fmt: skip
    tuned = recipe.train(inputs.device)
    with world.together():
        if world.is_main:
            _write(Path(config.output), config, inputs, recipe.plain, tuned)


def _digests(config: RetrieverConfig, inputs: RetrieverInputs) -> dict[str, str]:
    """Return a digest of the training data, and of the collections of each split."""
    found = {"train": _digest_of_train(config, inputs)}
    for name, collections in inputs.collections.items():
        digest = sha256()
        for each in collections:
            for row in chain(each.documents.items(), each.queries.items(), each.judgments.items()):
                digest.update(f"{row}".encode("utf-8", "surrogatepass"))
        found[name] = digest.hexdigest()
    return found


def _digest_of_train(config: RetrieverConfig, inputs: RetrieverInputs) -> str:
    num_steps = config.epochs * config.steps_per_epoch(len(inputs.examples))
    return digest_of_rows(num_steps, [], _learned_from(config, inputs))


def _learned_from(config: RetrieverConfig, inputs: RetrieverInputs) -> Iterator[np.ndarray]:
    """Yield the tokens and scores of the queries, without mined negatives: another device may find others."""
    for example in inputs.examples:
        yield inputs.queries[example.query].tokens
        for passage in (example.positive, *(() if config.mined_by else example.others)):
            yield inputs.passages[passage].tokens
        if example.scores is not None:
            yield example.scores


class _Steps(StepBatches):
    """The queries and passages of each step, compared over all its micro-batches in all processes."""

    def __init__(self, config: RetrieverConfig, inputs: RetrieverInputs, loss: RetrievalLoss, world: World) -> None:
        self._inputs, self._budget, self._seed, self._loss = inputs, config.budget_tokens, config.seed, loss
        lengths = [
            len(inputs.queries[each.query].tokens)
            + sum(len(inputs.passages[text].tokens) for text in (each.positive, *each.others))
            for each in inputs.examples
        ]
        super().__init__(ExampleSampler(lengths, config.batch, config.epochs, config.seed, self._budget), world)

    def num_batches(self, step: int) -> int:
        """Return the number of micro-batches of a step."""
        return len(self._groups(self._texts(step)[0]))

    def filler(self) -> Batch:
        """Return a batch of one query."""
        return collate_texts([next(iter(self._inputs.queries.values()))])

    def batches(self, step: int, run: TrainingRun) -> Iterator[Batch | None]:
        """Yield the micro-batches of a step; None for one of another process."""
        texts, examples, candidates, known = self._texts(step)
        fits = torch.zeros(len(examples), len(texts) - len(examples), dtype=torch.bool)
        for example, passage in known:
            fits[example, passage] = True
        late = self._inputs.vectors.pooling == "tokens"
        rows = [each.num_rows if late else 1 for each in texts]
        teacher = [each.scores for each in examples if each.scores is not None]
        comparison = Comparison(
            num_queries=len(examples),
            lengths=rows,
            known=fits.to(self._inputs.device),
            candidates=candidates if teacher else None,
            teacher=teacher or None,
        )
        parts = [collate_texts(group) for group in self._groups(texts)]
        yield from self._loss.micro_batches(
            run.objective, parts, comparison, step_seed=derive_seed(self._seed, step), device=self._inputs.device,
            dtype=self._inputs.dtype, world=self.world,
        )  # fmt: skip

    def _texts(
        self, step: int
    ) -> tuple[list[EncodedText], list[RetrievalExample], list[list[int]], list[tuple[int, int]]]:
        numbers = [number for part in self.sampler.micro_batches(step) for number in part]
        examples = [self._inputs.examples[number] for number in numbers]
        passages, candidates, known = step_of(examples)
        encoded = [self._inputs.queries[each.query] for each in examples]
        return encoded + [self._inputs.passages[text] for text in passages], examples, candidates, known

    def _groups(self, texts: Sequence[EncodedText]) -> list[list[EncodedText]]:
        groups = list(batch_by_size(texts, self._budget, lambda each: len(each.tokens)))
        size = self.world.size
        if len(groups) >= size or len(texts) < size:
            return groups
        # One for each process. Texts stay in order: the comparison knows them by their place.
        bounds = [len(texts) * rank // size for rank in range(size + 1)]
        return [list(texts[begin:end]) for begin, end in pairwise(bounds)]


def _start(config: RetrieverConfig, inputs: RetrieverInputs) -> Model:
    """Return the model to start from."""
    folder = inputs.folder
    if not folder.is_modernbert:
        torch.manual_seed(config.seed)  # weights that the folder lacks, such as the pooler of a BERT, are random
    encoder = folder.load_model(dtype=torch.float32, engine=inputs.engine or PORTABLE).encoder
    if config.dropout is not None:
        encoder.set_dropout(config.dropout)
    return Embedder(encoder, inputs.vectors.pooling, _start_projection(config, inputs, encoder.hidden_size))


def _start_projection(config: RetrieverConfig, inputs: RetrieverInputs, width: int) -> nn.Linear | None:
    """Return the linear layer on the encoder: that of the folder, or a new one from the seed."""
    if not retrieval_task(config.task).per_token or config.projection is None:
        return None
    found = inputs.folder.load_projection(width)
    if found is not None and found.out_features == config.projection:
        return found.float()
    projection = nn.Linear(width, config.projection, bias=False)
    generator = torch.Generator().manual_seed(config.seed)
    nn.init.normal_(projection.weight, std=width**-0.5, generator=generator)
    return projection


def _scores(inputs: RetrieverInputs, model: Model, split: str) -> list[Retrieval]:
    bert = ModernBert(
        inputs.folder.tokenizer,
        model.encoder,
        vectors=inputs.vectors,
        projection=model.projection,
        max_length=inputs.folder.max_length,
    )
    training = model.training
    model.eval()
    with autocast(inputs.device, inputs.dtype):
        found = [score_collection(collection, rank_by_model(bert)) for collection in inputs.collections[split]]
    model.train(training)
    return found


def _mean(scores: Sequence[Retrieval]) -> dict[str, float]:
    return {name: sum(getattr(each, name) for each in scores) / len(scores) for name in _METRICS}


def _write(out: Path, config: RetrieverConfig, inputs: RetrieverInputs, model: Model, tuned: FinetuneResult) -> None:
    """Write the model, then the scores, which mark the run as finished. An error in scoring does not lose the model."""
    model.cpu()
    folder = out / "model"
    card = card_of(config, tuned, {"train": len(inputs.examples)}, inputs.dtype)
    facts = ModelFolder.save(
        folder, model.encoder, inputs.folder.tokenizer, inputs.folder.max_length, vectors=inputs.vectors,
        projection=model.projection, source=inputs.folder.path, card=card, replace=True,
    )  # fmt: skip
    if config.stanford:
        assert model.projection is not None, "checked before the run"
        vectors = ModelFolder(folder).embedding_config
        write_stanford(out / "stanford", folder, model.encoder.base_model_prefix, vectors, model.projection)
    model.to(inputs.device)
    written: dict[str, Any] = {
        "metric": config.metric,
        "best_step": tuned.best_step,
        "dev": tuned.best_scores,
        "stopped": tuned.stopped,
        "data": _digests(config, inputs),
    }
    if inputs.collections["test"]:
        scores = _scores(inputs, model, "test")
        named = zip(inputs.collections["test"], scores, strict=True)
        written["test"] = {collection.name: asdict(each) for collection, each in named}
        print("test: " + ", ".join(f"{name} {value:.4f}" for name, value in _mean(scores).items()))
        tested = [
            Scores("test", {name: getattr(each, name) for name in _METRICS}, [source])
            for source, each in zip(config.test, scores, strict=True)
        ]
        write_file(folder / CARD, replace(card, scores=[*card.scores, *tested]).text(facts))
    write_file(out / "scores.json", json.dumps(written, indent=2) + "\n")
