"""Hostile weights: pickles of every kind, false headers, unknown tensors, indexes that name files of other folders."""

import gzip
import io
import os
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from .making import Canary, Case, Make, add, all_of, linked, pickled, pipe, stored

__all__ = ["cases"]

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
NORM, EMBEDDING = "model.final_norm.weight", "model.embeddings.tok_embeddings.weight"
EVIL = b"import os\nos.system('touch ' + os.environ['CANARY'])\n"
UNREADABLE = "model.safetensors: is not a readable safetensors file"
NEVER = "a pickle, which is never loaded; expected model.safetensors"


def cases() -> Iterator[Case]:
    """Yield all cases."""
    yield from _pickles()
    yield from _headers()
    yield from _tensors()
    yield from _indexes()


def _pickles() -> Iterator[Case]:
    def case(name: str, make: Make, says: str | None, of: str = "plain") -> Case:
        return Case("pickle", name, make, says, of)

    for suffix in ("bin", "pt", "pth", "ckpt", "pkl"):
        yield case(f"weights as .{suffix} alone", all_of(_without, add(f"pytorch_model.{suffix}", pickled)), NEVER)
    for protocol in range(6):
        content = add(WEIGHTS, lambda protocol=protocol: pickled(protocol))
        yield case(f"protocol {protocol} named model.safetensors", content, UNREADABLE)
    disguises: dict[str, Callable[[], bytes]] = {
        "torch's archive": lambda: _saved(_use_new_zipfile_serialization=True),
        "torch's old form": lambda: _saved(_use_new_zipfile_serialization=False),
        "a tar": _tar,
        "a zip": _zip,
        "gzip": lambda: gzip.compress(pickled()),
        "numpy's objects": _objects,
        "an ELF program": lambda: b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\x3e\x00" + bytes(100),
        "a script": lambda: b"#!/bin/sh\ntouch $CANARY\n",
    }
    for name, content in disguises.items():
        yield case(f"{name} named model.safetensors", add(WEIGHTS, content), UNREADABLE)
    beside: dict[str, Any] = {
        "pytorch_model.bin": pickled, "training_args.bin": pickled, "optimizer.pt": pickled, "rng_state.pth": pickled,
        "scheduler.ckpt": pickled, "model.pkl": pickled, "arrays.npy": _objects, "flax_model.msgpack": pickled,
        ".metadata": pickled, "shard-00001.distcp": pickled, "1_Pooling/pytorch_model.bin": pickled,
        "modeling_evil.py": EVIL, "__init__.py": EVIL, "sitecustomize.py": EVIL, "conftest.py": EVIL, "setup.py": EVIL,
        "json.py": EVIL, "safetensors.py": EVIL, "evil.pth": b"import os; os.system('touch ' + os.environ['CANARY'])",
        "handler.py": EVIL, "custom_generate/generate.py": EVIL, "requirements.txt": b"evil\n",
    }  # fmt: skip
    for name, content in beside.items():
        yield case(f"{name} beside good weights", add(name, content), None)
    adapter = {"base_model_name_or_path": "evil/base", "peft_type": "LORA", "auto_mapping": {}}
    for name, content in {"adapter_config.json": adapter, "adapter_model.bin": pickled}.items():
        yield case(f"{name} beside good weights", add(name, content), f"has {name}: adapters are not supported")
    texts = {
        "config.json": "config.json: is not readable JSON",
        "tokenizer.json": "tokenizer.json: is not a tokenizer.json",
        "tokenizer_config.json": "tokenizer_config.json: is not readable JSON",
        "special_tokens_map.json": "special_tokens_map.json: is not readable JSON",
        "modules.json": "modules.json: is not readable JSON",
        "config_sentence_transformers.json": "config_sentence_transformers.json: is not readable JSON",
        "1_Pooling/config.json": "1_Pooling/config.json: is not readable JSON",
    }
    for name, says in texts.items():
        yield case(f"named {name}", add(name, pickled), says)
    yield case("gzip named config.json", add("config.json", lambda: gzip.compress(b"{}")), texts["config.json"])
    yield case("gzip named tokenizer.json", add("tokenizer.json", gzip.compress(b"{}")), texts["tokenizer.json"])
    yield case("named as the index", all_of(_without, add(INDEX, pickled)), f"{INDEX}: is not readable JSON")
    dense = all_of(_without_dense, add("1_Dense/pytorch_model.bin", pickled))
    yield case("projection as .bin alone", dense, f"1_Dense: has pytorch_model.bin, {NEVER}", "late")
    disguised = add("1_Dense/model.safetensors", pickled)
    yield case("projection named model.safetensors", disguised, f"1_Dense/{UNREADABLE}", "late")


