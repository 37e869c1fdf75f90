"""Whole runs of a very small model: the files they write, and bitwise equal results after a stop."""

import json
import math
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from copy import copy
from dataclasses import asdict, replace
from operator import attrgetter
from pathlib import Path

import pytest
import torch
from faults.course import changed
from safetensors.torch import load_file

import modernbert
from modernbert.checkpoints.folder import ModelFolder
from modernbert.config_files import nested, resolve, to_yaml
from modernbert.data.corpus import Document, Tally
from modernbert.data.shards import Shards, write_shards
from modernbert.data.stream import Stream
from modernbert.errors import InputError
from modernbert.files import only_process
from modernbert.model.initialization import initialize
from modernbert.tokenizer.bpe_training import train_tokenizer
from modernbert.tokenizer.tokenizer import Tokenizer
from modernbert.training import pretraining as pretrain
from modernbert.training import run_checkpoint as checkpoint
from modernbert.training.losses import masked_lm
from modernbert.training.pretraining import Phase, PretrainConfig
from modernbert.training.run_checkpoint import latest
from modernbert.training.run_folder import open_run_folder
from modernbert.training.run_log import RunLog
from modernbert.training.training_loop import derive_seed

WORDS = (
    "the river runs down from cold hills and old mills turn where children learn to swim in warm summer light".split()
)


def texts(seed, number):
    rng = random.Random(seed)
    for _ in range(number):
        yield " ".join(rng.choice(WORDS) for _ in range(rng.randint(5, 400)))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    train_tokenizer((f"{text} {number}" for number, text in enumerate(texts(0, 300))), 448).save(root / "tokenizer")
    for name, number in (("prose", 60), ("code", 20), ("heldout", 6)):
        documents = (Document(text, str(n)) for n, text in enumerate(texts(name, number)))
        write_shards(documents, root / "tokenizer" / "tokenizer.json", root / name, tally=Tally())
    return root


def config_of(data, out, **changes):
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    phases = {
        "stable": Phase(
            tokens=4096, lr=5e-3, max_len=64, micro_batch_tokens=256, warmup_tokens=1024, max_micro_batches=3,
            batch_warmup_tokens=1536,
        ),
        "extension": Phase(tokens=1024, lr=2e-3, max_len=256, micro_batch_tokens=512, global_rope_theta=160_000.0),
        "decay": Phase(
            tokens=1536, lr=2e-3, max_len=256, micro_batch_tokens=512, global_rope_theta=160_000.0,
            decay="one_minus_sqrt", weights={"prose": 1.0, "code": 3.0},
        ),
    }  # fmt: skip
    settings = {
        "output": str(out),
        "tokenizer": str(data / "tokenizer"),
        "data__sources": {"prose": str(data / "prose"), "code": str(data / "code")},
        "data__heldout": {"mix": str(data / "heldout")},
        "model": {"preset": "tiny", **shape},
        "phases": phases,
        "device": "cpu",
        "dtype": "float32",
        "evaluation__every_steps": 4,
        "checkpoint__every_steps": 1,
    }
    return changed(PretrainConfig(), **(settings | changes))


@pytest.fixture(scope="module")
def straight(data, tmp_path_factory):
    """A run that nobody stopped."""
    out = tmp_path_factory.mktemp("straight") / "run"
    pretrain.run(config_of(data, out))
    return out


def rows(out, name="log"):
    return [json.loads(line) for line in (out / f"{name}.jsonl").read_text().splitlines()]


def assert_same_run(out, straight):
    assert (out / "log.jsonl").read_bytes() == (straight / "log.jsonl").read_bytes()
    for name in ("model", "optimizer"):
        ours, theirs = (latest(run / "checkpoints").tensors(name) for run in (out, straight))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    exported = [load_file(run / "model" / "model.safetensors") for run in (out, straight)]
    assert all(torch.equal(exported[0][key], exported[1][key]) for key in exported[1])


