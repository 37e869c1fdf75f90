"""Cost of a token in local and in global layers, by the length of its document: `curve.py OUT` writes curve.json, .png.

One layer of the base shape as it runs for inference; documents of equal length, 8,192 tokens in all, best of two.
"""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import matplotlib
import torch

from modernbert.batch import Batch
from modernbert.devices import choose_precision, keep_freed_memory
from modernbert.engines.registry import find_engine
from modernbert.inference.loading import permit_plans
from modernbert.model.config import ModelConfig
from modernbert.model.encoder import Encoder
from modernbert.model.initialization import initialize

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402

LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
TOKENS = 8192
# Fewer entries, for layers alone are timed.
BASE = ModelConfig.preset("base", vocab_size=16_384, pad_token_id=0, cls_token_id=1, sep_token_id=2)


def main(out: Path) -> None:
    keep_freed_memory()
    dtype = choose_precision("auto", torch.device("cpu"))
    costs = {kind: [cost(kind, length, dtype) for length in LENGTHS] for kind in ("local", "global")}
    for length, *both in zip(LENGTHS, *costs.values(), strict=True):
        print(f"{length:,}: " + ", ".join(f"{kind} {us:.2f} us" for kind, us in zip(costs, both, strict=True)))
    (out / "curve.json").write_text(json.dumps({"dtype": str(dtype), "lengths": LENGTHS, "us_per_token": costs}) + "\n")
    figure, axis = pyplot.subplots(figsize=(6.4, 4))
    for kind, values in costs.items():
        axis.plot(LENGTHS, values, marker="o", label=f"{kind} layer")
    axis.set(xscale="log", xlabel="tokens of a document", ylabel="microseconds per token and layer", ylim=(0, None))
    axis.set_xticks(LENGTHS, [f"{length:,}" for length in LENGTHS])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.legend()
    figure.tight_layout()
    figure.savefig(out / "curve.png", dpi=150)


def cost(kind: str, length: int, dtype: torch.dtype) -> float:
    """Return the microseconds that one more layer of a kind costs a token: two layers less one."""
    every = 1 if kind == "global" else 100  # the first layer is global at any setting
    seconds = [
        min(passes(replace(BASE, num_hidden_layers=n, global_attn_every_n_layers=every), length, dtype)) for n in (1, 3)
    ]
    return (seconds[1] - seconds[0]) / 2 / TOKENS * 1e6


@torch.inference_mode()
def passes(config: ModelConfig, length: int, dtype: torch.dtype) -> list[float]:
    encoder = Encoder(config, find_engine("cpu"))
    initialize(encoder, config, seed=0)
    model = permit_plans(encoder.to(dtype).eval())
    batch = Batch.from_documents([range(100, 100 + length) for _ in range(TOKENS // length)])
    seconds = []
    for _ in range(3):
        begun = time.perf_counter()
        model(batch.tokens, batch.layout)
        seconds.append(time.perf_counter() - begun)
    return seconds[1:]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
