import csv
import gzip
import json
import math
import os
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from modernbert.errors import InputError
from modernbert.evaluation.bm25 import bm25_best, words_of
from modernbert.evaluation.ranking_metrics import mean_over_queries, ndcg_at

PASSAGES = ["def readLines(path): return open(path).read()", "sort a list of words", "Read a file, line by line.", ""]


def bm25_by_hand(query: str, passage: str, passages: list[str], k1: float, b: float) -> float:
    """Robertson's formula with Lucene's inverse document frequency, summed over the words of the query."""
    corpus = [Counter(words_of(text)) for text in passages]
    mean_length = sum(map(Counter.total, corpus)) / len(corpus)
    counts = Counter(words_of(passage))
    norm = k1 * (1 - b + b * counts.total() / mean_length)
    total = 0.0
    for word in words_of(query):
        holders = sum(word in other for other in corpus)
        idf = math.log(1 + (len(corpus) - holders + 0.5) / (holders + 0.5))
        total += idf * counts[word] / (counts[word] + norm)
    return total


def bm25_scores(queries: list[str], passages: list[str], **constants: float) -> np.ndarray:
    """Return the score of every passage for every query."""
    found, numbers = bm25_best(queries, passages, len(passages), **constants)
    scores = np.zeros_like(found)
    np.put_along_axis(scores, numbers, found, axis=1)
    return scores


@pytest.mark.parametrize(("k1", "b"), [(0.9, 0.4), (1.5, 0.75)])
def test_scores_are_the_formula_of_bm25(k1: float, b: float) -> None:
    queries = ["read lines of a path", "words words", "unknown vocabulary", ""]
    expected = [[bm25_by_hand(query, passage, PASSAGES, k1, b) for passage in PASSAGES] for query in queries]
    np.testing.assert_allclose(bm25_scores(queries, PASSAGES, k1=k1, b=b), expected, rtol=1e-5)


def test_the_best_of_each_query_are_those_of_all_pairs_sorted() -> None:
    """Equal scores, zero included, keep the order of the passages; and memory does not grow with the pairs."""
    rng = np.random.default_rng(0)
    passages = [" ".join(rng.choice([f"w{n}" for n in range(200)], 5)) for _ in range(2_000)]
    passages[7] = passages[1_500] = passages[3]
    queries = [passages[3], "w1 w2", "w3", "unknown", ""]
    whole = bm25_scores(queries, passages)
    for k in (1, 2, 10, 1_999, 3_000):
        scores, numbers = bm25_best(queries, passages, k)
        np.testing.assert_array_equal(numbers, np.argsort(-whole, axis=1, kind="stable")[:, :k])
        np.testing.assert_array_equal(scores, -np.sort(-whole, axis=1)[:, :k])
    tracemalloc.start()
    bm25_best(queries * 500, passages, 10)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * len(queries) * 500 * len(passages) / 2, "half of what all pairs would take"


def test_words_are_found_in_scripts_without_blanks() -> None:
    """A sentence is no word: what shares a word with the query ranks first."""
    passages = ["彼は東京に住む人だ。", "大阪は商業の街だ。", "ฉันรักกรุงเทพมาก", "Tokyo is a city."]
    for query, best in (("東京の人", 0), ("大阪", 1), ("กรุงเทพ", 2), ("tokyo東", 3)):
        scores, numbers = bm25_best([query], passages, 1)
        assert numbers[0, 0] == best and scores[0, 0] > 0, query


def test_identifiers_are_split_into_words() -> None:
    assert words_of("max_seqlen") == ["max", "seqlen"]
    assert words_of("XMLHttpRequest2 getURL") == ["xml", "http", "request2", "get", "url"]
    assert words_of("naïve café_au_lait") == ["naïve", "café", "au", "lait"]


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    bm25_scores(["read"], PASSAGES)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("passages", [[], ["", "..."]])
def test_passages_without_a_word_are_an_error(passages: list[str]) -> None:
    with pytest.raises(InputError, match="found none"):
        bm25_scores(["read"], passages)


@pytest.mark.skipif("MODERNBERT_DATA" not in os.environ, reason="MODERNBERT_DATA names no folder of data sets")
@pytest.mark.parametrize(("name", "expected"), [("conala", 0.512), ("cosqa", 0.345)])
def test_code_search_scores_are_the_known_ones(name: str, expected: float) -> None:
    folder = Path(os.environ["MODERNBERT_DATA"]) / "code_retrieval" / name

    def rows(stem: str) -> list[dict[str, str]]:
        path = folder / f"{stem}.jsonl"
        opened = open(path, encoding="utf-8") if path.exists() else gzip.open(f"{path}.gz", "rt", encoding="utf-8")
        with opened as lines:
            return [json.loads(line) for line in lines]

    corpus, queries = rows("corpus"), {row["_id"]: row["text"] for row in rows("queries")}
    judgments: dict[str, dict[str, int]] = {}
    with open(folder / "qrels" / "test.tsv", encoding="utf-8") as table:
        for query, passage, grade in list(csv.reader(table, delimiter="\t"))[1:]:
            judgments.setdefault(query, {})[passage] = int(grade)
    asked = list(judgments)
    scores = bm25_scores(
        [queries[query] for query in asked], [f"{row.get('title', '')} {row['text']}" for row in corpus]
    )
    order = np.argsort(-scores, axis=1, kind="stable")[:, :10]
    rankings = {query: [corpus[p]["_id"] for p in row] for query, row in zip(asked, order, strict=True)}
    assert mean_over_queries(ndcg_at, 10, rankings, judgments) == pytest.approx(expected, abs=0.005)