def test_log_has_every_step_and_every_heldout_score(straight):
    log = rows(straight)
    steps = [row for row in log if row["kind"] == "step"]
    heldout = [row for row in log if row["kind"] == "heldout"]
    assert [row["step"] for row in steps] == list(range(1, len(steps) + 1))
    # 2 steps of each smaller size, then 16 - 6 micro-batches three at a time; then 2 and 3 steps of one.
    assert [row["micro_batches"] for row in steps] == [1, 1, 2, 2, 3, 3, 3, 1, 1, 1, 1, 1]
    assert [row["phase"] for row in steps] == ["stable"] * 7 + ["extension"] * 2 + ["decay"] * 3
    assert [(row["step"], row["phase"]) for row in heldout] == [
        (0, "stable"), (4, "stable"), (7, "stable"), (8, "extension"), (9, "extension"), (12, "decay"),
    ]  # fmt: skip
    assert steps[0]["loss"] == pytest.approx(math.log(448), rel=0.02)
    assert steps[-1]["lr"] < steps[-2]["lr"] < steps[-3]["lr"] == 2e-3
    assert all(0.9 < row["fill"] <= 1 for row in steps)
    assert steps[-1]["tokens"] == pytest.approx(sum([13, 2 * 2, 3 * 2]) * 256, rel=0.1)
    assert all(abs(row["perplexity"] - math.exp(row["loss"])) < 1e-2 * row["perplexity"] for row in heldout)
    assert heldout[0]["loss"] == pytest.approx(math.log(448), rel=0.02)
    assert heldout[-1]["loss"] < heldout[1]["loss"] < heldout[0]["loss"]


def test_sources_follow_the_weights_of_a_phase(straight):
    decay = [row for row in rows(straight) if row["phase"] == "decay" and row["kind"] == "step"][-1]
    served = decay["source_tokens"]
    assert sum(served.values()) == pytest.approx(1536, rel=0.1)
    stable = [row for row in rows(straight) if row["phase"] == "stable" and row["kind"] == "step"][-1]["source_tokens"]
    assert served["code"] / served["prose"] > 2 * stable["code"] / stable["prose"]


def test_timing_is_kept_apart_from_the_log(straight):
    start, *timing = rows(straight, "timing")
    assert start["kind"] == "start" and (start["world_size"], start["device"], start["dtype"]) == (1, "cpu", "float32")
    assert [row["step"] for row in timing] == list(range(1, 13))
    assert all(row["seconds"] > 0 and row["tokens_per_s"] > 0 for row in timing)
    assert sorted(row["elapsed"] for row in timing) == [row["elapsed"] for row in timing]
    assert all(0.05 < row["memory_gib"] < 20 and row["mfu"] is None for row in timing)
    assert not any("seconds" in line for line in (straight / "log.jsonl").read_text().splitlines())


def test_a_board_shows_what_the_log_says_and_changes_no_bit(straight, data, tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    out = tmp_path / "run"
    pretrain.run(config_of(data, out, trackers=["tensorboard"]))
    assert (out / "log.jsonl").read_bytes() == (straight / "log.jsonl").read_bytes()
    board = events.EventAccumulator(str(out / "watch" / "tensorboard"))
    board.Reload()
    shown = [(event.step, event.value) for event in board.Scalars("train/loss")]
    assert shown == [(row["step"], pytest.approx(row["loss"], rel=1e-6)) for row in rows(out) if row["kind"] == "step"]
    assert {"timing/tokens_per_s", "timing/tflops_per_s"} <= set(board.Tags()["scalars"])


def test_exported_model_is_that_of_the_last_phase(straight, data):
    model = ModelFolder(straight / "model").load_model()
    assert model.model.config.max_position_embeddings == 256
    assert model.model.config.global_rope_theta == 160_000.0
    weights = latest(straight / "checkpoints").tensors("model")
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, weights[name])
    assert Tokenizer.load(straight / "model").fingerprint == Tokenizer.load(data / "tokenizer").fingerprint
    assert resolve(PretrainConfig, {}, straight / "config.yaml").phases["decay"].weights == {"prose": 1.0, "code": 3.0}


class Kill(BaseException):
    """Simulates the end of the process: no handler in the package may catch it."""


write = checkpoint._write


def kill_at(monkeypatch, step, when):
    """End the next run before or after it writes the checkpoint of a step."""

    def stopping(root, at, *arguments):
        if at == step and when == "before":
            raise Kill
        write(root, at, *arguments)
        if at == step:
            raise Kill

    monkeypatch.setattr(checkpoint, "_write", stopping)


