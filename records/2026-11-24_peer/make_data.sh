#!/bin/sh
# make_data.sh CORPUS TOKENIZER DATA: tokenise pages and paragraphs of many lengths, once with the published
# vocabulary and once with a small one of their own.
set -e
corpus=$1 published=$2 data=$3
mkdir -p "$data"
modernbert tokenizer --output "$data/own-tokenizer" --input "$corpus/cpp_docs.jsonl.gz" --vocab-size 4096
cp -r "$published" "$data/olmo-tokenizer"
for name in olmo own; do
  modernbert prepare --output "$data/$name" --tokenizer "$data/$name-tokenizer" --heldout 0.02 --txt-unit paragraph \
    --input "$corpus/cpp_docs.jsonl.gz" --input "$corpus/wikitext2.valid.txt.gz" --input "$corpus/wikitext2.test.txt.gz"
done
