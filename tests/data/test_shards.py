import filecmp
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from modernbert.data.corpus import Document, Tally
from modernbert.data.shards import Shards, write_shards
from modernbert.errors import InputError
from modernbert.tokenizer.tokenizer import Tokenizer

TEXTS = [f"text number {n} " + "word and word again " * (n % 17) for n in range(300)]


def documents(texts: list[str] = TEXTS) -> Iterator[Document]:
    return (Document(text, str(n)) for n, text in enumerate(texts))


def write(folder: Path, tokenizer_folder: Path, **options: int) -> Path:
    write_shards(documents(), tokenizer_folder, folder, tally=Tally(), shard_chars=9_000, **options)
    return folder


@pytest.fixture
def folder(tmp_path: Path, tokenizer_folder: Path) -> Path:
    return write(tmp_path / "shards", tokenizer_folder)


def test_shards_give_back_every_document(folder: Path, tokenizer: Tokenizer) -> None:
    shards = Shards.open(folder)
    expected = tokenizer.encode(TEXTS, special=False)
    assert len(list(folder.glob("*.tokens"))) > 3
    assert shards.num_docs == len(TEXTS)
    assert shards.lengths.tolist() == [len(ids) for ids in expected]
    assert shards.num_tokens == sum(len(ids) for ids in expected)
    assert (shards.fingerprint, shards.vocab_size) == (tokenizer.fingerprint, tokenizer.vocab_size)
    for doc, ids in enumerate(expected):
        assert np.array_equal(shards.tokens(doc), ids)
        assert np.array_equal(shards.tokens(doc, 2, 5), ids[2:5])
        assert np.array_equal(shards.tokens(doc, 2, 10**6), ids[2:])
    with pytest.raises(ValueError, match="read-only"):
        shards.tokens(0)[0] = 1


def test_bytes_do_not_depend_on_the_number_of_processes(folder: Path, tmp_path: Path, tokenizer_folder: Path) -> None:
    done: list[int] = []
    write_shards(
        documents(),
        tokenizer_folder,
        tmp_path / "two",
        tally=Tally(),
        shard_chars=9_000,
        processes=2,
        progress=done.append,
    )
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "two").iterdir())
    assert filecmp.cmpfiles(folder, tmp_path / "two", names, shallow=False)[0] == names
    assert sum(done) == Shards.open(folder).num_tokens


