import json
import pickle
import re
import shutil
import signal
import sys
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from modernbert import ModernBert
from modernbert.batch import Batch
from modernbert.checkpoints.convert import ConvertConfig, run
from modernbert.checkpoints.folder import ModelFolder
from modernbert.cli.main import main
from modernbert.errors import InputError
from modernbert.model.heads import MaskedLM

from .flexbert import SETTINGS, FlexBert, checkpoint_of, state_of

TOKENS = torch.randint(0, 512, (40,), generator=torch.Generator().manual_seed(5))
LENGTH = {"max_position_embeddings": 1024}


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return (exec, (f"open({str(self.canary)!r}, 'w').close()",))


class Late:
    """Writes a file when its state is set."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __setstate__(self, state: dict[str, Any]) -> None:
        state["canary"].touch()


@pytest.fixture
def flexbert() -> FlexBert:
    return FlexBert().eval()


def logits_of(folder: Path) -> torch.Tensor:
    model = ModelFolder(folder).load_model()
    assert isinstance(model, MaskedLM)
    with torch.inference_mode():
        return model(Batch.from_documents([TOKENS.tolist()]))


def assert_same(found: torch.Tensor, flexbert: FlexBert) -> None:
    with torch.inference_mode():
        expected = flexbert(TOKENS)
    assert float((found - expected).abs().max()) < 1e-5 * float(expected.abs().max())


def test_a_converted_checkpoint_computes_what_the_reference_does_and_nothing_of_it_is_run(
    tmp_path: Path, flexbert: FlexBert, capsys: pytest.CaptureFixture[str]
) -> None:
    canary = tmp_path / "canary"
    traps = {"callbacks": [Trap(canary), Late(canary)], "metrics": defaultdict(list, {"loss": [Trap(canary)]})}
    moments = {name: {"exp_avg": torch.ones(3), "step": 4} for name in state_of(flexbert)}
    content = checkpoint_of(state_of(flexbert), optimizers={"AdamW": {"state": moments}}, **traps)
    torch.save(content, tmp_path / "ep0-ba4-rank0.pt")
    run(ConvertConfig(tmp_path / "ep0-ba4-rank0.pt", output=tmp_path / "out", **LENGTH))
    assert not canary.exists()
    assert_same(logits_of(tmp_path / "out"), flexbert)
    said = capsys.readouterr().out
    assert "global_rope_theta: 160000.0 (" in said and "has no tokenizer" in said
    # The traps are no dummies.
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "ep0-ba4-rank0.pt", weights_only=True)
    torch.load(tmp_path / "ep0-ba4-rank0.pt", weights_only=False)
    assert canary.exists()


@pytest.mark.parametrize("protocol", [2, 4])
def test_every_protocol_and_wrapping_reads_alike(tmp_path: Path, flexbert: FlexBert, protocol: int) -> None:
    wrapped = OrderedDict(
        ("module._orig_mod." + name.replace("bert.", "bert._fsdp_wrapped_module."), tensor)
        for name, tensor in state_of(flexbert).items()
    )
    torch.save(checkpoint_of(wrapped), tmp_path / "c.pt", pickle_protocol=protocol)
    run(ConvertConfig(tmp_path / "c.pt", output=tmp_path / "out", **LENGTH))
    assert_same(logits_of(tmp_path / "out"), flexbert)


def test_views_shared_storages_and_parameters_hold_the_same_numbers(tmp_path: Path, flexbert: FlexBert) -> None:
    state = state_of(flexbert)
    one, two = "model.bert.encoder.layers.1.attn.Wo.weight", "model.bert.encoder.layers.2.attn.Wo.weight"
    both = torch.stack((state[one].T.contiguous(), state[two].T.contiguous()))
    expected = state[one].clone(), state[two].clone()
    state[one], state[two] = both[0].T, nn.Parameter(both[1].T)  # type: ignore[assignment]
    assert state[two].storage_offset() and state[one].stride() == (1, 32)
    torch.save(checkpoint_of(state), tmp_path / "c.pt")
    run(ConvertConfig(tmp_path / "c.pt", output=tmp_path / "out", **LENGTH))
    found = ModelFolder(tmp_path / "out").load_model().state_dict()
    for name, tensor in zip(("model.layers.1.attn.Wo.weight", "model.layers.2.attn.Wo.weight"), expected, strict=True):
        assert found[name].equal(tensor)


def test_bfloat16_stays_bfloat16(tmp_path: Path, flexbert: FlexBert) -> None:
    state = state_of(flexbert.bfloat16())
    torch.save(checkpoint_of(state), tmp_path / "c.pt")
    run(ConvertConfig(tmp_path / "c.pt", output=tmp_path / "out", **LENGTH))
    found = ModelFolder(tmp_path / "out").load_model().state_dict()
    assert found["model.final_norm.weight"].equal(state["model.bert.final_norm.weight"])
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}


def test_an_encoder_without_a_head_becomes_one(tmp_path: Path, flexbert: FlexBert) -> None:
    torch.save(checkpoint_of(state_of(flexbert.model.bert)), tmp_path / "c.pt")  # type: ignore[arg-type]
    run(ConvertConfig(tmp_path / "c.pt", output=tmp_path / "out", **LENGTH))
    assert type(ModelFolder(tmp_path / "out").load_model()).__name__ == "Encoder"


def test_transformers_computes_the_same_from_the_folder(tmp_path: Path, flexbert: FlexBert) -> None:
    from transformers import AutoModelForMaskedLM

    torch.save(checkpoint_of(state_of(flexbert)), tmp_path / "c.pt")
    run(ConvertConfig(tmp_path / "c.pt", output=tmp_path / "out", **LENGTH))
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "out").eval()
    with torch.inference_mode():
        logits = model(TOKENS[None]).logits[0]
    assert_same(logits, flexbert)


def test_a_tokenizer_in_the_checkpoint_comes_along(tmp_path: Path, flexbert: FlexBert, small_bert: ModernBert) -> None:
    (tmp_path / "t").mkdir()
    small_bert.tokenizer.save_folder(tmp_path / "t", 64)
    names = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
    files = {
        name: {"file_extension": ".json", "content": json.loads((tmp_path / "t" / name).read_text())} for name in names
    }
    content = checkpoint_of(state_of(flexbert))
    content["state"]["integrations"]["huggingface"]["tokenizer"] = files
    torch.save(content, tmp_path / "c.pt")
    run(ConvertConfig(tmp_path / "c.pt", output=tmp_path / "out", **LENGTH))
    bert = ModernBert.load(tmp_path / "out", device="cpu", dtype="float32", engine="torch")
    assert bert.tokenizer.fingerprint == small_bert.tokenizer.fingerprint
    assert bert.config.pad_token_id == small_bert.tokenizer.pad_id
    assert bert.embed(["some text"]).shape == (1, 32)


YAML = """
max_seq_len: 1024
tokenizer_name: {tokenizer}
model:
  name: flex_bert
  model_config:
    vocab_size: 512
    num_hidden_layers: 7
    hidden_size: 32
    intermediate_size: 48
    num_attention_heads: 4
    attention_layer: rope
    bert_layer: prenorm
    embedding_layer: sans_pos
    mlp_layer: glu
    normalization: layernorm
    norm_kwargs:
      eps: 1e-6
      bias: false
    hidden_act: gelu
    head_pred_act: gelu
    attn_out_dropout_prob: 0.1
    rotary_emb_base: 160000.0
    local_attn_rotary_emb_base: 10000.0
    sliding_window: 8
    global_attn_every_n_layers: 3
