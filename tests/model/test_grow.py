"""Growth by the published rule, element by element."""

import pytest
import torch
from safetensors.torch import load_file

from modernbert.config_files import resolve
from modernbert.errors import InputError
from modernbert.inference.modernbert import ModernBert
from modernbert.model.config import ModelConfig
from modernbert.model.heads import MaskedLM
from modernbert.model.initialization import initialize
from modernbert.model.surgery import grow, layer_map, tile
from modernbert.training import grow_folder as job

IDS = {"vocab_size": 64, "pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2}


def config_of(width, feed_forward, layers, heads):
    return ModelConfig(
        **IDS, hidden_size=width, intermediate_size=feed_forward, num_hidden_layers=layers, num_attention_heads=heads
    )


def weights_of(config, seed=0):
    model = MaskedLM(config)
    initialize(model, config, seed)
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(parameter.shape, generator=generator) for name, parameter in model.named_parameters()}


def test_layers_of_large_are_those_of_the_paper():
    expected = "0,1,2,2,3,4,5,6,6,7,8,9,9,10,11,12,13,13,14,15,16,16,17,18,19,20,20,21"
    assert ",".join(map(str, layer_map(22, 28))) == expected


@pytest.mark.parametrize(("old", "new", "offset"), [(768, 1024, 128), (1152, 2624, 736), (5, 5, 0), (4, 13, 4)])
def test_an_axis_is_centred_and_wraps_around(old, new, offset):
    found = tile(torch.arange(old), (new,))
    assert found.tolist() == [(place - offset) % old for place in range(new)]
    assert torch.equal(found[offset : offset + old], torch.arange(old))


def test_every_element_follows_the_rule():
    old, new = config_of(32, 48, 4, 4), config_of(64, 80, 7, 8)
    weights = weights_of(old)
    grown = grow(weights, old, new)
    assert {name: tensor.shape for name, tensor in grown.items()} == {
        name: parameter.shape for name, parameter in MaskedLM(new).named_parameters()
    }
    layers = [round(layer * 4 / 7) for layer in range(7)]
    rng = torch.Generator().manual_seed(7)

    def draw(limit):
        return int(torch.randint(limit, (), generator=rng))

    for name, tensor in grown.items():
        parts = name.split(".")
        if "layers" in parts:
            parts[2] = str(layers[int(parts[2])])
        source = weights.get(".".join(parts))
        if source is None:  # the attention norm of a layer made of the first
            assert parts[2:4] == ["0", "attn_norm"]
            assert torch.equal(tensor, torch.ones(64))
            continue
        num_parts = 3 if "Wqkv" in name else 2 if "Wi" in name else 1
        old_rows, new_rows = source.shape[0] // num_parts, tensor.shape[0] // num_parts
        for _ in range(100):
            part, row = draw(num_parts), draw(new_rows)
            expected = source[part * old_rows + (row - (new_rows - old_rows) // 2) % old_rows]
            found = tensor[part * new_rows + row]
            if tensor.ndim == 2:
                column = draw(tensor.shape[1])
                expected = expected[(column - (tensor.shape[1] - source.shape[1]) // 2) % source.shape[1]]
                found = found[column]
            assert found == expected, name


def test_heads_stay_whole_where_their_number_grows_by_an_odd_one():
    old, new = config_of(32, 48, 2, 4), config_of(56, 48, 2, 7)
    weights = weights_of(old)
    grown = grow(weights, old, new)["model.layers.1.attn.Wqkv.weight"]
    heads = [weights["model.layers.1.attn.Wqkv.weight"][:32].view(4, 8, 32)[head] for head in (3, 0, 1, 2, 3, 0, 1)]
    assert torch.equal(grown[:56, 12 : 12 + 32].view(7, 8, 32), torch.stack(heads))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((16, 48, 4, 2), "hidden_size: found 16, expected at least 32"),
        ((32, 40, 4, 4), "intermediate_size: found 40"),
        ((32, 48, 3, 4), "num_hidden_layers: found 3"),
        ((64, 48, 4, 4), "head_width: found 16, expected 8"),
    ],
)
def test_what_is_smaller_or_has_other_heads_is_refused(shape, message):
    old = config_of(32, 48, 4, 4)
    with pytest.raises(InputError, match=message):
        grow(weights_of(old), old, config_of(*shape))


def test_the_verb_writes_a_model_that_computes(small_bert: ModernBert, tmp_path, capsys):
    small_bert.save(tmp_path / "small")
    shape = {"hidden_size": 128, "num_attention_heads": 2, "num_hidden_layers": 7, "intermediate_size": 192}
    given = {"model": tmp_path / "small", "output": tmp_path / "grown", "preset": "base"}
    job.run(resolve(job.GrowConfig, given | {"shape": shape}))
    assert "layers copied from 0, 1, 1, 2, 2, 3, 3" in capsys.readouterr().out
    before, after = (
        load_file(tmp_path / name / "model.safetensors")["model.embeddings.tok_embeddings.weight"]
        for name in ("small", "grown")
    )
    assert torch.equal(after[:, 32:96], before)
    grown = ModernBert.load(tmp_path / "grown")
    assert grown.tokenizer.fingerprint == small_bert.tokenizer.fingerprint
    assert grown.embed(["a text"]).shape == (1, 128)
    with pytest.raises(InputError, match="shape.vocab_size: is not a size to grow"):
        job.run(resolve(job.GrowConfig, given | {"shape": shape | {"vocab_size": 640}}))
