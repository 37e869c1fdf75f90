"""`modernbert demo`: from text found on this machine to a model that people can use, and a page that shows it.

In: nothing but an installed Python. Out: a folder with `tokenizer.json`, `log.jsonl`, `model/` and `report.html`. Each
step leaves its outcome under a name that appears only when it is whole; killed at any moment and started again, the
demo finds the outcomes that are there and goes on with the next.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from modernbert import config_files as configs
from modernbert.checkpoints.folder import load_model
from modernbert.data.corpus import Document, Tally
from modernbert.data.shards import fill_folder
from modernbert.demo.collect import Record, collect, read_records
from modernbert.demo.function_search import Tuning, rank_by_bm25, rank_by_vectors, tune
from modernbert.demo.masks import hide_words
from modernbert.demo.pairs import Pair, pairs
from modernbert.demo.summary import print_summary, write_summary
from modernbert.engines.registry import PORTABLE
from modernbert.errors import InputError
from modernbert.extras import require
from modernbert.files import new_folder, write_file
from modernbert.inference.modernbert import ModernBert
from modernbert.tokenizer.tokenizer import Tokenizer, train_tokenizer
from modernbert.training.pretraining import PretrainConfig, pretrain
from modernbert.training.run_folder import begin_run_folder

__all__ = ["run"]

SEED = 17


@dataclass(frozen=True)
class Scale:
    """How much of everything."""

    folder: str
    config: str
    budget_mb: float
    vocab_size: int
    tuning: Tuning
    num_lines: int


FULL = Scale("runs/demo", "demo.yaml", budget_mb=24.0, vocab_size=4_096, tuning=Tuning(num_steps=100), num_lines=300)
QUICK = Scale(
    "runs/demo-quick",
    "demo-quick.yaml",
    budget_mb=3.0,
    vocab_size=2_048,
    tuning=Tuning(num_steps=8, pairs_per_step=32),
    num_lines=60,
)


def run(out: Path | None = None, *, quick: bool = False) -> Path:
    """Train, measure and show a small ModernBERT; return the page.

    Raises: InputError if `out` holds something else, the disk is full, or a library of the extra `demo` is missing.
    """
    scale = QUICK if quick else FULL
    out = out or Path(scale.folder)
    _require_libraries()
    config = _pretrain_config(out, scale)
    begin_run_folder(out, config)
    clock = _Clock(out / "seconds.json")
    corpus = out / "corpus"
    clock.step("collect text", corpus.exists(), lambda: _collect(corpus, scale))
    clock.step("train the tokenizer", (out / "tokenizer.json").exists(), lambda: _tokenizer(out, scale))
    clock.step("tokenise", (out / "shards").exists(), lambda: _prepare(out))
    clock.step("pretrain in three phases", (out / "model").exists(), lambda: pretrain(config))
    clock.step("fill masks", (out / "masks.json").exists(), lambda: _fill_masks(out, scale))
    clock.step("search before tuning", (out / "before.json").exists(), lambda: _search(out, "before", out / "model"))
    tuned = out / "retrieval" / "model"
    clock.step("tune for retrieval", tuned.exists(), lambda: _tune(out, tuned, scale))
    clock.step("search after tuning", (out / "after.json").exists(), lambda: _search(out, "after", tuned))
    page = write_summary(out, config, clock.seconds)
    print_summary(out)
    return page


class _Clock:
    """Runs steps that are not done yet, says so, and keeps how long each took."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._console = Console(stderr=True, highlight=False)
        self.seconds: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}

    def step(self, name: str, is_done: bool, work: Callable[[], Any]) -> None:
        if is_done:
            self._console.print(f"[dim]{name}: done before[/dim]")
            return
        self._console.print(f"[bold]{name}[/bold]")
        begun = time.monotonic()
        work()
        # What a killed attempt took is part of the price.
        self.seconds[name] = round(time.monotonic() - begun, 1)
        write_file(self._path, json.dumps(self.seconds, indent=2) + "\n")


def _require_libraries() -> None:
    """Miss a library in the first second rather than in the ninth minute."""
    require("demo", "bm25s", "jinja2", "matplotlib", extra="demo")


