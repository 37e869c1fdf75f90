"""Measure a GPU: parity first, then training and the efficiency table.

    python -m benchmarks.gpu --out FOLDER [--device cuda] [--small]

Rows are printed, and `gpu.json` is written after each of them. A measurement that fails is reported, and the rest runs.
The other models need `transformers`. `--small` is a quick check.
"""

import argparse
import functools
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.peers import Loaded, check_takes, load
from benchmarks.process import reason_of, rows_of_new_process
from benchmarks.throughput_row import Work, largest_batch, measure_loaded
from modernbert.batch import SequenceLengths
from modernbert.console import p50_and_p95
from modernbert.devices import choose_device, name_of, peak_memory
from modernbert.engines.engine import Engine, Window
from modernbert.engines.flash_engine import FlashEngine, flash_version
from modernbert.engines.registry import PORTABLE, choose_engine
from modernbert.errors import InputError
from modernbert.files import check_target, write_file
from modernbert.inference.loading import permit_plans
from modernbert.model.config import ModelConfig
from modernbert.model.encoder import Encoder
from modernbert.model.initialization import initialize
from modernbert.planning.length_sets import LENGTH_SETS, set_documents
from modernbert.planning.step_timing import random_batch, time_steps
from modernbert.training.flops import peak_flops, step_flops

__all__ = ["main"]

_LENGTHS = [1, 129, 64, 1024, 300, 7]
_LONG_LENGTHS = [1800, 900]
# Maximum relative error of bfloat16.
_NEAR = 0.02
_NEAR_COSINE = 0.999
_RUNS = 5
# Memory for the largest batch: that of the GPU of the paper.
_MEMORY = 24 * 10**9
# Per step, as in the base run of the paper on eight GPUs: 4,608 documents, 96 per micro-batch.
_MICRO_BATCHES = 6
# The most important first, in case the time ends.
_MODELS = (
    "modernbert-base", "modernbert-base-transformers", "gte-en-mlm-base-unpadded", "gte-en-mlm-base", "nomic-bert",
    "bert-base", "modernbert-large", "modernbert-large-transformers", "roberta-base", "deberta-v3-base",
)  # fmt: skip


def main() -> None:
    """Run all parts; exit with 1 if parity fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--parts", default="parity,training,inference")
    words = parser.parse_args()
    chosen = words.parts.split(",")
    names = [part.__name__.strip("_") for part in _PARTS]
    if unknown := [name for name in chosen if name not in names]:
        parser.error(f"--parts: found {unknown[0]!r}, expected {', '.join(names)}")
    try:
        device = choose_device(words.device)
        check_target(words.out / "gpu.json")
        result: dict[str, Any] = {
            "device": name_of(device), "torch": torch.__version__, "python": sys.version.split()[0],
        }  # fmt: skip
        if device.type == "cuda":
            result["flash_attention"] = flash_version(device)
        print(", ".join(f"{key} {value}" for key, value in result.items()), flush=True)
        _measure_parts(chosen, device, words, result)
    except InputError as error:
        print(f"bench-gpu: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("bench-gpu: interrupted", file=sys.stderr)
        sys.exit(130)


def _measure_parts(
    chosen: Sequence[str], device: torch.device, words: argparse.Namespace, result: dict[str, Any]
) -> None:
    """Measure all parts, and write every row as it comes."""
    for part in _PARTS:
        name = part.__name__.strip("_")
        if name not in chosen:
            continue
        started = time.monotonic()
        rows = result[name] = []
        for row in _until_error(part(device, words.small)):
            print("  " + ", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
            rows.append(row)
            write_file(words.out / "gpu.json", json.dumps(result, indent=2) + "\n")
        print(f"  {time.monotonic() - started:.0f} s", flush=True)
        if part is _parity and not all(row["holds"] for row in result["parity"]):
            sys.exit(1)


def _until_error(rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield rows; an exception becomes the last row."""
    try:
        yield from rows
    except Exception as error:  # other libraries raise anything, and the next part runs
        yield {"not_measured": reason_of(error), "holds": False}


