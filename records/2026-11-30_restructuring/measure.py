"""Compare the speed of two checkouts in alternating processes: python measure.py BEFORE AFTER WORK [ROUNDS]

Measured with a base model of random weights in bfloat16: inference at three sizes, a training step, the time from the
start of a process to its first vector, and a server with 8 clients. Writes WORK/results.json.
"""

import itertools
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

MODEL = r"""
import sys
from modernbert import ModelConfig, ModernBert
from modernbert.model.heads import MaskedLM
from modernbert.model.initialization import initialize
from modernbert.tokenizer.bpe_training import train_tokenizer
tokenizer = train_tokenizer((f"the capital of country {n} is the city {n * 7}" for n in range(3000)), 512)
config = ModelConfig.preset("base", vocab_size=512, pad_token_id=tokenizer.pad_id, cls_token_id=tokenizer.cls_id,
                            sep_token_id=tokenizer.sep_id)
model = MaskedLM(config)
initialize(model, config, seed=0)
ModernBert(tokenizer, model.eval()).save(sys.argv[1])
"""

INFERENCE = r"""
import json, sys, time
from modernbert import ModernBert
bert = ModernBert.load(sys.argv[1], device="cpu", dtype="bfloat16")
found = {}
for name, texts, number in (("16 tokens", ["the " * 14], 40), ("128 tokens", ["the " * 126], 12),
                            ("4 x 512 tokens", ["the " * 510] * 4, 3)):
    bert.embed(texts)
    times = []
    for _ in range(number):
        start = time.perf_counter(); bert.embed(texts); times.append(time.perf_counter() - start)
    found[name] = min(times) * 1e3
print(json.dumps(found))
"""

TRAINING = r"""
import json, sys, torch
from modernbert.model.config import ModelConfig
try:
    from modernbert.bench.steps import time_steps
    engine = {"backend": "native"}
except ImportError:
    from modernbert.planning.step_timing import time_steps
    from modernbert.engines.registry import find_engine
    engine = {"engine": find_engine("cpu")}
steps = time_steps(ModelConfig.preset("base"), [512, 256, 128, 128], device=torch.device("cpu"), dtype=torch.bfloat16,
                   num_steps=4, **engine)
print(json.dumps({"training step of 1,024 tokens": min(list(steps)[1:]) * 1e3}))
"""


def child(checkout: Path, code: str, *words: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    command = [sys.executable, "-c", code, *words]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True, cwd="/tmp").stdout


def main_of(checkout: Path) -> str:
    module = "modernbert.cli.main" if (checkout / "modernbert" / "cli").is_dir() else "modernbert.cli"
    return f"from {module} import main; main()"


def first_vector(checkout: Path, model: str) -> dict[str, float]:
    start = time.perf_counter()
    child(checkout, main_of(checkout), "embed", model, "the first text", "--device", "cpu", "--dtype", "bfloat16")
    return {"first vector, whole process": (time.perf_counter() - start) * 1e3}


def server(checkout: Path, model: str, seconds: float = 12.0) -> dict[str, float]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", main_of(checkout), "serve", model, "--port", str(port), "--device", "cpu"]
    command += ["--dtype", "bfloat16"]
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(checkout)}, stderr=subprocess.DEVNULL,
                               stdout=subprocess.DEVNULL, cwd="/tmp")  # fmt: skip
    lengths = [random.Random(number).randint(10, 120) for number in range(400)]
    done = []

    def ask(length: int) -> None:
        body = json.dumps({"inputs": "the " * length}).encode()
        headers = {"content-type": "application/json"}
        with urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}/embed", body, headers)) as answer:
            answer.read()

    def client(first: int, until: float) -> None:
        for number in itertools.count(first, 8):
            length = lengths[number % len(lengths)]
            ask(length)
            if time.monotonic() > until:
                return
            done.append(length)

    try:
        for _ in range(600):
            try:
                ask(20)
                break
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.1)
        start = time.monotonic()
        threads = [threading.Thread(target=client, args=(first, start + seconds)) for first in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return {"server, ms per 100 tokens": seconds * 1e3 / (sum(done) / 100)}
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    checkouts = {"before": Path(sys.argv[1]), "after": Path(sys.argv[2])}
    work = Path(sys.argv[3])
    work.mkdir(parents=True, exist_ok=True)
    model = str(work / "model")
    if not Path(model).exists():
        child(checkouts["after"], MODEL, model)
    rows = []
    for number in range(int(sys.argv[4]) if len(sys.argv) > 4 else 5):
        for name, checkout in sorted(checkouts.items(), reverse=number % 2 == 0):
            row = {"round": number, "checkout": name}
            row |= json.loads(child(checkout, INFERENCE, model)) | json.loads(child(checkout, TRAINING))
            row |= first_vector(checkout, model) | server(checkout, model)
            rows.append(row)
            print(row, flush=True)
            (work / "results.json").write_text(json.dumps(rows, indent=1) + "\n")
    for key in list(rows[0])[2:]:
        before, after = ([row[key] for row in rows if row["checkout"] == name] for name in ("before", "after"))
        ratios = [new / old for old, new in zip(before, after, strict=True)]
        print(
            f"{key}: {statistics.median(before):.1f} -> {statistics.median(after):.1f} ms, after / before "
            f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
        )


if __name__ == "__main__":
    main()
