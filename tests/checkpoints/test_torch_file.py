"""Files that a stranger made: each is refused with one line, or read as data, and none of it ever runs."""

import copy
import io
import os
import pickle
import pickletools
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from modernbert.checkpoints import pickle_reader as pickled
from modernbert.checkpoints.pickle_reader import Call, Persistent, read_pickle
from modernbert.checkpoints.torch_file import open_torch_file, stored_tensor
from modernbert.errors import InputError


class Command:
    """Writes a file when it is unpickled."""

    canary = Path("never")

    def __reduce__(self) -> Any:
        return (os.system, (f"touch {self.canary}",))


@pytest.fixture(autouse=True)
def _nothing_is_ever_unpickled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("something was unpickled")

    monkeypatch.setattr(Command, "canary", tmp_path / "canary")
    for name in ("load", "loads", "Unpickler", "_Unpickler", "_load", "_loads"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    yield
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("protocol", range(6))
def test_a_call_in_any_protocol_is_a_mark_and_what_is_around_it_is_read(protocol: int) -> None:
    content = {"a": [1, -2, 2**70, 1.5, True, None, b"x", "é\n"], "b": Command(), "c": ({}, (), (1,), (1, 2, 3, 4))}
    found = read_pickle(pickle.dumps(content, protocol=protocol))
    assert isinstance(found["b"], Call) and found["b"].name.endswith(".system")
    assert found["a"][:6] + found["a"][7:] == [1, -2, 2**70, 1.5, True, None, "é\n"]
    assert found["c"] == content["c"]


@pytest.mark.parametrize("protocol", range(6))
def test_plain_data_reads_as_it_is(protocol: int) -> None:
    content: Any = {str(n): [n, float(n), [str(n)] * 3, {"x": (n, None)}] for n in range(60)}
    assert read_pickle(pickle.dumps(content, protocol=protocol)) == content
    assert read_pickle(pickletools.optimize(pickle.dumps(content, protocol=protocol))) == content


def test_a_list_within_itself_is_read_and_never_walked() -> None:
    content: list[Any] = [1]
    content.append(content)
    found = read_pickle(pickle.dumps(content))
    assert found[1] is found


def test_a_table_keeps_text_keys_alone() -> None:
    deep: Any = ()
    for _ in range(300):
        deep = (deep,)
    assert read_pickle(pickle.dumps({"a": 1, 2: 3, deep: 4, 1.5: 5, 2**61: 6})) == {"a": 1}
    # Too deep to compute the hash of such a key recursively.
    towering = b"\x80\x04})" + b"\x85" * 5_000 + b"K\x01s."
    assert read_pickle(towering) == {}


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", "damaged"),
        (b".", "pops an empty stack"),
        (b"\x80\x02}", "exhausted before seeing STOP"),
        (b"\x80\x02(K\x01", "exhausted"),
        (b"u.", "needs a mark"),
        (b"}(K\x01u.", "a key without a value"),
        (b"h\x05.", "is not in the memo"),
        (b"Np9999999999999999\n.", "memo is too large"),
        (b"Np-1\n.", "memo is too large"),
        (b"K\x01K\x02\x93.", "an import is not a name"),
        (b"\x82\x01.", "uses EXT1"),
        (b"\x97.", "uses NEXT_BUFFER"),
        (b"(o.", "an object has no class"),
        (b"\xff.", "damaged"),
        (b"B\xff\xff\xff\x7fabc.", "damaged"),
        (b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7fabc.", "damaged"),
        (b"\x8b\xff\xff\xff\x7f1.", "damaged"),
        (b"L" + b"9" * 100_000 + b"L\n.", "damaged"),
        (b"V\\u12\n.", "damaged"),
        (b"(K\x01(K\x02R.", "pops an empty stack"),
        (b"0.", "pops an empty stack"),
    ],
)  # fmt: skip
def test_a_broken_pickle_is_one_line(content: bytes, line: str) -> None:
    with pytest.raises(InputError, match=line) as told:
        read_pickle(content)
    assert "\n" not in str(told.value) and len(str(told.value)) < 200


def test_every_cut_of_a_pickle_is_one_line_or_less_of_the_same() -> None:
    content = pickle.dumps({"a": [1.5, "x", Command(), (1, 2, 3)], "b": {"c": b"d"}}, protocol=4)
    for end in range(len(content)):
        with pytest.raises(InputError):
            read_pickle(content[:end])
    generator = torch.Generator().manual_seed(0)
    for _ in range(500):
        place, byte = (int(torch.randint(0, most, (), generator=generator)) for most in (len(content), 256))
        try:
            read_pickle(content[:place] + bytes([byte]) + content[place + 1 :])
        except InputError:
            pass


def test_steps_and_bytes_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickled, "MAX_OPCODES", 1_000)
    with pytest.raises(InputError, match="more than 1,000 opcodes"):
        read_pickle(b"]" * 2_000 + b".")
    monkeypatch.setattr(pickled, "MAX_BYTES", 1_000)
    with pytest.raises(InputError, match="expected at most 1,000"):
        read_pickle(b"N" * 1_001)


