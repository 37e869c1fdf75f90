"""Fine-tune a tagger on 32 sentences, and mark the products, places and dates in new ones.

Needs 600 MB for the model, which is downloaded on first use. Takes a minute on a laptop after that.

    python examples/tag.py
    python examples/tag.py --epochs 20 --output runs/tag
"""

import argparse
import tempfile
from pathlib import Path

from modernbert import ModernBert, Span, example_data, finetune
from modernbert.errors import exit_on_error

SENTENCES = (
    "I ordered a blue sofa and two lamps from Oslo.",
    "Please deliver the desk to Lisbon on 3 May.",
)


def marked(text: str, spans: list[Span]) -> str:
    """Return a text with its spans in brackets."""
    for span in reversed(spans):
        text = f"{text[: span.start]}[{span.text}]{text[span.end :]}"
    return text


def main() -> None:
    """Fine-tune, then tag."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="answerdotai/ModernBERT-base", help="name on the Hub, or folder")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--output", type=Path, help="folder for the data and the run; a new temporary one")
    options = parser.parse_args()
    output = options.output or Path(tempfile.mkdtemp())

    data = example_data(output / "data")
    folder = finetune(
        options.model,
        task="tag",
        train=data / "orders-train.conll",
        dev=data / "orders-dev.conll",
        epochs=options.epochs,
        batch=8,
        output=output / "run",
    )

    bert = ModernBert.load(folder)
    for sentence, spans in zip(SENTENCES, bert.tag(SENTENCES), strict=True):
        print(f"\n{marked(sentence, spans)}")
        for span in spans:
            print(f"  {span.label}: {span.text} ({span.score:.0%})")


if __name__ == "__main__":
    with exit_on_error():
        main()