def _headers() -> Iterator[Case]:
    def case(name: str, content: Any, says: str = "", data: bytes = b"1234", length: int | None = None) -> Case:
        return Case("header", name, add(WEIGHTS, stored(content, data, length)), f"{UNREADABLE} ({says}")

    rust = "Error while deserializing header"
    yield case("length of 2^63", {"a": ONE}, "a header of 9,223,372,036,854,775,808 bytes", length=2**63)
    yield case("length of -1", {"a": ONE}, "a header of 18,446,744,073,709,551,615 bytes", length=2**64 - 1)
    yield case("length of 90 MB, as the format allows", {"a": ONE}, "a header of 90,000,000 bytes", length=90_000_000)
    yield case("length beyond the file", {"a": ONE}, rust, length=5_000)
    yield case("length of nothing", {"a": ONE}, rust, length=0)
    yield case("no JSON", b"{nope", rust)
    yield case("a list", b"[]", rust)
    yield case("null", b"null", rust)
    yield case("not UTF-8", b'{"\xff\xfe": 1}', rust)
    yield case("nested deeply", b'{"a":' * 100_000, rust)
    yield case("brackets without end", b"[" * 1_000_000, rust)
    one = b'"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}'
    hidden = b'"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}'
    yield case("a name twice", b"{" + one + b"," + one + b"}", "its header has a name twice")
    yield case("a name twice, the first lies", b"{" + hidden + b"," + one + b"}", "its header has a name twice")
    field = b'{"a": {"dtype": "F32", "dtype": "I32", "shape": [1], "data_offsets": [0, 4]}}'
    yield case("a field twice", field, rust)
    yield case("offsets that overlap", {"a": ONE, "b": ONE}, rust)
    yield case("a hole", {"a": ONE, "b": ONE | {"data_offsets": [8, 12]}}, rust, bytes(12))
    yield case("offsets beyond the file", {"a": ONE | {"shape": [100], "data_offsets": [0, 400]}}, rust)
    yield case("an end before its beginning", {"a": ONE | {"data_offsets": [4, 0]}}, rust)
    yield case("negative offsets", {"a": ONE | {"data_offsets": [-4, 0]}}, rust)
    yield case("a shape that is not its bytes", {"a": ONE | {"shape": [2]}}, rust)
    yield case("a shape that overflows", {"a": ONE | {"shape": [2**33, 2**33]}}, rust)
    yield case("a shape of 2^70", {"a": ONE | {"shape": [2**70]}}, rust)
    yield case("a negative shape", {"a": ONE | {"shape": [-1]}}, rust)
    yield case("a shape of fractions", {"a": ONE | {"shape": [1.5]}}, rust)
    yield case("a shape of text", {"a": ONE | {"shape": "1"}}, rust)
    yield case("a kind of number that is none", {"a": ONE | {"dtype": "F99"}}, rust)
    yield case("metadata in metadata", {"__metadata__": {"a": {"b": "c"}}, "a": ONE}, rust)
    yield case("NaN", b'{"a": NaN}', rust)
    yield case("more data than is named", {"a": ONE}, rust, bytes(400))
    yield case("less data than is named", {"a": ONE}, rust, b"1")
    yield Case("header", "an empty file", add(WEIGHTS, b""), UNREADABLE)
    yield Case("header", "five bytes", add(WEIGHTS, b"12345"), UNREADABLE)
    yield Case("header", "cut in the middle", _cut, UNREADABLE)
    yield Case("header", "no tensors", add(WEIGHTS, stored({})), "the weights have no layers.3.mlp.Wo.weight")
    nothing = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    many = {f"t{number}": nothing for number in range(8_000)}
    yield Case("header", "8,000 tensors", add(WEIGHTS, stored(many)), "the weights have no layers.3.mlp.Wo.weight")
    more = {f"t{number}": nothing for number in range(20_000)}
    yield Case("header", "20,000 tensors", add(WEIGHTS, stored(more)), f"{UNREADABLE} (a header of")
    yield Case("header", "a terabyte, most of it a hole", _terabyte, UNREADABLE)