@pytest.mark.parametrize("opcodes", [b"cos\nsystem\n", b"\x8c\x02os\x8c\x06system\x93"])
@pytest.mark.parametrize("make", [b"\x8c\x01x\x85R", b"\x8c\x01x\x85\x81", b"\x8c\x01x\x85}\x92", b")R}b", b")R]a"])
def test_every_way_to_call_is_a_mark(opcodes: bytes, make: bytes) -> None:
    found = read_pickle(b"\x80\x04" + opcodes + make + b".")
    assert isinstance(found, Call) and found.name == "os.system"


def test_old_ways_to_make_objects_are_marks() -> None:
    for content in (b"(S'x'\nios\nsystem\n.", b"(cos\nsystem\nS'x'\no."):
        found = read_pickle(content)
        assert isinstance(found, Call) and (found.name, found.args) == ("os.system", ("x",))
    assert isinstance(read_pickle(b"Pkey\n."), Persistent)


def saved(content: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


def zipped(members: dict[str, bytes], kind: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", kind) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def members_of(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def tensor_of(path: Path, content: bytes) -> torch.Tensor:
    """Write bytes and read their tensor `x`."""
    path.write_bytes(content)
    with open_torch_file(path) as file:
        return file.tensors({"x": stored_tensor(file.content["x"], "x")})["x"]


X = torch.arange(24.0).reshape(4, 6)


@pytest.mark.parametrize(
    "tensor",
    [
        X, X.T, X[1:3, 2:5], X[:, ::2], X.half(), X.bfloat16(), X.double(), X[0, 3], torch.nn.Parameter(X),
        torch.nn.Parameter(X.T), X[None, :, None],
    ],
)  # fmt: skip
@pytest.mark.parametrize("protocol", [2, 5])
def test_tensors_of_every_form_are_read_to_the_bit(tmp_path: Path, tensor: torch.Tensor, protocol: int) -> None:
    found = tensor_of(tmp_path / "c.pt", saved({"x": tensor}, pickle_protocol=protocol))
    assert found.dtype == tensor.dtype and found.equal(tensor.detach())


def test_tensors_with_attributes_and_those_of_subclasses_are_read(tmp_path: Path) -> None:
    tensor = torch.nn.Parameter(X.clone())
    tensor.note = Command()  # type: ignore[attr-defined]
    assert tensor_of(tmp_path / "c.pt", saved({"x": tensor})).equal(X)


Part = Callable[[dict[str, bytes]], Any]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda m: m.update({"archive/data/0": m["archive/data/0"][:-4]}), "has 92 bytes, expected 96"),
        (lambda m: m.update({"archive/data/0": m["archive/data/0"] * 2}), "has 192 bytes, expected 96"),
        (lambda m: m.pop("archive/data/0"), "is in the storage '0', which the file does not have"),
        (lambda m: m.pop("archive/data.pkl"), "has no data.pkl"),
        (lambda m: m.update({"archive/byteorder": b"big"}), "byte order b'big'"),
        (lambda m: m.update({"../../etc/x": b""}), "which no file of torch.save has"),
        (lambda m: m.update({"/etc/passwd": b""}), "which no file of torch.save has"),
        (lambda m: m.update({"archive/..\\x": b""}), "which no file of torch.save has"),
        (lambda m: m.update({"x": b""}), "which no file of torch.save has"),
        (lambda m: m.update({"other/data/0": b""}), "twice|2 folders"),
        (lambda m: m.update({"archive//data/0": b""}), "twice"),
        (lambda m: m.update({"archive/constants.pkl": b""}), "a program of TorchScript"),
    ],
)  # fmt: skip
def test_an_archive_of_another_form_is_one_line(tmp_path: Path, change: Part, line: str) -> None:
    members = members_of(saved({"x": X}))
    folder = next(iter(members)).split("/")[0]
    members = {name.replace(folder, "archive", 1): content for name, content in members.items()}
    change(members)
    with pytest.raises(InputError, match=line) as told:
        tensor_of(tmp_path / "c.pt", zipped(members))
    assert "\n" not in str(told.value)


def test_compressed_members_and_overlapping_ones_are_refused(tmp_path: Path) -> None:
    members = members_of(saved({"x": torch.zeros(100_000)}))
    with pytest.raises(InputError, match="is compressed, which torch.save never does"):
        tensor_of(tmp_path / "c.pt", zipped(members, zipfile.ZIP_DEFLATED))
    # The directory of an archive may name the same bytes many times.
    with zipfile.ZipFile(tmp_path / "c.pt", "w") as archive:
        archive.writestr("a/data.pkl", b"N." * 5_000)
        for number in range(5):
            again = copy.copy(archive.filelist[0])
            again.filename = f"a/data/{number}"
            archive.filelist.append(again)
    with pytest.raises(InputError, match="members overlap"), open_torch_file(tmp_path / "c.pt"):
        pass


