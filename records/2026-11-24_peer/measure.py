"""Measure pretraining with this package against transformers and its Trainer, on the same documents, in turn.

    python measure.py throughput DATA OUT [--rounds 3]   real tokens a second and peak memory
    python measure.py loss DATA OUT [--seeds 1,2,3]      seconds of training to a fixed held-out loss
                                    [--vocabulary own]   its own of 4,096 entries, or the published 50,368

DATA holds what `make_data.sh` writes. Each run is a process of its own. The peer trains the published architecture on
the very pieces ours trains on, in three ways:
    default       what the documentation shows: rows drawn at random, padded to the longest, logits of every position
    best          rows grouped by length, logits of masked positions alone
    concatenated  rows cut from documents laid end to end (the way of `run_mlm.py`): no padding, but a document sees
                  others, so it is another model that is trained
"""

import argparse
import json
import random
import resource
import shutil
import statistics
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path

MAX_LEN = 1024
SHAPES = {
    "small": {"preset": "tiny", "hidden_size": 256, "intermediate_size": 384, "num_hidden_layers": 7,
              "num_attention_heads": 4},
    "tiny": {"preset": "tiny"},
}  # fmt: skip
VARIANTS = ("default", "best", "concatenated")


def shards_of(data, tokenizer, split):
    from modernbert.data.shards import Shards

    return Shards.open(data / tokenizer / split)


def pieces_of(data, tokenizer, shards):
    import numpy as np

    from modernbert.data.chunks import Chunks
    from modernbert.tokenizer.tokenizer import Tokenizer

    loaded = Tokenizer.load(str(data / f"{tokenizer}-tokenizer"))
    pieces = Chunks([shards], MAX_LEN, loaded.cls_id, loaded.sep_id)
    numbers = np.array(list(pieces.ranges[0]))
    tokens, lengths = pieces.gather(numbers)
    ends = np.cumsum(lengths)
    return [tokens[end - length : end] for end, length in zip(ends, lengths, strict=True)], loaded


def make_start(data, out, tokenizer, shape, seed):
    """Write the folder both begin from: the same random weights."""
    from modernbert.checkpoints.folder import ModelFolder
    from modernbert.model.config import ModelConfig
    from modernbert.model.heads import MaskedLM
    from modernbert.model.initialization import initialize
    from modernbert.tokenizer.tokenizer import Tokenizer

    folder = out / f"start-{shape}-{seed}"
    if folder.exists():
        return folder
    loaded = Tokenizer.load(str(data / f"{tokenizer}-tokenizer"))
    fields = dict(SHAPES[shape])
    config = ModelConfig.preset(
        fields.pop("preset"), **fields, vocab_size=loaded.vocab_size, max_position_embeddings=MAX_LEN,
        attention_output_dropout=0.0, global_rope_theta=10_000.0, pad_token_id=loaded.pad_id,
        cls_token_id=loaded.cls_id, sep_token_id=loaded.sep_id,
    )  # fmt: skip
    model = MaskedLM(config)
    initialize(model, config, seed)
    ModelFolder.save(folder, model, loaded, MAX_LEN)
    return folder


