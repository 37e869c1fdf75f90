"""What the demo found, as a page and as a table on the console.

In: the outcomes of the steps, in the demo's folder. Out: `report.html`, and lines on standard output.
"""

import json
import math
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
import tokenizers
import torch
from rich.console import Console
from rich.table import Table as ConsoleTable

from modernbert.checkpoints.folder import load_config
from modernbert.reporting.report_page import Figure, FilledMask, Guess, Question, Report, Retrieval, Table, write_report
from modernbert.reporting.run_charts import read_rows
from modernbert.training.pretraining import PretrainConfig

__all__ = ["print_summary", "write_summary"]

NUM_MASKS_SHOWN = 12
NUM_QUESTIONS_SHOWN = 6

USAGE = """from modernbert import ModernBert

bert = ModernBert.load("{folder}/model")
bert.fill_mask("import numpy as[MASK]")
bert.embed(["def area(r):", "the area of a circle"])

finder = ModernBert.load("{folder}/retrieval/model")  # tuned to find functions by what they do
"""


def write_summary(out: Path, config: PretrainConfig, seconds: Mapping[str, float]) -> Path:
    """Write `report.html` from what the steps left, and return its path."""
    log, timing = read_rows(out / "log.jsonl"), read_rows(out / "timing.jsonl")
    heldout = [row for row in log if row["kind"] == "heldout"]
    before, after = _outcome(out, "before"), _outcome(out, "after")
    masks = json.loads((out / "masks.json").read_text())
    collected = json.loads((out / "corpus" / "collected.json").read_text())
    steps = [row for row in log if row["kind"] == "step"]
    # A run that was stopped and resumed took what all its parts took; the log of the run knows.
    spent = {**seconds, "pretrain in three phases": timing[-1]["elapsed"]}
    report = Report(
        title="A ModernBERT, trained here",
        subtitle=[
            f"{sum(collected['num_bytes'].values()) / 1e6:.0f} MB of code and prose from {collected['num_packages']} "
            f"packages on this machine, {steps[-1]['tokens'] / 1e6:.2f} million tokens seen in three phases, "
            f"everything measured on {len(collected['heldout_packages'])} packages it never saw."
        ],
        headline=_headline(heldout, steps, before, after, sum(spent.values())),
        run=out,
        phases=_phases(config),
        masks=[_filled(row) for row in masks[:NUM_MASKS_SHOWN]],
        masks_note=_masks_note(masks),
        retrieval=_retrieval(before, after),
        retrieval_note=(
            f"The first paragraph of a docstring asks for its function among {len(before['pairs'])} functions of "
            "held-out packages; the docstring itself is taken out of the code. nDCG@10 and MRR@10, higher is better."
        ),
        questions=_questions(before, after),
        tables=[_heldout_table(heldout)],
        usage=USAGE.format(folder=out),
        files=_files(),
        timings=list(spent.items()),
        facts=_facts(out, config, collected),
    )
    write_report(out / "report.html", report)
    return out / "report.html"


def print_summary(out: Path) -> None:
    """Print the figures of the page, and where it is."""
    log = read_rows(out / "log.jsonl")
    heldout = [row for row in log if row["kind"] == "heldout"]
    console = Console(highlight=False)
    table = ConsoleTable(title="Held-out packages", title_justify="left")
    for column in ("after", "tokens", "loss", "masked accuracy"):
        table.add_column(column, justify="left" if column == "after" else "right")
    for row in heldout:
        table.add_row(_stage(row), f"{row['tokens']:,}", f"{row['loss']:.3f}", f"{row['accuracy']:.1%}")
    console.print(table)
    before, after = _outcome(out, "before"), _outcome(out, "after")
    title = f"Docstring to function, {len(before['pairs'])} held-out pairs"
    table = ConsoleTable("ranked by", title=title, title_justify="left")
    table.add_column("nDCG@10", justify="right")
    table.add_column("MRR@10", justify="right")
    for ranked in _retrieval(before, after):
        table.add_row(ranked.system, f"{ranked.ndcg:.3f}", f"{ranked.mrr:.3f}")
    console.print(table)
    for name, text in _files():
        console.print(f"{out / name}  [dim]{text}[/dim]", soft_wrap=True)


def _outcome(out: Path, name: str) -> dict[str, Any]:
    return dict(json.loads((out / f"{name}.json").read_text()))


