"""Initial weights against the Megatron recipe, and the first loss against its closed form."""

import math

import pytest
import torch
import torch.nn.functional as F

from modernbert.batch import Batch
from modernbert.errors import InputError
from modernbert.model.config import ModelConfig
from modernbert.model.heads import MaskedLM
from modernbert.model.initialization import initialize


def model_of(config: ModelConfig, seed: int = 0) -> MaskedLM:
    model = MaskedLM(config)
    initialize(model, config, seed)
    return model


def test_standard_deviations_and_cutoff() -> None:
    config = ModelConfig.preset("ettin-17m")
    # A normal distribution truncated at two standard deviations has 0.8796 of its standard deviation.
    cut = 0.8796
    within_one = math.erf(0.5**0.5) / math.erf(2**0.5)
    for name, parameter in model_of(config).named_parameters():
        if parameter.ndim == 1:
            assert torch.all(parameter == (0.0 if name.endswith("bias") else 1.0)), name
            continue
        std = 0.02 / math.sqrt(2 * config.num_hidden_layers) if name.endswith("Wo.weight") else 0.02
        assert parameter.std().item() == pytest.approx(cut * std, rel=0.02), name
        assert 1.99 * std < parameter.abs().max() <= 2 * std, name
        assert (parameter.abs() < std).float().mean().item() == pytest.approx(within_one, abs=0.01), name
        assert abs(parameter.mean().item()) < 0.01 * std, name


def test_a_seed_gives_the_same_weights_and_another_seed_others(small_config: ModelConfig) -> None:
    first, again, other = (model_of(small_config, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["model.layers.0.attn.Wqkv.weight"], other["model.layers.0.attn.Wqkv.weight"])


@pytest.mark.parametrize("name", ["tiny", "ettin-17m", "base"])
def test_first_loss_is_the_logarithm_of_the_vocabulary(name: str) -> None:
    config = ModelConfig.preset(name)
    model = model_of(config).eval()
    tokens = torch.randint(0, config.vocab_size, (200,))
    with torch.no_grad():
        loss = F.cross_entropy(
            model(Batch.from_documents([tokens.numpy()])), torch.randint(0, config.vocab_size, (200,))
        )
    assert loss.item() == pytest.approx(math.log(config.vocab_size), rel=0.02)


def test_no_token_is_special_to_the_embedding(small_model: MaskedLM, small_config: ModelConfig) -> None:
    """In the published code one row of the embedding gets no gradient; here every row does."""
    batch = Batch.from_documents([[small_config.pad_token_id, 0, 5]])
    small_model(batch).sum().backward()
    gradient = small_model.model.embeddings.tok_embeddings.weight.grad
    assert gradient is not None and gradient[[small_config.pad_token_id, 0, 5]].abs().sum(dim=1).min() > 0


def test_unknown_preset_and_field_suggest_the_nearest() -> None:
    with pytest.raises(InputError, match=r"found 'lagre'.*Did you mean large"):
        ModelConfig.preset("lagre")
    with pytest.raises(InputError, match=r"model.hiden_size: no such field.*Did you mean hidden_size"):
        ModelConfig.preset("base", hiden_size=64)
    with pytest.raises(InputError, match="hidden_size: found '64', expected int"):
        ModelConfig.preset("base", hidden_size="64")


def test_only_the_attention_output_has_dropout(small_config: ModelConfig) -> None:
    model = MaskedLM(ModelConfig(**(small_config.as_dict() | {"attention_output_dropout": 0.1})))
    dropouts = {name: module.p for name, module in model.named_modules() if isinstance(module, torch.nn.Dropout)}
    assert dropouts == {f"model.layers.{n}.attn.out_drop": 0.1 for n in range(small_config.num_hidden_layers)}
