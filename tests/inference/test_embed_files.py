"""`modernbert embed` on files: every kind holds the same vectors, and a stop loses nothing."""

import gzip
import io
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import zstandard
from commands import modernbert

from modernbert import InputError, ModernBert
from modernbert.config_files import resolve
from modernbert.inference import embed_files as embed
from modernbert.inference.embed_files import EmbedConfig, run
from modernbert.inference.text_inputs import stream_texts
from modernbert.inference.text_parts import chunks_of
from modernbert.inference.text_rows import TextRow

TEXTS = [f"the capital of country {n}" + " word" * (n % 37) for n in range(50)] + ["", "naïve ✓ \u2028 x"]


@pytest.fixture(scope="module")
def folder(small_bert: ModernBert, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("embed") / "model"
    small_bert.save(path)
    return path


@pytest.fixture
def config(folder: Path, tmp_path: Path) -> EmbedConfig:
    with gzip.open(tmp_path / "texts.jsonl.gz", "wt") as file:
        file.writelines(json.dumps({"body": text}) + "\n" for text in TEXTS)
    return EmbedConfig(
        str(folder), input=[tmp_path / "texts.jsonl.gz"], text_field="body", output=tmp_path / "v.npy", device=("cpu",),
        dtype="float32", engine="torch",
    )  # fmt: skip


@pytest.fixture
def expected(folder: Path) -> np.ndarray:
    return ModernBert.load(folder, device="cpu", dtype="float32", engine="torch").embed(TEXTS)


@pytest.mark.parametrize("part_texts", [30, 4_000])
def test_every_kind_of_file_holds_the_same(
    part_texts: int, config: EmbedConfig, expected: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lancedb
    import pyarrow.parquet

    monkeypatch.setattr(embed, "PART_CHARACTERS", part_texts * 500)
    for name in ("v.npy", "v.jsonl", "v.parquet", "v.lance"):
        run(replace(config, output=tmp_path / name))
    np.testing.assert_allclose(np.load(tmp_path / "v.npy"), expected, atol=1e-6)
    lines = [json.loads(line) for line in (tmp_path / "v.jsonl").read_text().splitlines()]
    np.testing.assert_allclose(lines, expected, atol=1e-6)
    table = pyarrow.parquet.read_table(tmp_path / "v.parquet")
    assert table["text"].to_pylist() == TEXTS and table["number"].to_pylist() == list(range(len(TEXTS)))
    np.testing.assert_allclose(np.array(table["vector"].to_pylist()), expected, atol=1e-6)
    rows = lancedb.connect(tmp_path / "v.lance").open_table("vectors")
    nearest = rows.search(expected[5]).limit(1).to_list()[0]
    assert (rows.count_rows(), nearest["text"]) == (len(TEXTS), TEXTS[5])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "texts.jsonl.gz", "v.jsonl", "v.lance", "v.npy", "v.parquet"
    ]  # fmt: skip


@pytest.mark.parametrize(("precision", "width"), [("float16", 64), ("int8", 64), ("binary", 8)])
def test_fewer_bytes_are_written_as_they_are(
    precision: str, width: int, config: EmbedConfig, tmp_path: Path, folder: Path
) -> None:
    run(replace(config, precision=precision))
    bert = ModernBert.load(folder, device="cpu", dtype="float32", engine="torch")
    found, whole = np.load(tmp_path / "v.npy"), bert.embed(TEXTS, precision=precision)
    assert found.dtype == whole.dtype and found.shape == (len(TEXTS), width)
    assert (found == whole).mean() > 0.99
    run(replace(config, precision=precision, output=tmp_path / "v.jsonl"))
    first = (tmp_path / "v.jsonl").read_text().splitlines()[0]
    assert json.loads(first) == pytest.approx(found[0].tolist(), abs=1e-3) and ("." in first) == (
        precision == "float16"
    )


def test_several_processes_give_the_same_rows(
    config: EmbedConfig, expected: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embed, "PART_CHARACTERS", 11 * 500)
    run(replace(config, device=("cpu", "cpu")))
    np.testing.assert_allclose(np.load(tmp_path / "v.npy"), expected, atol=1e-5)


def test_a_stop_loses_nothing_and_nothing_is_made_twice(
    config: EmbedConfig, expected: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embed, "PART_CHARACTERS", 10 * 500)
    real, made = embed._embed, []

    def stopped(bert: ModernBert, part: Any, config: EmbedConfig) -> Any:
        if len(made) == 3:
            made.append(0)
            raise KeyboardInterrupt
        made.append(len(part.texts))
        return real(bert, part, config)

    monkeypatch.setattr(embed, "_embed", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(config)
    assert not (tmp_path / "v.npy").exists()
    with pytest.raises(InputError, match="v.npy.parts: was started with pooling=None, found 'cls'; remove it"):
        run(replace(config, pooling="cls"))
    run(config)
    assert sum(made) == len(TEXTS), "each text once"
    np.testing.assert_allclose(np.load(tmp_path / "v.npy"), expected, atol=1e-6)
    assert not (tmp_path / "v.npy.parts").exists()


def test_a_killed_command_goes_on(config: EmbedConfig, tmp_path: Path) -> None:
    (tmp_path / "many.txt").write_text("".join(f"line {n}\n" for n in range(12_000)))
    words = ["embed", config.model, "--input", str(tmp_path / "many.txt"), "--output", str(tmp_path / "m.npy"),
             "--device", "cpu", "--dtype", "float32"]  # fmt: skip
    running = subprocess.Popen([sys.executable, "-m", "modernbert", *words], stderr=subprocess.DEVNULL)
    while not list((tmp_path / "m.npy.parts").glob("*.npy")):
        assert running.poll() is None
        time.sleep(0.02)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    assert not (tmp_path / "m.npy").exists()
    done = modernbert(*words)
    assert done.returncode == 0 and re.search(r"m.npy: \d+ of \d+ parts were finished before", done.stderr), done.stderr
    found = np.load(tmp_path / "m.npy")
    bert = ModernBert.load(config.model, device="cpu", dtype="float32")
    np.testing.assert_allclose(found[[0, 5_000, 11_999]], bert.embed(["line 0", "line 5000", "line 11999"]), atol=1e-5)
    assert len(found) == 12_000


@pytest.mark.parametrize(
    ("content", "changes", "said"),
    [
        (b'{"body": "a"}\n{"body": 3}\n', {}, "t.jsonl:2: field 'body' is int, expected a string"),
        (b'{"body": "a"}\n{"text": "b"}\n', {}, "t.jsonl:2: no field 'body', found 'text'"),
        (b'{"body": "a"}\n{"body": "\\ud800"}\n', {}, r"t.jsonl:2: found the unpaired surrogate U\+D800"),
        (b'{"body": "a"}\n\n{"body": "' + b"word " * 3000 + b'"}\n', {}, r"t.jsonl:3: has [\d,]+ tokens, expected at"),
        (b"", {}, "t.jsonl: found no text"),
        (b'{"body": "a"}\n', {"device": ("cpu", "nope")}, "device: found 'nope'"),
    ],
)
def test_what_cannot_be_embedded_is_named_by_its_line(
    content: bytes, changes: dict[str, Any], said: str, config: EmbedConfig, tmp_path: Path
) -> None:
    (tmp_path / "t.jsonl").write_bytes(content)
    with pytest.raises(InputError, match=said):
        run(replace(config, input=[tmp_path / "t.jsonl"], **changes))
    assert not (tmp_path / "v.npy").exists()


def test_a_url_is_read_like_a_file(config: EmbedConfig, expected: np.ndarray, tmp_path: Path) -> None:
    store = fsspec.filesystem("memory")
    store.pipe("/embed/texts.jsonl.gz", (tmp_path / "texts.jsonl.gz").read_bytes())
    run(replace(config, input=["memory://embed/texts.jsonl.gz"]))
    np.testing.assert_array_equal(np.load(tmp_path / "v.npy"), expected)
    with pytest.raises(InputError, match="memory://embed/absent.txt: no such file or folder"):
        run(replace(config, input=["memory://embed/absent.txt"]))


def test_a_file_that_is_not_there_is_one_line(config: EmbedConfig, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="absent.jsonl: cannot be read"):
        run(replace(config, input=[tmp_path / "absent.jsonl"]))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["texts.jsonl.gz"]


@pytest.mark.parametrize("name", [b"v\xe9.parquet", b"v\xe9.lance", b"v\xe9.npy"])
def test_names_that_are_no_text_are_written_or_one_line(name: bytes, config: EmbedConfig, tmp_path: Path) -> None:
    out, texts = (Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + each)) for each in (name, b"t\xe9.jsonl"))
    texts.write_text('{"body": "a"}\n')
    if name.endswith(b".npy"):
        run(replace(config, input=[texts], output=out))
        assert np.load(out).shape == (1, 64)
        return
    with pytest.raises(InputError, match="is a name that (pyarrow|lancedb) cannot write, expected UTF-8 text"):
        run(replace(config, input=[texts], output=out))
    assert sorted(tmp_path.iterdir()) == sorted([texts, tmp_path / "texts.jsonl.gz"])


