#!/bin/sh
# measure.sh DATA OUT: train a base at a quarter of the paper's widths, grow a large one from it, and train that
# beside one that begins with random weights. DATA is what ../2026-11-24_peer/make_data.sh writes.
set -e
data=$1 out=$2
mkdir -p "$out"
common="tokenizer=$data/own-tokenizer sources.mix=$data/own/train heldout.mix=$data/own/heldout heldout_tokens=40000
  eval_mask_rate=0.3 save_every_steps=50 save_every_s=0 device=cpu precision=bfloat16 seed=1"
phase() { # TOKENS WARMUP
  echo "phases.stable.tokens=$1 phases.stable.lr=1e-3 phases.stable.max_len=512 phases.stable.micro_batch_tokens=2048
    phases.stable.warmup_tokens=$2 phases.stable.weight_decay=1e-5"
}
large="preset=large model.hidden_size=256 model.intermediate_size=656 model.num_attention_heads=4"
modernbert pretrain $common $(phase 800000 60000) model.preset=base model.hidden_size=192 model.intermediate_size=288 \
  model.num_attention_heads=3 eval_every=40 out="$out/base"
modernbert grow source="$out/base" $large out="$out/large-start"
modernbert pretrain $common $(phase 160000 20000) init_from="$out/large-start" eval_every=8 out="$out/grown"
modernbert pretrain $common $(phase 160000 20000) model.preset=large model.hidden_size=256 model.intermediate_size=656 \
  model.num_attention_heads=4 eval_every=8 out="$out/random"
modernbert report "$out/base" "$out/grown" "$out/random" --out "$out/report.html"
for run in base grown random; do
  echo "$run: held-out loss by tokens trained on"
  grep '"heldout"' "$out/$run/log.jsonl"
done
