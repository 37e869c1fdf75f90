"""Ask whether a text's vector depends on its company: python batches.py MODEL TEXTS OUT

Each text of a pool is embedded alone, then 2,000 batches of 1 to 16 texts drawn from it are, through the library, in
float32 and in bfloat16; and 200 of them through a server. Writes the worst differences.
"""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np

from modernbert import ModernBert
from modernbert.inference.text_inputs import stream_texts

NUM_TEXTS, NUM_BATCHES, NUM_REQUESTS = 300, 2_000, 200


def pool(bert, source):
    rng = np.random.default_rng(5)
    stream = np.concatenate([bert.tokenizer.encode([text], special=False)[0] for _, text in stream_texts([source])])
    lengths = np.exp(rng.uniform(0, np.log(1_000), NUM_TEXTS)).astype(int)
    starts = rng.integers(0, len(stream) - 1_000, NUM_TEXTS)
    return [bert.tokenizer.decode(stream[a : a + n], special=False) for a, n in zip(starts, lengths, strict=True)]


def batches(number):
    rng = np.random.default_rng(6)
    return [rng.integers(0, NUM_TEXTS, rng.integers(1, 17)) for _ in range(number)]


def worst(alone, found):
    """Return the largest difference, and the smallest cosine, of vectors of length 1."""
    return float(np.abs(alone - found).max()), float((alone * found).sum(axis=1).min())


def in_the_library(model, source, dtype):
    bert = ModernBert.load(model, device="cpu", dtype=dtype)
    texts = pool(bert, source)
    alone = np.concatenate([bert.embed(text) for text in texts])
    seen = [worst(alone[rows], bert.embed([texts[row] for row in rows])) for rows in batches(NUM_BATCHES)]
    return texts, alone, {"largest_difference": max(each[0] for each in seen), "least_cosine": min(e[1] for e in seen)}


def through_a_server(model, dtype, texts, alone):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["-m", "modernbert", "serve", model, "--port", str(port), "--device", "cpu", "--dtype", dtype]
    server = subprocess.Popen([sys.executable, *words], stderr=subprocess.DEVNULL, env=os.environ)
    try:
        while True:
            try:
                httpx.get(f"http://127.0.0.1:{port}/ready").raise_for_status()
                break
            except (httpx.TransportError, httpx.HTTPStatusError):
                time.sleep(0.2)
        seen = []
        for rows in batches(NUM_REQUESTS):
            answer = httpx.post(
                f"http://127.0.0.1:{port}/embed", json={"inputs": [texts[row] for row in rows]}, timeout=60
            )
            seen.append(worst(alone[rows], np.array(answer.json(), np.float32)))
        return {"largest_difference": max(each[0] for each in seen), "least_cosine": min(each[1] for each in seen)}
    finally:
        server.terminate()
        server.wait()


def main():
    model, source, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    said = {}
    for dtype in ("float32", "bfloat16"):
        texts, alone, said[f"library, {dtype}"] = in_the_library(model, source, dtype)
        said[f"server, {dtype}"] = through_a_server(model, dtype, texts, alone)
        print({key: value for key, value in said.items() if dtype in key}, flush=True)
    out.write_text(json.dumps(said, indent=1) + "\n")


if __name__ == "__main__":
    main()
