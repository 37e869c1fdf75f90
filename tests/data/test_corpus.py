import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from modernbert.data.corpus import Tally, find_files, read_documents, stored_bytes
from modernbert.errors import InputError

TEXTS = ["first\ndocument", "zweites — 第二 \U0001f600", "third\0with NUL", " leading and trailing "]


def read(*paths: Path | str, **options: str) -> tuple[list[str], Tally]:
    tally = Tally()
    return [document.text for document in read_documents(paths, tally, **options)], tally


def write_jsonl(path: Path, rows: list[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_parquet(path: Path, texts: list[str | None] | pa.Array, column: str = "text") -> Path:
    pq.write_table(pa.table({column: texts, "other": [0] * len(texts)}), path, row_group_size=2)
    return path


@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
@pytest.mark.parametrize("suffix", [".txt", ".md", ".py", ".jsonl"])
def test_every_format_gives_back_its_texts(tmp_path: Path, suffix: str, packing: str) -> None:
    paths, pack = [], {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[packing]
    if suffix == ".jsonl":
        lines = "".join(json.dumps({"text": text, "id": n}) + "\n" for n, text in enumerate(TEXTS))
        paths.append(tmp_path / f"all{suffix}{packing}")
        paths[0].write_bytes(pack(lines.encode()))
    else:
        for n, text in enumerate(TEXTS):
            paths.append(tmp_path / f"{n}{suffix}{packing}")
            paths[-1].write_bytes(pack(text.encode()))
    texts, tally = read(*paths)
    assert texts == TEXTS
    assert (tally.documents, tally.empty, tally.repaired) == (4, 0, 0)
    assert tally.bytes == sum(len(text.encode()) for text in TEXTS)
    assert tally.stored_bytes == stored_bytes(paths) == sum(path.stat().st_size for path in paths)


def test_parquet_gives_back_its_texts_from_any_kind_of_string(tmp_path: Path) -> None:
    for kind in (pa.string(), pa.large_string(), pa.string_view()):
        path = write_parquet(tmp_path / "a.parquet", pa.array(TEXTS, kind), column="body")
        texts, tally = read(path, text_field="body")
        assert texts == TEXTS
        assert tally.stored_bytes == path.stat().st_size


def test_parquet_with_bytes_that_are_not_utf8_names_the_row(tmp_path: Path) -> None:
    broken = pa.Array.from_buffers(pa.string(), 2, pa.array([b"good", b"b\xffd"]).buffers())
    path = write_parquet(tmp_path / "a.parquet", broken)
    texts, tally = read(path)
    assert texts == ["good", "b\ufffdd"]
    assert tally.repaired == 1
    with pytest.raises(InputError, match=r"a\.parquet:2: found byte 0xff"):
        read(path, invalid="refuse")


def test_lines_and_paragraphs_are_documents_on_request(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\n\n   \nthree\nfour")
    assert read(path, txt_unit="line")[0] == ["one", "two", "three", "four"]
    assert read(path, txt_unit="paragraph")[0] == ["one\r\ntwo", "three\nfour"]
    assert read(path)[0] == ["one\r\ntwo\n\n   \nthree\nfour"]
    origins = [document.origin for document in read_documents([path], Tally(), txt_unit="paragraph")]
    assert origins == [f"{path}:1", f"{path}:5"]


def test_many_frames_and_members_in_one_archive_are_all_read(tmp_path: Path) -> None:
    parts = [b"one\ntw", b"o\nthree\n"]
    (tmp_path / "a.txt.zst").write_bytes(b"".join(map(zstandard.compress, parts)))
    (tmp_path / "b.txt.gz").write_bytes(b"".join(map(gzip.compress, parts)))
    assert read(tmp_path, txt_unit="line")[0] == ["one", "two", "three"] * 2


def test_a_folder_is_walked_in_name_order_without_hidden_and_unknown(tmp_path: Path) -> None:
    for name in ("b/2.txt", "b/1.py", "a.md", "c.bin", ".git/x.txt", "__pycache__/y.py", "node_modules/z.js", ".h.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "dangling.txt").symlink_to(tmp_path / "nowhere")
    assert [str(path.relative_to(tmp_path)) for path in find_files([tmp_path])] == ["a.md", "b/1.py", "b/2.txt"]


def test_white_space_is_counted_and_left_out(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": ""}, {"text": " \n\u2003"}, {"text": "x"}])
    texts, tally = read(path)
    assert texts == ["x"]
    assert (tally.documents, tally.empty) == (1, 2)


def test_broken_characters_are_repaired_and_counted_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "fine"}\n{"text": "cut \\ud83d here"}\n{"text": "byte \xff and \xc3\xa9"}\n')
    texts, tally = read(path)
    assert texts == ["fine", "cut \ufffd here", "byte \ufffd and \u00e9"]
    assert (tally.documents, tally.repaired) == (3, 2)
    with pytest.raises(InputError, match=r"a\.jsonl:2: found the unpaired surrogate U\+D83D"):
        read(path, invalid="refuse")
    plain = tmp_path / "b.txt"
    plain.write_bytes(b"one\ntwo\nthree \xe9t\xe9\n")
    assert read(plain)[0] == ["one\ntwo\nthree \ufffdt\ufffd\n"]
    with pytest.raises(InputError, match=r"b\.txt:3: found byte 0xe9"):
        read(plain, invalid="refuse")
    with pytest.raises(InputError, match=r"b\.txt:3: found byte 0xe9"):
        read(plain, invalid="refuse", txt_unit="line")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "x"', r"a\.jsonl:2: is not JSON"),
        ("not json", r"a\.jsonl:2: is not JSON"),
        ('["text"]', r"a\.jsonl:2: found a JSON list, expected an object"),
        ('{"body": "x"}', r"a\.jsonl:2: no field 'text', found 'body'"),
        ('{"text": 3}', r"a\.jsonl:2: field 'text' is int, expected a string"),
        ('{"text": null}', r"a\.jsonl:2: field 'text' is null"),
        ('{"text":' + "[" * 200_000, r"a\.jsonl:2: JSON nested too deeply"),
    ],
)
def test_a_bad_json_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"text": "good"}}\n{line}\n')
    with pytest.raises(InputError, match=message):
        read(path)


@pytest.mark.parametrize("packing", [".gz", ".zst"])
def test_a_cut_archive_never_passes_for_a_short_one(tmp_path: Path, packing: str) -> None:
    plain = "".join(f"line {n * n}\n" for n in range(20_000)).encode()
    compress = gzip.compress if packing == ".gz" else zstandard.ZstdCompressor(write_checksum=True).compress
    whole = compress(plain)
    path = tmp_path / f"a.txt{packing}"
    for size in (len(whole) // 2, len(whole) - 1, 3):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match=rf"a\.txt\{packing}: "):
            read(path, txt_unit="line")
    path.write_bytes(b"no archive at all")
    with pytest.raises(InputError, match=rf"a\.txt\{packing}: "):
        read(path)
    middle = bytearray(whole)
    middle[len(whole) // 2] ^= 0xFF
    path.write_bytes(middle)
    with pytest.raises(InputError, match=rf"a\.txt\{packing}: "):
        read(path)


def test_bad_parquet_is_named(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", ["x"] * 10)
    with pytest.raises(InputError, match=r"no column 'body', found 'text', 'other'"):
        read(path, text_field="body")
    with pytest.raises(InputError, match=r"column 'other' is int64, expected strings"):
        read(path, text_field="other")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"a\.parquet: is not readable as parquet"):
        read(path)
    write_parquet(path, ["x", None])
    with pytest.raises(InputError, match=r"a\.parquet:2: column 'text' is null"):
        read(path)


def test_bad_paths_and_options_are_named_before_anything_is_read(tmp_path: Path) -> None:
    tally = Tally()
    (tmp_path / "empty").mkdir()
    (tmp_path / "x.bin").write_text("x")
    (tmp_path / "x.txt").write_text("x")
    cases = {
        "no such file or folder": [tmp_path / "nowhere"],
        "no file of a known format": [tmp_path / "empty"],
        r"unknown format '\.bin'": [tmp_path / "x.bin"],
        "found none": [],
    }
    for message, paths in cases.items():
        with pytest.raises(InputError, match=message):
            read_documents(paths, tally)
    with pytest.raises(InputError, match="txt_unit: found 'word'"):
        read_documents([tmp_path / "x.txt"], tally, txt_unit="word")
    with pytest.raises(InputError, match="invalid: found 'drop'"):
        read_documents([tmp_path / "x.txt"], tally, invalid="drop")


def test_a_corpus_without_any_text_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(" \n")
    (tmp_path / "b.jsonl").write_text("")
    with pytest.raises(InputError, match="no document with text in 2 files"):
        read(tmp_path)
