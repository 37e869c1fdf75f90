"""Rows of every format, broken files, and the order in which examples are sampled."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modernbert.data.example_sampler import ExampleSampler
from modernbert.data.labeled_rows import read_rows
from modernbert.errors import InputError

ROWS = [{"text": 'a "b", c', "label": "x"}, {"text": "d'e", "label": "y"}]


def write(path: Path, content: str) -> str:
    path.write_text(content, encoding="utf-8")
    return str(path)


def test_every_format_gives_the_same_rows(tmp_path: Path) -> None:
    tsv = write(tmp_path / "a.tsv", 'text\tlabel\na "b", c\tx\nd\'e\ty\n')
    csv = write(tmp_path / "a.csv", 'text,label\r\n"a ""b"", c",x\r\nd\'e,y\r\n')
    jsonl = write(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n\n" for row in ROWS))
    packed = tmp_path / "b.tsv.gz"
    packed.write_bytes(gzip.compress(Path(tsv).read_bytes()))
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    for source in (tsv, csv, jsonl, str(packed), str(tmp_path / "a.parquet"), f"file://{jsonl}"):
        assert [row.values for row in read_rows([source])] == ROWS, source
    assert [row.origin for row in read_rows([jsonl])] == [f"{jsonl}:1", f"{jsonl}:3"]
    # Without the name of a split in any file, all of a folder is the split train.
    assert len(read_rows([str(tmp_path)])) == 10
    with pytest.raises(InputError, match="all rows are the split train, expected dev"):
        read_rows([str(tmp_path)], "dev")
    (tmp_path / "a.tsv").rename(tmp_path / "test.tsv")
    (tmp_path / "a.csv").rename(tmp_path / "train.csv")
    assert [row.values for row in read_rows([str(tmp_path)])] == ROWS


def test_a_line_break_inside_quotes_is_part_of_the_cell(tmp_path: Path) -> None:
    rows = read_rows([write(tmp_path / "a.csv", 'text,label\n"a\nb",x\nc,y\n')])
    assert [row.values["text"] for row in rows] == ["a\nb", "c"] and rows[1].origin.endswith(":4")


def test_conll_sentences_end_at_blank_lines(tmp_path: Path) -> None:
    rows = read_rows([write(tmp_path / "a.conll", "-DOCSTART- X O\n\nEU NNP B-ORG\nrejects VB O\n\n\nno RB O\n")])
    assert [(row.values["words"], row.values["tags"]) for row in rows] == [
        (["EU", "rejects"], ["B-ORG", "O"]), (["no"], ["O"])
    ]  # fmt: skip


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("a.tsv", "text\tlabel\nonly\n", r"a.tsv:2: found 1 columns, expected 2 \(text, label\)"),
        ("a.tsv", "text\ttext\n", "a.tsv:1: found columns"),
        ("a.tsv", "text\tlabel\n", "found no row"),
        ("a.csv", 'text,label\n"never closed,x\n', "a.csv:2: is not readable as csv"),
        ("a.jsonl", '{"text": \n', "a.jsonl:1: is not JSON"),
        ("a.jsonl", "[1]\n", "a.jsonl:1: found a JSON list"),
        ("a.conll", "word\n", "a.conll:1: found 'word' alone"),
        ("a.xlsx", "", "a.xlsx: unknown format"),
        ("a.parquet", "no", "a.parquet: is not readable as parquet"),
    ],
)
def test_a_broken_file_is_one_line(name: str, content: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        read_rows([write(tmp_path / name, content)])


def test_bytes_that_are_not_text_and_absent_files_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_bytes(b"text\tlabel\n\xff\tx\n")
    with pytest.raises(InputError, match="a.tsv:2: found byte 0xff, expected UTF-8"):
        read_rows([str(tmp_path / "a.tsv")])
    with pytest.raises(InputError, match="no such file"):
        read_rows([str(tmp_path / "b.tsv")])


@given(st.lists(st.integers(1, 40), min_size=1, max_size=50), st.integers(1, 9), st.integers(1, 64), st.integers(0, 9))
def test_each_pass_has_every_example_once(lengths: list[int], batch: int, budget: int, seed: int) -> None:
    lessons = ExampleSampler(lengths, batch, epochs=2, seed=seed, budget_tokens=budget)
    steps = [lessons.micro_batches(step) for step in range(lessons.num_steps)]
    half = lessons.steps_per_epoch
    for epoch in (steps[:half], steps[half:]):
        assert sorted(n for step in epoch for part in step for n in part) == list(range(len(lengths)))
        assert all(sum(map(len, step)) == batch for step in epoch[:-1])
    for part in (part for step in steps for part in step):
        assert len(part) == 1 or sum(lengths[n] for n in part) <= budget
