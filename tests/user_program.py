"""A program of a user: mypy checks it against the installed wheel, and it runs there. The argument has a `model`."""

import sys
from pathlib import Path
from typing import assert_type

import numpy as np

import modernbert
from modernbert import Batch, InputError, ModelConfig, ModernBert, Ranked, SequenceLengths, Tokenizer, finetune


def nearest(bert: ModernBert, query: str, documents: list[str]) -> str:
    best: Ranked = bert.rerank(query, documents, top_k=1)[0]
    return documents[best.index]


def write_rows(path: Path) -> None:
    rows = [f"the river of city {n}\tyes\nthe land of country {n}\tno\n" for n in range(8)]
    path.write_text("text\tlabel\n" + "".join(rows))


def main(folder: Path) -> None:
    bert = ModernBert.load(folder / "model", device="cpu", dtype="float32")
    assert_type(bert.tokenizer, Tokenizer)
    assert_type(bert.embed_tokens("a city"), list[np.ndarray])
    print(nearest(bert, "a city", ["a land", "a city"]), bert.similarity("a", "b").shape)
    batch = Batch.from_documents(bert.tokenizer.encode(["a city", "a land of rivers"]))
    assert_type(batch.layout, SequenceLengths)
    assert_type(ModelConfig.preset("base").hidden_size, int)
    try:
        bert.embed("x " * 10_000)
    except InputError as error:
        print(f"refused: {error}")
    write_rows(folder / "train.tsv")
    trained: Path = finetune(folder / "model", task="classify", train=[folder / "train.tsv"], output=folder / "run")
    print(batch, ModernBert.load(trained).classify("the river of city 3"), modernbert.__version__)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
