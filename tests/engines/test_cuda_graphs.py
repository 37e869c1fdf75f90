"""Padding a batch to a fixed size does not change its outputs; on a GPU, neither does a CUDA graph."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modernbert.batch import Batch
from modernbert.engines.cuda.cuda_graphs import CudaGraphs, pad_to_size
from modernbert.engines.registry import choose_engine, find_engine
from modernbert.inference.loading import permit_plans
from modernbert.model.config import ModelConfig
from modernbert.model.encoder import Encoder
from modernbert.model.initialization import initialize

SHAPE = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 4,
         "num_attention_heads": 1, "pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2}  # fmt: skip


def encoder_of(engine: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Encoder:
    config = ModelConfig(**SHAPE)
    encoder = Encoder(config, find_engine(engine))
    initialize(encoder, config, seed=1)
    return encoder.to(device, dtype).eval()


def batch_of(*lengths: int) -> Batch:
    generator = torch.Generator().manual_seed(sum(lengths))
    return Batch.from_documents([torch.randint(3, 64, (length,), generator=generator).numpy() for length in lengths])


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 90), min_size=1, max_size=5), st.integers(0, 70), st.integers(1, 4))
def test_padding_changes_no_output(lengths: list[int], more_tokens: int, more_documents: int) -> None:
    encoder, batch = encoder_of("reference"), batch_of(*lengths)
    tokens, layout = pad_to_size(
        batch.tokens, batch.layout, batch.num_tokens + more_tokens, batch.layout.num_docs + more_documents
    )
    assert len(tokens) == layout.num_tokens == layout.max_seqlen == batch.num_tokens + more_tokens
    assert list(layout.lengths) == layout.cu_seqlens.diff().tolist()
    assert len(layout.cu_seqlens) == layout.num_docs + 1
    with torch.no_grad():
        expected = encoder(batch.tokens, batch.layout)
        torch.testing.assert_close(encoder(tokens, layout)[: batch.num_tokens], expected, atol=1e-5, rtol=0)


def test_a_batch_on_a_cpu_is_not_replayed() -> None:
    batch = batch_of(5, 7)
    with torch.no_grad():
        assert not CudaGraphs().accepts(batch.tokens, batch.layout)


@pytest.mark.gpu
@pytest.mark.parametrize("engine", ["cuda", "flash"])
def test_replayed_graphs_equal_the_eager_pass(engine: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    assert choose_engine(engine, torch.device("cuda"), torch.bfloat16, ModelConfig(**SHAPE)).name == engine
    encoder = encoder_of(engine, "cuda", torch.bfloat16)
    permit_plans(encoder)
    for mode in (torch.inference_mode, torch.no_grad, torch.inference_mode):
        with mode():
            for lengths in [(5,), (300, 1, 77), (31,), (2000,), (9,) * 40, (5,), (64, 64)]:
                batch = batch_of(*lengths).to("cuda")
                assert isinstance(encoder.plans.find(encoder, batch.tokens, batch.layout), CudaGraphs)
                found, expected = encoder(batch.tokens, batch.layout), encoder.run_layers(batch.tokens, batch.layout)
                assert torch.cosine_similarity(found.float(), expected.float(), dim=-1).min() > 0.9999
