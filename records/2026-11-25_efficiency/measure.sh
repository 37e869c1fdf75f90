#!/bin/sh
# Measure the efficiency tables: `measure.sh OUT`, in a clone with the libraries of the peers installed. 45 minutes on two
# cores, with nothing else running.
set -eu
out=$1
mkdir -p "$out"
shapes() { name=$1; shift; python -m benchmarks.serving --out "$out/$name" "$@" 2>"$out/$name.err" | tee "$out/$name.txt"; }
shapes serving-short --rounds 2 --tokens 4096 --calls 20 --sets short-mix --sets fixed-512 --sets latency-16 \
    --sets latency-128 --sets latency-512 --engines modernbert --engines openvino-bfloat16 \
    --engines transformers-bfloat16-compiled --engines modernbert-float32 --engines openvino-float32
python -m benchmarks.training_steps --tokens 4096 --steps 4 --rounds 2 --systems modernbert --systems trainer-best \
    --systems trainer-concatenated --systems trainer --out "$out/training" 2>"$out/training.err" | tee "$out/training.txt"
shapes serving-long --rounds 1 --sets single-8192 --engines modernbert --engines transformers-bfloat16 \
    --engines openvino-bfloat16
