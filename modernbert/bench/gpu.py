"""All that is to be known about a GPU, as one script: parity first, then training and the efficiency table.

    python -m modernbert.bench.gpu --out FOLDER [--device cuda] [--small]

In: a device. Out: lines as they are measured, and `gpu.json`, written anew after each part. It needs the package, and
`transformers` for the peers; what fails is a line, and the rest still runs. `--small` is the same on a small scale.
"""

import argparse
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from modernbert.bench.sets import SETS, documents_of
from modernbert.bench.steps import random_batch, time_steps
from modernbert.bench.throughput import Work, measure
from modernbert.device import choose_device, name_of, peak_memory
from modernbert.errors import InputError
from modernbert.model.attention import attend, choose_backend
from modernbert.model.config import ModelConfig
from modernbert.model.encoder import Encoder
from modernbert.model.init import initialize
from modernbert.ragged import Layout
from modernbert.storage import write_file
from modernbert.train.flops import peak_flops, step_flops

__all__ = ["main"]

_LENGTHS = [1, 129, 64, 1024, 300, 7]
# A share of the length of a result: what rounding to bfloat16 leaves.
_NEAR = 0.02
_PEERS = ("modernbert-base", "modernbert-base-transformers", "bert-base", "nomic-bert", "gte-en-mlm-base",
          "gte-en-mlm-base-unpadded")  # fmt: skip


def main() -> None:
    """Run all parts that the device can; exit with 1 if parity fails, for then no time means anything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true")
    words = parser.parse_args()
    try:
        device = choose_device(words.device)
    except InputError as error:
        print(f"bench-gpu: {error}", file=sys.stderr)
        sys.exit(2)
    result: dict[str, Any] = {"device": name_of(device), "torch": torch.__version__, "python": sys.version.split()[0]}
    print(f"{result['device']}, torch {torch.__version__}", flush=True)
    for part in (_parity, _training, _inference):
        begun = time.monotonic()
        result[part.__name__.strip("_")] = list(_said(part(device, words.small)))
        print(f"  {time.monotonic() - begun:.0f} s", flush=True)
        write_file(words.out / "gpu.json", json.dumps(result, indent=2) + "\n")
        if part is _parity and not all(row["holds"] for row in result["parity"]):
            sys.exit(1)


def _said(rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for row in rows:
        print("  " + ", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
        yield row


def _parity(device: torch.device, small: bool) -> Iterator[dict[str, Any]]:
    """Hold the fastest backend in bfloat16 against banded attention in float32, forward and backward, then a model."""
    fast = choose_backend("auto", device, torch.bfloat16, ModelConfig.preset("base"))
    layout = Layout.from_lengths(_LENGTHS).to(device)
    for window in (None, (64, 64)):
        torch.manual_seed(0)
        inputs = [torch.randn(layout.num_tokens, 12, 64, device=device) for _ in range(4)]
        outcomes = []
        for backend, dtype in ((fast, torch.bfloat16), ("banded", torch.float32)):
            *qkv, upstream = (x.to(dtype) for x in inputs)
            q, k, v = (x.requires_grad_() for x in qkv)
            mixed = attend(q, k, v, layout, window, backend)
            outcomes.append([mixed, *torch.autograd.grad(mixed, (q, k, v), upstream)])
        errors = [float((a.float() - b).norm() / b.norm()) for a, b in zip(*outcomes, strict=True)]
        yield {"attention": fast, "window": window, "off_by": round(max(errors), 5), "holds": max(errors) < _NEAR}
    config = ModelConfig.preset("base", **({"num_hidden_layers": 4} if small else {}))
    model = Encoder(config, "banded")
    initialize(model, config, seed=0)
    model = model.to(device).eval()
    tokens = random_batch(config, _LENGTHS, 0.3).tokens.to(device)
    with torch.inference_mode():
        expected = model(tokens, layout)
        model = model.to(torch.bfloat16)
        model.backend = fast
        cosine = float(torch.cosine_similarity(model(tokens, layout).float(), expected, dim=-1).min())
    yield {"model": "base", "least cosine": round(cosine, 6), "holds": cosine >= 0.999}


def _training(device: torch.device, small: bool) -> Iterator[dict[str, Any]]:
    runs = [("base", 1024, 96), ("base", 8192, 12), ("large", 1024, 56)]
    for preset, length, num_documents in [("tiny", 128, 2)] if small else runs:
        for compiled in (False, True):
            train = functools.partial(_train, device, preset, length, num_documents, compiled, 2 if small else 10)
            yield _guarded({"train": preset, "length": length, "compile": compiled}, train)


def _train(
    device: torch.device, preset: str, length: int, num_documents: int, compiled: bool, num_steps: int
) -> dict[str, Any]:
    config = ModelConfig.preset(preset, max_position_embeddings=max(length, 1024))
    backend = choose_backend("auto", device, torch.bfloat16, config)
    lengths = [length] * num_documents
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    first, *seconds = time_steps(
        config, lengths, device=device, dtype=torch.bfloat16, backend=backend, num_steps=num_steps, compiled=compiled
    )
    tokens_per_s = sum(lengths) / statistics.median(seconds)
    flops = step_flops(config, lengths, round(0.3 * sum(lengths))) * tokens_per_s / sum(lengths)
    peak = peak_flops(device, torch.bfloat16)
    mfu = None if peak is None else round(flops / peak, 4)
    return {
        "backend": backend, "tokens_per_s": round(tokens_per_s), "mfu": mfu,
        "bytes_per_token": round(peak_memory(device) / sum(lengths)), "first_step_s": round(first, 1),
    }  # fmt: skip


def _inference(device: torch.device, small: bool) -> Iterator[dict[str, Any]]:
    number = {"short": 2, "long": 1} if small else {"short": 4_096, "long": 256}
    for set_name in ("short-variable",) if small else SETS:
        for model in _PEERS[:1] if small else _PEERS:
            documents = documents_of(set_name, number[set_name.split("-")[0]])
            work = Work(
                model, documents, SETS[set_name].batch, 1 if small else 3, str(device), "bfloat16", find_largest=False
            )
            yield _guarded({"infer": model, "set": set_name}, functools.partial(_short, work))


def _short(work: Work) -> dict[str, Any]:
    row = asdict(measure(work))
    rates = row.pop("tokens_per_s")
    return {"tokens_per_s": round(statistics.mean(rates)), "runs": [round(rate) for rate in rates],
            "setting": row["setting"], "peak_memory": row["peak_memory"]}  # fmt: skip


def _guarded(row: dict[str, Any], work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Say what was measured, or why it was not."""
    try:
        return {**row, **work()}
    except (InputError, RuntimeError) as error:
        return {**row, "not_measured": " ".join(str(error).split())[:200]}


if __name__ == "__main__":
    main()
