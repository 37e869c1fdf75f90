"""Compiled and recomputed layers compute the same as plain layers."""

import os
import subprocess
import sys

import pytest
import torch

from modernbert.batch import Batch
from modernbert.model.config import ModelConfig
from modernbert.model.heads import MaskedLM
from modernbert.model.initialization import initialize

SHAPE = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
         "num_attention_heads": 2, "pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2}  # fmt: skip


def model_of(dropout=0.0):
    config = ModelConfig(**SHAPE, attention_output_dropout=dropout)
    model = MaskedLM(config)
    initialize(model, config, seed=1)
    return model


def batch_of(*lengths):
    generator = torch.Generator().manual_seed(sum(lengths))
    return Batch.from_documents([torch.randint(3, 64, (length,), generator=generator).tolist() for length in lengths])


def outcome(model, batch):
    model.zero_grad()
    torch.manual_seed(4)
    logits = model(batch)
    (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum().backward()
    return [logits.detach(), *(parameter.grad.clone() for parameter in model.parameters())]


def test_recomputed_layers_change_no_bit():
    plain, again = model_of(dropout=0.3), model_of(dropout=0.3)
    again.model.recompute = True
    for ours, theirs in zip(outcome(again, batch_of(5, 130)), outcome(plain, batch_of(5, 130)), strict=True):
        assert torch.equal(ours, theirs)


def test_recomputing_saves_fewer_tensors():
    def kept(recompute):
        model, sizes = model_of(), []
        model.model.recompute = recompute
        with torch.autograd.graph.saved_tensors_hooks(lambda x: (sizes.append(x.numel()), x)[1], lambda x: x):
            model(batch_of(200, 100))
        return sum(sizes)

    assert kept(True) < kept(False) / 2


def run_in_process(code, **environment):
    """Run code without the runtime type checks of these tests, which torch.compile cannot trace."""
    code = (
        "import warnings; warnings.simplefilter('ignore')\nimport torch\n"
        "from test_compile import batch_of, model_of, outcome\n"
        "from modernbert.engines.registry import PORTABLE\n" + code
    )
    environment = os.environ | {"PYTHONPATH": os.path.dirname(__file__)} | environment
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_compiled_layers_compute_the_same_for_any_length():
    run_in_process("""
plain, compiled = model_of(), model_of()
names = list(compiled.state_dict())
assert (reason := PORTABLE.compile_blocks(compiled.model, torch.float32)) is None, reason
assert list(compiled.state_dict()) == names
def compare(*lengths):
    batch = batch_of(*lengths)
    for ours, theirs in zip(outcome(compiled, batch), outcome(plain, batch), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
# Attention returns a view for some lengths: both kinds may be compiled once, new lengths may not.
for lengths in [(17, 3), (130, 40, 5), (300,)]:
    compare(*lengths)
with torch.compiler.set_stance("fail_on_recompile"):
    for lengths in [(18, 4), (131, 7, 41, 6), (555,), (1, 2, 3), (260, 9)]:
        compare(*lengths)
""")


@pytest.mark.slow
def test_without_a_compiler_layers_stay_as_they_are(tmp_path):
    run_in_process(
        """
model = model_of()
expected = outcome(model, batch_of(17, 3))
reason = PORTABLE.compile_blocks(model.model, torch.float32)
assert reason and chr(10) not in reason, reason
assert all(torch.equal(a, b) for a, b in zip(outcome(model, batch_of(17, 3)), expected))
""",
        CXX="/nonexistent",
        TORCHINDUCTOR_CACHE_DIR=str(tmp_path),
    )
