"""What commands and methods take as texts: every known file, no other, and no table or pair by mistake."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow
import pyarrow.parquet
import pytest
import torch
from commands import run_here as modernbert
from sentence_transformers import CrossEncoder

from modernbert import InputError, ModernBert
from modernbert.checkpoints.folder import ModelFolder
from modernbert.data.beir import read_collection
from modernbert.data.corpus import Tally, read_documents
from modernbert.data.labeled_rows import read_rows
from modernbert.inference.text_inputs import stream_texts
from modernbert.tasks.columns import Columns
from modernbert.tasks.task import start_classifier
from modernbert.training.finetuning import FinetuneConfig, finetune

TEXTS = ["a land", "the [MASK] of country 3", "naïve ✓ 👩\u200d🚀"]
LABELS = {"classify": ["no", "yes", "maybe"], "rerank": ["score"], "tag": ["O", "B-x", "I-x"]}
CPU = ("--device", "cpu", "--dtype", "float32", "--engine", "torch")


@pytest.fixture(scope="module")
def folders(small_bert: ModernBert, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A folder for each task."""
    start = tmp_path_factory.mktemp("inputs")
    small_bert.save(start / "mask")
    for task, labels in LABELS.items():
        model = start_classifier(ModelFolder(start / "mask").load_model(), task, labels, seed=3)
        torch.nn.init.normal_(model.classifier.weight, std=0.5)
        ModelFolder.save(start / task, model, small_bert.tokenizer, 1_000)
    return {name: str(start / name) for name in ("mask", *LABELS)}


@pytest.fixture(scope="module")
def bert(folders: dict[str, str]) -> ModernBert:
    return ModernBert.load(folders["mask"], device="cpu", dtype="float32", engine="torch")


def command(verb: str, folders: dict[str, str], file: Path, out: Path) -> list[str]:
    """Return the words of a command that reads a file."""
    readers = {
        "embed": ["embed", folders["mask"], "--input", str(file), *CPU],
        "fill-mask": ["fill-mask", folders["mask"], "--input", str(file), "--json", *CPU],
        "classify": ["classify", folders["classify"], "--input", str(file), "--json", *CPU],
        "tag": ["tag", folders["tag"], "--input", str(file), "--json", *CPU],
        "rerank": ["rerank", folders["rerank"], "what", "--input", str(file), "--json", *CPU],
        "export": ["export", folders["mask"], "--output", str(out), "--input", str(file)],
        "index": ["index", folders["mask"], "--input", str(file), "--output", str(out), *CPU],
        "prepare": [
            "prepare", "--input", str(file), "--tokenizer", folders["mask"], "--output", str(out), "--processes", "1",
        ],
        "tokenizer": ["tokenizer", "--input", str(file), "--output", str(out)],
        "finetune": [
            "finetune", folders["mask"], "--task", "classify", "--train", str(file), "--output", str(out), "--device",
            "cpu",
        ],
    }  # fmt: skip
    return readers[verb]


VERBS = ["embed", "fill-mask", "classify", "tag", "rerank", "export", "index", "prepare", "tokenizer", "finetune"]


def refused(*words: str, given: bytes = b"") -> str:
    """Return the one line with which a command ends that refuses its input."""
    done = modernbert(*words, given=given)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("modernbert: ")]
    assert len(lines) == 1 and "Traceback" not in done.stderr
    return lines[0]