"""


def test_the_training_yaml_or_options_tell_what_the_weights_do_not(tmp_path: Path, flexbert: FlexBert) -> None:
    torch.save(checkpoint_of(state_of(flexbert), None), tmp_path / "c.pt")
    (tmp_path / "training.yaml").write_text(YAML)
    with pytest.raises(InputError, match=r"c\.pt: has no num_attention_heads, .*--training-config .*--norm-eps"):
        run(ConvertConfig(tmp_path / "c.pt", output=tmp_path / "out"))
    run(ConvertConfig(tmp_path / "c.pt", output=tmp_path / "a", training_config=tmp_path / "training.yaml"))
    options = dict(
        num_attention_heads=4, global_attn_every_n_layers=3, local_attention=8, global_rope_theta=160000.0,
        local_rope_theta=10000.0, norm_eps=1e-6, **LENGTH,
    )  # fmt: skip
    run(ConvertConfig(tmp_path / "c.pt", output=tmp_path / "b", **options))  # type: ignore[arg-type]
    for folder in ("a", "b"):
        assert_same(logits_of(tmp_path / folder), flexbert)


def test_sources_that_disagree_are_refused_and_an_option_settles_it(tmp_path: Path, flexbert: FlexBert) -> None:
    torch.save(checkpoint_of(state_of(flexbert), SETTINGS | {"rotary_emb_base": 10000.0}), tmp_path / "c.pt")
    (tmp_path / "training.yaml").write_text(YAML)
    config = ConvertConfig(tmp_path / "c.pt", output=tmp_path / "out", training_config=tmp_path / "training.yaml")
    with pytest.raises(InputError, match=r"global_rope_theta is 160000.0, but 10000.0 by .*--global-rope-theta"):
        run(config)
    config = replace(config, global_rope_theta=160000.0)
    run(config)
    assert_same(logits_of(tmp_path / "out"), flexbert)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"normalization": "rmsnorm"}, "normalization: found 'rmsnorm', expected 'layernorm'"),
        ({"head_pred_act": "silu"}, "head_pred_act: found 'silu'"),
        ({"attention_layer": "base"}, "attention_layer: found 'base', expected 'rope'"),
        ({"bert_layer": "postnorm"}, "bert_layer: found 'postnorm'"),
        ({"rotary_emb_interleaved": True}, "rotary_emb_interleaved: found 'True'"),
        ({"rotary_emb_scale_base": 512}, "rotary_emb_scale_base: found '512'"),
        ({"rotary_emb_dim": 16}, "rotary_emb_dim: found '16', expected the width of a head"),
        ({"global_attn_every_n_layers": -1}, "global_attn_every_n_layers: found -1"),
        ({"hidden_size": 256}, "hidden_size is 256, but 32 by the weights"),
        ({"sliding_window": "wide"}, "local_attention is a str, expected a number"),
        ({"num_attention_heads": 5}, "num_attention_heads|hidden_size"),
    ],
)  # fmt: skip
def test_settings_of_another_model_are_refused_by_name(
    tmp_path: Path, flexbert: FlexBert, change: dict[str, Any], line: str
) -> None:
    torch.save(checkpoint_of(state_of(flexbert), SETTINGS | change), tmp_path / "c.pt")
    with pytest.raises(InputError, match=line):
        run(ConvertConfig(tmp_path / "c.pt", output=tmp_path / "out", **LENGTH))
    assert not (tmp_path / "out").exists()


def test_what_a_yaml_leaves_out_is_flexberts_default_not_modernberts(tmp_path: Path, flexbert: FlexBert) -> None:
    torch.save(checkpoint_of(state_of(flexbert), None), tmp_path / "c.pt")
    (tmp_path / "t.yaml").write_text(YAML.replace("    head_pred_act: gelu\n", ""))
    with pytest.raises(InputError, match=r"t\.yaml: head_pred_act: found 'silu', which is FlexBERT's default"):
        run(ConvertConfig(tmp_path / "c.pt", output=tmp_path / "out", training_config=tmp_path / "t.yaml"))


def renamed(old: str, new: str) -> Callable[[dict[str, Any]], None]:
    return lambda state: state.update({new: state.pop(old)})


LAYER = "model.bert.encoder.layers.0."


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda s: s.update({LAYER + "attn.Wqkv.bias": torch.zeros(96)}), "Wqkv.bias' .a bias"),
        (lambda s: s.update({LAYER + "attn_norm.weight": torch.ones(32)}), "a norm before the attention of the first"),
        (renamed(LAYER + "attn.Wqkv.weight", LAYER + "attn.Wq.weight"), "separate projections"),
        (renamed(LAYER + "attn.Wqkv.weight", LAYER + "Wqkvff.weight"), "in parallel"),
        (lambda s: s.update({"model.bert.embeddings.position_embeddings.weight": torch.ones(9, 32)}), "position emb"),
        (lambda s: s.update({"model.classifier.weight": torch.ones(2, 32)}), "a fine-tuned head"),
        (lambda s: s.update({"model.decoder.weight": torch.ones(512, 32)}), "expected tied weights"),
        (lambda s: s.update({"model.bert.what.weight": torch.ones(1)}), "what.weight, which no ModernBERT"),
        (lambda s: s.pop("model.bert.final_norm.weight"), "no final_norm.weight"),
        (lambda s: s.pop("model.decoder.bias"), "decoder.bias|head"),
        (lambda s: s.pop(LAYER + "attn.Wqkv.weight"), "no layers.0.attn.Wqkv.weight"),
        (lambda s: s.update({LAYER + "attn.Wqkv.weight": torch.ones(3, 3)}), r"shape \[3, 3\], expected \[96, 32\]"),
        (lambda s: s.update({LAYER + "attn.Wqkv.weight": torch.ones(96, 32).double()}), "float32 and float64"),
        (lambda s: s.update({LAYER + "attn.Wqkv.weight": torch.ones(96, 32).long()}), "LongStorage"),
        (lambda s: s.update({"model.step": 7}), "'model.step' is a int, expected a tensor"),
        (lambda s: s.update({"bert.final_norm.weight": torch.ones(32)}), "has 'final_norm.weight' twice"),
        (renamed(LAYER + "mlp.Wo.weight", "model.bert.encoder.layers.9.mlp.Wo.weight"), "no two-dimensional layers"),
    ],
)  # fmt: skip
def test_weights_of_another_model_are_refused_by_name(
    tmp_path: Path, flexbert: FlexBert, change: Callable[[dict[str, Any]], Any], line: str
) -> None:
    state = state_of(flexbert)
    change(state)
    torch.save(checkpoint_of(state), tmp_path / "c.pt")
    with pytest.raises(InputError, match=line) as told:
        run(ConvertConfig(tmp_path / "c.pt", output=tmp_path / "out", **LENGTH))
    assert "\n" not in str(told.value)
    assert not (tmp_path / "out").exists()


def test_a_pytorch_model_bin_beside_its_config_becomes_a_folder(tmp_path: Path, small_bert: ModernBert) -> None:
    small_bert.save(tmp_path / "new")
    model = ModelFolder(tmp_path / "new").load_model()
    assert isinstance(model, MaskedLM)
    (tmp_path / "new" / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "new" / "pytorch_model.bin")
    with pytest.raises(InputError, match="modernbert convert"):
        ModelFolder(tmp_path / "new").load_model()
    run(ConvertConfig(tmp_path / "new" / "pytorch_model.bin", output=tmp_path / "out"))
    texts = ["The capital of country 3", "is"]
    bert = ModernBert.load(tmp_path / "out", device="cpu", dtype="float32", engine="torch")
    assert (bert.embed(texts) == ModernBert(small_bert.tokenizer, model).embed(texts)).all()
    with pytest.raises(InputError, match="norm_eps: .*config.json already has it"):
        run(ConvertConfig(tmp_path / "new" / "pytorch_model.bin", output=tmp_path / "other", norm_eps=1e-5))


def test_the_command_says_what_it_chose_and_ends_with_two_for_what_is_no_checkpoint(
    tmp_path: Path, flexbert: FlexBert, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def convert(*more: str) -> tuple[int, str, str]:
        command = ["modernbert", "convert", str(tmp_path / "c.pt"), "--output", str(tmp_path / "out"), *more]
        monkeypatch.setattr(sys, "argv", command)
        try:
            main()
        except SystemExit as ended:
            return int(ended.code or 0), *capfd.readouterr()
        return 0, *capfd.readouterr()

    before = signal.getsignal(signal.SIGTERM)
    torch.save(checkpoint_of(state_of(flexbert)), tmp_path / "c.pt")
    status, _, said = convert()
    assert status == 2 and said.endswith("expected --training-config TRAINING.yaml, or --max-position-embeddings\n")
    status, said, _ = convert("--max-position-embeddings", "1024")
    assert status == 0 and "local_attention: 8 (the settings in c.pt)" in said
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "training.yaml").write_text("model:\n  model_config:\n    final_norm: true\nmax_seq_len: 512\n")
    status, _, said = convert(
        "--training-config", str(tmp_path / "training.yaml"), "--tokenizer", str(tmp_path / "none")
    )
    assert status == 2 and "none" in said
    options = [
        "convert", "--num-attention-heads", "2", "--max-position-embeddings", "768", "--global-attn-every-n-layers",
        "2", "--local-attention", "12", "--global-rope-theta", "9000.0", "--local-rope-theta", "8000.0", "--norm-eps",
        "0.001",
    ]  # fmt: skip
    status, said, _ = convert(*options[1:])
    assert status == 0
    for name, value in zip(options[1::2], options[2::2], strict=True):
        assert re.search(rf"^{name[2:].replace('-', '_')}: {float(value):g}\S* \(option\)$", said, re.MULTILINE), name
    (tmp_path / "c.pt").write_bytes(pickle.dumps({"state": 1}))
    status, _, said = convert()
    assert status == 2 and "is a bare pickle" in said and said.count("\n") == 1
    signal.signal(signal.SIGTERM, before)
