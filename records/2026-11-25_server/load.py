"""Ask two servers for vectors, in turn: python load.py MODEL TEXTS OUT

MODEL is a model folder, TEXTS a .jsonl of texts. Clients of each number ask in a closed loop for one text after
another, of the short mix's lengths (log-normal, median 60 tokens, at most 512); what counts is the tokens of answers
that came in time. Beside it the library's own rate on the same texts, in one call and one text at a time. Writes OUT.
"""

import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np

from modernbert import ModernBert, Tokenizer
from modernbert.inference.text_inputs import stream_texts

CLIENTS = (1, 16, 64)
ROUNDS, SECONDS, SETTLE_S = int(os.environ.get("ROUNDS", "2")), 15.0, 3.0
PORTS = {"modernbert": 8401, "sentence-transformers": 8402}


def short_mix(model, texts, number=400):
    tokenizer = Tokenizer.load(model)
    rng = np.random.default_rng(17)
    lengths = np.clip(np.exp(rng.normal(np.log(60), 0.8, number)), 4, 512).astype(int)
    source = (tokenizer.encode([text], special=False)[0] for _, text in stream_texts([Path(texts)]))
    long = [ids for ids in source if len(ids) >= 10]
    stream = np.concatenate(long)
    starts = rng.integers(0, len(stream) - 600, number)
    cut = [tokenizer.decode(stream[a : a + n], special=False) for a, n in zip(starts, lengths, strict=True)]
    return cut, [len(ids) for ids in tokenizer.encode(cut)]


def start(system, model):
    port = PORTS[system]
    if system == "modernbert":
        # However slow the machine, 64 clients are not turned away: whoever is, would ask again at once.
        words = ["-m", "modernbert", "serve", model, "--port", str(port), "--wait", "60"]
    else:
        words = ["-m", "uvicorn", "peer:app", "--port", str(port), "--log-level", "warning"]
    process = subprocess.Popen(
        [sys.executable, *words],
        cwd=Path(__file__).parent,
        env=os.environ | {"MODEL": model},
        stderr=subprocess.DEVNULL,
    )
    for _ in range(600):
        try:
            if httpx.get(f"http://127.0.0.1:{port}/ready").status_code == 200:
                return process
        except httpx.TransportError:
            time.sleep(0.2)
    raise TimeoutError(system)


async def client(url, texts, sizes, first, step, counted_from, until, seen):
    async with httpx.AsyncClient(timeout=120) as http:
        place = first
        while time.monotonic() < until:
            begun = time.monotonic()
            answer = await http.post(url, json={"inputs": [texts[place % len(texts)]]})
            done = time.monotonic()
            if answer.status_code == 200 and counted_from <= done <= until:
                seen.append((sizes[place % len(texts)], done - begun))
            place += step


async def ask(system, number, texts, sizes, seconds):
    seen = []
    # Counted once the queue is as long as it stays, and to an end before which new requests are made still.
    counted_from = time.monotonic() + SETTLE_S
    until = counted_from + seconds
    url = f"http://127.0.0.1:{PORTS[system]}/embed"
    await asyncio.gather(*(client(url, texts, sizes, n, number, counted_from, until, seen) for n in range(number)))
    waits = sorted(wait for _, wait in seen)
    return {
        "system": system, "clients": number, "requests": len(seen),
        "tokens_per_s": round(sum(size for size, _ in seen) / seconds, 1),
        "p50_ms": round(1000 * statistics.median(waits), 1), "p95_ms": round(1000 * waits[int(0.95 * len(waits))], 1),
    }  # fmt: skip


def library_rates(model, texts, sizes):
    bert = ModernBert.load(model)
    bert.embed(texts[:50])
    begun = time.monotonic()
    bert.embed(texts)
    together = sum(sizes) / (time.monotonic() - begun)
    begun, number = time.monotonic(), 0
    while number < len(texts) and time.monotonic() < begun + SECONDS:
        bert.embed(texts[number])
        number += 1
    alone = sum(sizes[:number]) / (time.monotonic() - begun)
    return {"system": "library", "tokens_per_s": round(together, 1), "one_at_a_time": round(alone, 1)}


def main():
    model, source, out = sys.argv[1:4]
    texts, sizes = short_mix(model, source)
    rows = [library_rates(model, texts, sizes)]
    print(rows[-1], flush=True)
    for number in CLIENTS:
        for round_ in range(ROUNDS):
            for system in PORTS:
                process = start(system, model)
                asyncio.run(ask(system, min(number, 8), texts, sizes, 2.0))  # warms up
                rows.append({"round": round_ + 1, **asyncio.run(ask(system, number, texts, sizes, SECONDS))})
                print(rows[-1], flush=True)
                process.terminate()
                process.wait()
    rows.append(library_rates(model, texts, sizes))
    print(rows[-1], flush=True)
    for number in CLIENTS:
        speeds = {
            system: [row["tokens_per_s"] for row in rows if row.get("clients") == number and row["system"] == system]
            for system in PORTS
        }
        ratios = [a / b for a, b in zip(speeds["modernbert"], speeds["sentence-transformers"], strict=True)]
        print(f"{number} clients: {statistics.mean(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    Path(out).write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
