"""Continue the pretraining of a model on the help pages of a shop, and compare what it fills into masks.

Needs 600 MB for the model, which is downloaded on first use. Takes three minutes on two CPU cores after that,
and seconds on a GPU; `--tokens` sets how long it trains.

    python examples/continued_pretraining.py
    python examples/continued_pretraining.py --tokens 131072 --output runs/adapted
"""

import argparse
import tempfile
from pathlib import Path

from modernbert import ModernBert, example_data, pretrain
from modernbert.errors import exit_on_error

STEP_TOKENS = 8_192
TEXTS = (
    "The refund is sent to the [MASK] method of the order.",
    "Orders can be paid in three [MASK] without interest.",
)


def main() -> None:
    """Train, then fill the masks with the model before and after."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="answerdotai/ModernBERT-base", help="name on the Hub, or folder")
    parser.add_argument("--tokens", type=int, default=65_536, help="tokens to train on, in steps of 8,192")
    parser.add_argument("--output", type=Path, help="folder for the data and the run; a new temporary one")
    options = parser.parse_args()
    output = options.output or Path(tempfile.mkdtemp())

    data = example_data(output / "data")
    folder = pretrain(
        config="pretrain/adapt",
        init_from=options.model,
        text=data / "articles",
        # Small steps for a small text: 8,192 tokens instead of 32,768.
        phases={
            "adapt": {
                "tokens": options.tokens,
                "micro_batch_tokens": STEP_TOKENS,
                "max_micro_batches": 1,
                "warmup_tokens": STEP_TOKENS,
            }
        },
        output=output / "run",
    )

    before, after = ModernBert.load(options.model), ModernBert.load(folder)
    print(f"\nThe model is {folder}.")
    for text in TEXTS:
        print(f"\n{text}")
        for name, bert in (("before", before), ("after", after)):
            (guesses,) = bert.fill_mask(text, top_k=3)
            print(f"  {name}: {', '.join(f'{guess.text.strip()} ({guess.probability:.0%})' for guess in guesses)}")


if __name__ == "__main__":
    with exit_on_error():
        main()