@pytest.mark.parametrize("name", ["doc.pdf", "rows.xlsx", "texts.bz2", "notes.docx.gz"])
def test_an_unknown_suffix_has_the_same_answer_everywhere(name: str, folders: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_bytes(b"%PDF-1.7\nsome bytes\n")
    verbs = VERBS if name == "doc.pdf" else ["embed", "index", "finetune"]
    said = {refused(*command(verb, folders, file, tmp_path / "out")) for verb in verbs}
    assert len(said) == 1, said
    (line,) = said
    suffix = Path(name.removesuffix(".gz")).suffix
    assert line.startswith(f"modernbert: {file}: unknown format '{suffix}', expected .txt, ")
    assert all(known in line for known in (".jsonl", ".json", ".parquet", ".csv", ".tsv", ".conll", ".gz or .zst"))
    assert not (tmp_path / "out").exists()


ROWS = [{"text": text, "n": number, "label": "ab"[number % 2]} for number, text in enumerate(TEXTS)]


def written(folder: Path, name: str) -> Path:
    """Write the rows in the format that a name says."""
    path = folder / name
    cells = [[row["text"], str(row["n"]), row["label"]] for row in ROWS]
    content = {
        ".jsonl": "".join(json.dumps(row) + "\n" for row in ROWS),
        ".json": "\ufeff" + json.dumps(ROWS, ensure_ascii=False, indent=1),
        ".csv": "text,n,label\r\n" + "".join(",".join(each) + "\r\n" for each in cells),
        ".tsv": "text\tn\tlabel\n" + "".join("\t".join(each) + "\n" for each in cells),
    }
    if name == "strings.json":
        path.write_text(json.dumps(TEXTS))
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(content[Path(path.stem).suffix].encode()))
    else:
        path.write_text(content[path.suffix], newline="")
    return path


NAMES = ["r.jsonl", "r.json", "strings.json", "r.json.gz", "r.csv", "r.tsv.gz", "r.parquet"]


@pytest.mark.parametrize("name", NAMES)
def test_every_kind_of_row_is_read_by_every_reader(name: str, tmp_path: Path) -> None:
    path = written(tmp_path, name)
    assert [text for _, text in stream_texts([path])] == TEXTS
    documents = list(read_documents([path], Tally()))
    assert [document.text for document in documents] == TEXTS
    assert len({document.origin for document in documents}) == 3
    rows = read_rows([str(path)])
    assert [row.values["text"] for row in rows] == TEXTS
    assert [row.origin for row in rows] == [document.origin for document in documents]


def test_a_json_array_is_read_by_every_command(folders: dict[str, str], tmp_path: Path, bert: ModernBert) -> None:
    path = written(tmp_path, "r.json")
    done = {
        verb: modernbert(*command(verb, folders, path, tmp_path / verb))
        for verb in ("embed", "classify", "tag", "rerank")
    }
    assert not [each.stderr for each in done.values() if each.returncode]
    vectors = [json.loads(line) for line in done["embed"].stdout.splitlines()]
    np.testing.assert_allclose(vectors, bert.embed(TEXTS), atol=1e-5)
    for verb in ("classify", "tag", "rerank"):
        found = [json.loads(line) for line in done[verb].stdout.splitlines()]
        assert [row["text"] for row in sorted(found, key=lambda row: row["index"])] == TEXTS
    (tmp_path / "m.json").write_text(json.dumps(["a [MASK] b"]))
    filled = modernbert(*command("fill-mask", folders, tmp_path / "m.json", tmp_path))
    assert json.loads(filled.stdout)["text"] == "a [MASK] b"
    for verb, expected in (("index", "3 new or changed"), ("prepare", "3 documents")):
        for name in ("r.json", "r.csv", "r.tsv"):
            path = written(tmp_path, name)
            found_by = modernbert(*command(verb, folders, path, tmp_path / f"{verb} {name}"))
            assert found_by.returncode == 0 and expected in found_by.stdout, found_by.stderr


def test_a_file_without_a_suffix_and_source_code_are_lines(tmp_path: Path) -> None:
    for name in ("LICENSE", "a.py", "a.md.gz"):
        path = tmp_path / name
        path.write_bytes(gzip.compress(b"one\ntwo\n") if name.endswith(".gz") else b"one\ntwo\n")
        assert list(stream_texts([path])) == [(f"{path}:1", "one"), (f"{path}:2", "two")]
    assert [document.text for document in read_documents([tmp_path / "LICENSE"], Tally())] == ["one\ntwo\n"]


