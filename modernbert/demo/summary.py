"""The results of the demo, as an HTML page and as tables on the console."""

import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
import tokenizers
import torch
from rich.console import Console
from rich.table import Table as ConsoleTable

from modernbert.checkpoints.folder import ModelFolder
from modernbert.reporting.report_page import (
    Bar,
    Cell,
    Code,
    Figure,
    Report,
    Section,
    Table,
    format_duration,
    format_share,
    write_report,
)
from modernbert.reporting.run_panels import optimizer_panels
from modernbert.reporting.run_reader import Run, read_run
from modernbert.reporting.run_report import loss_section, panel_section, speed_section
from modernbert.training.pretraining import PretrainConfig

__all__ = ["print_summary", "write_summary"]

NUM_MASKS_SHOWN = 12
NUM_QUERIES_SHOWN = 6

USAGE = """from modernbert import ModernBert

bert = ModernBert.load("{folder}/model")
bert.fill_mask("import numpy as[MASK]")
bert.embed(["def area(r):", "the area of a circle"])

finder = ModernBert.load("{folder}/retrieval/model")  # fine-tuned for function search
"""
FILES = {
    "report.html": "this page",
    "model": "the pretrained model; transformers loads it",
    "retrieval/model": "the model fine-tuned for function search",
    "tokenizer": "the tokenizer",
    "log.jsonl": "every step of pretraining",
}


def write_summary(out: Path, config: PretrainConfig, seconds: Mapping[str, float]) -> Path:
    """Write `report.html` from the results of the steps, and return its path."""
    run = read_run(out, out.name)
    before, after = _read(out / "before.json"), _read(out / "after.json")
    collected = _read(out / "corpus" / "collected.json")
    # A resumed run counts the time of all its starts.
    timings = {**seconds, "pretrain in three phases": run.elapsed_s}
    report = Report(
        title="A ModernBERT, trained here",
        subtitle=[
            f"{sum(collected['num_bytes'].values()) / 1e6:.0f} MB of code and prose from {collected['num_packages']} "
            f"packages on this machine, {run.tokens / 1e6:.2f} million tokens in three phases, "
            f"evaluated on {len(collected['heldout_packages'])} packages that are not trained on."
        ],
        headline=_headline(run, before, after, sum(timings.values())),
        sections=[
            loss_section([run], [_phase_table(config), _heldout_table(run.heldout)]),
            panel_section("Optimization", optimizer_panels([run])),
            speed_section([run]),
            _mask_section(json.loads((out / "masks.json").read_text())),
            _retrieval_section(before, after),
            _usage_section(out, timings),
        ],
        facts=_facts(out, config, collected),
    )
    write_report(out / "report.html", report)
    return out / "report.html"


def print_summary(out: Path) -> None:
    """Print the main results, and the paths of the files."""
    before, after = _read(out / "before.json"), _read(out / "after.json")
    console = Console(highlight=False)
    scores = Table(
        f"Docstring to function, {len(before['pairs'])} held-out pairs",
        ["ranked by", "nDCG@10", "MRR@10"],
        [[name, f"{ranking['ndcg']:.3f}", f"{ranking['mrr']:.3f}"] for name, _, ranking in _rankings(before, after)],
    )
    for data in (_heldout_table(read_run(out, out.name).heldout), scores):
        table = ConsoleTable(title=data.title, title_justify="left")
        for number, column in enumerate(data.columns):
            table.add_column(column, justify="right" if data.has_numbers(number) else "left")
        for row in data.rows:
            table.add_row(*map(str, row))
        console.print(table)
    for name, text in FILES.items():
        console.print(f"{out / name}  [dim]{text}[/dim]", soft_wrap=True)


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text()))


def _headline(run: Run, before: Mapping[str, Any], after: Mapping[str, Any], seconds: float) -> list[Figure]:
    last, first = run.heldout[-1], run.heldout[0]
    untrained = f", {first['accuracy']:.1%} before training" if first["step"] == 0 else ""
    return [
        Figure("tokens trained on", f"{run.tokens / 1e6:.2f} M", f"{len(run.steps):,} steps"),
        Figure("wall time", f"{seconds / 60:.1f} min", f"all steps, {os.cpu_count()} cores"),
        Figure("masked tokens correct", f"{last['accuracy']:.1%}", f"held out; loss {last['loss']:.2f}{untrained}"),
        Figure(
            "function search, nDCG@10",
            f"{after['model']['ndcg']:.3f}",
            f"{before['model']['ndcg']:.3f} before fine-tuning; BM25 {before['bm25']['ndcg']:.3f}",
        ),
    ]


def _phase_table(config: PretrainConfig) -> Table:
    rows = [
        [
            name,
            f"{phase.tokens:,}",
            f"{phase.max_len:,}",
            f"{phase.lr:g}" + (" → 1 − √t" if phase.decay != "none" else ""),
            f"{phase.global_rope_theta:,.0f}",
            f"{phase.local_rope_theta:,.0f}",
            f"{phase.mask_rate:.0%}",
            ", ".join(f"{source} {weight:g}" for source, weight in phase.weights.items()) or "by size",
        ]
        for name, phase in config.phases.items()
    ]
    columns = ["phase", "tokens", "length", "learning rate", "θ global", "θ local", "masked", "mixture"]
    return Table("The three phases", columns, rows, note="As in the paper, with about a millionth of the tokens.")