def ours(plan):
    from modernbert.training.pretraining import Phase, PretrainConfig, pretrain
    from modernbert.training.pretraining_config import DataConfig, EvaluationConfig
    from modernbert.training.run_options import CheckpointConfig

    out = Path(plan["out"])
    phase = Phase(
        tokens=plan["tokens"], lr=plan["lr"], max_len=MAX_LEN, micro_batch_tokens=plan["step_tokens"],
        warmup_tokens=plan["warmup"], weight_decay=1e-5,
    )  # fmt: skip
    data, tokenizer = Path(plan["data"]), plan["tokenizer"]
    every = plan.get("eval_every", 0)
    pretrain(
        PretrainConfig(
            output=str(out), tokenizer=str(data / f"{tokenizer}-tokenizer"), init_from=plan["start"],
            data=DataConfig(
                sources={"mix": str(data / tokenizer / "train")},
                heldout={"mix": str(data / tokenizer / "heldout")} if every else {},
            ),
            model={}, phases={"stable": phase}, seed=plan["seed"], device=plan["device"], dtype="bfloat16",
            evaluation=EvaluationConfig(every_steps=every, mask_rate=0.3, max_tokens=plan.get("heldout_tokens")),
            checkpoint=CheckpointConfig(every_s=0.0),
        )
    )  # fmt: skip
    peak = peak_gib(plan)
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    timing = [json.loads(line) for line in (out / "timing.jsonl").read_text().splitlines()]
    seconds = {row["step"]: row["seconds"] for row in timing if "seconds" in row}
    steps = [row for row in rows if row["kind"] == "step"]
    before = [0] + [row["tokens"] for row in steps]
    tokens = [after - begin for begin, after in zip(before, before[1:], strict=False)]
    total = dict(zip(seconds, running(seconds.values()), strict=True))
    scores = [(row["tokens"], total.get(row["step"], 0.0), row["loss"]) for row in rows if row["kind"] == "heldout"]
    fill = statistics.mean(row["fill"] for row in steps)
    return {"tokens": tokens, "seconds": list(seconds.values()), "peak_gib": peak, "scores": scores, "real_share": fill}


def running(values):
    total = 0.0
    for value in values:
        total += value
        yield total