def test_words_with_labels_are_no_texts_and_texts_no_labelled_rows(tmp_path: Path) -> None:
    (tmp_path / "a.conll").write_text("EU\tB-x\n")
    (tmp_path / "a.txt").write_text("a\n")
    with pytest.raises(InputError, match="a.conll: has labeled words, expected lines of text or rows: .jsonl, .json"):
        list(stream_texts([tmp_path / "a.conll"]))
    with pytest.raises(InputError, match="a.conll: has labeled words, expected documents"):
        read_documents([tmp_path / "a.conll"], Tally())
    with pytest.raises(InputError, match="a.txt: has text without fields, expected labeled rows: .jsonl, .json"):
        read_rows([str(tmp_path / "a.txt")])


ARRAYS = {
    '{"text": "a"}\n{"text": "b"}\n': ":1: found a JSON object, expected a JSON array",
    "text\n": ":1: found 't', expected a JSON array",
    "": ": is empty, expected a JSON array",
    '[{"text": "a"},\n{"text": "b"': ":2: is not JSON",
    '[{"text": "a"}\n{"text": "b"}]': ":2: found '{', expected a comma or ]",
    '["a",\n"b"\n': ":3: found 'the end', expected a comma or ]",
    '["a",\n]': ":2: is not JSON",
    '["a"]\n["b"]': r":2: found '\[' after the array",
    '["a",\n7]': r":2\[1\]: found a JSON int, expected an object",
    '[["a"]]': r":1\[0\]: found a JSON list, expected an object",
    "[" + "[" * 100_000: ":1: JSON nested too deeply",
}


@pytest.mark.parametrize("content", ARRAYS, ids=[str(number) for number in range(len(ARRAYS))])
def test_a_json_file_that_is_no_array_of_texts_is_refused_everywhere(content: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(content)
    readers: list[Callable[[], Any]] = [
        lambda: list(stream_texts([path])), lambda: list(read_documents([path], Tally())),
        lambda: read_rows([str(path)]),
    ]  # fmt: skip
    for read in readers:
        with pytest.raises(InputError, match=f"a.json{ARRAYS[content]}") as caught:
            read()
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_a_long_array_on_one_line_is_read_piece_by_piece(tmp_path: Path) -> None:
    texts = [
        f"naïve ✓ 👩\u200d🚀 {number} " + 'a "quoted" \\ word\n' * (number % 3_000) for number in range(0, 3_000, 17)
    ]
    for ascii_only in (True, False):
        for rows in (texts, [{"n": [1.5, None, {"a": -3}], "text": text, "m": 12345} for text in texts]):
            (tmp_path / "a.json").write_text(json.dumps(rows, ensure_ascii=ascii_only, separators=(",", ":")))
            assert [text for _, text in stream_texts([tmp_path / "a.json"])] == texts


def test_data_files_of_a_folder_of_code_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "package.json").write_text('{"name": "x", "scripts": []}')
    (tmp_path / "words.json").write_text('["a", "b"]')
    (tmp_path / "names.json").write_text('[{"name": "x"}]')
    (tmp_path / "table.csv").write_text("x,y\n1,2\n")
    (tmp_path / "main.py").write_text("print()\n")
    written(tmp_path, "r.json"), written(tmp_path, "r.csv")
    tally = Tally()
    documents = list(read_documents([tmp_path], tally))
    assert [document.text for document in documents] == ["print()\n", *TEXTS, *TEXTS] and tally.passed_over == 4
    (tmp_path / "cut.json").write_text('[{"text": "a"')
    with pytest.raises(InputError, match="cut.json:1: is not JSON"):
        list(read_documents([tmp_path], Tally()))


UTF16, LATIN = "text\tlabel\none\ta\n".encode("utf-16"), b"text\tlabel\ncaf\xe9\ta\n"


