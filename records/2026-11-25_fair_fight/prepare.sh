#!/bin/sh -e
# Make what both models learn from: prepare.sh DATA WORK
# DATA has corpus/ (gutenberg, cpp_docs, wikitext2). Long documents that are judged later are not among the text.
DATA=$1
WORK=$2
mkdir -p "$WORK"
python - "$WORK" <<'PY'
import json, sys
from pathlib import Path
from modernbert.demo.collect import collect, read_records
from modernbert.demo.pairs import pairs

work = Path(sys.argv[1])
if not (work / "collected").exists():
    collect(work / "collected", budget_mb=60, seed=17)
found = pairs(read_records(work / "collected" / "code.jsonl"), cap_per_package=60)
rows = [json.dumps({"query": pair.query, "positive": pair.passage}) + "\n" for pair in found]
(work / "pairs.jsonl").write_text("".join(rows))
print(f"{len(rows):,} pairs of a docstring and its function")
PY
modernbert tokenizer --input "$WORK/collected/code.jsonl" --input "$WORK/collected/prose.jsonl" --input "$DATA/corpus/" \
    --output "$WORK/tokenizer" --vocab-size 16384
modernbert prepare --input "$WORK/collected/code.jsonl" --tokenizer "$WORK/tokenizer" --output "$WORK/shards/code" \
    --heldout 0.01
modernbert prepare --input "$WORK/collected/prose.jsonl" --input "$DATA/corpus/gutenberg.jsonl.gz" \
    --input "$DATA/corpus/cpp_docs.jsonl.gz" --input "$DATA/corpus/wikitext2.valid.txt.gz" \
    --input "$DATA/corpus/wikitext2.test.txt.gz" --tokenizer "$WORK/tokenizer" --output "$WORK/shards/prose" --heldout 0.01