def peak_gib(plan):
    """Return the peak memory of this process; on a GPU, of the device."""
    import torch

    if plan["device"] == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def peer(plan):
    import torch
    from transformers import (
        AutoModelForMaskedLM,
        DataCollatorForLanguageModeling,
        PreTrainedTokenizerFast,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    data, name = Path(plan["data"]), plan["tokenizer"]
    rows, loaded = pieces_of(data, name, shards_of(data, name, "train"))
    mean = sum(map(len, rows)) / len(rows)
    if plan["variant"] == "concatenated":
        random.Random(plan["seed"]).shuffle(rows)
        flat = list(chain.from_iterable(row.tolist() for row in rows))
        rows = [flat[at : at + MAX_LEN] for at in range(0, len(flat) - MAX_LEN + 1, MAX_LEN)]
        mean = MAX_LEN
    is_special = loaded.is_special
    dataset = [
        {"input_ids": list(map(int, row)), "special_tokens_mask": [int(is_special[token]) for token in row]}
        for row in rows
    ]
    model = AutoModelForMaskedLM.from_pretrained(
        plan["start"], attn_implementation="sdpa", sparse_prediction=plan["variant"] == "best"
    )
    tokenizer = PreTrainedTokenizerFast.from_pretrained(plan["start"])
    collate = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.3, pad_to_multiple_of=8)
    tokens, places, marks, scores, paused = [], [], [], [], [0.0]

    def counted(features):
        batch = collate(features)
        batch.pop("special_tokens_mask", None)
        tokens.append(int(batch["attention_mask"].sum()))
        places.append(batch["attention_mask"].numel())
        return batch

    batch_rows = max(1, round(plan["step_tokens"] / mean))
    num_steps = plan["tokens"] // plan["step_tokens"]
    heldout = heldout_rows(plan, data, name) if plan.get("eval_every") else []

    class Watch(TrainerCallback):
        def on_train_begin(self, arguments, state, control, **kwargs):
            marks.append(time.monotonic())
            if heldout:
                self.score(state)

        def on_step_end(self, arguments, state, control, **kwargs):
            marks.append(time.monotonic() - paused[0])
            if heldout and state.global_step % plan["eval_every"] == 0:
                self.score(state)
                reached = scores[-1][2] <= plan.get("target", -1.0)
                control.should_training_stop = reached or scores[-1][1] > plan.get("most_s", 1e9)
            return control

        def score(self, state):
            begun = time.monotonic()
            was = model.training
            model.eval()
            loss, masked = 0.0, 0
            with torch.no_grad(), torch.autocast(plan["device"], torch.bfloat16):
                for batch in heldout:
                    number = int((batch["labels"] != -100).sum())
                    batch = {key: value.to(model.device) for key, value in batch.items()}
                    loss += float(model(**batch).loss) * number
                    masked += number
            model.train(was)
            scores.append((sum(tokens[: state.global_step]), marks[-1] - marks[0], loss / masked))
            paused[0] += time.monotonic() - begun

    arguments = TrainingArguments(
        output_dir=plan["out"], max_steps=num_steps, per_device_train_batch_size=batch_rows,
        learning_rate=plan["lr"], lr_scheduler_type="constant_with_warmup",
        warmup_steps=max(1, plan["warmup"] // plan["step_tokens"]), weight_decay=1e-5, adam_beta1=0.9, adam_beta2=0.98,
        adam_epsilon=1e-6, max_grad_norm=0.0, bf16=True, use_cpu=plan["device"] == "cpu", seed=plan["seed"],
        train_sampling_strategy="group_by_length" if plan["variant"] == "best" else "random",
        remove_unused_columns=False, save_strategy="no", report_to="none", logging_steps=100, disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(model, arguments, data_collator=counted, train_dataset=dataset, callbacks=[Watch()])
    trainer.train()
    done = len(marks) - 1
    seconds = [after - begin for begin, after in zip(marks, marks[1:], strict=False)]
    share = sum(tokens[:done]) / sum(places[:done])
    return {
        "tokens": tokens[:done], "seconds": seconds, "peak_gib": peak_gib(plan), "scores": scores, "real_share": share,
    }  # fmt: skip


def heldout_rows(plan, data, name):
    """Return our held-out batches, mask for mask, padded for the peer."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    from modernbert.data.stream import heldout_batches
    from modernbert.tokenizer.tokenizer import Tokenizer

    loaded = Tokenizer.load(str(data / f"{name}-tokenizer"))
    batches = heldout_batches(
        shards_of(data, name, "heldout"), loaded, seed=plan["seed"], max_len=MAX_LEN,
        budget_tokens=max(MAX_LEN, plan["step_tokens"]), mask_rate=0.3, limit_tokens=plan["heldout_tokens"],
    )  # fmt: skip
    padded = []
    for batch in batches:
        labels = torch.full_like(batch.tokens, -100)
        labels[batch.label_positions] = batch.labels
        rows, labels = (each.split(list(batch.layout.lengths)) for each in (batch.tokens, labels))
        ids = pad_sequence(rows, batch_first=True, padding_value=loaded.pad_id)
        lengths = torch.tensor([len(row) for row in rows])
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        padded.append(
            {"input_ids": ids, "attention_mask": mask, "labels": pad_sequence(labels, True, padding_value=-100)}
        )
    return padded


def in_process(system, plan):
    """Run one system in a new process and return what it measured."""
    shutil.rmtree(plan["out"], ignore_errors=True)
    words = [sys.executable, __file__, "child", system, json.dumps(plan)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{system}: {done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def say(text, out):
    print(text, flush=True)
    with (out / "output.txt").open("a") as file:
        print(text, file=file)


def throughput(data, out, rounds, device, num_steps, step_tokens):
    start = make_start(data, out, "olmo", "small", 1)
    plan = {"data": str(data), "tokenizer": "olmo", "start": str(start), "lr": 1e-3, "warmup": step_tokens,
            "step_tokens": step_tokens, "device": device, "tokens": num_steps * step_tokens}  # fmt: skip
    found = {}
    say(f"throughput: {num_steps} steps of about {step_tokens:,} real tokens, the first two left out", out)
    for round in range(rounds):
        for system in ("ours", *VARIANTS):
            each = plan | {"seed": round + 1, "out": str(out / "run"), "variant": system}
            got = in_process("ours" if system == "ours" else "peer", each)
            speed = sum(got["tokens"][2:]) / sum(got["seconds"][2:])
            found.setdefault(system, []).append((speed, got["peak_gib"]))
            line = f"{speed:9,.0f} tokens/s {got['peak_gib']:7.2f} GiB  {got['real_share']:6.1%} of places are real"
            say(f"  round {round + 1} {system:13} {line}", out)
    for system in VARIANTS:
        pairs = list(zip(found["ours"], found[system], strict=True))
        speeds = sorted(a[0] / b[0] for a, b in pairs)
        peaks = sorted(a[1] / b[1] for a, b in pairs)
        line = f"tokens/s x {statistics.median(speeds):.2f} ({speeds[0]:.2f} to {speeds[-1]:.2f})"
        say(f"  ours / {system:13} {line}, peak memory x {statistics.median(peaks):.2f} "
            f"({peaks[0]:.2f} to {peaks[-1]:.2f})", out)  # fmt: skip


def loss(data, out, seeds, device, variants, pilot_tokens, tokens, step_tokens, vocabulary, lrs):
    plan = {"data": str(data), "tokenizer": vocabulary, "warmup": 60_000, "step_tokens": step_tokens, "device": device,
            "heldout_tokens": 40_000, "out": str(out / "run"), "eval_every": 10}  # fmt: skip
    systems = ("ours", *variants)
    best = {}
    for system in systems:
        tried = {}
        for lr in lrs if len(lrs) > 1 else ():
            start = str(make_start(data, out, vocabulary, "tiny", 0))
            each = plan | {"lr": lr, "seed": 7, "start": start, "variant": system, "tokens": pilot_tokens}
            got = in_process("ours" if system == "ours" else "peer", each)
            tried[lr] = got["scores"][-1][2]
            say(
                f"  tuning {system:13} lr {lr:g}: held-out loss {tried[lr]:.3f} after {sum(got['tokens']):,} tokens",
                out,
            )
        best[system] = min(tried, key=tried.get, default=lrs[0])
    target, times = None, {system: [] for system in systems}
    for seed in seeds:
        for system in systems:
            start = str(make_start(data, out, vocabulary, "tiny", seed))
            each = plan | {"lr": best[system], "seed": seed, "start": start, "variant": system, "tokens": tokens}
            if system != "ours":
                each |= {"target": target, "tokens": 4 * tokens, "most_s": 600}
            got = in_process("ours" if system == "ours" else "peer", each)
            if target is None:
                target = got["scores"][int(0.8 * len(got["scores"]))][2]
                say(f"the target is a held-out loss of {target:.3f}", out)
            reached = [(after, seconds) for after, seconds, score in got["scores"] if score <= target]
            after, seconds = reached[0] if reached else (None, float("inf"))
            times[system].append(seconds)
            last = f"last loss {got['scores'][-1][2]:.3f} after {got['scores'][-1][1]:.0f} s"
            say(f"  seed {seed} {system:13} lr {best[system]:g}: {seconds:6.1f} s, {after} tokens ({last})", out)
    for system in variants:
        ratios = sorted(b / a for a, b in zip(times["ours"], times[system], strict=True))
        say(f"  {system} / ours: x {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})", out)


def main():
    if sys.argv[1] == "child":
        print(json.dumps({"ours": ours, "peer": peer}[sys.argv[2]](json.loads(sys.argv[3]))))
        return
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=("throughput", "loss"))
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--step-tokens", type=int)
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--tokens", type=int, default=900_000)
    parser.add_argument("--pilot-tokens", type=int, default=300_000)
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--lrs", default="1e-3,2e-3,4e-3", help="rates tried by each system; one is taken as it is")
    parser.add_argument("--vocabulary", default="own", choices=("own", "olmo"))
    parser.add_argument("--device", default="cpu")
    words = parser.parse_args()
    words.out.mkdir(parents=True, exist_ok=True)
    if words.part == "throughput":
        throughput(words.data, words.out, words.rounds, words.device, words.steps, words.step_tokens or 8_192)
    else:
        seeds = [int(seed) for seed in words.seeds.split(",")]
        loss(words.data, words.out, seeds, words.device, words.variants.split(","), words.pilot_tokens, words.tokens,
             words.step_tokens or 4_096, words.vocabulary,
             [float(lr) for lr in words.lrs.split(",")])  # fmt: skip


if __name__ == "__main__":
    main()