@pytest.mark.parametrize("suffix", [".txt", ".tsv", ".csv", ".jsonl", ".json"])
def test_bytes_that_are_not_utf8_have_the_same_words_everywhere(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    readers: list[Callable[[], Any]] = [
        lambda: list(stream_texts([path])), lambda: list(read_documents([path], Tally(), invalid="refuse")),
        *([] if suffix == ".txt" else [lambda: read_rows([str(path)])]),
    ]  # fmt: skip
    latin = {".jsonl": b'\n{"text": "caf\xe9"}\n', ".json": b'["a",\n"caf\xe9"]', ".csv": b"text,label\ncaf\xe9,a\n"}
    for content, said in (
        (UTF16, f"{path}: begins with the mark of UTF-16, expected UTF-8"),
        (latin.get(suffix, LATIN), "found byte 0xe9, expected UTF-8"),
    ):
        path.write_bytes(content)
        for read in readers:
            with pytest.raises(InputError) as caught:
                read()
            assert said in str(caught.value) and (content is UTF16 or f"{path}:2" in str(caught.value))


def test_standard_input_has_the_same_words(folders: dict[str, str]) -> None:
    for content, said in (
        (UTF16, "standard input: begins with the mark of UTF-16, expected UTF-8"),
        (LATIN, "standard input:2: found byte 0xe9, expected UTF-8"),
    ):
        for verb, task in (("embed", "mask"), ("classify", "classify"), ("fill-mask", "mask"), ("tag", "tag")):
            assert refused(verb, folders[task], *CPU, given=content) == f"modernbert: {said}"


def test_a_collection_of_retrieval_is_read_as_before(write_collection: Callable[..., Path], tmp_path: Path) -> None:
    assert read_collection(write_collection(tmp_path / "c")).num_empty == 1


BAD = [
    {"text": "first [MASK]"}, {"text": None}, {"text": "word " * 3_000}, {"body": "x"}, {"text": "last [MASK]"},
    {"text": 3},
]  # fmt: skip
SKIPPED = {
    1: "{file}:2: field 'text' is null, expected a string",
    2: "{file}:3: has 15,002 tokens, expected at most 1,000",
    3: "{file}:4: no field 'text', found 'body'",
    5: "{file}:6: field 'text' is int, expected a string",
}


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    path = tmp_path / "bad.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in BAD))
    return path


@pytest.mark.parametrize("verb", ["classify", "tag", "rerank", "fill-mask", "embed"])
def test_rows_that_cannot_be_used_stop_a_command_or_are_skipped_and_listed(
    verb: str, folders: dict[str, str], bad: Path, tmp_path: Path
) -> None:
    words = command(verb, folders, bad, tmp_path)
    assert f"{bad}:2: field 'text' is null" in refused(*words)
    done = modernbert(*words, "--on-error", "skip")
    assert done.returncode == 0, done.stderr
    for line in SKIPPED.values():
        if verb == "rerank" and "tokens" in line:
            line = line.partition("15,002")[0]  # a pair has the query's tokens, too
        assert f"skipped {line.format(file=bad)}" in done.stderr
    assert done.stderr.count("skipped ") == 5 and "skipped 4 in all" in done.stderr
    rows = sorted((json.loads(line) for line in done.stdout.splitlines()), key=lambda row: row.get("index", 0))
    assert [row["number" if verb == "embed" else "index"] for row in rows] == [0, 4]
    if verb == "embed":
        assert [row["origin"] for row in rows] == [f"{bad}:1", f"{bad}:5"]
    bad.write_text('{"text": "a [MASK]"}\n{"text": "' + "word " * 3_000 + '"}\n')
    assert f"{bad}:2: has 15,0" in refused(*words), "in the words of the file, not of a list"
    bad.write_text('{"text": null}\n')
    assert "all 1 rows were skipped" in refused(*words, "--on-error", "skip")
    assert "--on-error: found 'pass', expected 'fail'" in refused(*words, "--on-error", "pass")


def test_a_field_of_another_name_is_read_by_every_command(folders: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_text("body,text\na [MASK] b,c\n")
    for verb in ("classify", "tag", "rerank", "fill-mask"):
        done = modernbert(*command(verb, folders, path, tmp_path), "--text-field", "body")
        assert json.loads(done.stdout)["text"] == "a [MASK] b", done.stderr
        assert "no column 'b', found 'body', 'text'" in refused(
            *command(verb, folders, path, tmp_path), "--text-field", "b"
        )


def test_corpora_fail_or_skip_in_the_same_words(folders: dict[str, str], bad: Path, tmp_path: Path) -> None:
    for verb in ("index", "prepare"):
        words = command(verb, folders, bad, tmp_path / verb)
        assert f"{bad}:2: field 'text' is null" in refused(*words)
        done = modernbert(*words, "--on-error", "skip")
        assert done.returncode == 0, done.stderr
        listed = [line for line in done.stderr.splitlines() if line.startswith("skipped ")]
        assert listed == [*(f"skipped {SKIPPED[number].format(file=bad)}" for number in (1, 3, 5)), "skipped 3 in all"]
    many = tmp_path / "many.jsonl"
    many.write_text('{"text": "a"}\n' + "{}\n" * 50)
    done = modernbert(*command("prepare", folders, many, tmp_path / "many"), "--on-error", "skip")
    assert done.stderr.count("skipped ") == 21 and "skipped 50 in all" in done.stderr


TABLES: dict[str, Callable[[pandas.DataFrame], Any]] = {
    "DataFrame": lambda frame: frame,
    "dict": lambda frame: frame.to_dict("list"),
    "Dataset": lambda frame: pytest.importorskip("datasets").Dataset.from_pandas(frame),
    "DatasetDict": lambda frame: pytest.importorskip("datasets").DatasetDict(
        text=pytest.importorskip("datasets").Dataset.from_pandas(frame)
    ),
}
COLUMNS: dict[str, Callable[[list[Any]], Any]] = {
    "Series": lambda texts: pandas.Series(texts, index=range(7, 7 + len(texts))),
    "Series of objects": lambda texts: pandas.Series(texts, dtype=object),
    "Index": pandas.Index,
    "Categorical": pandas.Categorical,
    "Column": lambda texts: pytest.importorskip("datasets").Dataset.from_dict({"text": texts})["text"],
    "pyarrow Array": pyarrow.array,
    "ChunkedArray": lambda texts: pyarrow.chunked_array([texts[:1], texts[1:]]),
    "numpy": np.array,
    "generator": lambda texts: (text for text in texts),
    "tuple": tuple,
    "keys": lambda texts: dict.fromkeys(texts).keys(),
}
METHODS: dict[str, Callable[[ModernBert, Any], Any]] = {
    "embed": lambda bert, texts: bert.embed(texts),
    "embed_queries": lambda bert, texts: bert.embed_queries(texts).vectors,
    "embed_documents": lambda bert, texts: bert.embed_documents(texts).vectors,
    "embed_tokens": lambda bert, texts: np.concatenate(bert.embed_tokens(texts)),
    "similarity": lambda bert, texts: bert.similarity("a", texts),
    "rerank": lambda bert, texts: [each.index for each in bert.rerank("a", texts)],
    "count_tokens": lambda bert, texts: bert.count_tokens(texts),
    "fill_mask": lambda bert, texts: [[len(mask) for mask in masks] for masks in bert.fill_mask(texts)],
    "classify": lambda bert, texts: [[*each.values()] for each in bert.classify(texts)],
    "tag": lambda bert, texts: [sum(span.score for span in each) for each in bert.tag(texts)],
}


def for_method(method: str, bert: ModernBert, folders: dict[str, str]) -> ModernBert:
    if method not in LABELS or method == "rerank":
        return bert
    return ModernBert.load(folders[method], device="cpu", dtype="float32", engine="torch")


@pytest.mark.parametrize("method", METHODS)
def test_tables_are_refused_with_their_columns_and_columns_are_texts(
    method: str, bert: ModernBert, folders: dict[str, str]
) -> None:
    bert, call = for_method(method, bert, folders), METHODS[method]
    texts = ["a [MASK]", "the capital [MASK]", "x y [MASK]"]
    frame = pandas.DataFrame({"text": texts, "label": ["x", "y", "z"]})
    for kind, make in TABLES.items():
        with pytest.raises(InputError, match=f"^texts: found {kind}, expected a text or several; pass one.* 'text'"):
            call(bert, make(frame))
    expected = call(bert, texts)
    for kind, column in COLUMNS.items():
        if (method, kind) == ("classify", "tuple"):  # one pair of texts
            continue
        np.testing.assert_allclose(call(bert, column(texts)), expected, atol=1e-6, err_msg=kind)
    with pytest.raises(InputError, match="^texts: found set, which has no order, expected a list"):
        call(bert, set(texts))


@pytest.mark.parametrize("method", METHODS)
def test_a_missing_value_is_named_by_its_position(method: str, bert: ModernBert, folders: dict[str, str]) -> None:
    bert, call = for_method(method, bert, folders), METHODS[method]
    for column in ("Series", "Series of objects", "pyarrow Array"):
        with pytest.raises(InputError, match="^text 1: found (a missing value \\(NaN\\)|NoneType), expected str"):
            call(bert, COLUMNS[column](["a [MASK]", None, "b [MASK]"]))
    with pytest.raises(InputError, match="^text 0: found dict, expected str"):
        call(bert, iter([{"text": "a [MASK]"}]))


@pytest.fixture(scope="module")
def pairs(folders: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier that was fine-tuned on pairs of texts."""
    place = tmp_path_factory.mktemp("pairs")
    rows = [
        {"premise": f"the land {n}", "hypothesis": "city" if n % 2 else "river", "label": "ab"[n % 2]}
        for n in range(40)
    ]
    (place / "train.json").write_text(json.dumps(rows))
    config = FinetuneConfig(
        model=folders["mask"], task="classify", train=[str(place / "train.json")], output=str(place / "run"), epochs=1,
        columns=Columns(text="premise", pair="hypothesis"), device="cpu", dtype="float32", engine="torch",
    )  # fmt: skip
    return finetune(config)


def test_a_model_of_pairs_scores_no_single_text(pairs: Path, folders: dict[str, str], tmp_path: Path) -> None:
    bert = ModernBert.load(pairs, device="cpu", dtype="float32", engine="torch")
    assert bert.reads_pairs and not ModernBert.load(folders["classify"], device="cpu").reads_pairs
    for texts in ("a", ["a", "b"], [("a", "b"), "c"]):
        with pytest.raises(InputError, match=r"^text \d: found a single text, expected a pair"):
            bert.classify(texts)
    both = bert.classify([("a land", "city"), ("x", "river")])
    rows = [{"text": "a land", "pair": "city"}, {"text": "x", "pair": "river"}]
    bert.save(tmp_path / "again")
    assert ModernBert.load(tmp_path / "again", device="cpu").reads_pairs
    for name in ("r.jsonl", "r.csv"):
        file = tmp_path / name
        if name == "r.csv":
            pandas.DataFrame(rows).to_csv(file, index=False)
        else:
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        words = ["classify", str(pairs), "--input", str(file), *CPU]
        assert "was trained on pairs of texts, found single texts; pass --input FILE and --pair-field FIELD" in refused(
            *words
        )
        done = modernbert(*words, "--pair-field", "pair", "--json")
        assert done.returncode == 0, done.stderr
        for line, row, labels in zip(done.stdout.splitlines(), rows, both, strict=True):
            found = json.loads(line)
            assert (found["text"], found["pair"]) == (row["text"], row["pair"])
            assert found["labels"] == pytest.approx(labels, abs=1e-5)
    assert "was trained on pairs of texts" in refused("classify", str(pairs), "a", "b", *CPU)
    (tmp_path / "l.txt").write_text("a\n")
    for words, said in (
        (["--input", str(tmp_path / "l.txt")], "l.txt: has lines without fields, expected .jsonl"),
        ([], "--pair-field: found no --input"),
        (["--input", str(tmp_path / "r.csv"), "--text-field", "x"], "r.csv: no column 'x', found 'text', 'pair'"),
    ):
        assert said in refused("classify", str(pairs), *words, "--pair-field", "pair", *CPU, given=b"a\n")


def test_pairs_with_a_missing_text_are_skipped(pairs: Path, tmp_path: Path) -> None:
    table = pyarrow.table({"text": ["a", "b", None], "pair": ["c", None, "d"]})
    pyarrow.parquet.write_table(table, tmp_path / "p.parquet")
    words = ["classify", str(pairs), "--input", str(tmp_path / "p.parquet"), "--pair-field", "pair", "--json", *CPU]
    assert "p.parquet:2: column 'pair' is null" in refused(*words)
    done = modernbert(*words, "--on-error", "skip")
    assert json.loads(done.stdout)["index"] == 0
    assert "p.parquet:2: column 'pair' is null" in done.stderr and "p.parquet:3: column 'text' is null" in done.stderr


def test_rerankers_and_cross_encoders_of_other_libraries_are_models_of_pairs(
    folders: dict[str, str], tmp_path: Path
) -> None:
    ranker = ModernBert.load(folders["rerank"], device="cpu", dtype="float32")
    with pytest.raises(InputError, match="^text 0: found a single text, expected a pair"):
        ranker.classify(["a"])
    assert len(ranker.classify([("a", "b")])) == 1
    config = json.loads((Path(folders["classify"]) / "config.json").read_text())
    assert "text_pairs" not in config, "unknown, so not written"
    CrossEncoder(folders["classify"], device="cpu").save_pretrained(str(tmp_path / "new"))
    old = tmp_path / "old"
    old.mkdir()
    for path in Path(folders["classify"]).iterdir():
        (old / path.name).write_bytes(path.read_bytes())
    said = {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity", "version": "4.0.0"}}
    (old / "config.json").write_text(json.dumps(config | said))
    for folder in (tmp_path / "new", old):
        bert = ModernBert.load(folder, device="cpu", dtype="float32")
        assert bert.reads_pairs
        with pytest.raises(InputError, match="expected a pair"):
            bert.classify("a")
    (old / "config.json").write_text(json.dumps(config | {"text_pairs": "yes"}))
    with pytest.raises(InputError, match="config.json: text_pairs: found 'yes', expected true or false"):
        ModernBert.load(old, device="cpu")


def test_the_server_scores_no_single_text_with_a_model_of_pairs(pairs: Path) -> None:
    pytest.importorskip("fastapi")
    from fastapi.testclient import TestClient

    from modernbert.serving.app import ServeSettings, make_app
    from modernbert.serving.request_guard import Limits
    from modernbert.serving.scheduler import Scheduler

    bert = ModernBert.load(pairs, device="cpu", dtype="float32", engine="torch")
    app = make_app(bert, Scheduler(bert, 300, 100_000), ServeSettings("mine", Limits(log=False)))
    with TestClient(app) as client:
        for inputs in ("a", [["a"], ["b"]]):
            answer = client.post("/predict", json={"inputs": inputs})
            assert answer.status_code == 422 and "this model was trained on pairs" in answer.text
        (found,) = client.post("/predict", json={"inputs": [["a land", "city"]]}).json()
    known = bert.classify(("a land", "city"))
    assert {each["label"]: each["score"] for each in found} == pytest.approx(known, abs=1e-5)
