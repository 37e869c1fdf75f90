"""Print fill of the token budget, speed of the loader, and equality of token ids, on real corpora.

Usage: python measure.py DATA, a folder with corpus/*.gz and tokenizer/{modernbert,olmo}.
"""

import gzip
import itertools
import json
import sys
import tempfile
import time
from pathlib import Path

from modernbert.data.corpus import Tally, read_documents
from modernbert.data.shards import Shards, write_shards
from modernbert.data.stream import Stream, heldout_batches
from modernbert.tokenizer.bpe_training import adapt_olmo
from modernbert.tokenizer.tokenizer import Tokenizer

SETTINGS = [(1_024, 8_192), (1_024, 16_384), (8_192, 8_192), (8_192, 16_384)]


def fill(name: str, shards: Shards, tokenizer: Tokenizer) -> None:
    for max_len, budget in SETTINGS:
        stream = Stream({name: shards}, tokenizer, seed=1, max_len=max_len, budget_tokens=budget, mask_rate=0.3)
        number = max(500, 3 * shards.num_tokens // budget)
        begun = time.perf_counter()
        used = sum(packed.num_tokens for packed in itertools.islice(stream, number))
        speed = used / (time.perf_counter() - begun)
        share = used / (number * budget)
        setting = f"{name:16s} length {max_len:5,} budget {budget:6,}"
        print(f"{setting}: fill {share:8.3%}, loader {speed / 1e6:5.1f} M tokens/s")
    pieces = sum(-(-int(n) // 1_022) for n in shards.lengths)
    batches = heldout_batches(shards, tokenizer, seed=1, max_len=1_024, budget_tokens=8_192, mask_rate=0.3)
    out = sum(batch.num_tokens for batch in batches)
    print(
        f"{name:16s} one pass: {out:,} tokens out = {shards.num_tokens:,} in + 2 for each of {pieces:,} pieces",
        flush=True,
    )
    assert out == shards.num_tokens + 2 * pieces


def vectors(folder: Path, tokenizer: Tokenizer) -> int:
    number = 0
    for path in sorted(folder.glob("vectors_*")):
        opened = gzip.open(path, "rt") if path.suffix == ".gz" else open(path)
        for row in map(json.loads, opened):
            if "pair" in row:
                (ids,) = tokenizer.encode_pairs([(row["text"], row["pair"])])
            else:
                (ids,) = tokenizer.encode([row["text"]], special="offsets" not in row)
            assert ids.tolist() == row["ids"], row["text"]
            number += 1
    return number


def main(data: Path) -> None:
    published = Tokenizer.load(data / "tokenizer/modernbert/tokenizer.json")
    adapted = adapt_olmo(data / "tokenizer/olmo/tokenizer.json.gz")
    print(f"{vectors(data / 'tokenizer/modernbert', published)} vectors reproduced by the published tokenizer")
    print(f"{vectors(data / 'tokenizer/modernbert', adapted)} vectors reproduced by the adapted one")
    corpora = {
        path.name.split(".")[0] + path.name.count("test") * "_test": path for path in (data / "corpus").glob("*.gz")
    }
    texts, size = [], 0
    for path in corpora.values():
        taken = 0
        for document in read_documents([path], Tally()):
            texts.append(document.text[:400_000])
            taken += len(texts[-1])
            if taken > 2_000_000:
                break
        size += taken
    pairs = zip(published.encode(texts), adapted.encode(texts), strict=True)
    assert all((a == b).all() for a, b in pairs)
    print(f"adapted and published ids equal on {size / 1e6:.1f} MB of mixed text, {adapted.vocab_size:,} entries")
    with tempfile.TemporaryDirectory() as folder:
        published.save(Path(folder) / "tokenizer.json")
        for name, path in sorted(corpora.items()):
            unit = "paragraph" if path.name.endswith(".txt.gz") else "file"
            out = Path(folder) / name
            begun = time.perf_counter()
            documents = read_documents([path], Tally(), txt_unit=unit)
            write_shards(documents, Path(folder) / "tokenizer.json", out, tally=Tally(), processes=2)
            shards = Shards.open(out)
            seconds = time.perf_counter() - begun
            print(
                f"{name:16s} {shards.num_docs:,} documents, {shards.num_tokens:,} tokens, tokenised in {seconds:.1f} s"
            )
            fill(name, shards, published)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
