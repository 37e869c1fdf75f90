"""Pretrain a BERT with transformers and its Trainer, on the text of the other run.

    python bert.py WORK OUT

Documents end to end, cut into full rows; nine steps of ten on rows of 128, the rest on rows of 512, as BERT was made;
a new mask each time (four fifths [MASK], a tenth a random token); AdamW, a constant rate after a warm-up, then a linear
decay. The sources are mixed as in `ours.yaml`. Settings are the best of those tried: see `README.md`. Writes the model
with its tokenizer, and `seconds.json`.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    DataCollatorForLanguageModeling,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from modernbert.data.chunks import Chunks
from modernbert.data.shards import Shards
from modernbert.tokenizer.tokenizer import Tokenizer

LONGEST = 512
TOKENS = 2_048  # of a step
RATE = 1e-3
MASK_RATE = 0.3
WEIGHTS = {"code": 1, "prose": 2}


class SparseBert(BertForMaskedLM):
    """BERT that computes logits where a token is to be predicted, and nowhere else: its fastest way to train."""

    def forward(self, input_ids, attention_mask=None, labels=None, num_items_in_batch=None, **_):
        chosen = labels != -100
        hidden = self.bert(input_ids, attention_mask=attention_mask)[0]
        loss = torch.nn.functional.cross_entropy(self.cls(hidden[chosen]).float(), labels[chosen], reduction="sum")
        return {"loss": loss / (chosen.sum() if num_items_in_batch is None else num_items_in_batch)}


class Clock(TrainerCallback):
    """Seconds of training; loading is not among them."""

    def on_train_begin(self, arguments, state, control, **_):
        self.begun = time.monotonic()

    def on_step_end(self, arguments, state, control, **_):
        self.seconds = time.monotonic() - self.begun


def rows_of(work, tokenizer, number, length, seed):
    """Cut `number` rows of one length from documents laid end to end, each source giving its share."""
    random = np.random.default_rng(seed)
    rows = []
    for source, weight in WEIGHTS.items():
        wanted = number * weight // sum(WEIGHTS.values())
        pieces = Chunks([Shards.open(work / "shards" / source / "train")], LONGEST, tokenizer.cls_id, tokenizer.sep_id)
        order = np.array(list(pieces.ranges[0]))
        random.shuffle(order)
        flat, _ = pieces.gather(order)
        most = len(flat) // length
        rows += [flat[at * length : (at + 1) * length] for at in range(min(wanted, most))]
    random.shuffle(rows)
    return [{"input_ids": row.tolist()} for row in rows]


def train(model, rows, length, steps, schedule, tokenizer, out):
    """Train for a number of steps of TOKENS tokens. Returns seconds and the log."""
    clock = Clock()
    trainer = Trainer(
        model,
        TrainingArguments(
            output_dir=str(out), max_steps=steps, per_device_train_batch_size=TOKENS // length, learning_rate=RATE,
            lr_scheduler_type=schedule, warmup_steps=400 if schedule != "linear" else 0, weight_decay=0.01,
            adam_beta2=0.98, adam_epsilon=1e-6, bf16=True, use_cpu=True, seed=1, save_strategy="no",
            report_to="none", logging_steps=100, disable_tqdm=True,
        ),
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm_probability=MASK_RATE),
        train_dataset=rows,
        callbacks=[clock],
    )  # fmt: skip
    trainer.train()
    return clock.seconds, [row for row in trainer.state.log_history if "loss" in row]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, nargs=2, default=(9_400, 1_000), help="on rows of 128, on rows of 512")
    words = parser.parse_args()
    ours = Tokenizer.load(str(words.work / "tokenizer"))
    words.out.mkdir(parents=True, exist_ok=True)
    ours.save_folder(words.out, LONGEST)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(words.out)
    model = SparseBert._from_config(
        BertConfig(
            vocab_size=16_384, hidden_size=256, num_hidden_layers=5, num_attention_heads=4, intermediate_size=1_024,
            max_position_embeddings=LONGEST, pad_token_id=ours.pad_id,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        ),
        attn_implementation="sdpa",
    )  # fmt: skip
    print(f"{model.num_parameters():,} parameters", flush=True)
    found = {}
    for length, steps, schedule in zip((128, LONGEST), words.steps, ("constant_with_warmup", "linear"), strict=True):
        rows = rows_of(words.work, ours, steps * TOKENS // length, length, seed=length)
        seconds, log = train(model, rows, length, steps, schedule, tokenizer, words.out)
        found[length] = {"seconds": seconds, "steps": steps, "tokens": steps * TOKENS, "log": log}
        print(f"rows of {length}: {steps * TOKENS:,} tokens in {seconds:.0f} s", flush=True)
    # For fine-tuning: its name in transformers, and dropout as it came.
    model.config.architectures = ["BertForMaskedLM"]
    model.config.hidden_dropout_prob = model.config.attention_probs_dropout_prob = 0.1
    model.save_pretrained(words.out)
    (words.out / "seconds.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