def _pretrain_config(out: Path, scale: Scale) -> PretrainConfig:
    with resources.as_file(resources.files("modernbert") / "configs" / "pretrain" / scale.config) as path:
        return configs.load(
            PretrainConfig,
            path,
            [
                f"output={out}",
                f"tokenizer={out / 'tokenizer.json'}",
                f"data.sources.code={out / 'shards' / 'code'}",
                f"data.sources.prose={out / 'shards' / 'prose'}",
                f"data.heldout.packages={out / 'shards' / 'heldout'}",
                f"seed={SEED}",
            ],
        )


def _collect(folder: Path, scale: Scale) -> None:
    with new_folder(folder) as partial:
        collected = collect(partial, budget_mb=scale.budget_mb, seed=SEED)
        facts = {key: value for key, value in asdict(collected).items() if not isinstance(value, Path)}
        write_file(partial / "collected.json", json.dumps(facts, indent=2) + "\n")
    megabytes = sum(collected.num_bytes.values()) / 1e6
    print(
        f"{megabytes:.1f} MB from {collected.num_packages} packages, {len(collected.heldout_packages)} of them held out"
    )


def _tokenizer(out: Path, scale: Scale) -> None:
    texts = (record.text for name in ("code", "prose") for record in read_records(out / "corpus" / f"{name}.jsonl"))
    train_tokenizer(texts, scale.vocab_size).save(out / "tokenizer.json")


def _prepare(out: Path) -> None:
    with new_folder(out / "shards") as partial:
        for name in ("code", "prose", "heldout"):
            records = read_records(out / "corpus" / f"{name}.jsonl")
            documents = (Document(record.text, record.origin) for record in records)
            # In this process: at this size, starting others takes longer than the work, and encoding uses all cores.
            (partial / name).mkdir()
            fill_folder(documents, out / "tokenizer.json", partial / name, tally=Tally())


def _fill_masks(out: Path, scale: Scale) -> None:
    bert = _load(out / "model")
    lines = hide_words(_heldout(out), bert.tokenizer, number=scale.num_lines, seed=SEED)
    mask = bert.tokenizer.text_of(bert.tokenizer.mask_id)
    filled: list[Any] = bert.fill_mask([line.masked(mask) for line in lines], top_k=5)
    found = []
    for line, masks in zip(lines, filled, strict=True):
        # A line of a corpus on language models may hold a mask of its own; ours is the first after what stands before.
        guesses = masks[line.before.count(mask)]
        found.append({**asdict(line), "guesses": [[guess.text, guess.probability] for guess in guesses]})
    write_file(out / "masks.json", json.dumps(found, indent=1) + "\n")


def _search(out: Path, name: str, folder: Path) -> None:
    questions = pairs(_heldout(out))
    if not questions:
        raise InputError(f"{out / 'corpus' / 'heldout.jsonl'}: has no function with a docstring, expected some")
    ranking = rank_by_vectors(_load(folder), questions)
    lexical = rank_by_bm25(questions)
    outcome = {"pairs": [asdict(pair) for pair in questions], "model": asdict(ranking), "bm25": asdict(lexical)}
    write_file(out / f"{name}.json", json.dumps(outcome) + "\n")


def _tune(out: Path, folder: Path, scale: Scale) -> None:
    # As it trains, not as it is fitted for inference.
    tokenizer, model = Tokenizer.load(out / "model"), load_model(out / "model", dtype=torch.float32).to(_device())
    encoder = model.encoder
    examples: list[Pair] = pairs(read_records(out / "corpus" / "code.jsonl"))
    losses = tune(encoder, tokenizer, examples, scale.tuning, checkpoints=out / "retrieval" / "checkpoints", seed=SEED)
    for step, loss in enumerate(losses, 1):
        if step % 10 == 0:
            print(f"{step} steps, loss {loss:.3f}", file=sys.stderr, flush=True)
    ModernBert(tokenizer, encoder).save(folder)


def _heldout(out: Path) -> list[Record]:
    return list(read_records(out / "corpus" / "heldout.jsonl"))


def _load(folder: Path) -> ModernBert:
    return ModernBert.load(folder, device=_device(), dtype="float32", engine=PORTABLE.name)


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