def _parity(device: torch.device, small: bool) -> Iterator[dict[str, Any]]:
    """Hold the fastest engine in bfloat16 against the portable one in float32, forward and backward, then a model."""
    fast = choose_engine("auto", device, torch.bfloat16, ModelConfig.preset("base"))
    short, long = ([1, 129, 7], [410, 400]) if small else (_LENGTHS, _LONG_LENGTHS)
    for lengths, window in itertools.product((short, long), (None, (64, 64))):
        yield _attention_parity(device, fast, SequenceLengths.from_lengths(lengths).to(device), window)
    layout = SequenceLengths.from_lengths(short).to(device)
    config = ModelConfig.preset("base", **({"num_hidden_layers": 4} if small else {}))
    model = Encoder(config)
    initialize(model, config, seed=0)
    model = model.to(device).eval()
    tokens = random_batch(config, short, 0.3).tokens.to(device)
    with torch.inference_mode():
        expected = model(tokens, layout)
        model = model.to(torch.bfloat16)
        model.engine = fast
        yield _near("layer by layer", model(tokens, layout), expected)
        fitted = permit_plans(model).encoder
        for way in ("first call", "second call"):
            # Other tokens in between: a captured CUDA graph must not keep values.
            fitted(tokens.flip(0)[:130], SequenceLengths.from_lengths([30, 100]).to(device))
            yield _near(f"as for inference, {way}", fitted(tokens, layout), expected)


def _attention_parity(device: torch.device, fast: Engine, layout: SequenceLengths, window: Window) -> dict[str, Any]:
    torch.manual_seed(0)
    inputs = [torch.randn(layout.num_tokens, 12, 64, device=device) for _ in range(4)]
    outcomes = []
    for engine, dtype in ((fast, torch.bfloat16), (PORTABLE, torch.float32)):
        *qkv, upstream = (x.to(dtype) for x in inputs)
        q, k, v = (x.requires_grad_() for x in qkv)
        mixed = engine.attention(q, k, v, layout, window)
        outcomes.append([mixed.detach(), *torch.autograd.grad(mixed, (q, k, v), upstream)])
    errors = [float((a.float() - b).norm() / b.norm()) for a, b in zip(*outcomes, strict=True)]
    return {
        "attention": fast.name, "window": window, "longest": layout.max_seqlen, "off_by": round(max(errors), 5),
        "holds": all(error < _NEAR for error in errors),
    }  # fmt: skip


def _near(how: str, found: Tensor, expected: Tensor) -> dict[str, Any]:
    cosine = float(torch.cosine_similarity(found.float(), expected, dim=-1).min())
    return {"model": "base", "how": how, "least cosine": round(cosine, 6), "holds": cosine >= _NEAR_COSINE}


def _training(device: torch.device, small: bool) -> Iterator[dict[str, Any]]:
    runs = [("base", 1024, 96), ("base", 8192, 12), ("large", 1024, 56)]
    for preset, length, num_documents in [("tiny", 128, 2)] if small else runs:
        for name in ("auto", FlashEngine.name) if (preset, length) == ("base", 1024) else ("auto",):
            train = functools.partial(_train, device, preset, length, num_documents, name, 2 if small else 3)
            yield _guarded({"train": preset, "length": length}, train)


def _train(
    device: torch.device, preset: str, length: int, num_documents: int, name: str, num_steps: int
) -> dict[str, Any]:
    config = ModelConfig.preset(preset, max_position_embeddings=max(length, 1024))
    engine = choose_engine(name, device, torch.bfloat16, config)
    lengths = [length] * num_documents
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    first, *seconds = time_steps(
        config, lengths, device=device, dtype=torch.bfloat16, engine=engine, num_steps=num_steps,
        compiled=name != "auto", num_micro_batches=_MICRO_BATCHES,
    )  # fmt: skip
    tokens_per_s = _MICRO_BATCHES * sum(lengths) / statistics.median(seconds)
    flops = step_flops(config, lengths, round(0.3 * sum(lengths))) * tokens_per_s / sum(lengths)
    peak = peak_flops(device, torch.bfloat16)
    mfu = None if peak is None else round(flops / peak, 4)
    return {
        "engine": engine.name + (", compiled" if name != "auto" else ""), "tokens_per_s": round(tokens_per_s),
        "mfu": mfu,
        "bytes_per_token": round(peak_memory(device) / sum(lengths)), "first_step_s": round(first, 1),
    }  # fmt: skip


