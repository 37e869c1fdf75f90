"""Hostile settings: configs that name code or impossible sizes, JSON bombs, entries that are not regular files."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .making import Case, Make, add, all_of, edited, linked, pipe

__all__ = ["cases"]

CONFIG, SETTINGS, LIMITS = "config.json", "config_sentence_transformers.json", "sentence_bert_config.json"
UNREADABLE = "config.json: is not readable JSON"
# The files that loading a model folder reads.
READ = (CONFIG, "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "model.safetensors",
        "modules.json", SETTINGS, LIMITS, "1_Pooling/config.json")  # fmt: skip
EVIL_CODE = "import os\nos.system('touch ' + os.environ['CANARY'])\nclass Evil: pass\n"


def cases() -> Iterator[Case]:
    """Yield all cases."""
    yield from _code()
    yield from _sizes()
    yield from _bombs()
    yield from _files()
    yield from _sentence_transformers()


def _code() -> Iterator[Case]:
    """Yield keys that name code. They are ignored, except for keys that describe the weights."""
    named = {
        "auto_map": {"AutoModel": "modeling_evil.Evil", "AutoConfig": "modeling_evil.Evil"},
        "_attn_implementation_internal": "evil/kernel",
        "_attn_implementation": "evil/kernel:attend",
        "attn_implementation": "evil/kernel@main",
        "experts_implementation": "evil/kernel",
        "kernel_config": {"kernel_mapping": {"RMSNorm": "evil/kernel:Norm"}},
        "use_kernels": True,
        "trust_remote_code": True,
        "custom_pipelines": {"embed": {"impl": "modeling_evil.Evil", "pt": ["AutoModel"]}},
        "fusion_config": {"evil": {}},
        "base_model_tp_plan": {"layers.*": "evil"},
        "tokenizer_class": "modeling_evil.Evil",
        "architectures": ["modeling_evil.Evil"],
        "_name_or_path": "/etc/passwd",
        "__class__": "os.system",
        "__init__": {"py/object": "os.system", "py/reduce": ["os.system", "touch x"]},
        "$ref": "file:///etc/passwd",
    }
    for key, value in named.items():
        code = add("modeling_evil.py", EVIL_CODE.encode())
        yield Case("code", f"config.json: {key}", all_of(edited(CONFIG, {key: value}), code), None)
    decisive = {
        "quantization_config": {"quant_method": "evil", "load_in_8bit": True},
        "transformers_weights": "../evil.safetensors",
        "per_layer_config": {"0": {"hidden_size": 10**9}},
    }
    for key, value in decisive.items():
        yield Case("code", f"config.json: {key}", edited(CONFIG, {key: value}), f"config.json: {key}: found")
    beside = {"auto_map": {"AutoTokenizer": ["modeling_evil.Evil", None]}, "tokenizer_class": "modeling_evil.Evil"}
    make = all_of(edited("tokenizer_config.json", beside), add("modeling_evil.py", EVIL_CODE.encode()))
    yield Case("code", "tokenizer_config.json: auto_map and tokenizer_class", make, None)


def _sizes() -> Iterator[Case]:
    def case(key: str, value: Any, says: str | None = None, name: str = "", **more: Any) -> Case:
        says = f"{key}: found" if says is None else says
        return Case("size", f"{key} of {name or value!r}", edited(CONFIG, {key: value, **more}), f"config.json: {says}")

    free = {"layer_types": None}
    for value in (10**9, -1, 0, 10**12, 2.5, "64", True, [64], {"a": 1}):
        yield case("hidden_size", value)
    yield case("hidden_size", 10**400, name="400 digits")
    yield case("hidden_size", 2**14, "num_attention_heads: found", num_attention_heads=10**9)
    yield case("num_hidden_layers", 10**9, **free)
    yield case("num_hidden_layers", 10**400, "num_hidden_layers: found", name="400 digits", **free)
    thousand = edited(CONFIG, {"num_hidden_layers": 1_000, "layer_types": None})
    yield Case("size", "num_hidden_layers of 1,000", thousand, "the weights have no layers.999.mlp.Wo.weight")
    wider = edited(CONFIG, {"vocab_size": 4_000_000, "hidden_size": 2**14})
    yield Case("size", "embeddings of a quarter of a terabyte", wider, "has shape [512, 64], expected [4000000, 16384]")
    yield case("layer_types", ["full_attention"] * 200_000, "layer_types: found 200000 entries", "200,000")
    yield case("layer_types", "full_attention")
    yield case("layer_types", [["full_attention"]])
    for key in ("vocab_size", "intermediate_size", "num_attention_heads", "max_position_embeddings", "local_attention"):
        for value in (10**12, -5, "many"):
            yield case(key, value)
    yield case("global_attn_every_n_layers", 0, layer_types=None)
    yield case("norm_eps", -1.0)
    yield case("norm_eps", 10**400, name="400 digits")
    yield case("pad_token_id", 10**15)
    yield case("cls_token_id", -1)
    yield case("classifier_pooling", "os.system")
    yield case("model_type", ["modernbert"])
    yield case("model_type", "\x1b[2Jmodernbert\n")
    yield case("hidden_activation", "__import__('os').system('true')")
    yield case("rope_scaling", {"type": "evil"})
    yield case("rope_parameters", [1, 2])
    yield case(
        "rope_parameters", {"full_attention": {"rope_type": "x" * 10**6}}, "rope_parameters.full_attention", "a MB"
    )
    theta = {"full_attention": {"rope_theta": {"a": 1}}}
    yield case("rope_parameters", theta, "rope_parameters.full_attention.rope_theta: found")
    infinite = edited(CONFIG, {"rope_parameters": None, "global_rope_theta": 1e-320, "local_rope_theta": 1e-320})
    yield Case("size", "thetas that give infinite angles", infinite, "computes values that are not finite")
    for key, value in (("architectures", 5), ("architectures", "x"), ("problem_type", {"a": 1}), ("num_labels", 10**12),
                       ("torch_dtype", "evil"), ("id2label", [1])):  # fmt: skip
        yield Case("size", f"{key} of {value!r}, which an encoder has no use for", edited(CONFIG, {key: value}), None)
    labels = {
        "a number": (5, "id2label has int, expected 2"),
        "a list": (["a", "b"], "id2label has list"),
        "180,000": ({str(n): "x" for n in range(180_000)}, "id2label has 180000 labels, expected 2"),
        "numbers": ({"0": 1, "1": 2}, "id2label has 2 labels"),
        "terminal codes": ({"0": "a\x1b[2J", "1": "b"}, "id2label has 'a\\x1b[2J', expected text of one line"),
        "two lines": ({"0": "a\nb", "1": "b"}, "id2label has 'a\\nb', expected text of one line"),
        "half a character": ({"0": "\ud800", "1": "b"}, "config.json: is not readable JSON"),
    }
    for name, (value, says) in labels.items():
        yield Case("size", f"labels that are {name}", edited(CONFIG, {"id2label": value}), says, "classifier")


def _bombs() -> Iterator[Case]:
    def case(name: str, content: bytes, says: str = UNREADABLE) -> Case:
        return Case("bomb", name, add(CONFIG, content), says)

    yield case("100,000 brackets", b"[" * 100_000)
    yield case("100,000 objects in each other", b'{"a":' * 100_000 + b"1" + b"}" * 100_000)
    yield case("4 MB of empty lists", b'{"a": [' + b"[]," * 1_300_000 + b"[]]}", "config.json: has 1,300,003 brackets")
    yield case("a number of 5,000 digits", b'{"hidden_size": ' + b"9" * 5_000 + b"}")
    yield case("1e400", b'{"model_type": "modernbert", "norm_eps": 1e400}', "norm_eps: found inf")
    yield case("NaN", b'{"model_type": "modernbert", "norm_eps": NaN}', "norm_eps: found nan")
    yield case("Infinity", b'{"model_type": "modernbert", "hidden_size": Infinity}', "hidden_size: found inf")
    yield case("a byte order mark", b'\xef\xbb\xbf{"model_type": "modernbert"}')
    yield case("UTF-16", json.dumps({"model_type": "modernbert"}).encode("utf-16"))
    yield case("NUL bytes", b"\0" * 1_000)
    yield case("not UTF-8", b'{"model_type": "\xff\xfe"}')
    yield case("nothing", b"")
    yield case("a list", b"[1, 2]", "config.json: found list, expected an object")
    yield case("null", b"null", "config.json: found NoneType, expected an object")
    yield case("a text", b'"modernbert"', "config.json: found str, expected an object")
    yield case("cut in the middle", b'{"model_type": "modernb')
    yield case("comments", b'// a comment\n{"model_type": "modernbert"}')
    yield case("a script", b"#!/usr/bin/env python\nprint(1)\n")
    repeated = edited(CONFIG, lambda found: None)
    yield Case("bomb", "the same key a hundred thousand times", all_of(repeated, _repeated), None)
    yield Case("bomb", "4 MB of keys of no use", edited(CONFIG, {f"k{n}": 1 for n in range(300_000)}), None)
    yield Case(
        "bomb", "special_tokens_map.json of 8 MB", add("special_tokens_map.json", b" " * 9_000_000), "has 9,000,000"
    )
    deep = b'{"a":' * 50_000 + b"1" + b"}" * 50_000
    for name in ("special_tokens_map.json", "tokenizer_config.json", "modules.json", SETTINGS, LIMITS):
        yield Case("bomb", f"deep {name}", add(name, deep), f"{name}: is not readable JSON")


def _repeated(folder: Path) -> None:
    content = (folder / CONFIG).read_text()
    (folder / CONFIG).write_text("{" + '"evil": 1,' * 100_000 + content[1:])


def _files() -> Iterator[Case]:
    def case(name: str, make: Make, says: str | None, of: str = "plain") -> Case:
        return Case("file", name, make, says, of)

    for name in READ:
        yield case(f"{name} is a pipe", pipe(name), f"{name}: is a pipe or a device, expected a file")
        yield case(f"{name} leads to /dev/zero", linked(name, "/dev/zero"), f"{name}: is a pipe or a device")
    for name in (CONFIG, "tokenizer.json", "model.safetensors", "modules.json"):
        yield case(
            f"{name} is a folder", all_of(_removed(name), lambda f, n=name: (f / n).mkdir()), f"{name}: is a folder"
        )
        yield case(f"{name} leads to itself", linked(name, name), f"{name}: cannot be read (Too many levels")
        yield case(f"{name} leads nowhere", linked(name, "../gone"), f"{name}: no such file")
        says = f"{name}: has 68,719,476,736 bytes" if name != "model.safetensors" else f"{name}: is not a readable"
        yield case(f"{name} of 64 GB, all of it a hole", _hole(name), says)
    yield case("config.json leads to /etc/passwd", linked(CONFIG, "/etc/passwd"), UNREADABLE)
    yield case("config.json leads to memory", linked(CONFIG, "/proc/self/mem"), UNREADABLE)
    yield case("config.json leads to all of memory", linked(CONFIG, "/proc/kcore"), "config.json: ")
    yield case(
        "tokenizer.json leads to /etc/passwd", linked("tokenizer.json", "/etc/passwd"), "is not a tokenizer.json"
    )
    yield case(
        "model.safetensors leads to a program", linked("model.safetensors", "/bin/sh"), "is not a readable safet"
    )
    yield case("projection is a pipe", pipe("1_Dense/model.safetensors"), "is a pipe or a device", "late")
    yield case("another file is a pipe", pipe("notes.json"), None)
    yield case("another file leads to /dev/zero", linked("tokenizer.extra.json", "/dev/zero"), None)
    yield case("a folder that leads into itself", linked("deeper", "."), None)
    yield case("links to blobs, as the hub's cache has them", _as_in_the_cache, None)
    yield case("no config.json", _removed(CONFIG), "config.json: no such file")
    yield case("no tokenizer.json", _removed("tokenizer.json"), "tokenizer.json: no such tokenizer file")
    yield case("no weights", _removed("model.safetensors"), "has no weights, expected model.safetensors")
    yield case("names no terminal should see", lambda f: (f / "\x1b[2J\n.bin").touch(), None)
    hidden = all_of(_removed("model.safetensors"), lambda f: (f / "\x1b[2J\n.bin").touch())
    yield case("a pickle with such a name", hidden, "has \\x1b[2J\\n.bin, a pickle")


def _sentence_transformers() -> Iterator[Case]:
    def case(name: str, make: Make, says: str | None, of: str = "plain") -> Case:
        return Case("vectors", name, make, says, of)

    def module(kind: Any, path: Any) -> Make:
        return add("modules.json", [{"idx": 0, "name": "0", "path": path, "type": kind}])

    for kind, path in (
        ("os.system", ""),
        ("evil.Evil", ""),
        (5, ""),
        (None, None),
        ("builtins.eval", "__import__('os')"),
    ):
        yield case(f"module {kind!r} in {path!r}", module(kind, path), f"modules.json: lists {str(kind)!r}")
    for kind, path in (("Transformer", "../../other"), ("Pooling", "/etc")):
        outside = module(f"sentence_transformers.models.{kind}", path)
        yield case(f"module {kind} in {path}", outside, f"modules.json: {path!r} is outside the folder")
    absent = module("sentence_transformers.models.Dense", "2_Dense")
    yield case(
        "a linear layer that is not there", absent, "2_Dense/config.json: activation_function is 'torch.nn.Tanh'"
    )
    yield case("modules that are an object", add("modules.json", {}), "modules.json: found dict, expected a list")
    yield case("modules that are numbers", add("modules.json", [1, 2]), "modules.json: lists '1', expected modules")
    yield case(
        "an unknown pooling",
        edited("1_Pooling/config.json", {"pooling_mode_evil": True}),
        "1_Pooling/config.json: pools by ['pooling_mode_evil']",
    )
    yield case(
        "pooling by the maximum",
        add("1_Pooling/config.json", {"pooling_mode_max_tokens": True}),
        "pools by ['pooling_mode_max_tokens']",
    )
    yield case("pooling by a list", add("1_Pooling/config.json", {"pooling_mode": ["mean"]}), "pools by ['mean']")
    yield case("prompts that are a list", add(SETTINGS, {"prompts": ["a"]}), "prompts is list")
    yield case("a prompt that is an object", add(SETTINGS, {"prompts": {"query": {"a": 1}}}), "query is {'a': 1}")
    yield case(
        "a prompt with half a character", add(SETTINGS, b'{"prompts": {"query": "\\ud800"}}'), "is not readable JSON"
    )
    for value in (-1, 0, "8", 1.5, True, [1]):
        yield case(
            f"max_seq_length of {value!r}", add(LIMITS, {"max_seq_length": value}), f"{LIMITS}: max_seq_length is"
        )
    yield case("max_seq_length of 10^18", add(LIMITS, {"max_seq_length": 10**18}), None)
    for value in (5, "abc", {"a": 1}, [1, 2]):
        yield case(
            f"skiplist_words of {value!r}", edited(SETTINGS, {"skiplist_words": value}), "skiplist_words is", "late"
        )
    yield case("query_length of a text", edited(SETTINGS, {"query_length": "long"}), "query_length is 'long'", "late")
    yield case("query_prefix of a list", edited(SETTINGS, {"query_prefix": ["a"]}), "query_prefix is ['a']", "late")
    dense = "1_Dense/config.json"
    for function in ("torch.nn.modules.activation.Tanh", "os.system", "modeling_evil.Evil"):
        make = edited(dense, {"activation_function": function})
        yield case(
            f"activation {function}", make, f"{dense}: activation_function is {function!r}, expected Identity", "late"
        )
    yield case("a bias that is not there", edited(dense, {"bias": True}), "bias is True, expected false", "late")
    yield case("sizes of 10^12 in its config alone", edited(dense, {"in_features": 10**12}), None, "late")


def _removed(name: str) -> Make:
    return lambda folder: (folder / name).unlink()


def _hole(name: str) -> Make:
    def make(folder: Path) -> None:
        (folder / name).write_bytes(b"")
        os.truncate(folder / name, 2**36)

    return make


def _as_in_the_cache(folder: Path) -> None:
    blobs = folder.parent / "blobs"
    blobs.mkdir()
    for number, path in enumerate(sorted(each for each in folder.rglob("*") if each.is_file())):
        path.rename(blobs / str(number))
        path.symlink_to(blobs / str(number))
