#!/bin/sh
# Pretrain on a small corpus with two seeds and print the held-out losses: `small_corpus.sh DATA WORK`, with `modernbert`
# on PATH. Three minutes a seed on one core.
set -eu
text=$1/corpus/wikitext2.valid.txt.gz
work=$2
mkdir -p "$work"
modernbert tokenizer --input "$text" --txt-unit paragraph --vocab-size 2048 --output "$work/tokenizer"
modernbert prepare --input "$text" --txt-unit paragraph --tokenizer "$work/tokenizer" --heldout 0.05 \
    --output "$work/shards"
for seed in 1 2; do
    modernbert pretrain --output "$work/run-$seed" --seed $seed --tokenizer "$work/tokenizer" \
        --data.sources.prose "$work/shards/train" --data.heldout.prose "$work/shards/heldout" --model.preset tiny \
        --model.attention_output_dropout 0.0 --evaluation.every-steps 100 --phases.all.tokens 2000000 \
        --phases.all.lr 2e-3 --phases.all.max-len 512 --phases.all.micro-batch-tokens 4096 \
        --phases.all.warmup-tokens 50000 --phases.all.decay one_minus_sqrt >"$work/run-$seed.txt" 2>&1
    grep '"heldout"' "$work/run-$seed/log.jsonl" | tail -1 | grep -o '"loss": [0-9.]*, "accuracy": [0-9.]*'
done