def _inference(device: torch.device, small: bool) -> Iterator[dict[str, Any]]:
    """Measure each model in its own process: all sets, the latency of one text, the largest batch."""
    number = {"short": 2, "long": 1} if small else {"short": 1_024, "long": 32}
    lengths, calls = ((16,), 3) if small else ((16, 128, 512), 100)
    for model in _MODELS[:1] if small else _MODELS:
        works = {}
        for name, of_set in LENGTH_SETS.items():
            if not small or name == "short-variable":
                documents, runs = set_documents(name, number[name.split("-")[0]]), 1 if small else _RUNS
                works[name] = Work(model, documents, of_set.batch, runs, str(device), "bfloat16", find_largest=False)
        try:
            yield from ({"infer": model, **row} for row in rows_of_new_process(_measure_model, (works, lengths, calls)))
        except InputError as error:
            yield {"infer": model, "not_measured": str(error)}


def _measure_model(arguments: tuple[Mapping[str, Work], Sequence[int], int]) -> Iterator[dict[str, Any]]:
    works, lengths, calls = arguments
    first = next(iter(works.values()))
    loaded = load(first.model, choose_device(first.device), getattr(torch, first.dtype))
    for name, work in works.items():
        yield _guarded({"set": name}, functools.partial(_measured, work, loaded))
    for length in lengths:
        yield _guarded({"one_text_of": length}, functools.partial(_latency, loaded, length, calls))
    yield from _largest_batches(works, loaded)


def _largest_batches(works: Mapping[str, Work], loaded: Loaded) -> Iterator[dict[str, Any]]:
    """Search the largest batch in the memory of the GPU of the paper, for models of base size."""
    for name, work in works.items():
        if torch.device(work.device).type == "cuda" and name.endswith("fixed") and "large" not in work.model:
            yield _guarded({"set": name}, functools.partial(_largest_batch, work, loaded))


def _largest_batch(work: Work, loaded: Loaded) -> dict[str, Any]:
    device, document = torch.device(work.device), work.documents[0]
    check_takes(work.model, len(document))
    total = torch.cuda.mem_get_info(device)[1]
    memory = min(_MEMORY, total)
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(memory / total, device.index or 0)
    return {"of_bytes": memory, "largest_batch": largest_batch(loaded, document, work.batch, memory, device)}


def _measured(work: Work, loaded: Loaded) -> dict[str, Any]:
    check_takes(work.model, max(map(len, work.documents)))
    row = measure_loaded(work, loaded)
    rates = [round(rate) for rate in row.tokens_per_s]
    return {"tokens_per_s": round(row.mean), "runs": rates, "setting": row.setting, "peak_memory": row.peak_memory}


def _latency(loaded: Loaded, length: int, calls: int) -> dict[str, Any]:
    """Measure the latency of one text."""
    document = random_batch(ModelConfig.preset("base"), [length], 0.3).tokens.numpy() % 16_000
    with torch.inference_mode():
        timed = [_seconds(loaded, document) for _ in range(calls + 10)]
    waits = p50_and_p95(timed[10:])
    return {"setting": loaded.setting, **{name: round(wait, 3) for name, wait in waits.items()}}


def _seconds(loaded: Loaded, document: np.ndarray) -> float:
    started = time.perf_counter()
    loaded.encode([document]).cpu()
    return time.perf_counter() - started


def _guarded(row: dict[str, Any], work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return a row with its values, or with the reason that there are none."""
    try:
        return {**row, **work()}
    except Exception as error:  # other libraries raise anything, and the next row runs
        return {**row, "not_measured": reason_of(error)}


_PARTS = (_parity, _training, _inference)

if __name__ == "__main__":
    main()