# Within a phase, at the borders, and at the end.
@pytest.mark.parametrize(
    "stops",
    [
        [(1, "before")],
        [(3, "after"), (6, "before")],
        [(7, "before"), (7, "after")],
        [(9, "before"), (10, "after"), (12, "before")],
        [(12, "after")],
    ],
)
def test_a_stopped_run_ends_with_the_same_bits(data, straight, tmp_path, monkeypatch, stops):
    config = config_of(data, tmp_path / "run")
    for step, when in stops:
        kill_at(monkeypatch, step, when)
        with pytest.raises(Kill):
            pretrain.run(config)
    monkeypatch.undo()
    pretrain.run(config)
    assert_same_run(tmp_path / "run", straight)


def test_sparse_checkpoints_lose_only_time(data, straight, tmp_path, monkeypatch):
    config = config_of(data, tmp_path / "run", checkpoint__every_steps=0, checkpoint__every_s=0.0)
    journal_log = RunLog.log

    def stopping(self, **row):
        journal_log(self, **row)
        if row["step"] == 11:
            raise Kill

    monkeypatch.setattr(RunLog, "log", stopping)
    with pytest.raises(Kill):
        pretrain.run(config)
    monkeypatch.undo()
    assert latest(tmp_path / "run" / "checkpoints").step == 9  # the end of the second phase
    pretrain.run(config)
    assert_same_run(tmp_path / "run", straight)


def test_a_damaged_checkpoint_costs_its_steps_only(data, straight, tmp_path, monkeypatch, capsys):
    config = config_of(data, tmp_path / "run")
    kill_at(monkeypatch, 5, "after")
    with pytest.raises(Kill):
        pretrain.run(config)
    monkeypatch.undo()
    damaged = tmp_path / "run" / "checkpoints" / "step-00000005" / "optimizer.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-3])
    pretrain.run(config)
    assert "step-00000005/optimizer.safetensors: found" in capsys.readouterr().out
    assert_same_run(tmp_path / "run", straight)


