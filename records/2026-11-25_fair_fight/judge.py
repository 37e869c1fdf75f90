"""Fine-tune and judge one pretrained model on every set, with the package's own commands.

    python judge.py DATA WORK MODEL OUT

DATA holds glue/, classification/, ner/, retrieval/ and code_retrieval/; WORK what `prepare.sh` made. A rate is chosen
first, on the dev rows of two small tasks with a seed that is not used again. Started again, it goes on; seeds can be
shared out between processes once the rate is chosen.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

SEEDS = (1, 2, 3)
RATES = (1e-4, 2e-4, 4e-4, 8e-4)
LONGEST_WHEN_TUNED = 1_024
# What is learned from, and what scores it; where there are no dev rows the last weights are kept.
TASKS = {
    "cola": dict(
        task="classify", text="sentence", train="glue/cola/train.tsv", dev="glue/cola/dev.tsv", metric="matthews",
        epochs=3,
    ),
    "rte": dict(
        task="classify", text="sentence1", pair="sentence2", train="glue/rte/train.tsv.gz", dev="glue/rte/dev.tsv",
        epochs=3,
    ),
    "stsb": dict(
        task="regress", text="sentence1", pair="sentence2", label="score", train="glue/stsb/train.tsv.gz",
        dev="glue/stsb/dev.tsv", test="glue/stsb/test.tsv", epochs=3,
    ),
    "banking77": dict(
        task="classify", text="text", train="classification/banking77/train.tsv.gz",
        test="classification/banking77/test.tsv", epochs=5,
    ),
    "wnut17": dict(
        task="tag", train="ner/wnut17/train.conll.gz", dev="ner/wnut17/dev.conll", test="ner/wnut17/test.conll",
        epochs=5,
    ),
    "sst2": dict(
        task="classify", text="sentence", train="glue/sst2/train.tsv.gz", dev="glue/sst2/dev.tsv", epochs=1,
        scorings_per_epoch=4,
    ),
}  # fmt: skip
LEARNED = ("retrieval/scifact", "retrieval/qmsum_long", "retrieval/peps_long", "code_retrieval/conala")
JUDGED = {
    "test": (
        "retrieval/scifact", "retrieval/cranfield", "retrieval/cisi", "retrieval/peps_long", "code_retrieval/conala",
        "code_retrieval/cosqa",
    ),
    "dev": ("retrieval/qmsum_long",),
}  # fmt: skip


def command(*words):
    """Run one command of the package, and stop with it where it fails."""
    print("modernbert", *words, flush=True)
    subprocess.run([sys.executable, "-m", "modernbert", *map(str, words)], check=True)


def tune(data, model, out, name, rate, seed):
    """Fine-tune for one task. Returns its scores."""
    chosen = dict(TASKS[name])
    options = {part: data / chosen.pop(part) for part in ("train", "dev", "test") if part in chosen}
    options |= {f"columns.{part}": chosen.pop(part) for part in ("text", "pair", "label") if part in chosen}
    options |= {name.replace("_", "-"): value for name, value in chosen.items()}
    options |= {"output": out, "lr": rate, "seed": seed}
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    command("finetune", model, "--cut", *words)
    return json.loads((out / "scores.json").read_text())


def choose_rate(data, model, out):
    """Return the rate with the best mean of two dev scores, and write down what the others had."""
    if (out / "rates.json").exists():
        found = {float(rate): score for rate, score in json.loads((out / "rates.json").read_text()).items()}
        return max(found, key=found.get)
    found = {}
    for rate in RATES:
        scores = [tune(data, model, out / f"rate-{rate}-{name}", name, rate, seed=99) for name in ("cola", "stsb")]
        found[rate] = sum(each["dev"][each["metric"]] for each in scores) / 2
    (out / "rates.json").write_text(json.dumps(found, indent=1) + "\n")
    return max(found, key=found.get)


def retrieve(data, work, model, out, rate, seed, longest):
    """Tune one retriever on all pairs there are, and judge it on every collection."""
    sources = [*(data / name for name in LEARNED), work / "pairs.jsonl"]
    train = [word for source in sources for word in ("--train", source)]
    tuned = min(longest, LONGEST_WHEN_TUNED)
    command(
        "finetune", model, "--output", out, "--task", "embed", *train, "--vectors.query-length",
        min(longest, 512), "--vectors.document-length", tuned, "--lr", rate, "--seed", seed, "--epochs", 1,
        "--batch", 64,
    )  # fmt: skip
    for split, names in JUDGED.items():
        if not (out / f"{split}.json").exists():
            more = ["--bm25"] if seed == SEEDS[0] else []
            command(
                "evaluate", "retrieval", out / "model", *(data / name for name in names), "--split", split,
                "--document-length", longest, "--output", out / f"{split}.json", *more,
            )  # fmt: skip


def main():
    parser = argparse.ArgumentParser()
    for name in ("data", "work", "model", "out"):
        parser.add_argument(name, type=lambda word: Path(word).resolve())
    parser.add_argument("--longest", type=int, required=True, help="tokens that the model takes")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    words = parser.parse_args()
    words.out.mkdir(parents=True, exist_ok=True)
    rate = choose_rate(words.data, words.model, words.out)
    for seed in words.seeds:
        retrieve(words.data, words.work, words.model, words.out / f"retriever-{seed}", rate, seed, words.longest)
        for name in TASKS:
            tune(words.data, words.model, words.out / f"{name}-{seed}", name, rate, seed)


if __name__ == "__main__":
    main()