def _headline(
    heldout: list[dict[str, Any]],
    steps: list[dict[str, Any]],
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    seconds: float,
) -> list[Figure]:
    last = heldout[-1]
    untrained = next((row for row in heldout if row["step"] == 0), None)
    was = f", {untrained['accuracy']:.1%} before training" if untrained else ""
    return [
        Figure("tokens trained on", f"{steps[-1]['tokens'] / 1e6:.2f} M", f"{steps[-1]['step']:,} steps"),
        Figure("wall time", f"{seconds / 60:.1f} min", f"all steps, {os.cpu_count()} cores"),
        Figure("masked tokens right", f"{last['accuracy']:.1%}", f"held out; loss {last['loss']:.2f}{was}"),
        Figure(
            "function found, nDCG@10",
            f"{after['model']['ndcg']:.3f}",
            f"{before['model']['ndcg']:.3f} before tuning; BM25 {before['bm25']['ndcg']:.3f}",
        ),
    ]


def _phases(config: PretrainConfig) -> Table:
    rows = []
    for name, phase in config.phases.items():
        rows.append(
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
        )
    columns = ["phase", "tokens", "length", "learning rate", "θ global", "θ local", "masked", "mix"]
    return Table("The three phases", columns, rows, note="As in the paper, at a scale of one to a million.")


def _filled(row: Mapping[str, Any]) -> FilledMask:
    guesses = [Guess(word, probability) for word, probability in row["guesses"]]
    return FilledMask(row["before"], row["word"], row["after"], guesses, row["origin"])


def _masks_note(masks: list[dict[str, Any]]) -> str:
    words = [[guess[0].strip() for guess in row["guesses"]] for row in masks]
    first = sum(guesses[0] == row["word"] for guesses, row in zip(words, masks, strict=True))
    among = sum(row["word"] in guesses for guesses, row in zip(words, masks, strict=True))
    return (
        f"One word hidden in each of {len(masks)} lines of held-out packages, chosen by a seed: the first guess is "
        f"right in {first / len(masks):.0%}, one of five in {among / len(masks):.0%}. The first {NUM_MASKS_SHOWN}:"
    )


def _retrieval(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Retrieval]:
    return [
        Retrieval("BM25", before["bm25"]["ndcg"], before["bm25"]["mrr"], "words in common, identifiers split"),
        Retrieval("pretrained", before["model"]["ndcg"], before["model"]["mrr"], "mean of the token vectors"),
        Retrieval("tuned", after["model"]["ndcg"], after["model"]["mrr"], "after a short contrastive tuning"),
    ]


def _questions(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Question]:
    """Show questions spread evenly over the held-out pairs."""
    pairs = after["pairs"]
    stride = max(1, len(pairs) // NUM_QUESTIONS_SHOWN)
    found = []
    for number in range(0, stride * min(NUM_QUESTIONS_SHOWN, len(pairs)), stride):
        pair, hit = pairs[number], after["model"]["first"][number]
        ranks = {
            "BM25": before["bm25"]["ranks"][number],
            "pretrained": before["model"]["ranks"][number],
            "tuned": after["model"]["ranks"][number],
        }
        found.append(
            Question(pair["query"], pair["name"], ranks, pairs[hit]["name"], pairs[hit]["passage"], hit == number)
        )
    return found


def _stage(row: Mapping[str, Any]) -> str:
    return "no training" if row["step"] == 0 else str(row["phase"])


def _heldout_table(heldout: list[dict[str, Any]]) -> Table:
    rows = [
        [
            _stage(row),
            f"{row['tokens']:,}",
            f"{row['loss']:.3f}",
            f"{math.exp(row['loss']):,.1f}",
            f"{row['accuracy']:.1%}",
        ]
        for row in heldout
    ]
    return Table(
        "Held-out packages, after each phase",
        ["after", "tokens", "loss", "perplexity", "accuracy"],
        rows,
        note=f"The same {heldout[-1]['masked']:,} tokens hidden each time, 15 % of the text as in the paper.",
    )


def _files() -> list[tuple[str, str]]:
    return [
        ("report.html", "the page"),
        ("model", "the pretrained model; transformers and other readers load it unedited"),
        ("retrieval/model", "the model tuned to find functions"),
        ("tokenizer.json", "the tokenizer"),
        ("log.jsonl", "every step of pretraining"),
    ]


def _facts(out: Path, config: PretrainConfig, collected: Mapping[str, Any]) -> dict[str, list[tuple[str, str]]]:
    model = load_config(out / "model")
    sizes = collected["num_bytes"]
    return {
        "Model": [
            ("layers", str(model.num_hidden_layers)),
            ("width", str(model.hidden_size)),
            ("heads", str(model.num_attention_heads)),
            ("feed-forward", str(model.intermediate_size)),
            ("vocabulary", f"{model.vocab_size:,}"),
            ("longest text", f"{model.max_position_embeddings:,} tokens"),
        ],
        "Text": [
            *((name, f"{size / 1e6:.1f} MB") for name, size in sizes.items()),
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
