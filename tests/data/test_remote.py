"""Documents behind URLs: the same as on a disk, in the same order, every failure one line with the URL."""

import gzip
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from commands import modernbert

from modernbert.data.corpus import Tally, find_files, read_documents, stored_bytes
from modernbert.data.input_errors import BrokenInput, Outage
from modernbert.data.remote_files import dataset_url, find_remote
from modernbert.errors import InputError
from modernbert.tokenizer.bpe_training import train_tokenizer


def read(*sources: str, **options: Any) -> tuple[list[str], Tally]:
    tally = Tally()
    return [document.text for document in read_documents(sources, tally, **options)], tally


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Files of all formats whose names sort differently as strings and as parts of a path."""
    folder = tmp_path / "corpus"
    rows = "".join(json.dumps({"text": f"row {n}"}) + "\n" for n in range(3)).encode()
    contents = {
        "a/z.txt": b"\xef\xbb\xbfin the folder a",
        "a-b.md": b"beside the folder a",
        "a/b/c.py": b"x = 1\n",
        "rows.jsonl": rows,
        "rows.jsonl.gz": gzip.compress(rows),
        "rows.jsonl.zst": zstandard.compress(rows),
        ".git/x.txt": b"hidden",
        "node_modules/y.js": b"passed over",
        "picture.png": b"unknown",
    }
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    pq.write_table(pa.table({"text": [f"cell {n}" for n in range(200)]}), folder / "table.parquet")
    return folder


@pytest.fixture
def memory() -> Iterator[Any]:
    filesystem = fsspec.filesystem("memory")
    yield filesystem
    filesystem.store.clear()
    filesystem.pseudo_dirs[:] = [""]


def test_a_folder_gives_the_same_behind_every_url(corpus: Path, memory: Any) -> None:
    memory.put(str(corpus), "/store/corpus", recursive=True)
    texts, tally = read(str(corpus))
    assert len(texts) == 212 and tally.passed_over == 1
    for url in (f"file://{corpus}", "memory://store/corpus", "memory://store/corpus/"):
        assert read(url) == (texts, tally)
        assert stored_bytes([url]) == tally.stored_bytes
    origins = [document.origin for document in read_documents(["memory://store/corpus"], Tally())]
    assert origins[0] == "memory:///store/corpus/a/b/c.py"
    assert origins[-1] == "memory:///store/corpus/table.parquet:200"


def test_one_file_and_a_pattern_are_sources(corpus: Path, memory: Any) -> None:
    memory.put(str(corpus), "/store/corpus", recursive=True)
    assert read("memory://store/corpus/a-b.md")[0] == ["beside the folder a"]
    assert read("memory://store/corpus/rows.*")[0] == ["row 0", "row 1", "row 2"] * 3
    found = find_files([f"file://{corpus}/a/*.txt", corpus / "a-b.md", "memory://store/corpus/a-b.md"])
    assert [file.name for file in found] == ["z.txt", "a-b.md", "a-b.md"]


def test_errors_name_the_url(memory: Any) -> None:
    memory.pipe({"/bad/x.bin": b"x", "/bad/cut.txt.gz": gzip.compress(b"text" * 99)[:-5], "/bad/row.jsonl": b"{"})
    cases = {
        "memory://nowhere/a.txt": r"^memory://nowhere/a.txt: no such file or folder$",
        "memory://nowhere/*.txt": r"^memory://nowhere/\*.txt: no file there$",
        "memory://bad/x.bin": r"^memory:///bad/x.bin: unknown format '.bin'",
        "memory://bad/x*": r"^memory://bad/x\*: no file of a known format",
        "memory://bad/cut.txt.gz": r"^memory:///bad/cut.txt.gz: ends too early",
        "memory://bad/row.jsonl": r"^memory:///bad/row.jsonl:1: is not JSON",
        "foo://bucket/x": r"^foo://bucket/x: Protocol not known: foo; expected s3://",
    }
    for url, message in cases.items():
        with pytest.raises(InputError, match=message) as caught:
            read(url)
        assert "\n" not in str(caught.value)


def test_a_store_that_fails_is_no_broken_file(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failing network is an outage, not a damaged file, so its files must not be skipped."""

    class Cut(fsspec.spec.AbstractBufferedFile):
        def _fetch_range(self, start: int, end: int) -> bytes:
            raise ConnectionResetError("the line is dead\nat some length")

    rows = b'{"text": "a row"}\n' * 9
    table = io.BytesIO()
    pq.write_table(pa.table({"text": ["x"] * 99}), table)
    memory.pipe({"/s/a.jsonl": rows, "/s/a.jsonl.gz": gzip.compress(rows), "/s/a.jsonl.zst": zstandard.compress(rows)})
    memory.pipe("/s/a.parquet", table.getvalue())
    monkeypatch.setattr(type(memory), "_open", lambda self, path, mode="rb", **_: Cut(self, path, mode))
    for name in ("a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet"):
        with pytest.raises(Outage, match=rf"^memory:///s/{name}: cannot be read \(the line is dead\)$") as caught:
            read(f"memory://s/{name}", on_error="skip")
        assert not isinstance(caught.value, BrokenInput)


