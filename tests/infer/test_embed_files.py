"""`modernbert embed` on files: every kind holds the same vectors, and a stop loses nothing."""

import gzip
import io
import json
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from commands import modernbert

from modernbert import InputError, ModernBert
from modernbert.infer.parts import parts_of
from modernbert.infer.texts import stream_texts
from modernbert.jobs import embed
from modernbert.jobs.embed import EmbedConfig, run

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
        str(folder), files=[tmp_path / "texts.jsonl.gz"], text_field="body", out=tmp_path / "v.npy", devices=("cpu",),
        dtype="float32", backend="banded",
    )  # fmt: skip


@pytest.fixture
def expected(folder: Path) -> np.ndarray:
    return ModernBert.load(folder, device="cpu", dtype="float32", backend="banded").embed(TEXTS)


@pytest.mark.parametrize("part_texts", [7, 4_000])
def test_every_kind_of_file_holds_the_same(
    part_texts: int, config: EmbedConfig, expected: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lancedb
    import pyarrow.parquet

    monkeypatch.setattr(embed, "PART_CHARACTERS", part_texts * 500)
    for name in ("v.npy", "v.jsonl", "v.parquet", "v.lance"):
        run(replace(config, out=tmp_path / name))
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
    bert = ModernBert.load(folder, device="cpu", dtype="float32", backend="banded")
    found, whole = np.load(tmp_path / "v.npy"), bert.embed(TEXTS, precision=precision)
    assert found.dtype == whole.dtype and found.shape == (len(TEXTS), width)
    assert (found == whole).mean() > 0.99
    run(replace(config, precision=precision, out=tmp_path / "v.jsonl"))
    first = (tmp_path / "v.jsonl").read_text().splitlines()[0]
    assert json.loads(first) == pytest.approx(found[0].tolist(), abs=1e-3) and ("." in first) == (
        precision == "float16"
    )


def test_several_processes_give_the_same_rows(
    config: EmbedConfig, expected: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embed, "PART_CHARACTERS", 11 * 500)
    run(replace(config, devices=("cpu", "cpu")))
    np.testing.assert_allclose(np.load(tmp_path / "v.npy"), expected, atol=1e-5)


def test_a_stop_loses_nothing_and_nothing_is_made_twice(
    config: EmbedConfig, expected: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embed, "PART_CHARACTERS", 10 * 500)
    real, made = embed._embed, []

    def stopped(bert: ModernBert, part: Any, config: EmbedConfig) -> tuple[int, np.ndarray]:
        if len(made) == 3:
            made.append(0)
            raise KeyboardInterrupt
        made.append(len(part[1]))
        return real(bert, part, config)

    monkeypatch.setattr(embed, "_embed", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(config)
    assert not (tmp_path / "v.npy").exists()
    with pytest.raises(InputError, match="v.npy.parts: was begun with pooling=None, found 'cls'; remove it"):
        run(replace(config, pooling="cls"))
    run(config)
    assert sum(made) == len(TEXTS), "each text once"
    np.testing.assert_allclose(np.load(tmp_path / "v.npy"), expected, atol=1e-6)
    assert not (tmp_path / "v.npy.parts").exists()


def test_a_killed_command_goes_on(config: EmbedConfig, tmp_path: Path) -> None:
    (tmp_path / "many.txt").write_text("".join(f"line {n}\n" for n in range(12_000)))
    words = ["embed", config.model, "--file", str(tmp_path / "many.txt"), "--out", str(tmp_path / "m.npy"),
             "--device", "cpu", "--dtype", "float32"]  # fmt: skip
    running = subprocess.Popen([sys.executable, "-m", "modernbert.cli", *words], stderr=subprocess.DEVNULL)
    while not (tmp_path / "m.npy.parts" / "00000000.npy").exists():
        assert running.poll() is None
        time.sleep(0.02)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    assert not (tmp_path / "m.npy").exists()
    done = modernbert(*words)
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "m.npy")
    bert = ModernBert.load(config.model, device="cpu", dtype="float32")
    np.testing.assert_allclose(found[[0, 5_000, 11_999]], bert.embed(["line 0", "line 5000", "line 11999"]), atol=1e-5)
    assert len(found) == 12_000


@pytest.mark.parametrize(
    ("content", "changes", "said"),
    [
        (b'{"body": "a"}\n{"body": 3}\n', {}, "t.jsonl:2: body is int, expected text"),
        (b'{"body": "a"}\n{"text": "b"}\n', {}, "t.jsonl:2: no column 'body', found 'text'"),
        (b'{"body": "a"}\n{"body": "\\ud800"}\n', {}, "t.jsonl:2: body has half of a character"),
        (b'{"body": "a"}\n\n{"body": "' + b"word " * 3000 + b'"}\n', {}, r"t.jsonl:3: has [\d,]+ tokens, expected at"),
        (b"", {}, "t.jsonl: found no text"),
        (b'{"body": "a"}\n', {"precision": "int4"}, "precision: found 'int4'"),
        (b'{"body": "a"}\n', {"devices": ("cpu", "nope")}, "device: found 'nope'"),
    ],
)
def test_what_cannot_be_embedded_is_named_by_its_line(
    content: bytes, changes: dict[str, Any], said: str, config: EmbedConfig, tmp_path: Path
) -> None:
    (tmp_path / "t.jsonl").write_bytes(content)
    with pytest.raises(InputError, match=said):
        run(replace(config, files=[tmp_path / "t.jsonl"], **changes))
    assert not (tmp_path / "v.npy").exists()


def test_a_file_that_is_not_there_is_one_line(config: EmbedConfig, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="absent.jsonl: cannot be read"):
        run(replace(config, files=[tmp_path / "absent.jsonl"]))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["texts.jsonl.gz"]


@pytest.mark.parametrize("name", [b"v\xe9.parquet", b"v\xe9.lance", b"v\xe9.npy"])
def test_names_that_are_no_text_are_written_or_one_line(name: bytes, config: EmbedConfig, tmp_path: Path) -> None:
    out, texts = (Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + each)) for each in (name, b"t\xe9.jsonl"))
    texts.write_text('{"body": "a"}\n')
    if name.endswith(b".npy"):
        run(replace(config, files=[texts], out=out))
        assert np.load(out).shape == (1, 64)
        return
    with pytest.raises(InputError, match="is a name that (pyarrow|lancedb) cannot write, expected UTF-8 text"):
        run(replace(config, files=[texts], out=out))
    assert sorted(tmp_path.iterdir()) == sorted([texts, tmp_path / "texts.jsonl.gz"])


