#!/bin/sh
# Measure the paper's table, reduced for a processor: `measure_throughput.sh OUT TEXTS TOKENIZER`. 40 minutes on two
# cores, with nothing else running.
set -eu
out=$1 texts=$2 tokenizer=$3
mkdir -p "$out"
part() { name=$1; shift; python -m benchmarks.throughput --out "$out/$name" "$@" 2>"$out/$name.err" | tee "$out/$name.txt"; }
part base-short --dtype bfloat16 --sets short-fixed --sets short-variable
part base-float32 --dtype float32 --sets short-variable --runs 2
part base-long --dtype bfloat16 --sets long-fixed --sets long-variable --runs 2
part base-real --dtype bfloat16 --sets real --documents 32 --runs 2 --texts "$texts" --tokenizer "$tokenizer"
part memory-short --dtype bfloat16 --sets short-fixed --documents 8 --runs 1
part memory-long --dtype bfloat16 --sets long-fixed --documents 1 --runs 1
part large-short --dtype bfloat16 --sets short-fixed --documents 8 --runs 2 --models modernbert-large \
    --models bert-large --models roberta-large --models deberta-v3-large --models gte-en-mlm-large-unpadded
