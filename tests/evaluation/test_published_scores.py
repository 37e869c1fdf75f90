"""Published weights give the vectors of sentence-transformers and the scores that MTEB publishes for them.

Source: github.com/embeddings-benchmark/results at f4cc6c8, sentence-transformers__all-MiniLM-L6-v2 at 8b3219a (MTEB
1.12.75): SciFact.json, STSBenchmark.json, and for the dev split of STS-B STSBenchmarkMultilingualSTS.json (en).
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from sentence_transformers import SentenceTransformer

from modernbert import ModernBert

# nDCG and recall are published with five digits. A LayerNorm epsilon of 1e-5, not 1e-12, moves Spearman by 1.2e-5.
LAST_DIGIT = 5e-6
SHORT = [
    "The capital of France is Paris.",
    "the CAPITAL of france is paris",
    "Crème brûlée, naïve façade; 3.14 % of £5?",
    "東京は日本の首都です。 🙂",
    "a",
    "Unbelievably hyphenated re-tokenization (e.g. electroencephalographically)",
]
# The folder's limit is 256 tokens and the model's 512: one text between the two, one above both.
LONG = [
    " ".join(f"Passage {n} is about rivers and bridges." for n in range(40)),
    " ".join(f"Passage {n} is about mountains and valleys." for n in range(200)),
]


@pytest.fixture(scope="module")
def bert(minilm_folder: Path) -> ModernBert:
    return ModernBert.load(minilm_folder, device="cpu", dtype="float32")


@pytest.mark.filterwarnings("ignore")
def test_vectors_of_published_weights_are_those_of_sentence_transformers(bert: ModernBert, minilm_folder: Path) -> None:
    peer = SentenceTransformer(str(minilm_folder), device="cpu")
    assert peer.max_seq_length == 256
    assert [len(peer.tokenizer(text)["input_ids"]) > 512 for text in LONG] == [False, True]
    assert min(len(peer.tokenizer(text)["input_ids"]) for text in LONG) > 256
    expected = peer.encode(SHORT + LONG)
    documents = bert.embed_documents(SHORT + LONG)
    assert documents.num_truncated == len(LONG)
    for found, wanted in (
        (documents.vectors, expected),
        (bert.embed_queries(SHORT + LONG).vectors, expected),
        (bert.embed(SHORT), expected[: len(SHORT)]),
        (bert.embed(SHORT + LONG, overflow="truncate"), expected),
        (np.concatenate([bert.embed(text) for text in SHORT]), expected[: len(SHORT)]),
    ):
        assert isinstance(found, np.ndarray) and found.shape == wanted.shape
        cosines = (found * wanted).sum(axis=1) / np.linalg.norm(found, axis=1) / np.linalg.norm(wanted, axis=1)
        assert cosines.min() > 0.99999
        assert np.abs(found - wanted).max() < 1e-5


@pytest.mark.parametrize(
    ("split", "spearman", "pearson"),
    [("dev", 0.8671631, 0.8696195), pytest.param("test", 0.8203247, 0.8274064, marks=pytest.mark.slow)],
)
def test_similarity_on_stsb_has_the_published_correlation(
    bert: ModernBert, data_folder: Path, split: str, spearman: float, pearson: float
) -> None:
    table = (data_folder / "glue" / "stsb" / f"{split}.tsv").read_text(encoding="utf-8")
    rows = [line.split("\t") for line in table.splitlines()[1:]]
    first, second = (bert.embed([row[column] for row in rows]).astype(np.float64) for column in (0, 1))
    cosines, expected = (first * second).sum(axis=1), [float(row[2]) for row in rows]
    assert stats.spearmanr(cosines, expected).statistic == pytest.approx(spearman, abs=LAST_DIGIT)
    assert stats.pearsonr(cosines, expected).statistic == pytest.approx(pearson, abs=LAST_DIGIT)


@pytest.mark.slow
def test_retrieval_on_scifact_has_the_published_scores(minilm_folder: Path, data_folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "modernbert", "evaluate", "retrieval", str(minilm_folder)]
    command += [str(data_folder / "retrieval" / "scifact"), "--device", "cpu", "--dtype", "float32"]
    threads = {"OMP_NUM_THREADS": str(os.cpu_count())}  # tests have one thread; this one takes minutes with two
    subprocess.run([*command, "--output", str(tmp_path / "scores.json")], check=True, env=os.environ | threads)
    (row,) = json.loads((tmp_path / "scores.json").read_text())["rows"]
    assert row["ndcg_10"] == pytest.approx(0.64508, abs=LAST_DIGIT)
    assert row["mrr_10"] == pytest.approx(0.6047249, abs=LAST_DIGIT)
    assert row["recall_100"] == pytest.approx(0.92500, abs=LAST_DIGIT)
    assert (row["num_queries"], row["num_documents"]) == (300, 5_183)