def test_a_table_that_is_there_is_not_written_over(config: EmbedConfig, tmp_path: Path) -> None:
    run(replace(config, out=tmp_path / "v.lance"))
    with pytest.raises(InputError, match="v.lance: exists already"):
        run(replace(config, out=tmp_path / "v.lance"))


def test_texts_are_never_replaced_by_their_vectors(config: EmbedConfig, folder: Path, tmp_path: Path) -> None:
    texts = tmp_path / "t.jsonl"
    texts.write_text('{"body": "a"}\n')
    (tmp_path / "soft.jsonl").symlink_to(texts)
    (tmp_path / "hard.jsonl").hardlink_to(texts)
    for out in (texts, tmp_path / "soft.jsonl", tmp_path / "hard.jsonl", tmp_path / "x" / ".." / "t.jsonl"):
        (tmp_path / "x").mkdir(exist_ok=True)
        with pytest.raises(InputError, match=f"{out}: is read as texts, expected another name for their vectors"):
            run(replace(config, files=[*config.files, texts], out=out))
    done = modernbert("embed", str(folder), "--device", "cpu", "--out", str(texts), given=texts)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and "is read as texts" in done.stderr
    assert texts.read_text() == '{"body": "a"}\n'
    run(replace(config, files=[texts], out=tmp_path / "x.jsonl"))
    run(replace(config, files=[texts], out=tmp_path / "x.jsonl"))


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
from modernbert.infer.texts import stream_texts
def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) // 1024
begun = peak()
print(sum(len(text) for _, text in stream_texts([Path(sys.argv[1])])), peak() - begun)
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
            yield f"t:{number}", "word " * 1_000

    parts = parts_of(texts())
    _, first = next(parts)
    assert len(first) == 400 and len(taken) == 401, "two million characters, and the text that was too many"
    assert [len(part) for _, part in parts_of([("t:1", "x" * 3_000_000), ("t:2", "y")])] == [1, 1]


