"""Fine-tune a classifier on 160 messages to a shop, and list the new messages that it labels wrongly.

Needs 600 MB for the model, which is downloaded on first use. Takes a minute on a laptop after that.

    python examples/classify.py
    python examples/classify.py --model jhu-clsp/ettin-encoder-68m --output runs/classify
"""

import argparse
import csv
import tempfile
from pathlib import Path

from modernbert import ModernBert, example_data, finetune
from modernbert.errors import exit_on_error


def main() -> None:
    """Fine-tune, then classify the messages that were held out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="answerdotai/ModernBERT-base", help="name on the Hub, or folder")
    parser.add_argument("--output", type=Path, help="folder for the data and the run; a new temporary one")
    options = parser.parse_args()
    output = options.output or Path(tempfile.mkdtemp())

    data = example_data(output / "data")
    folder = finetune(
        options.model,
        task="classify",
        train=data / "tickets-train.tsv",
        dev=data / "tickets-dev.tsv",
        output=output / "run",
    )

    with open(data / "tickets-dev.tsv", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    bert = ModernBert.load(folder)
    # For each message the labels with their probabilities, the most probable one first.
    answers = bert.classify([row["text"] for row in rows])
    found = [next(iter(answer)) for answer in answers]
    wrong = [(row, label) for row, label in zip(rows, found, strict=True) if label != row["label"]]

    print(f"\n{len(rows) - len(wrong)} of {len(rows)} messages have the right label. The model is {folder}.")
    for row, label in wrong:
        print(f"{label} instead of {row['label']}: {row['text']}")


if __name__ == "__main__":
    with exit_on_error():
        main()
