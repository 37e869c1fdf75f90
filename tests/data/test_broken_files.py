"""Files that are broken in every way known: an error that names them, or a count; never a crash or a silent loss."""

import gzip
import json
import os
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from modernbert.data.corpus import Tally, read_documents
from modernbert.errors import InputError

LINES = [json.dumps({"text": f"document {n} " + "word " * (40 + n)}) for n in range(60)]
PLAIN = ("\n".join(LINES) + "\n").encode()
GOOD = [json.loads(line)["text"] for line in LINES]


def parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=10)
    return sink.getvalue().to_pybytes()


PARQUET = parquet(pa.table({"text": GOOD}))
GZ, ZST = gzip.compress(PLAIN), zstandard.compress(PLAIN)


def cut(data: bytes, share: float) -> bytes:
    return data[: int(len(data) * share)]


def flipped(data: bytes, share: float) -> bytes:
    place = int(len(data) * share)
    return data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :]


def row(line: bytes) -> bytes:
    """Put one line between good ones."""
    return b"\n".join([LINES[0].encode(), line, LINES[1].encode()]) + b"\n"


ROWS = {
    "not json": b"text",
    "cut": b'{"text": "x',
    "no colon": b'{"text" "x"}',
    "two values": b'{"text": "x"} {"text": "y"}',
    "trailing comma": b'{"text": "x",}',
    "single quotes": b"{'text': 'x'}",
    "a list": b'["text"]',
    "a string": b'"text"',
    "a number": b"7",
    "null": b"null",
    "no field": b'{"body": "x"}',
    "no fields": b"{}",
    "text is null": b'{"text": null}',
    "text is a number": b'{"text": 7}',
    "text is a list": b'{"text": ["x"]}',
    "text is an object": b'{"text": {"a": "x"}}',
    "text is true": b'{"text": true}',
    "deep": b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "huge integer": b'{"text": ' + b"9" * 10_000 + b"}",
    "control character": b'{"text": "a\x01b"}',
    "bad escape": b'{"text": "\\x41"}',
    "cut escape": b'{"text": "\\u12"}',
    "bare word": b'{"text": undefined}',
    "utf-16 line": '{"text": "x"}'.encode("utf-16-le"),
    "only a brace": b"{",
    "comment": b'{"text": "x"} // why',
    "bom in the middle": b'\xef\xbb\xbf{"text": "x"}',
}

FILES: dict[str, bytes] = {
    **{f"cut{share}.jsonl.gz": cut(GZ, share) for share in (0.02, 0.3, 0.6, 0.9, 0.999)},
    **{f"flipped{share}.jsonl.gz": flipped(GZ, share) for share in (0.001, 0.4, 0.99)},
    **{f"cut{share}.jsonl.zst": cut(ZST, share) for share in (0.1, 0.5, 0.99)},
    "flipped.jsonl.zst": flipped(zstandard.ZstdCompressor(write_checksum=True).compress(PLAIN), 0.5),
    "tail.jsonl.zst": ZST + b"garbage",
    "plain.jsonl.gz": PLAIN,
    "plain.jsonl.zst": PLAIN,
    "gzip.jsonl.zst": GZ,
    "tail.jsonl.gz": GZ + b"garbage",
    "gzip.jsonl": GZ,
    "zeros.jsonl": bytes(4096),
    "noise.jsonl": bytes(range(256)) * 16,
    "utf16.jsonl": PLAIN.decode().encode("utf-16"),
    "utf16.txt": "some text".encode("utf-16"),
    **{f"cut{share}.parquet": cut(PARQUET, share) for share in (0.0, 0.01, 0.5, 0.95)},
    **{f"flipped{share}.parquet": flipped(PARQUET, share) for share in (0.9999, 0.9995)},
    "lines.parquet": PLAIN,
    "integers.parquet": parquet(pa.table({"text": [1, 2]})),
    "lists.parquet": parquet(pa.table({"text": [["a"], ["b"]]})),
    "bytes.parquet": parquet(pa.table({"text": [b"a", b"b"]})),
    "structs.parquet": parquet(pa.table({"text": [{"a": "x"}]})),
    "body.parquet": parquet(pa.table({"body": ["x"]})),
    "columns.parquet": parquet(pa.table({f"c{n}": ["x"] for n in range(300)})),
    "null.parquet": parquet(pa.table({"text": ["x", None, "y"]})),
    "nulls.parquet": parquet(pa.table({"text": pa.nulls(3)})),
    **{f"{name}.jsonl": row(line) for name, line in ROWS.items()},
}