def _tensors() -> Iterator[Case]:
    def case(
        name: str, change: Callable[[dict[str, torch.Tensor]], object], says: str | None, of: str = "plain"
    ) -> Case:
        return Case("tensor", name, _changed(change), says, of)

    yield case("missing", lambda w: w.pop(NORM), "the weights have no final_norm.weight, expected shape [64]")
    yield case(
        "all but one missing", lambda w: [w.pop(n) for n in list(w) if n != NORM], "the weights have no layers.3"
    )
    yield case("of no ModernBERT", lambda w: w.update(evil=torch.zeros(1)), "have evil, which no ModernBERT")
    wrong = "tok_embeddings.weight has shape [64, 512], expected [512, 64] by config.json"
    yield case("transposed", lambda w: w.update({EMBEDDING: w[EMBEDDING].T.contiguous()}), wrong)
    yield case("a single number", lambda w: w.update({NORM: torch.tensor(1.0)}), "final_norm.weight has shape []")
    yield case("without numbers", lambda w: w.update({NORM: torch.zeros(0)}), "final_norm.weight has shape [0]")
    for kind in (torch.int8, torch.int64, torch.bool, torch.uint16, torch.float8_e4m3fn, torch.complex64):
        says = f"final_norm.weight holds {kind}"
        yield case(f"of {kind}", lambda w, kind=kind: w.update({NORM: w[NORM].to(kind)}), says)
    for value in ("nan", "inf", "-inf"):
        says = "final_norm.weight has values that are not finite"
        yield case(f"one {value}", lambda w, value=value: w[NORM].__setitem__(3, float(value)), says)
    says = "embeddings.tok_embeddings.weight has values that are not finite"
    yield case("a NaN for a rare token", lambda w: w[EMBEDDING].__setitem__((500, 7), float("nan")), says)
    says = "The model computes values that are not finite"
    yield case("finite, and beyond any bound", lambda w: w[NORM].fill_(3e38), says)
    twice = "the weights have final_norm.weight and model.final_norm.weight, expected one of them"
    yield case("with and without its prefix", lambda w: w.update({"final_norm.weight": w[NORM].clone()}), twice)
    yield case("a path for a name", lambda w: w.update({"../../etc/passwd": torch.zeros(1)}), "have ../../etc/passwd")
    yield case("a NUL in its name", lambda w: w.update({"a\0b": torch.zeros(1)}), "have a\\x00b, which no ModernBERT")
    escape = "\x1b[2J\x1b[31mall is well\r\n"
    yield case(
        "a name that clears terminals", lambda w: w.update({escape: torch.zeros(1)}), "have \\x1b[2J\\x1b[31mall"
    )
    yield case("a name of 100,000 letters", lambda w: w.update({"n" * 10**5: torch.zeros(1)}), "(100,")
    yield case("a name from right to left", lambda w: w.update({"\u202egnp.exe": torch.zeros(1)}), "have \\u202egnp")
    yield case(
        "a head of no use", lambda w: w.update({"score.\x1b[2J": torch.zeros(1)}), "score.\\x1b[2J of a second head"
    )
    scores = "classifier.weight has shape"
    yield case("scores of a terabyte of labels", lambda w: w.update({"classifier.weight": torch.zeros(2**40, 0)}),
               f"{scores} [1099511627776, 0], expected [labels, 64]", "classifier")  # fmt: skip
    yield case(
        "scores without a label", lambda w: w.update({"classifier.weight": torch.zeros(0, 64)}), scores, "classifier"
    )
    yield case("scores that are one number", lambda w: w.update({"classifier.weight": torch.tensor(1.0)}), scores,
               "classifier")  # fmt: skip
    giant = "1_Dense/model.safetensors: linear.weight is [3, 5], expected [any, 64]"
    dense = "1_Dense/model.safetensors"
    yield Case("tensor", "projection of another width", _dense(torch.zeros(3, 5)), giant, "late")
    yield Case("tensor", "projection of integers", _dense(torch.zeros(8, 64, dtype=torch.int32)),
               f"{dense}: linear.weight holds torch.int32", "late")  # fmt: skip
    yield Case(
        "tensor", "projection of NaN", _dense(torch.full((8, 64), float("nan"))), "values that are not finite", "late"
    )
    yield Case("tensor", "projection to nothing", _dense(torch.zeros(0, 64)), "linear.weight is [0, 64]", "late")
    yield Case(
        "tensor", "projection of 70,000 rows", _dense(torch.zeros(70_000, 64)), "linear.weight is [70000, 64]", "late"
    )
    yield Case("tensor", "projection with a bias", add(dense, lambda: _saved_safely({"linear.bias": torch.zeros(1)})),
               "has 'linear.bias', expected linear.weight without a bias", "late")  # fmt: skip