def _heldout_table(heldout: Sequence[Mapping[str, Any]]) -> Table:
    rows = [
        [
            "no training" if row["step"] == 0 else str(row["phase"]),
            f"{row['tokens']:,}",
            f"{row['loss']:.3f}",
            f"{math.exp(row['loss']):,.1f}",
            f"{row['accuracy']:.1%}",
        ]
        for row in heldout
    ]
    note = f"The same {heldout[-1]['masked']:,} masked tokens each time, 15 % of the text."
    columns = ["after", "tokens", "loss", "perplexity", "masked accuracy"]
    return Table("Held-out packages after each phase", columns, rows, note)


def _mask_section(masks: Sequence[Mapping[str, Any]]) -> Section:
    guesses = [[guess[0].strip() for guess in row["guesses"]] for row in masks]
    first = sum(words[0] == row["word"] for words, row in zip(guesses, masks, strict=True))
    among = sum(row["word"] in words for words, row in zip(guesses, masks, strict=True))
    text = (
        f"One word is masked in each of {len(masks)} random lines of held-out packages: the first prediction is "
        f"correct in {first / len(masks):.0%}, one of five in {among / len(masks):.0%}."
    )
    rows = [
        [
            Code(row["before"].lstrip(), row["word"], row["after"]),
            [
                Bar(share, format_share(share), word.strip() or "(space)", word.strip() == row["word"])
                for word, share in row["guesses"]
            ],
            row["origin"],
        ]
        for row in masks[:NUM_MASKS_SHOWN]
    ]
    columns = ["line, with the masked word marked", "predictions", "file"]
    return Section("Masked words", text, tables=[Table(f"The first {len(rows)} lines", columns, rows)])


def _rankings(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[tuple[str, str, Mapping[str, Any]]]:
    return [
        ("BM25", "words in common; identifiers are split", before["bm25"]),
        ("pretrained", "mean pooling", before["model"]),
        ("fine-tuned", "after a short contrastive fine-tuning", after["model"]),
    ]


def _retrieval_section(before: Mapping[str, Any], after: Mapping[str, Any]) -> Section:
    """Return the scores of all rankings, and some queries spread evenly over the held-out pairs."""
    pairs, rankings = after["pairs"], _rankings(before, after)
    scores: list[list[Cell]] = [
        [name, note, *(Bar(ranking[key], f"{ranking[key]:.3f}") for key in ("ndcg", "mrr"))]
        for name, note, ranking in rankings
    ]
    examples: list[list[Cell]] = []
    stride = max(1, len(pairs) // NUM_QUERIES_SHOWN)
    for number in range(0, stride * min(NUM_QUERIES_SHOWN, len(pairs)), stride):
        first = after["model"]["first"][number]
        found = f"{'✓' if first == number else '✗'} {pairs[first]['name']}"
        ranks = [f"{ranking['ranks'][number]:,}" for *_, ranking in rankings]
        code = Code(pairs[first]["passage"], summary=found)
        examples.append([pairs[number]["query"], pairs[number]["name"], *ranks, code])
    text = (
        f"The first paragraph of a docstring is the query; its function is to be found among {len(pairs)} functions of "
        "held-out packages, whose docstrings are removed."
    )
    names = [f"rank, {name}" for name, *_ in rankings]
    return Section(
        "Function search",
        text,
        tables=[
            Table("Scores, higher is better", ["ranked by", "how", "nDCG@10", "MRR@10"], scores),
            Table("Some queries", ["query", "function", *names, "first result of the fine-tuned model"], examples),
        ],
    )


def _usage_section(out: Path, timings: Mapping[str, float]) -> Section:
    longest = max(timings.values()) or 1.0
    times: list[list[Cell]] = [
        [name, Bar(seconds / longest, format_duration(seconds))] for name, seconds in timings.items()
    ]
    return Section(
        "Use it",
        code=USAGE.format(folder=out),
        tables=[
            Table("Files", ["file", "content"], [*map(list, FILES.items())], is_text=True),
            Table("Time of each step", ["step", "time"], times),
        ],
    )


def _facts(out: Path, config: PretrainConfig, collected: Mapping[str, Any]) -> dict[str, list[tuple[str, str]]]:
    model = ModelFolder(out / "model").config
    return {
        "Model": [
            ("layers", str(model.num_hidden_layers)),
            ("hidden size", str(model.hidden_size)),
            ("attention heads", str(model.num_attention_heads)),
            ("intermediate size", str(model.intermediate_size)),
            ("vocabulary", f"{model.vocab_size:,}"),
            ("maximum length", f"{model.max_position_embeddings:,} tokens"),
        ],
        "Text": [
            *((name, f"{size / 1e6:.1f} MB") for name, size in collected["num_bytes"].items()),
            ("held-out packages", ", ".join(collected["heldout_packages"])),
        ],
        "Machine": [
            ("system", f"{platform.system()} {platform.machine()}"),
            ("cores", str(os.cpu_count())),
            ("Python", platform.python_version()),
            ("torch", torch.__version__),
            ("tokenizers", tokenizers.__version__),
            ("numpy", numpy.__version__),
            ("seed", str(config.seed)),
        ],
    }
