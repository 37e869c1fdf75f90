#!/bin/sh
# measure.sh DATA OUT: train a base at a quarter of the paper's widths, grow a large one from it, and train that
# beside one that begins with random weights. DATA is what ../2026-11-24_peer/make_data.sh writes.
set -e
data=$1 out=$2
mkdir -p "$out"
common="--tokenizer $data/own-tokenizer --data.sources.mix $data/own/train --data.heldout.mix $data/own/heldout
  --evaluation.max-tokens 40000 --evaluation.mask-rate 0.3 --checkpoint.every-steps 50 --checkpoint.every-s 0
  --device cpu --dtype bfloat16 --seed 1"
phase() { # TOKENS WARMUP
  echo "--phases.stable.tokens $1 --phases.stable.lr 1e-3 --phases.stable.max-len 512
    --phases.stable.micro-batch-tokens 2048 --phases.stable.warmup-tokens $2 --phases.stable.weight-decay 1e-5"
}
modernbert pretrain $common $(phase 800000 60000) --model.preset base --model.hidden_size 192 \
  --model.intermediate_size 288 --model.num_attention_heads 3 --evaluation.every-steps 40 --output "$out/base"
modernbert grow "$out/base" --preset large --shape.hidden_size 256 --shape.intermediate_size 656 \
  --shape.num_attention_heads 4 --output "$out/large-start"
modernbert pretrain $common $(phase 160000 20000) --init-from "$out/large-start" --evaluation.every-steps 8 \
  --output "$out/grown"
modernbert pretrain $common $(phase 160000 20000) --model.preset large --model.hidden_size 256 \
  --model.intermediate_size 656 --model.num_attention_heads 4 --evaluation.every-steps 8 --output "$out/random"
modernbert report "$out/base" "$out/grown" "$out/random" --output "$out/report.html"
for run in base grown random; do
  echo "$run: held-out loss by tokens trained on"
  grep '"heldout"' "$out/$run/log.jsonl"
done