def _indexes() -> Iterator[Case]:
    def case(name: str, index: Any, says: str, *more: Make) -> Case:
        return Case("index", name, all_of(_without, add(INDEX, index), *more), says)

    def to(file: Any) -> dict[str, Any]:
        return {"weight_map": {NORM: file}}

    away = "expected a .safetensors file of the same folder"
    for file in ("../model.safetensors", "/etc/passwd", "/dev/zero", "sub/model.safetensors", "..", "", ".",
                 "pytorch_model.bin", INDEX, "https://example.org/model.safetensors", "a\n.bin"):  # fmt: skip
        yield case(f"names {file!r}", to(file), away)
    yield case("names a file that is not there", to("b.safetensors"), "no such file, though the index names it")
    yield case("names a file with a NUL", to("a\0.safetensors"), "no such file, though the index names it")
    yield case("names a file of 5,000 letters", to("a" * 5_000 + ".safetensors"), " characters)")
    yield case("names a number", to(3), "weight_map is missing")
    yield case("names a list", to(["a.safetensors"]), "weight_map is missing")
    for name, index in {
        "no map": {},
        "map of null": {"weight_map": None},
        "a list for a map": {"weight_map": []},
    }.items():
        yield case(name, index, "weight_map is missing")
    yield case("an empty map", {"weight_map": {}}, "the weights have no layers.3.mlp.Wo.weight")
    yield case("a list", [], "found list, expected an object")
    yield case("a link to a device", to("a.safetensors"), "a.safetensors: is a pipe or a device",
               linked("a.safetensors", "/dev/zero"))  # fmt: skip
    yield case("a pipe", to("a.safetensors"), "a.safetensors: is a pipe or a device", pipe("a.safetensors"))
    yield case("a folder", to("a.safetensors"), "a.safetensors: is a folder", lambda f: (f / "a.safetensors").mkdir())
    huge = {"weight_map": {f"t{number}": "a.safetensors" for number in range(180_000)}}
    yield case("of five megabytes", huge, f"{INDEX}: has ")
    yield Case("index", "a tensor in two files", _twice, "which another file of the index has too")
    yield Case("index", "good, of two files", _halves, None)
    yield Case("index", "hostile, beside one good file", add(INDEX, to("../x.safetensors")), "which names other files")
    yield Case("index", "tensors of another model", _strangers, "the weights have no layers.3.mlp.Wo.weight")


def _without(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


def _without_dense(folder: Path) -> None:
    (folder / "1_Dense" / WEIGHTS).unlink()


def _saved(**how: Any) -> bytes:
    stream = io.BytesIO()
    torch.save({NORM: Canary()}, stream, **how)
    return stream.getvalue()


def _objects() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array([Canary()], dtype=object), allow_pickle=True)
    return stream.getvalue()


def _tar() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        member = tarfile.TarInfo("../../climbed")
        member.size = len(pickled())
        archive.addfile(member, io.BytesIO(pickled()))
    return stream.getvalue()


def _zip() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("archive/data.pkl", pickled())
    return stream.getvalue()


def _saved_safely(tensors: dict[str, torch.Tensor]) -> bytes:
    from safetensors.torch import save

    return save(tensors)


def _changed(change: Callable[[dict[str, torch.Tensor]], object]) -> Make:
    def make(folder: Path) -> None:
        weights = {name: tensor.clone() for name, tensor in load_file(folder / WEIGHTS).items()}
        change(weights)
        save_file(weights, folder / WEIGHTS)

    return make


def _dense(weight: torch.Tensor) -> Make:
    return add("1_Dense/model.safetensors", lambda: _saved_safely({"linear.weight": weight}))


def _cut(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: len(content) // 2])


def _terabyte(folder: Path) -> None:
    whole = {"dtype": "F32", "shape": [2**38], "data_offsets": [0, 2**40]}
    content = stored({NORM: whole})
    (folder / WEIGHTS).write_bytes(content)
    os.truncate(folder / WEIGHTS, len(content) + 2**40)


def _halves(folder: Path, share: bool = False) -> None:
    weights = load_file(folder / WEIGHTS)
    names = sorted(weights)
    files = {"a.safetensors": names[: len(names) // 2 + share], "b.safetensors": names[len(names) // 2 :]}
    for file, some in files.items():
        save_file({name: weights[name] for name in some}, folder / file)
    _without(folder)
    add(INDEX, {"weight_map": {name: file for file, some in files.items() for name in some}})(folder)


def _twice(folder: Path) -> None:
    _halves(folder, share=True)


def _strangers(folder: Path) -> None:
    save_file({"bert.pooler.dense.weight": torch.zeros(3)}, folder / "a.safetensors")
    _without(folder)
    add(INDEX, {"weight_map": {NORM: "a.safetensors", EMBEDDING: "a.safetensors"}})(folder)
