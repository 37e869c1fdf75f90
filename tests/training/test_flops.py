"""The count of operations: against torch's own counter, and pairs against a mask written out."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from modernbert.batch import Batch, SequenceLengths
from modernbert.engines.registry import REFERENCE
from modernbert.model.config import ModelConfig
from modernbert.model.heads import MaskedLM
from modernbert.training.flops import known_peak, peak_flops, step_flops, visible_pairs
from modernbert.training.losses import masked_lm


def counted(config: ModelConfig, lengths: list[int], num_masked: int) -> int:
    """Count what torch runs for one micro-batch with the reference engine, which computes every pair of the stream."""
    model = MaskedLM(config, REFERENCE)
    num_tokens = sum(lengths)
    tokens = torch.randint(config.vocab_size, (num_tokens,))
    where = torch.randperm(num_tokens)[:num_masked].sort().values
    batch = Batch(tokens, SequenceLengths.from_lengths(lengths), where, tokens[where])
    with FlopCounterMode(display=False) as counter:
        masked_lm(model, batch)[0].backward()
    return counter.get_total_flops()


def brute_force_pairs(lengths: list[int], window: tuple[int, int] | None) -> int:
    left, right = window or (max(lengths), max(lengths))
    return sum(-left <= key - query <= right for length in lengths for query in range(length) for key in range(length))


def test_one_document_within_the_window_is_what_torch_counts(small_config: ModelConfig) -> None:
    """Every pair of the stream is visible in every layer, so the two counts must agree as they are."""
    assert step_flops(small_config, [60], 17) == counted(small_config, [60], 17)


def test_documents_and_windows_take_away_the_pairs_that_are_masked(small_config: ModelConfig) -> None:
    config, lengths = replace(small_config, local_attention=16), [41, 3, 100, 1]
    layers = [config.is_global(layer) for layer in range(config.num_hidden_layers)]
    seen = sum(brute_force_pairs(lengths, None if is_global else config.window) for is_global in layers)
    unseen = len(layers) * sum(lengths) ** 2 - seen
    # Two products forward, four backward, of twice the width each.
    expected = counted(config, lengths, 40) - unseen * 6 * 2 * config.hidden_size
    assert step_flops(config, lengths, 40) == expected


def test_base_costs_six_operations_a_weight_and_token_and_its_attention() -> None:
    """The rule of thumb, with the weights counted in the model; only rows with a loss get beyond the last attention."""
    config, lengths, masked = ModelConfig.preset("base"), [1024] * 16, 4915
    with torch.device("meta"):
        model = MaskedLM(config)
    layers = sum(weight.numel() for weight in model.model.layers.parameters() if weight.dim() == 2)
    last = model.model.layers[-1]
    late = sum(part.weight.numel() for part in (last.attn.Wo, last.mlp.Wi, last.mlp.Wo))
    head = model.head.dense.weight.numel() + model.decoder.weight.numel()
    matrices = 6 * (sum(lengths) * (layers - late) + masked * (late + head))
    # 8 global layers see all of a document, 14 local ones 129 keys, less at its ends.
    pairs = 16 * (8 * 1024**2 + 14 * (1024 * 129 - 64 * 65))
    assert step_flops(config, lengths, masked) == matrices + 12 * 768 * pairs


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=5),
    st.none() | st.tuples(st.integers(0, 50), st.integers(0, 50)),
)
def test_pairs_are_those_of_the_mask(lengths: list[int], window: tuple[int, int] | None) -> None:
    assert visible_pairs(lengths, window) == brute_force_pairs(lengths, window)


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H200", 989.4),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA A100-PCIE-40GB", 312.0),
        ("NVIDIA A100 80GB PCIe", 312.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA L40S", 362.0),
        ("Tesla T4", None),
        ("Tesla V100-SXM2-16GB", None),
        # A part of a GPU, a laptop's, and one whose name only begins like a known one.
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA L40", None),
    ],
)
def test_peaks_in_bfloat16_by_the_name_of_the_device(name: str, tflops: float | None) -> None:
    assert known_peak(name, torch.bfloat16) == (None if tflops is None else tflops * 1e12)


def test_peaks_in_other_precisions() -> None:
    assert known_peak("Tesla T4", torch.float16) == 65e12
    assert known_peak("NVIDIA A100-SXM4-80GB", torch.float32) == 19.5e12
    assert known_peak("NVIDIA A100-SXM4-80GB", torch.float64) is None


def test_a_cpu_has_noknown_peak() -> None:
    assert peak_flops(torch.device("cpu"), torch.float32) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_no_product_is_faster_than_the_peak() -> None:
    device = torch.device("cuda", 0)
    peak = peak_flops(device, torch.bfloat16)
    if peak is None:
        pytest.skip(f"no figure for {torch.cuda.get_device_name(device)}")
    size = 8192
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for repeat in range(30):
        if repeat == 10:
            begin.record()
        left @ right
    end.record()
    torch.cuda.synchronize()
    reached = 20 * 2 * size**3 / (begin.elapsed_time(end) / 1000)
    assert 0.3 * peak < reached < peak
