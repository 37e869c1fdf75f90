"""Fine-tune a late-interaction model (ColBERT) on 18 questions, and rank help pages with it.

A late-interaction model has one vector for each token. It is compared here with the model of one vector for a text
that the same rows give. Needs 600 MB for the model, which is downloaded on first use. Takes two minutes on a laptop
after that. A useful model needs more rows; `lightonai/GTE-ModernColBERT-v1` is one.

    python examples/late_interaction.py
"""

import argparse
import tempfile
from pathlib import Path

from modernbert import ModernBert, evaluate, example_data, finetune
from modernbert.errors import exit_on_error

QUERY = "can I pay in parts"


def main() -> None:
    """Fine-tune two models, compare them on other questions, and rank pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="answerdotai/ModernBERT-base", help="name on the Hub, or folder")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--output", type=Path, help="folder for the data and the runs; a new temporary one")
    options = parser.parse_args()
    output = options.output or Path(tempfile.mkdtemp())

    data = example_data(output / "data")
    for task in ("embed", "late"):
        folder = finetune(
            options.model,
            task=task,
            train=data / "questions-train.jsonl",
            epochs=options.epochs,
            batch=9,
            output=output / task,
        )
        # 18 other questions on the same pages: nDCG@10, MRR@10 and recall@100.
        evaluate("retrieval", folder, collections=[data / "faq"])

    pages = sorted((data / "articles").glob("*.md"))
    texts = [page.read_text() for page in pages]
    bert = ModernBert.load(folder)
    (vectors,) = bert.embed_documents(texts[:1]).vectors
    print(f"\n{pages[0].name}: {len(vectors)} vectors of {vectors.shape[1]} numbers")
    # The score is MaxSim: for each token of the query the largest similarity to a token of the page, summed.
    print(QUERY)
    for ranked in bert.rerank(QUERY, texts, top_k=3):
        print(f"{ranked.score:.2f}  {pages[ranked.index].name}")


if __name__ == "__main__":
    with exit_on_error():
        main()