@pytest.mark.parametrize("name", ["v.npy", "v.lance"])
def test_an_output_that_exists_is_replaced_only_when_asked(name: str, config: EmbedConfig, tmp_path: Path) -> None:
    words = ["embed", config.model, "--device", "cpu", "--dtype", "float32", "--output", str(tmp_path / name)]
    done = modernbert(*words, "--precision", "int8", "a text", "another")
    assert f"{tmp_path / name}: 2 vectors of 64 numbers, int8\n" in done.stderr
    done = modernbert(*words, "a text")
    assert done.returncode == 2
    assert re.search(rf"{name}: exists already, expected a new \w+, or --overwrite to replace it\n$", done.stderr)
    done = modernbert(*words, "--overwrite", given="one\ntwo\nthree\n")
    assert done.stderr.endswith(f"{tmp_path / name}: 3 vectors of 64 numbers, float32\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "texts.jsonl.gz"])


def test_texts_are_never_replaced_by_their_vectors(config: EmbedConfig, folder: Path, tmp_path: Path) -> None:
    texts = tmp_path / "t.jsonl"
    texts.write_text('{"body": "a"}\n')
    (tmp_path / "soft.jsonl").symlink_to(texts)
    (tmp_path / "hard.jsonl").hardlink_to(texts)
    for out in (texts, tmp_path / "soft.jsonl", tmp_path / "hard.jsonl", tmp_path / "x" / ".." / "t.jsonl"):
        (tmp_path / "x").mkdir(exist_ok=True)
        with pytest.raises(InputError, match=f"{out}: is read as texts, expected another name for their vectors"):
            run(replace(config, input=[*config.input, texts], output=out))
    done = modernbert("embed", str(folder), "--device", "cpu", "--output", str(texts), given=texts)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and "is read as texts" in done.stderr
    assert texts.read_text() == '{"body": "a"}\n'
    run(replace(config, input=[texts], output=tmp_path / "x.jsonl"))
    run(replace(config, input=[texts], output=tmp_path / "x.jsonl", overwrite=True))


LINES = b"\xef\xbb\xbffirst\r\n\r\nthi\x00rd\nlast"
ROWS = b'\xef\xbb\xbf{"text": "first"}\r\n\r\n{"text": ""}\n{"text": "thi\\u0000rd", "n": 1}\n \n{"text": "last"}'


@pytest.mark.parametrize(
    ("name", "content", "numbers"),
    [
        ("t.txt", LINES, [1, 2, 3, 4]),
        ("t.jsonl", ROWS, [1, 3, 4, 6]),
        ("t.JSONL", ROWS, [1, 3, 4, 6]),
        ("t.csv", b'\xef\xbb\xbftext,n\r\nfirst,1\r\n"",2\r\nthi\x00rd,3\r\n"last",4', [2, 3, 4, 5]),
        ("t.tsv", b"n\ttext\n1\tfirst\n2\t\n3\tthi\x00rd\n4\tlast", [2, 3, 4, 5]),
    ],
)
@pytest.mark.parametrize("packed", ["", ".gz", ".zst"])
def test_texts_are_read_as_they_stand_there(
    name: str, content: bytes, numbers: list[int], packed: str, tmp_path: Path
) -> None:
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[packed]
    path = tmp_path / f"{name}{packed}"
    path.write_bytes(pack(content))
    assert list(stream_texts([path])) == [
        (f"{path}:{number}", text) for number, text in zip(numbers, ["first", "", "thi\x00rd", "last"], strict=True)
    ]


def test_a_row_group_of_any_size_is_read_a_page_at_a_time(tmp_path: Path) -> None:
    """Beside a column that nobody asked for; as a table it would be a hundred megabytes."""
    import pyarrow
    import pyarrow.parquet

    random = np.random.default_rng(0)
    texts = [random.bytes(1_000).hex() for _ in range(30_000)]
    table = pyarrow.table({"text": texts, "image": [random.bytes(1_000) for _ in texts]})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet", row_group_size=len(texts))
    code = """
import sys
from pathlib import Path
import pyarrow.parquet
from modernbert.inference.text_inputs import stream_texts
def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) // 1024
before = peak()
print(sum(len(text) for _, text in stream_texts([Path(sys.argv[1])])), peak() - before)
"""
    words = [sys.executable, "-c", code, str(tmp_path / "t.parquet")]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    num_characters, grown_mib = map(int, done.stdout.split())
    assert num_characters == sum(map(len, texts))
    assert grown_mib < 50


def test_no_more_than_a_part_is_held() -> None:
    taken = []

    def texts() -> Any:
        for number in range(10_000):
            taken.append(number)
            yield TextRow(f"t:{number}", "word " * 1_000)

    parts = chunks_of(texts())
    first = next(parts)
    assert len(first.rows) == 400 and len(taken) == 401, "two million characters, and the text that was too many"
    assert [len(part.rows) for part in chunks_of([TextRow("t:1", "x" * 3_000_000), TextRow("t:2", "y")])] == [1, 1]


def piped(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def test_standard_input_is_read_like_a_file(
    config: EmbedConfig, expected: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    import pyarrow.parquet

    monkeypatch.setattr(embed, "PART_CHARACTERS", 10 * 500)
    content = "".join(f"{text}\n" for text in TEXTS).encode()
    config = replace(config, input=(), output=tmp_path / "p.parquet")
    real, made = embed._embed, []

    def stopped(bert: ModernBert, part: Any, config: EmbedConfig) -> Any:
        made.append(part.digest)
        if len(made) == 3:
            raise KeyboardInterrupt
        return real(bert, part, config)

    monkeypatch.setattr(embed, "_embed", stopped)
    piped(monkeypatch, content)
    with pytest.raises(KeyboardInterrupt):
        run(config)
    piped(monkeypatch, content)
    run(config)
    assert made[2] == made[3] and len(set(made)) == len(made) - 1 > 5
    table = pyarrow.parquet.read_table(tmp_path / "p.parquet")
    assert table["text"].to_pylist() == TEXTS
    np.testing.assert_allclose(np.array(table["vector"].to_pylist()), expected, atol=1e-6)
    capsys.readouterr()
    piped(monkeypatch, content)
    run(replace(config, output=None))
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    np.testing.assert_allclose(lines, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "standard input: found no text"), (b"a\n\xff\n", "standard input:2: found byte 0xff, expected UTF-8")],
)
def test_what_cannot_be_read_from_a_pipe_leaves_nothing(
    content: bytes, said: str, config: EmbedConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for out in (tmp_path / "v.npy", None):
        piped(monkeypatch, content)
        with pytest.raises(InputError, match=said):
            run(replace(config, input=(), output=out))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["texts.jsonl.gz"]


def test_what_cannot_be_read_twice_is_refused(config: EmbedConfig, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, said in ((tmp_path / "pipe", "is nothing that can be read twice"), (tmp_path, "is a folder")):
        with pytest.raises(InputError, match=f"{path}: {said}, expected a file, or texts on standard input"):
            run(replace(config, input=[path]))


def test_a_file_that_changes_while_it_is_read_is_told(
    config: EmbedConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = embed._embed

    def changing(bert: ModernBert, part: Any, config: EmbedConfig) -> Any:
        with gzip.open(tmp_path / "texts.jsonl.gz", "at") as file:
            file.write('{"body": "one more"}\n')
        return real(bert, part, config)

    monkeypatch.setattr(embed, "_embed", changing)
    with pytest.raises(InputError, match=r"texts.jsonl.gz:\d+: changed while it was read; the same command embeds"):
        run(config)
    assert not (tmp_path / "v.npy").exists()


@pytest.mark.parametrize("name", ["v.npy", "v.jsonl", "v.parquet", "v.lance"])
def test_a_disk_that_is_full_at_the_end_keeps_the_parts(
    name: str, config: EmbedConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embed, "PART_CHARACTERS", 60 * 500)
    parts = list(chunks_of((TextRow(f"t:{n}", text) for n, text in enumerate(TEXTS)), 60 * 500))
    # The file of a part is smaller than that; what all are written to at the end is not.
    most_bytes = 64 * 4 * max(len(part.rows) for part in parts) + 200
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, limits[1]))
    try:
        with pytest.raises(InputError, match=f"{name}: cannot be written|{name}: no space left"):
            run(replace(config, output=tmp_path / name))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not (tmp_path / name).exists()
    assert len(list((tmp_path / f"{name}.parts").glob("*.npy"))) == len(parts) > 1
    run(replace(config, output=tmp_path / name))
    assert (tmp_path / name).exists() and not (tmp_path / f"{name}.parts").exists()


def rows_of(texts: list[Any]) -> str:
    return "".join(json.dumps({"body": text}) + "\n" for text in texts)


def reused(said: str) -> tuple[int, int]:
    """Return how many parts were finished before, of how many."""
    found = re.search(r"(\d+) of (\d+) parts were finished before", said)
    return (int(found[1]), int(found[2])) if found else (0, 0)


MANY = [f"the capital of country {n} is city {n * 7}" for n in range(200)]


@pytest.mark.parametrize("wrong", [None, "word " * 3_000, 7])
def test_a_row_that_is_mended_after_a_stop_voids_no_finished_part(
    wrong: Any, config: EmbedConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(embed, "PART_CHARACTERS", 20 * 500)
    file = tmp_path / "t.jsonl"
    config = replace(config, input=[file])
    file.write_text(rows_of([*MANY[:150], wrong, *MANY[150:]]))
    with pytest.raises(InputError, match=f"{file}:151: "):
        run(config)
    begun = len(list((tmp_path / "v.npy.parts").glob("*.npy")))
    assert begun >= 10
    capsys.readouterr()
    # Another place, another time, without the row, and with one more at the beginning.
    moved = tmp_path / "moved.jsonl"
    moved.write_text(rows_of(["one more", *MANY]))
    file.unlink()
    run(replace(config, input=[moved]))
    before, of_all = reused(capsys.readouterr().err)
    assert begun - 2 <= before < of_all
    found = np.load(tmp_path / "v.npy")
    run(replace(config, input=[moved], output=tmp_path / "fresh.npy"))
    assert not reused(capsys.readouterr().err)[0]
    np.testing.assert_array_equal(found, np.load(tmp_path / "fresh.npy"))
    assert sorted(path.name for path in tmp_path.glob("*.parts")) == []


@pytest.mark.parametrize(
    ("change", "most"),
    [
        (lambda texts: texts, 0), (lambda texts: texts[:30] + texts[31:], 2), (lambda texts: ["new", *texts], 2),
        (lambda texts: [*texts[:100], "other", *texts[101:]], 3), (lambda texts: texts[20:], 1),
        (lambda texts: [*texts[:50], "x", "y", *texts[50:]], 2),
    ],
)  # fmt: skip
def test_a_change_of_rows_embeds_the_parts_around_it_alone(
    change: Any, most: int, config: EmbedConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(embed, "PART_CHARACTERS", 20 * 500)
    file = tmp_path / "t.jsonl"
    config = replace(config, input=[file])
    # The last row is bad: all parts before its own are finished.
    file.write_text(rows_of([*MANY, None]))
    with pytest.raises(InputError):
        run(config)
    file.write_text(rows_of(change(MANY)))
    capsys.readouterr()
    run(config)
    before, of_all = reused(capsys.readouterr().err)
    assert of_all - before <= most + 1
    bert = ModernBert.load(config.model, device="cpu", dtype="float32", engine="torch")
    np.testing.assert_allclose(np.load(tmp_path / "v.npy"), bert.embed(change(MANY)), atol=1e-5)


def test_parts_are_of_one_model_and_its_settings_and_not_of_an_earlier_version(
    config: EmbedConfig, tmp_path: Path, small_bert: ModernBert
) -> None:
    file = tmp_path / "t.jsonl"
    file.write_text(rows_of([*MANY, None]))
    config = replace(config, input=[file], on_error="skip", output=tmp_path / "v.parquet")
    parts = tmp_path / "v.parquet.parts"
    parts.mkdir()
    np.save(parts / "00000003.npy", np.zeros((2, 64), np.float32))
    with pytest.raises(
        InputError, match="v.parquet.parts: was started by an earlier version; remove it to start again"
    ):
        run(config)


BAD_ROWS = [*MANY[:10], None, *MANY[10:20], "word " * 3_000, 5, *MANY[20:40], ["x"]]
GOOD = [number for number, text in enumerate(BAD_ROWS) if isinstance(text, str) and len(text) < 1_000]


def test_skipped_rows_are_listed_and_every_output_keeps_the_numbers_of_the_others(
    config: EmbedConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import lancedb
    import pyarrow.parquet

    monkeypatch.setattr(embed, "PART_CHARACTERS", 40 * 500)
    file = tmp_path / "t.jsonl"
    file.write_text(rows_of(BAD_ROWS))
    bert = ModernBert.load(config.model, device="cpu", dtype="float32", engine="torch")
    expected = bert.embed([BAD_ROWS[number] for number in GOOD])
    config = replace(config, input=[file], on_error="skip")
    for name in ("v.jsonl", "v.parquet", "v.lance"):
        run(replace(config, output=tmp_path / name))
        said = capsys.readouterr().err
        assert [line.split(": ")[0] for line in said.splitlines() if line.startswith("skipped ")] == [
            *(f"skipped {file}:{number}" for number in (11, 22, 23, 44)),
            "skipped 4 in all",
        ]
        assert f"{file}:22: has 15,002 tokens" in said
    rows = [json.loads(line) for line in (tmp_path / "v.jsonl").read_text().splitlines()]
    table = pyarrow.parquet.read_table(tmp_path / "v.parquet").to_pylist()
    lance = lancedb.connect(tmp_path / "v.lance").open_table("vectors").to_arrow().to_pylist()
    for found in (rows, table, sorted(lance, key=lambda row: row["number"])):
        assert [row["number"] for row in found] == GOOD
        assert [row["origin"] for row in found] == [f"{file}:{number + 1}" for number in GOOD]
        np.testing.assert_allclose([row["vector"] for row in found], expected, atol=1e-5)
    assert [row["text"] for row in table] == [BAD_ROWS[number] for number in GOOD]
    with pytest.raises(
        InputError, match="v.npy: cannot say which rows were skipped; expected .jsonl, .parquet or .lance"
    ):
        run(config)


def test_a_null_vector_stands_for_each_row_that_has_none(
    config: EmbedConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import lancedb
    import pyarrow.parquet

    monkeypatch.setattr(embed, "PART_CHARACTERS", 40 * 500)
    file = tmp_path / "t.jsonl"
    file.write_text(rows_of(BAD_ROWS))
    config = replace(config, input=[file], on_error="null")
    for name in ("v.npy", "v.jsonl", "v.parquet", "v.lance"):
        run(replace(config, output=tmp_path / name))
        assert capsys.readouterr().err.count("skipped ") == 5
    array = np.load(tmp_path / "v.npy")
    assert array.shape == (len(BAD_ROWS), 64)
    assert np.flatnonzero(~np.isnan(array).any(axis=1)).tolist() == GOOD
    lines = [json.loads(line) for line in (tmp_path / "v.jsonl").read_text().splitlines()]
    table = pyarrow.parquet.read_table(tmp_path / "v.parquet")["vector"].to_pylist()
    rows = lancedb.connect(tmp_path / "v.lance").open_table("vectors")
    lance = [row["vector"] for row in sorted(rows.to_arrow().to_pylist(), key=lambda row: row["number"])]
    for found in (lines, table, lance):
        assert [number for number, vector in enumerate(found) if vector is not None] == GOOD
        np.testing.assert_allclose([found[number] for number in GOOD], array[GOOD], atol=1e-6)
    assert rows.search(array[0]).limit(1).to_list()[0]["number"] == 0
    with pytest.raises(InputError, match="precision: found 'int8', which has no NaN"):
        run(replace(config, precision="int8"))
    run(replace(config, precision="int8", output=tmp_path / "i.jsonl"))
    assert (tmp_path / "i.jsonl").read_text().splitlines().count("null") == 4
    with pytest.raises(InputError, match="on_error: found 'pass', expected 'fail', 'skip' or 'null'"):
        resolve(EmbedConfig, vars(config) | {"on_error": "pass"})


def test_a_stopped_command_goes_on_with_another_answer_to_bad_rows(
    config: EmbedConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(embed, "PART_CHARACTERS", 40 * 500)
    file = tmp_path / "t.jsonl"
    file.write_text(rows_of([*MANY[:100], "word " * 3_000, *MANY[100:]]))
    config = replace(config, input=[file], output=tmp_path / "v.jsonl")
    with pytest.raises(InputError, match=f"{file}:101: has 15,002 tokens"):
        run(config)
    capsys.readouterr()
    write = embed.check_writer(tmp_path / "v.jsonl")

    def full(*_: Any) -> None:
        raise InputError("no space left")

    monkeypatch.setattr(embed, "check_writer", lambda out, **_: full)
    with pytest.raises(InputError, match="no space left"):
        run(replace(config, on_error="skip"))
    monkeypatch.setattr(embed, "check_writer", lambda out, **_: write)
    with pytest.raises(InputError, match=f"{file}:101: has 15,002 tokens"):
        run(config)
    capsys.readouterr()
    run(replace(config, on_error="skip"))
    said = capsys.readouterr().err
    before, of_all = reused(said)
    assert before == of_all and f"skipped {file}:101: has 15,002 tokens" in said
    assert len((tmp_path / "v.jsonl").read_text().splitlines()) == len(MANY)


def test_what_is_left_of_a_damaged_file_is_skipped_and_has_no_null_vectors(
    config: EmbedConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = gzip.compress(b"".join(json.dumps({"body": f"{n} {n * n}"}).encode() + b"\n" for n in range(3_000)))
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "z.jsonl").write_text(rows_of(["last"]))
    files = [tmp_path / "cut.jsonl.gz", tmp_path / "z.jsonl"]
    config = replace(config, input=files, output=tmp_path / "v.jsonl")
    for on_error in ("fail", "null"):
        with pytest.raises(InputError, match="cut.jsonl.gz: ends too early"):
            run(replace(config, on_error=on_error))
    run(replace(config, on_error="skip"))
    rows = [json.loads(line) for line in (tmp_path / "v.jsonl").read_text().splitlines()]
    assert 100 < len(rows) < 2_900 and rows[-1]["origin"] == f"{tmp_path / 'z.jsonl'}:1"
    assert f"skipped {tmp_path / 'cut.jsonl.gz'}: ends too early" in capsys.readouterr().err


def test_many_rows_that_are_refused_cost_no_more_than_their_share(
    config: EmbedConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"a land {n}" if n % 3 else "word " * 1_200 for n in range(150)]
    (tmp_path / "t.jsonl").write_text(rows_of(texts))
    real, asked = ModernBert.embed, []

    def counted(bert: ModernBert, texts: list[str], **options: Any) -> np.ndarray:
        asked.append(len(texts))
        return real(bert, texts, **options)

    monkeypatch.setattr(ModernBert, "embed", counted)
    run(replace(config, input=[tmp_path / "t.jsonl"], output=tmp_path / "v.jsonl", on_error="skip"))
    assert len((tmp_path / "v.jsonl").read_text().splitlines()) == 100
    assert sum(asked) == len(texts)


def test_texts_beside_a_file_are_refused(config: EmbedConfig) -> None:
    assert config.input
    with pytest.raises(InputError, match=r"found texts and the file .*, expected one or the other"):
        run(replace(config, texts=["a text"]))
    assert config.output is not None and not config.output.exists()