def test_bytes_that_changed_are_told(tmp_path: Path) -> None:
    content = bytearray(saved({"x": X}))
    place = content.index(X[0].numpy().tobytes())
    content[place + 5] ^= 1
    with pytest.raises(InputError, match="data/0 is damaged"):
        tensor_of(tmp_path / "c.pt", bytes(content))


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (saved({"x": X}, _use_new_zipfile_serialization=False), "before torch 1.6"),
        (pickle.dumps({"x": 1}), "a bare pickle"),
        (b"\0" * 257 + b"ustar" + b"\0" * 300, "a tar archive"),
        (b"", "is not readable"),
        (saved({"x": X})[:-30], "is not readable"),
        (b"hello", "is not readable"),
    ],
)  # fmt: skip
def test_what_is_no_archive_is_named(tmp_path: Path, content: bytes, line: str) -> None:
    with pytest.raises(InputError, match=f"{line}.*expected a zip file of torch.save"):
        tensor_of(tmp_path / "c.pt", content)
    with pytest.raises(InputError, match="no such file"), open_torch_file(tmp_path / "other.pt"):
        pass
    with pytest.raises(InputError, match="is a folder"), open_torch_file(tmp_path):
        pass


STORAGE = Persistent(("storage", pickled.Imported("torch.FloatStorage"), "0", "cpu", 24))


def rebuilt(*args: Any, name: str = "torch._utils._rebuild_tensor_v2") -> Call:
    return Call(name, args)


@pytest.mark.parametrize(
    "value",
    [
        rebuilt(STORAGE, -1, (2,), (1,), False, None),
        rebuilt(STORAGE, 0, (2,), (-1,), False, None),
        rebuilt(STORAGE, 0, (-2,), (1,), False, None),
        rebuilt(STORAGE, 0, (25,), (1,), False, None),
        rebuilt(STORAGE, 20, (5,), (1,), False, None),
        rebuilt(STORAGE, 0, (5,), (6,), False, None),
        rebuilt(STORAGE, 0, (24, 24), (0, 0), False, None),
        rebuilt(STORAGE, 0, (2**40,), (0,), False, None),
        rebuilt(STORAGE, 0, (0,), (1,), False, None),
        rebuilt(STORAGE, 0, (2, 2), (1,), False, None),
        rebuilt(STORAGE, 0, [2], [1], False, None),
        rebuilt(STORAGE, 0, (True,), (1,), False, None),
        rebuilt(STORAGE, 0, (2.0,), (1,), False, None),
        rebuilt(STORAGE, 0, (1,) * 9, (1,) * 9, False, None),
        rebuilt(STORAGE, 0, (2,), (1,), False, None, {"neg": True}),
        rebuilt(STORAGE, 0),
        rebuilt("0", 0, (2,), (1,), False, None),
        rebuilt(Persistent("storage"), 0, (2,), (1,), False, None),
        rebuilt(Persistent(("module", 1, 2, 3, 4)), 0, (2,), (1,), False, None),
        rebuilt(Persistent(("storage", "torch.FloatStorage", "0", "cpu", 24)), 0, (2,), (1,), False, None),
        rebuilt(Persistent(("storage", STORAGE.key[1], 0, "cpu", 24)), 0, (2,), (1,), False, None),
        rebuilt(Persistent(("storage", STORAGE.key[1], "0", "cpu", -1)), 0, (2,), (1,), False, None),
        rebuilt(Persistent(("storage", pickled.Imported("torch.LongStorage"), "0", "cpu", 24)), 0, (2,), (1,)),
        rebuilt(Persistent(("storage", pickled.Imported("os.system"), "0", "cpu", 24)), 0, (2,), (1,)),
        rebuilt(STORAGE, 0, (2,), (1,), name="torch._utils._rebuild_sparse_tensor"),
        rebuilt(STORAGE, 0, (2,), (1,), name="os.system"),
        rebuilt(rebuilt(STORAGE, 0, (2,), (1,)), name="torch._utils._rebuild_parameter\n"),
        Call("torch._tensor._rebuild_from_type_v2", ("x", "y", ())),
        None, 1, "x", [1.0], {},
    ],
)  # fmt: skip
def test_descriptions_that_reach_beyond_their_storage_are_refused(value: Any) -> None:
    with pytest.raises(InputError, match=r"^'weight' ") as told:
        stored_tensor(value, "weight")
    assert "\n" not in str(told.value) and len(str(told.value)) < 250


def test_one_storage_for_many_tensors_makes_no_more_than_the_file_has(tmp_path: Path) -> None:
    (tmp_path / "c.pt").write_bytes(saved({"x": torch.zeros(10_000)}))
    with open_torch_file(tmp_path / "c.pt") as file:
        described = stored_tensor(file.content["x"], "x")
        with pytest.raises(InputError, match="many more than the file has"):
            file.tensors({str(n): described for n in range(100)})
