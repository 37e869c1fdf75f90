"""One run in several processes: the same text, the same masks, the same losses, on gloo."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from faults.course import changed

from modernbert.config_files import to_yaml
from modernbert.data.corpus import Document, Tally
from modernbert.data.shards import Shards, write_shards
from modernbert.data.stream import Stream
from modernbert.tokenizer.bpe_training import train_tokenizer
from modernbert.tokenizer.tokenizer import Tokenizer
from modernbert.training import pretraining as pretrain
from modernbert.training.pretraining import Phase, PretrainConfig
from modernbert.training.run_checkpoint import latest

WORDS = [
    f"{stem}{end}" for stem in "sun moon star river stone cloud field tree".split() for end in ("", "s", "let", "ing")
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    rng = random.Random(5)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(5, 200))) for _ in range(80)]
    train_tokenizer((f"{text} {n}" for n, text in enumerate(texts)), 384).save(root / "tokenizer")
    for name, chosen in (("prose", texts[10:]), ("heldout", texts[:10])):
        documents = (Document(text, str(n)) for n, text in enumerate(chosen))
        write_shards(documents, root / "tokenizer" / "tokenizer.json", root / name, tally=Tally())
    return root


def config_of(data, out, **changes):
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 2}
    phases = {
        "stable": Phase(tokens=6144, lr=5e-3, max_len=64, micro_batch_tokens=256, max_micro_batches=3,
                        batch_warmup_tokens=1536),
        "decay": Phase(tokens=2048, lr=2e-3, max_len=256, micro_batch_tokens=512, decay="one_minus_sqrt"),
    }  # fmt: skip
    settings = {
        "output": str(out), "tokenizer": str(data / "tokenizer"), "data__sources": {"prose": str(data / "prose")},
        "data__heldout": {"prose": str(data / "heldout")}, "model": {"preset": "tiny", **shape}, "phases": phases,
        "device": "cpu", "dtype": "float32", "evaluation__every_steps": 4,
        "checkpoint__every_steps": 2, "checkpoint__every_s": 0.0,
    }  # fmt: skip
    return changed(PretrainConfig(), **(settings | changes))


def start(tmp_path, config, *words, processes=2):
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--max-restarts=1"]
    command += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", "-m", "modernbert", "pretrain", "--config"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, str(tmp_path / "config.yaml"), *words], env=environment, stderr=subprocess.PIPE, text=True
    )


def finish(process):
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said


def rows(out):
    return [json.loads(line) for line in (Path(out) / "log.jsonl").read_text().splitlines()]


def assert_same_course(out, alone):
    ours, theirs = rows(out), rows(alone)
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        for key in ("kind", "phase", "step", "tokens", "lr", "micro_batches", "masked", "source_tokens", "fill"):
            assert mine.get(key) == other.get(key)
        assert mine["loss"] == pytest.approx(other["loss"], abs=2e-6)  # 1e-6 and the rounding of the log


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone") / "run"
    pretrain.run(config_of(data, out))
    return out


@pytest.mark.parametrize(
    "sharding", [pytest.param("none", marks=pytest.mark.slow), "full", pytest.param("hybrid", marks=pytest.mark.slow)]
)
def test_two_processes_train_as_one(data, alone, tmp_path, sharding):
    finish(start(tmp_path, config_of(data, tmp_path / "run", distributed__sharding=sharding)))
    assert_same_course(tmp_path / "run", alone)
    ours, theirs = (latest(run / "checkpoints") for run in (tmp_path / "run", alone))
    assert len(list(ours.folder.glob("model*.safetensors"))) == 2
    for stem in ("model", "optimizer"):
        expected = theirs.tensors(stem)
        found = ours.tensors(stem)
        assert found.keys() == expected.keys()
        for name, tensor in found.items():
            torch.testing.assert_close(tensor, expected[name], rtol=0, atol=2e-5)


def test_shards_in_bfloat16_train_as_whole_weights_do(data, tmp_path):
    """Matrices are gathered in bfloat16, the dtype of their products, so the losses are those of one process."""
    settings = {"dtype": "bfloat16", "engine": "torch", "data__heldout": {}, "evaluation__every_steps": 0}
    pretrain.run(config_of(data, tmp_path / "whole", **settings))
    finish(start(tmp_path, config_of(data, tmp_path / "sharded", distributed__sharding="full", **settings)))
    whole, sharded = (
        [row["loss"] for row in rows(tmp_path / name) if row["kind"] == "step"] for name in ("whole", "sharded")
    )
    assert sharded == pytest.approx(whole, abs=1e-3)


@pytest.mark.parametrize("sharding", [pytest.param("none", marks=pytest.mark.slow), "full"])
def test_a_run_goes_on_with_fewer_processes(data, alone, tmp_path, sharding):
    """Two processes stop in mid run, with DDP and FSDP2; one process continues from their checkpoint."""
    config = config_of(data, tmp_path / "run", distributed__sharding=sharding)
    process = start(tmp_path, config)
    log = tmp_path / "run" / "log.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (log.exists() and log.read_bytes().count(b"\n") >= 6):
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGTERM)
    process.communicate(timeout=60)
    assert latest(tmp_path / "run" / "checkpoints").step >= 2
    assert not (tmp_path / "run" / "model").exists()
    pretrain.run(config)
    assert_same_course(tmp_path / "run", alone)


def test_a_process_that_dies_costs_steps_only(data, alone, tmp_path):
    """The others end with it, and all are started again from the last checkpoint."""
    process = start(tmp_path, config_of(data, tmp_path / "run"))
    log = tmp_path / "run" / "log.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (log.exists() and log.read_bytes().count(b"\n") >= 6):
        time.sleep(0.005)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    finish(process)
    assert_same_course(tmp_path / "run", alone)


# One process imports, and becomes two.
TWO = """
import os
import modernbert.training.pretraining
from modernbert.cli.main import main
os.environ["RANK"] = os.environ["LOCAL_RANK"] = "0" if os.fork() else "1"
main()
"""


def test_what_one_process_refuses_all_refuse_in_the_same_line(data, alone, tmp_path):
    (tmp_path / "config.yaml").write_text(to_yaml(config_of(data, alone, seed=18)))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        place = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1])}
    place |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", TWO, "pretrain", "--config", str(tmp_path / "config.yaml")]
    done = subprocess.run(command, env=os.environ | place, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    # Only the main process looks at the folder.
    assert done.stderr.count("this run was started with --seed 17, found --seed 18") == 2
    assert "Traceback" not in done.stderr


def test_every_process_sees_the_same_bins(data):
    shards, tokenizer = Shards.open(data / "prose"), Tokenizer.load(data / "tokenizer")

    def bins(share):
        stream = Stream({"prose": shards}, tokenizer, seed=3, max_len=64, budget_tokens=256, mask_rate=0.3, share=share)
        return [packed for packed, _ in zip(stream, range(12), strict=False)]

    alone = bins((0, 1))
    for rank in range(3):
        for mine, whole in zip(bins((rank, 3)), alone, strict=True):
            assert (mine.num_tokens, mine.source_tokens) == (whole.num_tokens, whole.source_tokens)
            assert mine.num_tokens == whole.batch.num_tokens
            assert (mine.batch is not None) == (mine.bin % 3 == rank)
            if mine.batch is not None:
                assert torch.equal(mine.batch.tokens, whole.batch.tokens)
                assert torch.equal(mine.batch.label_positions, whole.batch.label_positions)
