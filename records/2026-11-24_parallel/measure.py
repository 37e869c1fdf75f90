"""Train one run in one process, in two, and in two and then one, and compare what they logged.

    python measure.py DATA OUT

DATA holds what `make_data.sh` of the comparison with the Trainer writes. Everything is in float32.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

SAME = ("kind", "phase", "step", "tokens", "lr", "micro_batches", "masked", "source_tokens", "fill")


def words_of(data, out, sharding):
    """Two phases, four micro-batches a step in the second half of the first one."""
    stable = {"tokens": 163840, "lr": 1e-3, "max-len": 512, "micro-batch-tokens": 2048, "max-micro-batches": 4,
              "warmup-tokens": 20000, "batch-warmup-tokens": 40000}  # fmt: skip
    decay = {"tokens": 65536, "lr": 1e-3, "max-len": 1024, "micro-batch-tokens": 4096, "decay": "one_minus_sqrt"}
    options = {
        "output": out, "tokenizer": f"{data}/own-tokenizer", "data.sources.mix": f"{data}/own/train",
        "data.heldout.mix": f"{data}/own/heldout", "distributed.sharding": sharding, "evaluation.max-tokens": 20000,
        "evaluation.every-steps": 10, "model.preset": "tiny", "device": "cpu", "dtype": "float32",
        "checkpoint.every-steps": 5, "checkpoint.every-s": 0,
        **{f"phases.stable.{name}": value for name, value in stable.items()},
        **{f"phases.decay.{name}": value for name, value in decay.items()},
    }  # fmt: skip
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def command(processes, words):
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}"]
    command += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", "-m", "modernbert", "pretrain", *words]
    return command


def rows(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def main():
    data, folder = (Path(word).resolve() for word in sys.argv[1:])
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    runs = {
        "one process": (1, "none"), "two, DDP": (2, "none"), "two, FSDP2": (2, "full"), "two, HSDP": (2, "hybrid"),
    }  # fmt: skip
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)

    def out_of(name):
        return folder / name.replace(", ", "-").replace(" ", "-")

    for name, (processes, sharding) in runs.items():
        words = words_of(data, out_of(name), sharding)
        subprocess.run(command(processes, words), env=environment, check=True, stderr=subprocess.DEVNULL)
    for sharding in ("none", "full"):
        name = f"two, then one, {sharding}"
        words = words_of(data, out_of(name), sharding)
        process = subprocess.Popen(command(2, words), env=environment, stderr=subprocess.DEVNULL)
        log = out_of(name) / "log.jsonl"
        while not (log.exists() and log.read_bytes().count(b"\n") >= 14):
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        process.wait()
        assert not (out_of(name) / "model").exists(), "the first run ended before it was stopped"
        subprocess.run(command(1, words), env=environment, check=True, stderr=subprocess.DEVNULL)
        runs[name] = (1, sharding)
    expected = rows(out_of("one process"))
    steps = sum(row["kind"] == "step" for row in expected)
    print(f"{steps} steps, {expected[-1]['tokens']:,} tokens; loss {expected[0]['loss']} to {expected[-1]['loss']}")
    for name in list(runs)[1:]:
        found = rows(out_of(name))
        same = len(found) == len(expected) and all(
            mine.get(key) == other.get(key) for mine, other in zip(found, expected, strict=True) for key in SAME
        )
        worst = max(abs(mine["loss"] - other["loss"]) for mine, other in zip(found, expected, strict=True))
        print(f"{name:22} text and masks {'the same' if same else 'DIFFER'}, losses within {worst:.1e}", flush=True)
    pairs = zip(rows(out_of("two, DDP")), rows(out_of("two, FSDP2")), strict=True)
    print(f"FSDP2 against DDP: losses within {max(abs(a['loss'] - b['loss']) for a, b in pairs):.1e}")


if __name__ == "__main__":
    main()
