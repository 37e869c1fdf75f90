"""Attention of every engine against the reference; FlashAttention with a stand-in kernel, and on a GPU itself."""

import inspect
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from modernbert.batch import Batch, SequenceLengths
from modernbert.engines import flash_engine as flash
from modernbert.engines.cpu import build
from modernbert.engines.engine import Window
from modernbert.engines.registry import choose_engine, find_engine
from modernbert.errors import InputError
from modernbert.model.config import ModelConfig
from modernbert.model.encoder import Encoder
from modernbert.model.heads import MaskedLM

WINDOW = (64, 64)
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
LENGTHS = [[1], [1, 1, 1], [64], [128, 64], [65, 63], [129, 1, 127], [3, 200, 2, 2, 2, 90], [640], [70] * 5, [257, 256]]


def outcome(
    engine: str, lengths: list[int], window: Window, dtype: torch.dtype, heads: int = 2, width: int = 16
) -> list[Tensor]:
    """Return the output and the gradients of queries, keys and values."""
    generator = torch.Generator().manual_seed(1)
    shape = (sum(lengths), heads, width)
    q, k, v, g = (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(4))
    inputs = [x.requires_grad_() for x in (q, k, v)]
    attn_out = find_engine(engine).attention(*inputs, SequenceLengths.from_lengths(lengths), window)
    attn_out.backward(g)
    return [attn_out.detach(), *(x.grad for x in inputs)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("window", [None, WINDOW, (3, 3), (0, 5), (7, 0)], ids=str)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_torch_equals_the_reference_forward_and_backward(
    lengths: list[int], window: Window, dtype: torch.dtype
) -> None:
    for found, expected in zip(
        outcome("torch", lengths, window, dtype), outcome("reference", lengths, window, dtype), strict=True
    ):
        torch.testing.assert_close(found, expected, atol=TOLERANCE[dtype], rtol=0)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(1, 150), min_size=1, max_size=12),
    side=st.integers(1, 70),
    is_local=st.booleans(),
)
def test_torch_equals_the_reference_for_any_lengths(lengths: list[int], side: int, is_local: bool) -> None:
    window = (side, side) if is_local else None
    for found, expected in zip(
        outcome("torch", lengths, window, torch.float64),
        outcome("reference", lengths, window, torch.float64),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("lengths", [[640], [200, 30, 77, 1, 400]], ids=str)
def test_local_gradients_in_bfloat16_are_as_accurate_as_those_of_torch(lengths: list[int]) -> None:
    """The error is compared with the rounding of torch's own backward pass in bfloat16."""
    layout = SequenceLengths.from_lengths(lengths)
    exact = outcome("reference", lengths, WINDOW, torch.float64, width=64)
    ours = outcome("torch", lengths, WINDOW, torch.bfloat16, width=64)
    same = layout.doc_ids()[:, None] == layout.doc_ids()[None, :]
    near = (layout.positions[:, None] - layout.positions[None, :]).abs() <= 64
    generator = torch.Generator().manual_seed(1)
    shape = (sum(lengths), 2, 64)
    q, k, v, g = (torch.randn(shape, generator=generator, dtype=torch.float64).bfloat16() for _ in range(4))
    inputs = [x.transpose(0, 1)[None].requires_grad_() for x in (q, k, v)]
    attn_out = torch.nn.functional.scaled_dot_product_attention(*inputs, attn_mask=same & near)
    theirs = [attn_out, *torch.autograd.grad(attn_out, inputs, g.transpose(0, 1)[None])]
    for our, their, expected in zip(ours, theirs, exact, strict=True):
        error = (our.double() - expected).norm() / expected.norm()
        assert error < 0.01
        assert error < 1.2 * (their[0].transpose(0, 1).double() - expected).norm() / expected.norm()


def test_the_reference_is_the_formula() -> None:
    """With a window of 64 a token attends to 129 keys: with equal scores each has the weight 1/129."""
    layout = SequenceLengths.from_lengths([300])
    zeros = torch.zeros(300, 1, 300, dtype=torch.float64)
    values = torch.eye(300, dtype=torch.float64)[:, None, :]
    weights = find_engine("reference").attention(zeros, zeros, values, layout, WINDOW)[:, 0]
    distance = (torch.arange(300)[:, None] - torch.arange(300)[None, :]).abs()
    seen = (distance <= 64).double()
    torch.testing.assert_close(weights, seen / seen.sum(dim=1, keepdim=True))
    assert seen[150].sum() == 129


@pytest.mark.parametrize("engine", ["torch", "reference"])
@pytest.mark.parametrize("window", [None, WINDOW], ids=str)
def test_nothing_crosses_the_border_of_a_document(engine: str, window: Window) -> None:
    layout = SequenceLengths.from_lengths([50, 30])
    q, k, v = (torch.randn(80, 2, 8) for _ in range(3))
    attention = find_engine(engine).attention
    before = attention(q, k, v, layout, window)
    changed = v.clone()
    changed[50:] = 1e4
    assert torch.equal(before[:50], attention(q, k, changed, layout, window)[:50])


def stand_in(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
) -> Tensor:
    """Compute torch's `varlen_attn`, and check its arguments like its kernels."""
    assert query.shape == key.shape == value.shape and query.ndim == 3
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert type(max_q) is int and type(max_k) is int
    lengths = cu_seq_q.diff()
    assert max_q == max_k == int(lengths.max()) and int(cu_seq_q[-1]) == len(query)
    rows = []
    for start, stop in zip(cu_seq_q[:-1].tolist(), cu_seq_q[1:].tolist(), strict=True):
        q, k, v = (x[start:stop].transpose(0, 1) for x in (query, key, value))
        distance = torch.arange(stop - start)[None, :] - torch.arange(stop - start)[:, None]
        left, right = (math.inf if side == -1 else side for side in window_size)
        hidden = (distance < -left) | (distance > right)
        scores = (q @ k.transpose(1, 2) * (scale or q.shape[-1] ** -0.5)).masked_fill(hidden, -math.inf)
        rows.append((scores.softmax(-1) @ v).transpose(0, 1))
    return torch.cat(rows)


def test_the_stand_in_has_the_signature_of_torch() -> None:
    theirs = inspect.signature(varlen_attn).parameters
    for ours in inspect.signature(stand_in).parameters.values():
        assert ours.name in theirs and theirs[ours.name].kind == ours.kind
    positional = [p.name for p in theirs.values() if p.kind == p.POSITIONAL_OR_KEYWORD]
    assert positional[:7] == ["query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"]


@pytest.mark.parametrize("window", [None, WINDOW], ids=str)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_flash_calls_the_kernel_correctly(lengths: list[int], window: Window, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash, "varlen_kernel", lambda: stand_in)
    for found, expected in zip(
        outcome("flash", lengths, window, torch.float64),
        outcome("reference", lengths, window, torch.float64),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


def test_whole_model_through_flash_equals_torch(small_model: MaskedLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash, "varlen_kernel", lambda: stand_in)
    generator = torch.Generator().manual_seed(0)
    batch = Batch.from_documents([torch.randint(0, 512, (n,), generator=generator).numpy() for n in (5, 200, 64)])
    with torch.no_grad():
        expected = small_model(batch)
        small_model.model.engine = find_engine("flash")
        torch.testing.assert_close(small_model(batch), expected, atol=1e-5, rtol=0)


def test_auto_takes_what_runs_and_a_name_is_never_replaced() -> None:
    cpu, config = torch.device("cpu"), ModelConfig.preset("base")
    narrow = ModelConfig.preset("base", num_attention_heads=24)
    best = "torch" if build.unavailable_reason() else "cpu"
    assert choose_engine("auto", cpu, torch.float32, config).name == best
    assert choose_engine("auto", cpu, torch.float32, narrow).name == "torch"
    assert choose_engine("reference", cpu, torch.float32, config) is find_engine("reference")
    with pytest.raises(InputError, match="engine: cpu needs heads of width 64, found 32; torch runs everywhere"):
        choose_engine("cpu", cpu, torch.float32, narrow)
    with pytest.raises(InputError, match="flash needs a CUDA device, found cpu"):
        choose_engine("flash", cpu, torch.bfloat16, config)
    with pytest.raises(InputError, match="engine: found 'varlen', expected auto, cuda, flash, cpu, torch, reference"):
        choose_engine("varlen", cpu, torch.float32, config)


class _Largest(torch.overrides.TorchFunctionMode):
    """Record the size of the largest tensor that any call returns."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor) and not tensor.is_set_to(tensor.new_empty(0)):
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


def test_no_tensor_grows_with_the_square_of_the_length() -> None:
    config = ModelConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=1,
        pad_token_id=0,
        cls_token_id=1,
        sep_token_id=2,
    )
    model = Encoder(config).eval()
    largest = {}
    for length in (2_048, 8_192):
        batch = Batch.from_documents([torch.arange(length).remainder(512).numpy()])
        with torch.no_grad(), _Largest() as seen:
            model(batch.tokens, batch.layout)
        largest[length] = seen.elements
    assert largest[8_192] <= 4.05 * largest[2_048]
    assert largest[8_192] < 8_192 * 8_192 / 32


@pytest.mark.gpu
@pytest.mark.parametrize("engine", ["cuda", "flash"])
@pytest.mark.parametrize("window", [None, WINDOW], ids=str)
@pytest.mark.parametrize("lengths", [*LENGTHS, [8_192, 3], [1024] * 8], ids=str)
def test_kernels_of_a_gpu_equal_torch(lengths: list[int], window: Window, engine: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    layout = SequenceLengths.from_lengths(lengths).to("cuda")
    q, k, v, g = (torch.randn(sum(lengths), 4, 64, device="cuda") for _ in range(4))
    results = []
    for name, dtype in ((engine, torch.bfloat16), ("torch", torch.float32)):
        inputs = [x.to(dtype).detach().requires_grad_() for x in (q, k, v)]
        attn_out = find_engine(name).attention(*inputs, layout, window)
        attn_out.backward(g.to(dtype))
        results.append([attn_out.detach().float(), *(x.grad.float() for x in inputs)])
    for found, expected in zip(*results, strict=True):
        # A document of one token has no gradient in its query and key.
        assert (found - expected).norm() <= 0.02 * expected.norm() + 0.01