def read(folder: Path, **options: str) -> tuple[list[str], Tally]:
    tally = Tally()
    return [document.text for document in read_documents([folder], tally, **options)], tally


def corpus(folder: Path) -> Path:
    """Write healthy files before and behind the broken one."""
    (folder / "a.jsonl").write_bytes(PLAIN)
    (folder / "z.txt").write_text("the last")
    return folder


def test_there_are_more_than_sixty() -> None:
    assert len(FILES) >= 60


@pytest.mark.parametrize("name", FILES)
def test_a_broken_file_is_named_or_counted(tmp_path: Path, name: str) -> None:
    path = corpus(tmp_path) / f"m {name}"
    path.write_bytes(FILES[name])
    with pytest.raises(InputError) as caught:
        read(tmp_path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700 + len(str(path))
    texts, tally = read(tmp_path, on_error="skip")
    assert texts[:60] == GOOD and texts[-1] == "the last"
    assert tally.skipped >= 1 and tally.skipped_reasons[0].startswith(str(path))
    assert len(texts) == tally.documents
    if name.removesuffix(".jsonl") in ROWS:  # the rows around it are read
        assert texts[60:-1] == GOOD[:2] and tally.skipped == 1
    elif "cut" in name and ".gz" in name:  # the rows before the end of the file are read
        assert texts[60:-1] == GOOD[: len(texts) - 61]


HARMLESS: dict[str, tuple[bytes, list[str]]] = {
    "empty.jsonl": (b"", []),
    "empty.txt": (b"", []),
    "empty.jsonl.gz": (gzip.compress(b""), []),
    "blank lines.jsonl": (b"\n \n" + LINES[0].encode() + b"\n\n", GOOD[:1]),
    "no last line break.jsonl": (LINES[0].encode(), GOOD[:1]),
    "windows.jsonl": (b"\xef\xbb\xbf" + LINES[0].encode() + b"\r\n", GOOD[:1]),
    "twice.jsonl": (b'{"text": "first", "text": "second"}', ["second"]),
    "surrogate.jsonl": (b'{"text": "a\\ud800b"}', ["a\ufffdb"]),
    "latin.txt": ("é".encode("latin-1"), ["\ufffd"]),
    "nul.txt": (b"a\0b", ["a\0b"]),
    "no rows.parquet": (parquet(pa.table({"text": pa.array([], pa.string())})), []),
    "big integer beside.jsonl": (b'{"text": "x", "n": ' + b"9" * 4000 + b"}", ["x"]),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_harmless_files_are_read(tmp_path: Path, name: str) -> None:
    content, expected = HARMLESS[name]
    (corpus(tmp_path) / f"m {name}").write_bytes(content)
    texts, tally = read(tmp_path)
    assert texts == [*GOOD, *expected, "the last"]
    assert tally.skipped == 0


def test_places_that_hold_no_file(tmp_path: Path) -> None:
    corpus(tmp_path)
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "gone.jsonl").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.jsonl")
    texts, tally = read(tmp_path)
    assert texts == [*GOOD, "the last"] and tally.passed_over == 2
    for name in ("gone.jsonl", "pipe.jsonl"):
        with pytest.raises(InputError, match=name):
            list(read_documents([tmp_path / name], Tally()))


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    (corpus(tmp_path) / "m.jsonl").write_bytes(PLAIN)
    (tmp_path / "m.jsonl").chmod(0)
    with pytest.raises(InputError, match=r"m\.jsonl: cannot be read"):
        read(tmp_path)
    assert read(tmp_path, on_error="skip")[1].skipped == 1


def test_a_library_that_is_absent_is_no_broken_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl.zst").write_bytes(ZST)
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(InputError, match="a.jsonl.zst: zstandard is not installed"):
        read(tmp_path, on_error="skip")