def piped(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def test_standard_input_is_read_like_a_file(
    config: EmbedConfig, expected: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    import pyarrow.parquet

    monkeypatch.setattr(embed, "PART_CHARACTERS", 10 * 500)
    content = "".join(f"{text}\n" for text in TEXTS).encode()
    config = replace(config, files=(), out=tmp_path / "p.parquet")
    real, made = embed._embed, []

    def stopped(bert: ModernBert, part: Any, config: EmbedConfig) -> tuple[int, np.ndarray]:
        made.append(part[0])
        if len(made) == 3:
            raise KeyboardInterrupt
        return real(bert, part, config)

    monkeypatch.setattr(embed, "_embed", stopped)
    piped(monkeypatch, content)
    with pytest.raises(KeyboardInterrupt):
        run(config)
    piped(monkeypatch, content + b"more\n")
    with pytest.raises(InputError, match=r"p.parquet.parts: was begun with files=\[\['standard input'"):
        run(config)
    piped(monkeypatch, content)
    run(config)
    assert made == [0, 1, 2, 2, 3, 4, 5]
    table = pyarrow.parquet.read_table(tmp_path / "p.parquet")
    assert table["text"].to_pylist() == TEXTS
    np.testing.assert_allclose(np.array(table["vector"].to_pylist()), expected, atol=1e-6)
    capsys.readouterr()
    piped(monkeypatch, content)
    run(replace(config, out=None))
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    np.testing.assert_allclose(lines, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "standard input: found no text"), (b"a\n\xff\n", "standard input:2: is not UTF-8 text")],
)
def test_what_cannot_be_read_from_a_pipe_leaves_nothing(
    content: bytes, said: str, config: EmbedConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for out in (tmp_path / "v.npy", None):
        piped(monkeypatch, content)
        with pytest.raises(InputError, match=said):
            run(replace(config, files=(), out=out))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["texts.jsonl.gz"]


def test_what_cannot_be_read_twice_is_refused(config: EmbedConfig, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, said in ((tmp_path / "pipe", "is nothing that can be read twice"), (tmp_path, "is a folder")):
        with pytest.raises(InputError, match=f"{path}: {said}, expected a file, or texts on standard input"):
            run(replace(config, files=[path]))


def test_a_file_that_changes_while_it_is_read_is_told(
    config: EmbedConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = embed._embed

    def changing(bert: ModernBert, part: Any, config: EmbedConfig) -> tuple[int, np.ndarray]:
        with gzip.open(tmp_path / "texts.jsonl.gz", "at") as file:
            file.write('{"body": "one more"}\n')
        return real(bert, part, config)

    monkeypatch.setattr(embed, "_embed", changing)
    with pytest.raises(InputError, match="texts.jsonl.gz: changed while it was read; remove .*v.npy.parts to begin"):
        run(config)
    assert not (tmp_path / "v.npy").exists()


@pytest.mark.parametrize(
    ("name", "part_texts", "most_bytes"),
    [("v.npy", 11, 6_000), ("v.jsonl", 11, 6_000), ("v.parquet", 11, 6_000), ("v.lance", 60, 14_000)],
)
def test_a_disk_that_is_full_at_the_end_keeps_the_parts(
    name: str, part_texts: int, most_bytes: int, config: EmbedConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Parts are smaller than that; what they are written to at the end is not.
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, limits[1]))
    monkeypatch.setattr(embed, "PART_CHARACTERS", part_texts * 500)
    try:
        with pytest.raises(InputError, match=f"{name}: cannot be written|{name}: no space left"):
            run(replace(config, out=tmp_path / name))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not (tmp_path / name).exists()
    assert len(list((tmp_path / f"{name}.parts").glob("*.npy"))) == -(-len(TEXTS) // part_texts)
    run(replace(config, out=tmp_path / name))
    assert (tmp_path / name).exists() and not (tmp_path / f"{name}.parts").exists()