def test_ids_take_two_bytes_up_to_65536_entries_and_four_above(
    folder: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    import tokenizers

    assert json.loads((folder / "index.json").read_text())["dtype"] == "uint16"
    core = tokenizers.Tokenizer.from_str(tokenizer._core.to_str())
    core.add_tokens([f"entry{n}" for n in range(66_000)])
    Tokenizer(core).save(tmp_path / "tokenizer.json")
    texts = ["plain", "entry65999 entry1"]
    write_shards(documents(texts), tmp_path / "tokenizer.json", tmp_path / "wide", tally=Tally())
    wide = Shards.open(tmp_path / "wide")
    assert wide.tokens(1).dtype == np.uint32
    assert wide.tokens(1)[0] == wide.vocab_size - 1 == 512 + 65_999


@pytest.mark.parametrize("verify", [True, False])
def test_a_cut_or_absent_file_is_named(folder: Path, verify: bool) -> None:
    path = folder / "shard-00001.tokens"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(InputError, match=rf"shard-00001\.tokens: has {size - 2:,} bytes, expected {size:,}"):
        Shards.open(folder, verify)
    path.unlink()
    with pytest.raises(InputError, match=r"shard-00001\.tokens: is missing"):
        Shards.open(folder, verify)


def test_a_changed_byte_is_found_by_verifying(folder: Path) -> None:
    path = folder / "shard-00002.tokens"
    content = bytearray(path.read_bytes())
    content[7] ^= 1
    path.write_bytes(content)
    with pytest.raises(
        InputError, match=r"shard-00002\.tokens: has sha256 \w+\.\.\., expected \w+\.\.\.; it was changed"
    ):
        Shards.open(folder)
    assert Shards.open(folder, verify=False).num_docs == len(TEXTS)


def test_offsets_that_contradict_the_index_are_found_without_verifying(folder: Path) -> None:
    path = folder / "shard-00000.offsets"
    offsets = np.fromfile(path, "<u8")
    offsets[3] = offsets[-1] + 9
    path.write_bytes(offsets.tobytes())
    with pytest.raises(InputError, match=r"shard-00000\.offsets: does not describe"):
        Shards.open(folder, verify=False)


def test_a_bad_index_is_named(folder: Path, tmp_path: Path) -> None:
    index = json.loads((folder / "index.json").read_text())
    cases = {
        "is not an index of shards": "{}",
        "is not an index of": "[1]",
        r"is not an index of shards \(JSONDecodeError": "{",
        "is modernbert-shards version 9, expected modernbert-shards version 1": json.dumps(index | {"version": 9}),
        r"index\.json: has no shards": json.dumps({k: v for k, v in index.items() if k != "shards"}),
    }
    for message, content in cases.items():
        (folder / "index.json").write_text(content)
        with pytest.raises(InputError, match=message):
            Shards.open(folder)
    (folder / "index.json").unlink()
    with pytest.raises(InputError, match="has no index.json"):
        Shards.open(folder)
    with pytest.raises(InputError, match="no such folder of shards"):
        Shards.open(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (["shards"], [], r"shards is \[\], expected at least one"),
        (["shards"], ["x"], r"shards\[0\] is 'x', expected an object"),
        (["num_docs"], 7, "num_docs is 7, expected 300"),
        (["num_tokens"], "x", "num_tokens is 'x', expected int"),
        (["dtype"], "uint32", "dtype is 'uint32', expected 'uint16'"),
        (["vocab_size"], -1, "vocab_size is -1, expected int"),
        (["shards", 1, "num_docs"], 3, r"shards\[1\]\.offsets\.bytes is \d+, expected 32"),
        (["shards", 1, "num_tokens"], 3, r"shards\[1\]\.tokens\.bytes is \d+, expected 6"),
        (["shards", 1, "tokens", "sha256"], None, r"shards\[1\]\.tokens\.sha256 is None, expected str"),
        (["shards", 0, "tokens", "file"], "../../x", r"shards\[0\]\.tokens\.file is '\.\./\.\./x', expected a name"),
    ],
)
def test_an_index_that_contradicts_itself_is_refused(
    folder: Path, place: list[str | int], value: object, message: str
) -> None:
    index = json.loads((folder / "index.json").read_text())
    entry = index
    for key in place[:-1]:
        entry = entry[key]
    entry[place[-1]] = value
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=rf"index\.json: {message}"):
        Shards.open(folder, verify=False)


def test_an_existing_folder_is_left_alone(folder: Path, tokenizer_folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(InputError, match="exists already"):
        write(folder, tokenizer_folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_while_reading_leaves_nothing_behind(tmp_path: Path, tokenizer_folder: Path, processes: int) -> None:
    def broken() -> Iterator[Document]:
        yield from documents()
        raise InputError("a.jsonl:7: is not JSON")

    with pytest.raises(InputError, match=r"a\.jsonl:7"):
        write_shards(
            broken(), tokenizer_folder, tmp_path / "out", tally=Tally(), shard_chars=5_000, processes=processes
        )
    with pytest.raises(InputError, match="no document to write"):
        write_shards(iter([]), tokenizer_folder, tmp_path / "out", tally=Tally())
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path, tokenizer_folder: Path) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, limit[1]))
    try:
        with pytest.raises(InputError, match=r"out: cannot be written \(File too large\)"):
            write(tmp_path / "out", tokenizer_folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, signal, sys
from modernbert.data.corpus import Document, Tally
from modernbert.data.shards import write_shards

def documents():
    for n in range(300):
        if n == 200:
            os.kill(os.getpid(), signal.SIGKILL)
        yield Document(f"text {n} and more of it", str(n))

write_shards(documents(), sys.argv[1], sys.argv[2], tally=Tally(), shard_chars=500)
"""


def test_leftovers_of_a_killed_run_are_removed_by_the_next(tmp_path: Path, tokenizer_folder: Path) -> None:
    out = tmp_path / "out"
    done = subprocess.run([sys.executable, "-c", KILLED, str(tokenizer_folder), str(out)], env=os.environ)
    assert done.returncode == -9
    assert [path.name for path in tmp_path.iterdir()] != []
    assert not out.exists()
    write(out, tokenizer_folder)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