def test_a_failed_request_is_reported_with_its_reason(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """fsspec raises FileNotFoundError for every failure of HTTP, from the error of aiohttp."""

    class Response(Exception):
        def __init__(self, status: int, message: str) -> None:
            self.status, self.message = status, message

    cases = {
        r"cannot be read \(Cannot connect to host example.org:80\)": OSError("Cannot connect to host example.org:80"),
        r"cannot be read \(503 Service Unavailable\)": Response(503, "Service Unavailable"),
        "no such file or folder": Response(404, "Not Found"),
    }
    for said, cause in cases.items():

        def info(path: str, cause: Exception = cause) -> None:
            raise FileNotFoundError(path) from cause

        monkeypatch.setattr(memory, "info", info)
        monkeypatch.setattr("fsspec.core.url_to_fs", lambda url: (memory, url))
        with pytest.raises(InputError, match=f"^http://example.org/a.txt: {said}$"):
            find_remote("http://example.org/a.txt")


def test_a_name_of_a_dataset_is_its_url_unless_it_could_be_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus" / "here").mkdir(parents=True)
    assert dataset_url("owner/name-1.0") == "hf://datasets/owner/name-1.0"
    assert dataset_url("owner/name@refs/convert/parquet") == "hf://datasets/owner/name@refs/convert/parquet"
    for text in ("corpus/here", "corpus/misspelt", "./x", "../x", "one", "a/b/c", str(tmp_path)):
        assert dataset_url(text) is None
    for text, message in {
        "corpus/misspelt": "^corpus/misspelt: no such file or folder$",
        "owner/name.jsonl": "^owner/name.jsonl: no such file or folder$",
        "owner/name@v1": "^hf://datasets/owner/name@v1: cannot be read .*offline mode",
    }.items():
        with pytest.raises(InputError, match=message):
            find_files([text])


def test_files_of_a_dataset_are_those_the_hub_lists_without_its_card(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Down to the path that would be opened: the listing is given, nothing is fetched."""
    from huggingface_hub import HfFileSystem

    names = ["README.md", ".gitattributes", "data/train-1.parquet", "data/train-0.parquet", "data/README.md"]
    root = "datasets/owner/name@abc"
    listed = {f"{root}/{name}": {"name": name, "type": "file", "size": 7, "blob_id": f"id {name}"} for name in names}
    monkeypatch.setattr(HfFileSystem, "info", lambda self, path, **_: {"name": path, "type": "directory", "size": 0})
    monkeypatch.setattr(HfFileSystem, "find", lambda self, path, **_: listed if path == root else {})
    tally = Tally()
    files = find_files(["owner/name@abc"], tally)
    assert [str(file).removeprefix(f"hf://{root}/") for file in files] == [
        "data/README.md",
        "data/train-0.parquet",
        "data/train-1.parquet",
    ]
    assert tally.passed_over == 1
    ((_, first), *_) = find_remote("hf://datasets/owner/name@abc")
    assert (first.size, first.mark) == (7, "id .gitattributes")


def test_a_url_reaches_the_reader_as_it_was_typed(tmp_path: Path) -> None:
    train_tokenizer((f"a text {n}" for n in range(300)), 384).save(tmp_path)
    words = ["--input", "memory://nowhere/x", "--tokenizer", str(tmp_path), "--output", str(tmp_path / "out")]
    done = modernbert("prepare", *words)
    assert done.returncode == 2
    assert done.stderr == "modernbert: memory://nowhere/x: no such file or folder\n"
