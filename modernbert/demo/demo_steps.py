"""`modernbert demo`: pretrain and fine-tune a small model on text found on this machine, and write a page about it.

Each step writes its result atomically. A demo that was killed continues with the first step that has no result.
"""

import json
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from modernbert import ModernBert, finetune, prepare, pretrain, train_tokenizer
from modernbert.config_files import resolve
from modernbert.demo.collect import Record, collect, read_records
from modernbert.demo.demo_options import DemoConfig
from modernbert.demo.function_search import search_functions
from modernbert.demo.masks import mask_words
from modernbert.demo.pairs import pairs
from modernbert.demo.summary import print_summary, write_summary
from modernbert.errors import InputError
from modernbert.evaluation.retrieval_eval import rank_by_model, rank_by_words
from modernbert.extras import require
from modernbert.files import new_folder, write_file
from modernbert.training.pretraining_config import PretrainConfig
from modernbert.training.run_folder import open_run_folder

__all__ = ["DemoConfig", "run"]

SEED = 17
KINDS = ("code", "prose", "heldout")


@dataclass(frozen=True)
class Scale:
    """The amount of text, training and evaluation."""

    folder: str
    config: str
    budget_mb: float
    vocab_size: int
    finetuning_steps: int
    pairs_per_step: int
    num_lines: int


FULL = Scale("runs/demo", "pretrain/demo", 24.0, 4_096, finetuning_steps=100, pairs_per_step=64, num_lines=300)
QUICK = Scale("runs/demo-quick", "pretrain/demo-quick", 3.0, 2_048, finetuning_steps=8, pairs_per_step=32, num_lines=60)


def run(config: DemoConfig) -> Path:
    """Train, evaluate and show a small ModernBERT; return the path of the page.

    Raises:
        InputError: The folder has other content, the disk is full, or a library is missing.
    """
    scale = QUICK if config.quick else FULL
    out = config.output or Path(scale.folder)
    require("demo", "bm25s", "jinja2", "matplotlib")
    options = _pretraining_options(out)
    pretraining = resolve(PretrainConfig, options, scale.config)
    open_run_folder(out, pretraining)
    clock = _Clock(out / "seconds.json")
    finetuned = out / "retrieval"
    clock.step("collect text", out / "corpus", lambda: _collect(out / "corpus", scale))
    clock.step("train the tokenizer", out / "tokenizer", lambda: _train_tokenizer(out, scale))
    clock.step("tokenize", out / "shards" / KINDS[-1], lambda: _prepare(out))
    clock.step("pretrain in three phases", out / "model", lambda: pretrain(config=scale.config, **options))
    clock.step("fill masks", out / "masks.json", lambda: _fill_masks(out, scale))
    clock.step("search before fine-tuning", out / "before.json", lambda: _search(out, "before", out / "model"))
    clock.step("fine-tune for retrieval", finetuned / "scores.json", lambda: _finetune(out, finetuned, scale))
    clock.step("search after fine-tuning", out / "after.json", lambda: _search(out, "after", finetuned / "model"))
    page = write_summary(out, pretraining, clock.seconds)
    print_summary(out)
    return page


class _Clock:
    """Runs the steps that have no result yet, and stores their durations."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._console = Console(stderr=True, highlight=False)
        self.seconds: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}

    def step(self, name: str, result: Path, work: Callable[[], Any]) -> None:
        if result.exists():
            self._console.print(f"[dim]{name}: done before[/dim]")
            return
        self._console.print(f"[bold]{name}[/bold]")
        started = time.monotonic()
        work()
        self.seconds[name] = round(time.monotonic() - started, 1)
        write_file(self._path, json.dumps(self.seconds, indent=2) + "\n")


def _pretraining_options(out: Path) -> dict[str, Any]:
    code, prose, heldout = (str(out / "shards" / name / "train") for name in KINDS)
    data = {"sources": {"code": code, "prose": prose}, "heldout": {"packages": heldout}}
    # The last phase has a mix with more prose.
    phases = {"decay": {"weights": {"code": 1.0, "prose": 1.0}}}
    return {"output": str(out), "tokenizer": str(out / "tokenizer"), "data": data, "phases": phases, "seed": SEED}


def _collect(folder: Path, scale: Scale) -> None:
    with new_folder(folder) as partial:
        collected = collect(partial, budget_mb=scale.budget_mb, seed=SEED)
        facts = {key: value for key, value in asdict(collected).items() if not isinstance(value, Path)}
        write_file(partial / "collected.json", json.dumps(facts, indent=2) + "\n")
    megabytes = sum(collected.num_bytes.values()) / 1e6
    print(f"{megabytes:.1f} MB from {collected.num_packages} packages; {len(collected.heldout_packages)} are held out")


def _train_tokenizer(out: Path, scale: Scale) -> None:
    texts = [str(out / "corpus" / f"{name}.jsonl") for name in ("code", "prose")]
    train_tokenizer(input=texts, output=out / "tokenizer", vocab_size=scale.vocab_size)


def _prepare(out: Path) -> None:
    for name in KINDS:
        source, folder = str(out / "corpus" / f"{name}.jsonl"), out / "shards" / name
        # One process: at this size, starting more takes longer than the work.
        prepare(input=[source], tokenizer=str(out / "tokenizer"), output=folder, processes=1)


def _fill_masks(out: Path, scale: Scale) -> None:
    bert = ModernBert.load(out / "model", dtype="float32")
    lines = mask_words(_records(out, "heldout"), bert.tokenizer, number=scale.num_lines, seed=SEED)
    mask = bert.tokenizer.text_of(bert.tokenizer.mask_id)
    filled: list[Any] = bert.fill_mask([line.masked(mask) for line in lines], top_k=5)
    found = []
    for line, masks in zip(lines, filled, strict=True):
        # A line about language models may contain other masks before this one.
        guesses = masks[line.before.count(mask)]
        found.append({**asdict(line), "guesses": [[guess.text, guess.probability] for guess in guesses]})
    write_file(out / "masks.json", json.dumps(found, indent=1) + "\n")


def _search(out: Path, name: str, folder: Path) -> None:
    heldout = pairs(_records(out, "heldout"))
    if not heldout:
        raise InputError(f"{out / 'corpus' / 'heldout.jsonl'}: has no function with a docstring, expected some")
    systems = {"model": rank_by_model(ModernBert.load(folder, dtype="float32")), "bm25": rank_by_words}
    results = {"pairs": heldout} | {name: search_functions(heldout, rank) for name, rank in systems.items()}
    write_file(out / f"{name}.json", json.dumps(results, default=asdict) + "\n")


def _finetune(out: Path, folder: Path, scale: Scale) -> None:
    """Fine-tune on docstrings and their functions; the other functions of a step are the negatives."""
    rows = [{"query": pair.query, "positive": pair.passage} for pair in pairs(_records(out, "code"))]
    random.Random(SEED).shuffle(rows)
    wanted = scale.finetuning_steps * scale.pairs_per_step
    write_file(folder.with_suffix(".jsonl"), "".join(json.dumps(row) + "\n" for row in rows[:wanted]))
    finetune(
        str(out / "model"),
        task="embed",
        train=[str(folder.with_suffix(".jsonl"))],
        output=str(folder),
        vectors={"query_length": 96, "document_length": 96},
        epochs=max(1, round(wanted / len(rows))),
        batch=scale.pairs_per_step,
        lr=2e-3,
        warmup=0.1,
        seed=SEED,
    )


def _records(out: Path, name: str) -> list[Record]:
    return read_records(out / "corpus" / f"{name}.jsonl")
