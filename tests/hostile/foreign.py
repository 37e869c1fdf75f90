"""Hostile folders of other families, which `transformers` builds: configs that name code, kernels and other files."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from .making import Case, Make, add, all_of, edited, linked, pickled
from .settings import CONFIG, EVIL_CODE
from .tokenizers import ALONE
from .weights import INDEX, WEIGHTS

__all__ = ["cases"]

EVIL = {"AutoModel": "modeling_evil.Evil", "AutoConfig": "modeling_evil.Evil", "AutoTokenizer": "modeling_evil.Evil"}


def cases() -> Iterator[Case]:
    """Yield all cases."""
    code = add("modeling_evil.py", EVIL_CODE.encode())

    def case(name: str, make: Make, says: str | None) -> Case:
        return Case("foreign", name, make, says, "bert")

    def config(says: str | None, name: str = "", **change: Any) -> Case:
        return case(
            name or ", ".join(f"{key} of {value!r}" for key, value in change.items()), edited(CONFIG, change), says
        )

    yield case("auto_map", all_of(edited(CONFIG, {"auto_map": EVIL}), code), None)
    yield case("auto_map to another repository", edited(CONFIG, {"auto_map": {"AutoModel": "evil/repo--m.Evil"}}), None)
    strange = {"model_type": "strange", "auto_map": EVIL}
    yield case(
        "a family with custom code", all_of(edited(CONFIG, strange), code), "model_type: found 'strange', expected"
    )
    for family in ("timm_wrapper", "encoder-decoder", "clip", "llama", "t5", "rag", "../bert", "", "BERT"):
        yield config("config.json: model_type: found", model_type=family)
    for key in ("_attn_implementation_internal", "_attn_implementation", "attn_implementation"):
        yield config(None, **{key: "evil/kernel:attend"})
    yield config(None, attn_implementation="flash_attention_2")
    yield config(None, experts_implementation="evil/kernel")
    yield config(None, trust_remote_code=True, custom_code="evil")
    yield config(None, use_kernels=True, kernel_config={"kernel_mapping": {"BertLayer": "evil/kernel:Layer"}})
    yield config(None, fusion_config={"evil": {}})
    yield config("per_layer_config: found", per_layer_config={"0": {"hidden_size": 10**9}})
    yield config("transformers_weights: found '../evil.safetensors'", transformers_weights="../evil.safetensors")
    yield config(None, dtype="os", torch_dtype="evil")
    yield config(None, architectures=["EvilModel"], id2label={str(n): "x" for n in range(20_000)}, name="labels")
    yield config(None, _name_or_path="evil/repo", base_model_name_or_path="evil/repo")
    yield config(None, return_dict=False, output_hidden_states=True, output_attentions=True)
    for method in ("bitsandbytes", "gptq", "evil"):
        yield config(
            "quantization_config: found {'quant_method'",
            quantization_config={"quant_method": method, "load_in_8bit": True},
        )
    adapter = {"base_model_name_or_path": "evil/base", "peft_type": "LORA"}
    yield case("an adapter that names another model", add("adapter_config.json", adapter), "adapters are not supported")
    yield case("a sharded checkpoint beside", add("shard-00001-model-00001-of-00001.safetensors", pickled), None)
    beside = all_of(edited("tokenizer_config.json", {"auto_map": EVIL, "tokenizer_class": "Evil"}), code)
    yield case("a tokenizer class with code", beside, None)
    yield case("a generation config with code", add("generation_config.json", {"custom_generate": "evil/repo"}), None)
    yield case("pickles beside good weights", add("pytorch_model.bin", pickled), None)
    without = all_of(_without, add("pytorch_model.bin", pickled))
    yield case("pickles alone", without, "a pickle, which is never loaded; expected model.safetensors")
    yield case("a pickle named model.safetensors", add(WEIGHTS, pickled), "is not a readable safetensors file")
    climbing = all_of(_without, add(INDEX, {"weight_map": {"a": "../x.safetensors"}}))
    yield case("an index that climbs out", climbing, "expected a .safetensors file of the same folder")
    yield case("weights from a device", linked(WEIGHTS, "/dev/zero"), "is a pipe or a device")
    for change in ({"hidden_size": 10**9}, {"hidden_size": 4096}, {"hidden_size": "64"}, {"hidden_size": -64},
                   {"vocab_size": 10**12}, {"vocab_size": 4_000_000}, {"num_hidden_layers": 10**9},
                   {"num_hidden_layers": 39}, {"num_attention_heads": 0},
                   {"intermediate_size": 2**23}, {"max_position_embeddings": 10**9}, {"max_position_embeddings": "far"},
                   {"max_position_embeddings": -1}, {"hidden_act": "os.system"}, {"type_vocab_size": 10**9},
                   {"layer_norm_eps": "small"}, {"hidden_act": ["gelu"]}, {"hidden_size": None}):  # fmt: skip
        yield config("", **change)
    yield case(
        "a tensor is missing",
        _changed("encoder.layer.1.output.dense.weight", None),
        "the weights have no encoder.layer.1",
    )
    yield case(
        "a tensor of another shape", _changed("embeddings.LayerNorm.weight", torch.zeros(3)), "the weights have no emb"
    )
    yield case("a NaN", _changed("embeddings.LayerNorm.weight", torch.full((64,), float("nan"))), "not finite")
    yield case(
        "weights beyond any bound", _changed("embeddings.LayerNorm.weight", torch.full((64,), 3e38)), "not finite"
    )
    yield case(
        "eight bits", _changed("embeddings.LayerNorm.weight", torch.ones(64, dtype=torch.int8)), "holds torch.int8"
    )
    yield case(
        "a vocabulary beyond the model's",
        all_of(edited("tokenizer.json", lambda t: t["model"]["vocab"].update(zz=513)), ALONE),
        "does not fit",
    )


def _without(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


def _changed(name: str, tensor: torch.Tensor | None) -> Make:
    def make(folder: Path) -> None:
        weights = {key: each.clone() for key, each in load_file(folder / WEIGHTS).items()}
        del weights[name]
        save_file(weights | ({} if tensor is None else {name: tensor}), folder / WEIGHTS)

    return make
