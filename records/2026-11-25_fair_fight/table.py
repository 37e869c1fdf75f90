"""Lay two judged models side by side: python table.py OURS BERT. Writes results.json, and prints the tables."""

import json
import statistics
import sys
from pathlib import Path

SEEDS = (1, 2, 3)
# Of a task: its name here, what is read, and of which rows.
TASKS = {
    "cola": ("CoLA, Matthews, best on dev", "dev", "matthews"),
    "rte": ("RTE, accuracy, best on dev", "dev", "accuracy"),
    "sst2": ("SST-2, accuracy, best on dev", "dev", "accuracy"),
    "stsb": ("STS-B, mean of Pearson and Spearman, test", "test", "correlation"),
    "banking77": ("banking77, accuracy, test", "test", "accuracy"),
    "wnut17": ("WNUT-17, F1 of spans, test", "test", "span_f1"),
}
COLLECTIONS = {
    "scifact": "SciFact, test",
    "cranfield": "Cranfield",
    "cisi": "CISI",
    "conala": "CoNaLa, test (code)",
    "cosqa": "CoSQA, test (code, not learned from)",
    "peps_long": "PEPs, test (median 4,736 tokens)",
    "qmsum_long": "QMSum, dev (median 12,783 tokens)",
}


def tasks_of(folder):
    found = {}
    for name, (_, rows, metric) in TASKS.items():
        all_scores = [json.loads((folder / f"{name}-{seed}" / "scores.json").read_text()) for seed in SEEDS]
        found[name] = [scores[rows][metric] for scores in all_scores]
    return found


def retrieval_of(folder):
    """Return nDCG@10 of every collection and seed, how many documents were cut, and BM25's."""
    found, cut, words = {}, {}, {}
    for seed in SEEDS:
        for split in ("test", "dev"):
            for row in json.loads((folder / f"retriever-{seed}" / f"{split}.json").read_text())["rows"]:
                if row["system"] == "BM25":
                    words[row["collection"]] = row["ndcg_10"]
                else:
                    found.setdefault(row["collection"], []).append(row["ndcg_10"])
                    cut[row["collection"]] = f"{row['num_cut']:,} of {row['num_documents'] + row['num_queries']:,}"
    return found, cut, words


def shown(values):
    return f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def main():
    ours, theirs = map(Path, sys.argv[1:3])
    tasks = {"modernbert": tasks_of(ours), "bert": tasks_of(theirs)}
    mine, mine_cut, words = retrieval_of(ours)
    other, other_cut, _ = retrieval_of(theirs)
    rates = {
        name: json.loads((each / "rates.json").read_text()) for name, each in (("modernbert", ours), ("bert", theirs))
    }
    print("| labels: mean (range) of three seeds | modernbert | BERT |\n| --- | ---: | ---: |")
    for name, (title, _, _) in TASKS.items():
        print(f"| {title} | {shown(tasks['modernbert'][name])} | {shown(tasks['bert'][name])} |")
    print(
        "\n| nDCG@10: mean (range) of three seeds | modernbert | BERT | BM25 | texts cut: modernbert | BERT |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: |"
    )
    for name, title in COLLECTIONS.items():
        print(
            f"| {title} | {shown(mine[name])} | {shown(other[name])} | {words[name]:.3f} | {mine_cut[name]} | "
            f"{other_cut[name]} |"
        )
    said = {
        "rates": rates, "tasks": tasks, "ndcg_10": {"modernbert": mine, "bert": other, "bm25": words},
        "cut": {"modernbert": mine_cut, "bert": other_cut},
    }  # fmt: skip
    Path(__file__).with_name("results.json").write_text(json.dumps(said, indent=1) + "\n")


if __name__ == "__main__":
    main()