def kill_after_a_few_steps(config, folder):
    """Run in a child process, and end it with SIGKILL."""
    (folder / "config.yaml").write_text(to_yaml(config))
    code = (
        "import sys; from modernbert.config_files import resolve; "
        "from modernbert.training.pretraining import PretrainConfig, run; "
        "run(resolve(PretrainConfig, {}, sys.argv[1]))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(folder / "config.yaml")], stderr=subprocess.DEVNULL)
    log = Path(config.output) / "log.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (log.exists() and log.read_bytes().count(b"\n") >= 5):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert log.read_bytes().count(b"\n") >= 5


def test_sigkill_of_the_process(data, straight, tmp_path):
    config = config_of(data, tmp_path / "run")
    kill_after_a_few_steps(config, tmp_path)
    pretrain.run(config)
    assert_same_run(tmp_path / "run", straight)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_sigkill_of_a_process_that_computes_on_a_gpu(data, tmp_path):
    where = {"device": "cuda", "dtype": "bfloat16"}
    shape = {"hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 4, "num_attention_heads": 2}
    configs = [
        changed(config_of(data, tmp_path / name, **where), model={"preset": "tiny", **shape})
        for name in ("straight", "run")
    ]
    pretrain.run(configs[0])
    kill_after_a_few_steps(configs[1], tmp_path)
    pretrain.run(configs[1])
    assert_same_run(tmp_path / "run", tmp_path / "straight")


def test_a_finished_run_says_so(data, straight, capsys):
    before = {path: path.stat().st_mtime_ns for path in straight.rglob("*.safetensors")}
    assert pretrain.run(config_of(data, straight)) == straight / "model"
    assert "this run is finished" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in straight.rglob("*.safetensors")}


def test_another_config_in_the_same_folder_is_refused(data, straight):
    begun = config_of(data, straight)
    phases = begun.phases | {"decay": replace(begun.phases["decay"], lr=1e-3)}
    with pytest.raises(InputError, match=r"started with `phases.decay.lr=0.002`, found `phases.decay.lr=0.001`"):
        pretrain.run(changed(begun, phases=phases))
    with pytest.raises(InputError, match=r"started with `seed=17`, found `seed=18`"):
        pretrain.run(changed(begun, seed=18))
    # The same entries, but sources are known by number to the text, and phases to a checkpoint.
    for key, order in (("data.sources", "prose, code, found code, prose"), ("phases", "stable, .*, found decay, ")):
        reordered = changed(begun, **{key.replace(".", "__"): dict(reversed(attrgetter(key)(begun).items()))})
        with pytest.raises(InputError, match=f"started with {key} in the order {order}"):
            pretrain.run(reordered)
    # Where the run is computed and how often it is saved may change.
    pretrain.run(changed(begun, device="auto", checkpoint__every_steps=7, checkpoint__keep=5))


def in_phase(name="stable", **fields):
    def change(config):
        phase = copy(config.phases[name])
        vars(phase).update(fields)  # not in the constructor, whose types tests check
        return changed(config, phases=config.phases | {name: phase})

    return change


BAD = {
    "phases: found none": lambda config: changed(config, phases={}),
    "Missing required option `text`": lambda config: changed(config, data__sources={}),
    r"phases.stable.tokens: found 100, expected at least the 256": in_phase(tokens=100),
    r"phases.decay.max_len: found 600, expected 3 to 512": in_phase("decay", max_len=600),
    r"phases.decay.weights: found .web., expected a name in data.sources": in_phase("decay", weights={"web": 1.0}),
    r"phases.decay.weights: found \['code'\], expected a weight for prose": in_phase("decay", weights={"code": 1.0}),
    "phases.stable.decay: found 'cosine', expected 'none' or 'one_minus_sqrt'": in_phase(decay="cosine"),
    "phases.stable.lr: found 0.0": in_phase(lr=0.0),
    "phases.stable.mask_rate: found 1.5": in_phase(mask_rate=1.5),
    "no such folder": lambda config: changed(config, data__sources={"prose": "absent"}, phases=config.phases | {
        "decay": replace(config.phases["decay"], weights={})}),
    "model.vocab_size: found 400, expected at least the 448": lambda config: changed(
        config, model=config.model | {"vocab_size": 400}),
    "model.global_rope_theta: found 10.0, but it follows from": lambda config: changed(
        config, model=config.model | {"global_rope_theta": 10.0}),
    "model.hiden_size: no such field": lambda config: changed(config, model={"preset": "tiny", "hiden_size": 3}),
    "model.preset: found 'huge'": lambda config: changed(config, model={"preset": "huge"}),
    "phases.stable.lr: found inf, expected a finite number": in_phase(lr=math.inf),
    "phases.stable.local_rope_theta: found nan, expected a finite": in_phase(local_rope_theta=math.nan),
    "phases.decay.weights.code: found inf": in_phase("decay", weights={"prose": 1.0, "code": math.inf}),
    "eps: found inf": lambda config: changed(config, optim__eps=math.inf),
    "phases.stable.tokens: found -5, expected more than 0": in_phase(tokens=-5),
    "model.hidden_size: found 33, expected a multiple of": lambda config: changed(
        config, model=config.model | {"hidden_size": 33}),
    "keep: found 1": lambda config: changed(config, checkpoint__keep=1),
    "no such tokenizer file": lambda config: changed(config, tokenizer="absent/tokenizer.json"),
}  # fmt: skip


@pytest.mark.parametrize("message", BAD)
def test_what_does_not_fit_is_refused_before_anything_is_written(data, tmp_path, message):
    with pytest.raises(InputError, match=message) as caught:
        pretrain.run(BAD[message](config_of(data, tmp_path / "run")))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_shards_of_another_tokenizer_are_refused(data, tmp_path):
    other = train_tokenizer((f"{text} or {n}" for n, text in enumerate(texts(5, 300))), 384)
    other.save(tmp_path / "other")
    with pytest.raises(InputError, match="sources.prose: .* was made with tokenizer"):
        pretrain.run(config_of(data, tmp_path / "run", tokenizer=str(tmp_path / "other")))
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_no_run_is_left_alone(data, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="exists and is not a run folder"):
        pretrain.run(config_of(data, tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_two_processes_never_write_into_one_run(data, tmp_path):
    config = config_of(data, tmp_path / "run")
    with only_process(tmp_path / "held"), pytest.raises(InputError, match="another process is at work"):
        with only_process(tmp_path / "held"):
            pass
    open_run_folder(tmp_path / "run", config)
    with only_process(tmp_path / "run"), pytest.raises(InputError, match="another process is at work"):
        pretrain.run(config)
    assert pretrain.run(config).exists()


def test_a_run_that_diverges_stops_with_the_step_and_saves_nothing_of_it(data, tmp_path):
    config = config_of(data, tmp_path / "run", phases={"stable": Phase(
        tokens=100_000, lr=1e30, max_len=64, micro_batch_tokens=256)})  # fmt: skip
    with pytest.raises(InputError, match=r"step \d+: 5 steps in a row were skipped \(the loss is"):
        pretrain.run(config)
    found = latest(tmp_path / "run" / "checkpoints")
    assert found is None or all(tensor.isfinite().all() for tensor in found.tensors("model").values())


# A large loss from the beginning on, and none after one step.
@pytest.mark.parametrize(("initial", "lr", "is_finite"), [(200.0, 1e-3, True), (0.02, 1e30, False)])
def test_a_heldout_loss_beyond_all_bounds_is_written_as_json(data, tmp_path, initial, lr, is_finite):
    phase = Phase(tokens=512, lr=lr, max_len=64, micro_batch_tokens=256)
    shape = config_of(data, tmp_path).model | {"initializer_range": initial}
    config = config_of(data, tmp_path / "run", phases={"stable": phase}, model=shape, evaluation__every_steps=1)
    with nullcontext() if is_finite else pytest.raises(InputError, match="computes values that are not finite"):
        pretrain.run(config)
    texts = [(tmp_path / "run" / "log.jsonl").read_text()]
    texts += [path.read_text() for path in (tmp_path / "run" / "checkpoints").rglob("state.json")]
    assert not any(word in text for text in texts for word in ("NaN", "Infinity"))
    scores = [row for row in rows(tmp_path / "run") if row["kind"] == "heldout"]
    assert [row["step"] for row in scores] == [0, 1, 2]
    assert all((row["loss"] is not None and row["loss"] > 709) == is_finite for row in scores[1:])
    assert all(row["perplexity"] is None for row in scores[1:])


def test_a_config_may_be_corrected_until_there_is_a_checkpoint(data, tmp_path):
    def with_lr(lr):
        phase = Phase(tokens=2560, lr=lr, max_len=64, micro_batch_tokens=256)
        return config_of(data, tmp_path / "run", phases={"stable": phase}, checkpoint__every_steps=0)

    with pytest.raises(InputError, match=r"step \d+: 5 steps in a row were skipped"):
        pretrain.run(with_lr(1e30))
    open_run_folder(tmp_path / "run", with_lr(1e-2))
    (tmp_path / "run" / "tokenizer.json").write_text("another job's work")
    with pytest.raises(InputError, match=r"started with `phases.stable.lr=0.01`, found `phases.stable.lr=0.001`"):
        pretrain.run(with_lr(1e-3))
    (tmp_path / "run" / "tokenizer.json").unlink()
    pretrain.run(with_lr(1e-3))
    assert [row["lr"] for row in rows(tmp_path / "run") if row["kind"] == "step"] == [1e-3] * 10
    with pytest.raises(InputError, match="this run was started with"):
        pretrain.run(with_lr(1e-2))


# Within a phase, and at a border, where the stream has no cursor.
@pytest.mark.parametrize("step", [3, 7])
def test_a_run_does_not_go_on_with_other_shards(data, tmp_path, monkeypatch, step):
    shutil.copytree(data / "prose", tmp_path / "prose")
    sources = {"prose": str(tmp_path / "prose"), "code": str(data / "code")}
    config = config_of(data, tmp_path / "run", data__sources=sources)
    kill_at(monkeypatch, step, "after")
    with pytest.raises(Kill):
        pretrain.run(config)
    monkeypatch.undo()
    shutil.rmtree(tmp_path / "prose")
    # As many documents and tokens as before, in another order.
    documents = [Document(text, str(n)) for n, text in enumerate(texts("prose", 60))][::-1]
    write_shards(documents, data / "tokenizer" / "tokenizer.json", tmp_path / "prose", tally=Tally())
    with pytest.raises(InputError, match="sources.prose: found other shards than this run began with"):
        pretrain.run(config)


def step_loss(config, model, phase, **changes):
    """Loss of the first step of a phase, put together by hand from the parts."""
    number = list(config.phases).index(phase)
    settings = replace(config.phases[phase], **changes)
    model.model.config = replace(
        model.model.config, global_rope_theta=settings.global_rope_theta, local_rope_theta=settings.local_rope_theta
    )
    stream = Stream(
        {name: Shards.open(folder) for name, folder in config.data.sources.items()},
        Tokenizer.load(config.tokenizer),
        seed=derive_seed(config.seed, number),
        max_len=settings.max_len,
        budget_tokens=settings.micro_batch_tokens,
        mask_rate=settings.mask_rate,
        weights=settings.weights or None,
    )
    with torch.no_grad():
        total, count = masked_lm(model.eval(), next(iter(stream)).batch)
    return total.item() / count


def test_a_phase_computes_with_its_own_settings(data, tmp_path):
    # Weights far from 0, so that attention depends on positions, and no dropout, so that the loss is a plain function.
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    common = {"tokens": 1024, "max_len": 256, "micro_batch_tokens": 512}
    phases = {
        "stable": Phase(lr=1e-3, mask_rate=0.4, **common),
        "extension": Phase(
            lr=1e-3, mask_rate=0.2, global_rope_theta=160_000.0, local_rope_theta=500.0, weight_decay=0.3, **common
        ),
        "decay": Phase(lr=2e-3, decay="one_minus_sqrt", lr_floor=0.01, **common | {"tokens": 512 * 100}),
    }
    more = {"preset": "tiny", "attention_output_dropout": 0.0, "initializer_range": 0.3}
    config = config_of(
        data,
        tmp_path / "run",
        phases=phases,
        model=more | shape,
        checkpoint__keep=200,
        evaluation__every_steps=0,
        data__heldout={},
    )
    pretrain.run(config)
    steps = [row for row in rows(tmp_path / "run") if row["kind"] == "step"]
    first = {name: next(row for row in steps if row["phase"] == name) for name in phases}

    model = ModelFolder(tmp_path / "run" / "model").load_model()
    initialize(model, model.model.config, config.seed)
    assert step_loss(config, model, "stable") == pytest.approx(first["stable"]["loss"], abs=1e-5)
    others = [{"global_rope_theta": 160_000.0}, {"local_rope_theta": 500.0}, {"mask_rate": 0.3}]
    for change in others:
        assert abs(step_loss(config, model, "stable", **change) - first["stable"]["loss"]) > 1e-4

    weights = [saved_weights(tmp_path / "run", step) for step in (2, 3)]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[0][name])
    assert step_loss(config, model, "extension") == pytest.approx(first["extension"]["loss"], abs=1e-5)
    others = [{"global_rope_theta": 10_000.0}, {"local_rope_theta": 10_000.0}, {"mask_rate": 0.3}]
    for change in others:
        assert abs(step_loss(config, model, "extension", **change) - first["extension"]["loss"]) > 1e-4

    # Decay is apart from the rate: at the peak of lr matrices shrink by three tenths a step.
    norms = [sum(tensor.norm() for tensor in part.values() if tensor.ndim == 2).item() for part in weights]
    # A rare gradient shortens a step, and its decay with it.
    assert 0.69 * norms[0] < norms[1] < 0.8 * norms[0]
    # The last step begins at 99 of 100 parts of the decay.
    assert steps[-1]["lr"] == pytest.approx(2e-3 * (0.01 + 0.99 * (1 - math.sqrt(0.99))), rel=1e-4)


def saved_weights(out, step):
    return load_file(out / "checkpoints" / f"step-{step:08d}" / "model.safetensors")


def test_the_demo_config_is_read(data):
    path = Path(modernbert.__file__).parent / "configs" / "pretrain" / "demo.yaml"
    given = {"output": "x", "tokenizer": "y", "data.sources.code": "a", "data.sources.prose": "b"}
    config = resolve(PretrainConfig, nested(given), path)
    config.check()
    assert list(config.phases) == ["stable", "extension", "decay"]
    assert [phase.max_len for phase in config.phases.values()] == [1024, 8192, 8192]
    assert asdict(config)["phases"]["decay"]["decay"] == "one_minus_sqrt"
