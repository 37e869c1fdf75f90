"""The encoder against the published implementation in `transformers`, on random weights in float32."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import ModernBertConfig, ModernBertForMaskedLM
from transformers.initialization import no_init_weights

from modernbert.batch import Batch
from modernbert.checkpoints.folder import ModelFolder
from modernbert.checkpoints.hf_config import config_to_json
from modernbert.engines.registry import find_engine
from modernbert.model.config import PRESETS, ModelConfig
from modernbert.model.heads import MaskedLM
from modernbert.model.initialization import initialize


def published(config: ModelConfig, seed: int = 0) -> ModernBertForMaskedLM:
    words = config_to_json(config, "ModernBertForMaskedLM", "float32")
    with no_init_weights():  # which take it ten seconds at base's shape
        theirs = ModernBertForMaskedLM(ModernBertConfig(**words))
    drawn = MaskedLM(config)
    initialize(drawn, config, seed)
    theirs.load_state_dict(drawn.state_dict())
    theirs.tie_weights()
    return theirs.eval()


def ours_from(theirs: ModernBertForMaskedLM, config: ModelConfig, engine: str = "torch") -> MaskedLM:
    model = MaskedLM(config, find_engine(engine))
    model.load_state_dict(theirs.state_dict(), strict=True)
    return model.eval()


def documents(lengths: list[int], vocab_size: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(4, vocab_size, length) for length in lengths]


def ragged_lengths(seed: int) -> list[int]:
    """Draw 1 to 64 documents, most of them short, some at the edges of window and block."""
    rng = np.random.default_rng(seed)
    edges = [1, 2, 63, 64, 65, 66, 127, 128, 129, 130, 192]
    number = int(rng.integers(1, 65))
    return [int(rng.choice(edges)) if rng.random() < 0.4 else int(2 ** rng.uniform(0, 9)) for _ in range(number)]


BATCHES = {
    **{f"seed {seed}": ragged_lengths(seed) for seed in range(8)},
    "one token": [1],
    "exact blocks": [64, 128, 192, 256],
    "64 documents": [1 + 7 * n for n in range(64)],
    "8,192 among short ones": [3, 8192, 1, 700],
}


@pytest.mark.parametrize("engine", ["torch", "reference"])
@pytest.mark.parametrize("name", BATCHES)
def test_hidden_states_and_logits_equal_those_of_transformers(
    name: str, engine: str, small_config: ModelConfig
) -> None:
    lengths = BATCHES[name]
    if engine == "reference" and sum(lengths) > 1_500:
        pytest.skip("the reference holds all scores at once")
    config = small_config
    theirs = published(config)
    ours = ours_from(theirs, config, engine)
    texts = documents(lengths, config.vocab_size)
    batch = Batch.from_documents(texts)
    with torch.no_grad():
        hidden = ours.model(batch.tokens, batch.layout).split(lengths)
        logits = ours(batch).split(lengths)
        for number, text in enumerate(texts):
            expected = theirs.model(input_ids=torch.from_numpy(text)[None]).last_hidden_state[0]
            torch.testing.assert_close(hidden[number], expected, atol=1e-5, rtol=0)
            torch.testing.assert_close(logits[number], theirs.decoder(theirs.head(expected)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("lengths", [[5, 64, 200, 1, 129], [1024, 300, 700]], ids=str)
def test_gradients_equal_those_of_transformers(lengths: list[int], small_config: ModelConfig) -> None:
    config = small_config
    theirs = published(config)
    ours = ours_from(theirs, config)
    texts = documents(lengths, config.vocab_size)
    labels = documents(lengths, config.vocab_size, seed=1)
    F.cross_entropy(ours(Batch.from_documents(texts)), torch.from_numpy(np.concatenate(labels))).backward()
    for text, label in zip(texts, labels, strict=True):
        logits = theirs(input_ids=torch.from_numpy(text)[None]).logits[0]
        (F.cross_entropy(logits, torch.from_numpy(label), reduction="sum") / sum(lengths)).backward()
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None and expected[name].grad is not None
        error = (parameter.grad - expected[name].grad).norm() / expected[name].grad.norm()
        assert error < 1e-4, f"{name}: {error}"


def test_padded_batch_of_transformers_equals_our_ragged_one(small_config: ModelConfig) -> None:
    theirs = published(small_config)
    ours = ours_from(theirs, small_config)
    lengths = [150, 7, 90]
    texts = documents(lengths, small_config.vocab_size)
    padded = torch.full((3, 150), small_config.pad_token_id)
    for row, text in enumerate(texts):
        padded[row, : len(text)] = torch.from_numpy(text)
    mask = torch.arange(150)[None] < torch.tensor(lengths)[:, None]
    with torch.no_grad():
        expected = theirs(input_ids=padded, attention_mask=mask.long()).logits[mask]
        torch.testing.assert_close(ours(Batch.from_documents(texts)), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["base", "ettin-17m"])
def test_published_shapes_equal_transformers(name: str) -> None:
    config = ModelConfig.preset(name)
    theirs = published(config)
    ours = ours_from(theirs, config)
    texts = documents([70, 1, 200], config.vocab_size)
    with torch.no_grad():
        rows = ours(Batch.from_documents(texts)).split([70, 1, 200])
        for row, text in zip(rows, texts, strict=True):
            expected = theirs(input_ids=torch.from_numpy(text)[None]).logits[0]
            torch.testing.assert_close(row, expected, atol=1e-5, rtol=0)


# Ettin and mmBERT: by the closed form, and as their papers round them.
COUNTS = {"base": 149_655_232, "large": 395_881_664}
MILLIONS = {
    "ettin-17m": 17,
    "ettin-32m": 32,
    "ettin-68m": 68,
    "ettin-1b": 1_000,
    "mmbert-small": 140,
    "mmbert-base": 307,
}


@pytest.mark.parametrize("name", PRESETS)
def test_parameter_counts_are_the_published_ones(name: str) -> None:
    config = ModelConfig.preset(name)
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in MaskedLM(config).parameters())
    d, f, v, layers = config.hidden_size, config.intermediate_size, config.vocab_size, config.num_hidden_layers
    norms = 1 + (2 * layers - 1) + 1 + 1
    assert count == v * d + layers * (4 * d * d + 3 * d * f) + d * d + norms * d + v
    assert count == COUNTS.get(name, count)
    assert abs(count / 1e6 - MILLIONS.get(name, count / 1e6)) <= 0.04 * count / 1e6


def test_a_document_gives_the_same_hidden_states_alone_and_in_any_batch(small_model: MaskedLM) -> None:
    texts = documents([300, 1, 65, 64, 8, 8, 8, 500, 129], small_model.model.config.vocab_size)
    orders = [range(len(texts)), reversed(range(len(texts))), [3, 0, 8]]
    with torch.no_grad():
        alone = [small_model(Batch.from_documents([text])) for text in texts]
        for order in map(list, orders):
            together = small_model(Batch.from_documents([texts[i] for i in order]))
            expected = torch.cat([alone[i] for i in order])
            torch.testing.assert_close(together, expected, atol=1e-5, rtol=0)


def test_logits_at_label_positions(small_model: MaskedLM) -> None:
    batch = Batch.from_documents(documents([40, 9], 512))
    rows = torch.tensor([48, 0, 7])
    chosen = Batch(batch.tokens, batch.layout, label_positions=rows, labels=rows)
    with torch.no_grad():
        torch.testing.assert_close(small_model(chosen), small_model(batch)[rows], atol=1e-6, rtol=0)


def test_tied_decoder_is_one_parameter_and_survives_loading(tmp_path, small_model: MaskedLM) -> None:

    ModelFolder.save(tmp_path / "model", small_model)
    read = ModelFolder(tmp_path / "model").load_model()
    assert isinstance(read, MaskedLM)
    assert read.decoder.weight is read.model.embeddings.tok_embeddings.weight
