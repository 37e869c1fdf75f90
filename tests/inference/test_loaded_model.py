"""A loaded model as an object: pickled, forked, converted, hooked, adapted and trained."""

import copy
import io
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import cloudpickle
import joblib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modernbert import InputError, ModernBert
from modernbert.batch import Batch
from modernbert.checkpoints.folder import ModelFolder
from modernbert.engines.cpu.build import unavailable_reason
from modernbert.engines.cpu.cpu_engine import supports_gemm
from modernbert.engines.cpu.packed_encoder import PackedEncoder
from modernbert.engines.cpu.prepacked_linear import PrepackedLinears
from modernbert.engines.inference_plan import InferencePlan
from modernbert.engines.registry import find_engine, find_optimizer_kernels
from modernbert.inference.loading import permit_plans
from modernbert.model.config import ModelConfig
from modernbert.model.encoder import Encoder
from modernbert.model.heads import MaskedLM, pool
from modernbert.model.initialization import initialize
from modernbert.tasks.task import start_classifier
from modernbert.training.losses import masked_lm
from modernbert.training.optimizers import StableAdamW

TEXTS = ["The capital of country 3 is city 21.", "a", "rivers " * 200]
ENGINES = ["torch", *(["cpu"] if unavailable_reason() is None else [])]
SETTINGS = [(engine, dtype) for engine in ENGINES for dtype in ("float32", "bfloat16")]


@pytest.fixture(scope="module")
def folder(small_bert: ModernBert, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of widths that every fast way of computing takes."""
    tokenizer = small_bert.tokenizer
    config = ModelConfig(
        vocab_size=512, hidden_size=128, intermediate_size=192, num_hidden_layers=4, num_attention_heads=2,
        max_position_embeddings=1_000, pad_token_id=tokenizer.pad_id, cls_token_id=tokenizer.cls_id,
        sep_token_id=tokenizer.sep_id,
    )  # fmt: skip
    model = MaskedLM(config)
    initialize(model, config, seed=0)
    target = tmp_path_factory.mktemp("loaded") / "model"
    ModelFolder.save(target, model, tokenizer, 1_000)
    return target


def load(folder: Path, engine: str, dtype: str = "float32") -> ModernBert:
    return ModernBert.load(folder, device="cpu", dtype=dtype, engine=engine)


def run(script: str, *arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a new process, which a segmentation fault would end."""
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True, text=True, timeout=120, env=os.environ | {"TRITON_INTERPRET": "1"} | variables,
    )  # fmt: skip


# --- in other processes ---


def with_torch(bert: ModernBert) -> bytes:
    file = io.BytesIO()
    torch.save(bert, file)
    return file.getvalue()


def with_joblib(bert: ModernBert) -> bytes:
    file = io.BytesIO()
    joblib.dump(bert, file)
    return file.getvalue()


PICKLERS: dict[str, Callable[[ModernBert], bytes]] = {
    "pickle": pickle.dumps, "cloudpickle": cloudpickle.dumps, "torch": with_torch, "joblib": with_joblib,
}  # fmt: skip
EMBED_PICKLED = """
import pickle, sys
from pathlib import Path
import joblib, numpy as np, torch
readers = {
    "pickle": lambda path: pickle.loads(path.read_bytes()), "cloudpickle": lambda path: pickle.loads(path.read_bytes()),
    "torch": lambda path: torch.load(path, weights_only=False), "joblib": joblib.load,
}
texts = pickle.loads(Path(sys.argv[1], "texts").read_bytes())
for path in sorted(Path(sys.argv[1]).glob("*.bert")):
    np.save(path.with_suffix(".npy"), readers[path.name.split("-")[0]](path).embed(texts))
"""


def test_a_pickled_model_gives_the_same_vectors_in_another_process(folder: Path, tmp_path: Path) -> None:
    expected = {}
    for engine, dtype in SETTINGS:
        bert = load(folder, engine, dtype)
        for name, dumps in PICKLERS.items():
            stem = f"{name}-{engine}-{dtype}"
            (tmp_path / f"{stem}.bert").write_bytes(dumps(bert))
            expected[stem] = bert.embed(TEXTS)
    (tmp_path / "texts").write_bytes(pickle.dumps(TEXTS))
    ended = run(EMBED_PICKLED, tmp_path)
    assert ended.returncode == 0, ended.stderr
    for stem, vectors in expected.items():
        np.testing.assert_array_equal(np.load(tmp_path / f"{stem}.npy"), vectors, err_msg=stem)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_pool_of_spawned_processes_embeds(folder: Path, engine: str) -> None:
    bert = load(folder, engine)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        found = list(pool.map(bert.embed, [[text] for text in TEXTS]))
    np.testing.assert_array_equal(np.concatenate(found), bert.embed(TEXTS))


def test_a_model_on_several_devices_is_not_pickled(folder: Path) -> None:
    with load(folder, "torch").on(["cpu"]) as many, pytest.raises(InputError, match="cannot be pickled"):
        pickle.dumps(many)


EMBED_AFTER_FORK = """
import os, signal, sys
import numpy as np, torch
from modernbert import ModernBert
bert = ModernBert.load(sys.argv[1], device="cpu", dtype="float32", engine=sys.argv[2])
texts = ["rivers " * 200] * 8
expected = bert.embed(texts)
for _ in range(2):
    if not (child := os.fork()):
        signal.alarm(60)
        threads = torch.get_num_threads()
        os._exit(0 if threads == 2 and np.array_equal(bert.embed(texts), expected) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, "the forked process did not answer"
    assert np.array_equal(bert.embed(texts), expected)
"""


@pytest.mark.parametrize("engine", ENGINES)
def test_a_forked_process_embeds(folder: Path, engine: str) -> None:
    ended = run(EMBED_AFTER_FORK, folder, engine, OMP_NUM_THREADS="2")
    assert ended.returncode == 0, ended.stderr


# --- conversion, weights, training ---


def plan_of(bert: ModernBert) -> InferencePlan | None:
    """Return the plan that the next call uses."""
    encoder = bert.encoder
    assert isinstance(encoder, Encoder) and encoder.plans is not None
    batch = Batch.from_documents([[5, 6]])
    with torch.inference_mode():
        return encoder.plans.find(encoder, batch.tokens, batch.layout)


@pytest.mark.parametrize(("engine", "dtype"), SETTINGS)
def test_a_plan_is_built_once_and_used(folder: Path, engine: str, dtype: str) -> None:
    bert = load(folder, engine, dtype)
    bert.embed(TEXTS)
    plan = plan_of(bert)
    assert isinstance(plan, PackedEncoder if supports_gemm(64) and engine == "cpu" else PrepackedLinears)
    bert.embed(TEXTS)
    assert plan_of(bert) is plan
    bert.encoder.layers[1].train()  # type: ignore[union-attr]
    assert plan_of(bert) is None
    bert.model.eval()
    assert plan_of(bert) is plan and not bert.encoder.layers[1].attn.training  # type: ignore[union-attr]
    bert.model.train()
    assert bert.encoder.plans._built is None  # type: ignore[union-attr]
    bert.model.eval()
    assert plan_of(bert) is not plan


@pytest.mark.parametrize(("engine", "dtype"), SETTINGS)
def test_a_converted_model_computes_in_the_other_dtype_and_back(folder: Path, engine: str, dtype: str) -> None:
    bert = load(folder, engine, dtype)
    expected = bert.embed(TEXTS)
    exact = load(folder, "reference", "float32").embed(TEXTS)
    for other in (torch.float32, torch.float64, torch.bfloat16):
        bert.model.to(other)
        np.testing.assert_allclose(
            bert.embed(TEXTS), exact, atol=2e-2 if "bfloat16" in (dtype, str(other)[6:]) else 1e-5
        )
        assert next(bert.model.parameters()).dtype == other
    bert.model.to("cpu").to(getattr(torch, dtype)).eval()
    assert bert.encoder.engine.name == engine
    if dtype == "bfloat16":  # float32 -> bfloat16 would round the weights of a float32 model
        np.testing.assert_array_equal(bert.embed(TEXTS), expected)
    assert plan_of(bert) is not None


@pytest.mark.parametrize(("engine", "dtype"), SETTINGS)
def test_a_loaded_model_has_the_weights_of_its_folder(folder: Path, engine: str, dtype: str) -> None:
    loaded, plain = load(folder, engine, dtype).model, ModelFolder(folder).load_model(dtype=getattr(torch, dtype))
    found, expected = loaded.state_dict(), plain.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize(("engine", "dtype"), SETTINGS)
def test_new_weights_take_effect(folder: Path, engine: str, dtype: str, assign: bool) -> None:
    bert = load(folder, engine, dtype)
    before = bert.embed(TEXTS)
    state = {name: weight.flip(0).clone() for name, weight in bert.model.state_dict().items()}
    bert.model.load_state_dict(state, assign=assign)
    after = bert.embed(TEXTS)
    assert np.abs(after - before).max() > 1e-3
    with torch.no_grad():
        for layer in bert.encoder.layers:  # type: ignore[union-attr]
            layer.mlp.Wo.weight.mul_(3)
    assert np.abs(bert.embed(TEXTS) - after).max() > 1e-3
    exact = ModernBert(bert.tokenizer, copy.deepcopy(bert.model).float())
    exact.encoder.plans, exact.encoder.engine = None, find_engine("reference")  # type: ignore[union-attr]
    np.testing.assert_allclose(bert.embed(TEXTS), exact.embed(TEXTS), atol=1e-5 if dtype == "float32" else 2e-2)
    assert plan_of(bert) is not None


@pytest.mark.parametrize("engine", ENGINES)
def test_a_copy_is_a_model_of_its_own(folder: Path, engine: str) -> None:
    bert = load(folder, engine)
    expected = bert.embed(TEXTS)
    other = copy.deepcopy(bert)
    with torch.no_grad():
        other.encoder.embeddings.norm.weight.mul_(0.5)  # type: ignore[union-attr]
        other.encoder.layers[1].mlp.Wo.weight.zero_()  # type: ignore[union-attr]
    assert np.abs(other.embed(TEXTS) - expected).max() > 1e-3
    np.testing.assert_array_equal(bert.embed(TEXTS), expected)
    assert plan_of(other) is not None and plan_of(other) is not plan_of(bert)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_loaded_model_is_trained_in_all_layers(folder: Path, engine: str, training: bool) -> None:
    bert = load(folder, engine)
    before = bert.embed(TEXTS)
    model = bert.model
    model.train(training)
    batch = Batch.from_documents([list(range(5, 60)), list(range(5, 20))])
    optimizer = StableAdamW(model.parameters(), lr=1e-2, kernels=find_optimizer_kernels(torch.device("cpu")))
    losses = []
    for _ in range(3):
        loss = F.cross_entropy(model(batch), batch.tokens)
        optimizer.zero_grad()
        loss.backward()
        assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[2] < losses[0]
    model.eval()
    after = bert.embed(TEXTS)
    assert np.abs(after - before).max() > 1e-3
    exact = ModernBert(bert.tokenizer, copy.deepcopy(model))
    exact.encoder.plans, exact.encoder.engine = None, find_engine("reference")  # type: ignore[union-attr]
    np.testing.assert_allclose(after, exact.embed(TEXTS), atol=1e-4)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_hook_on_a_loaded_model_sees_what_layers_return(folder: Path, engine: str) -> None:
    bert = load(folder, engine)
    expected = bert.embed(TEXTS)
    seen: list[Tensor] = []
    handle = bert.encoder.layers[1].mlp.register_forward_hook(lambda _, __, output: seen.append(output))  # type: ignore[union-attr]
    np.testing.assert_allclose(bert.embed(TEXTS), expected, atol=1e-5)
    assert seen and plan_of(bert) is None
    handle.remove()
    np.testing.assert_array_equal(bert.embed(TEXTS), expected)
    assert plan_of(bert) is not None


@pytest.mark.parametrize("engine", ENGINES)
def test_an_adapter_in_a_loaded_model_changes_the_result(folder: Path, engine: str) -> None:
    bert = load(folder, engine)
    before = bert.embed(TEXTS)
    block = bert.encoder.layers[2].attn  # type: ignore[union-attr]
    plain = block.Wqkv
    block.Wqkv = Adapted(plain)
    assert np.abs(bert.embed(TEXTS) - before).max() > 1e-3
    block.Wqkv = plain
    np.testing.assert_array_equal(bert.embed(TEXTS), before)


@pytest.mark.parametrize("engine", ENGINES)
def test_dropout_of_a_model_in_training_mode_is_off_when_texts_are_embedded(folder: Path, engine: str) -> None:
    model = ModelFolder(folder).load_model(engine=find_engine(engine))
    model.model.set_dropout(0.5)  # type: ignore[union-attr]
    bert = ModernBert(load(folder, engine).tokenizer, model)
    expected = bert.embed(TEXTS)
    model.train()
    np.testing.assert_array_equal(bert.embed(TEXTS), expected)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_head_is_trained_on_the_states_of_a_loaded_model(folder: Path, engine: str) -> None:
    bert = load(folder, engine)
    batch = Batch.from_documents([list(range(5, 60))])
    with torch.no_grad():
        hidden = bert.encoder(batch.tokens, batch.layout)  # type: ignore[operator]
    head = nn.Linear(hidden.shape[1], 2)
    head(hidden).sum().backward()
    assert head.weight.grad is not None and head.weight.grad.abs().sum() > 0


# --- hooks and adapters ---


@pytest.mark.parametrize("engine", ENGINES)
def test_hooks_keep_the_hidden_states_that_layers_returned(folder: Path, engine: str) -> None:
    """They are the usual way to collect hidden states, for probes and layer pooling."""
    batch = Batch.from_documents([list(range(5, 90)), list(range(5, 20))])

    def states(engine: str, keep: Callable[[Tensor], Tensor], gradients: bool) -> list[Tensor]:
        model = ModelFolder(folder).load_model(engine=find_engine(engine))
        kept: list[Tensor] = []
        for layer in model.model.layers:  # type: ignore[union-attr]
            layer.register_forward_hook(lambda _, __, output: kept.extend(keep(part) for part in output))
            layer.attn.Wqkv.register_forward_hook(lambda _, __, output: kept.append(keep(output)))
        with torch.set_grad_enabled(gradients):
            model(batch)  # type: ignore[operator]
        return kept

    expected = states("reference", torch.clone, gradients=True)
    for found, exact in zip(states(engine, lambda output: output, gradients=False), expected, strict=True):
        assert (found - exact).abs().max() < 1e-4


class Adapted(nn.Linear):
    """A linear layer with a low-rank update, as adapter libraries put in the place of others."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None)
        self.weight, self.bias = linear.weight, linear.bias
        generator = torch.Generator().manual_seed(1)
        self.down = nn.Parameter(torch.randn(4, linear.in_features, generator=generator) / 4)
        self.up = nn.Parameter(torch.randn(linear.out_features, 4, generator=generator) / 4)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + F.linear(F.linear(input, self.down), self.up)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["attn.Wqkv", "attn.Wo", "mlp.Wi", "mlp.Wo"])
def test_an_adapter_in_a_layer_is_used_at_inference(folder: Path, engine: str, name: str) -> None:
    batch = Batch.from_documents([list(range(5, 90)), list(range(5, 20))])
    plain, adapted = (
        ModelFolder(folder).load_model(engine=find_engine(engine)),
        ModelFolder(folder).load_model(engine=find_engine(engine)),
    )
    parent, child = name.split(".")
    block = getattr(adapted.model.layers[2], parent)  # type: ignore[union-attr]
    setattr(block, child, Adapted(getattr(block, child)))
    exact = copy.deepcopy(adapted)
    exact.model.engine = find_engine("reference")  # type: ignore[union-attr]
    with torch.inference_mode():
        expected, base = exact(batch), plain(batch)  # type: ignore[operator]
        found = permit_plans(adapted)(batch)
    assert (expected - base).abs().max() > 0.01
    assert (found - expected).abs().max() < 1e-4


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["dense", "classifier"])
def test_an_adapter_in_a_head_decides(folder: Path, small_bert: ModernBert, engine: str, name: str) -> None:
    def score(adapt: bool) -> float:
        model = start_classifier(
            ModelFolder(folder).load_model(engine=find_engine(engine)), "regress", ["score"], seed=3
        ).eval()
        parent = model.head if name == "dense" else model
        if adapt:
            setattr(parent, name, Adapted(getattr(parent, name)))
        batch = Batch.from_documents(small_bert.tokenizer.encode([TEXTS[0]]))
        with torch.inference_mode():
            expected = model.classifier(model.head(pool(model.model(batch.tokens, batch.layout), batch.layout, "mean")))
        ((found,),) = (each.values() for each in ModernBert(small_bert.tokenizer, model).classify([TEXTS[0]]))
        assert found == pytest.approx(float(expected), abs=1e-4)
        return found

    assert abs(score(adapt=True) - score(adapt=False)) > 1e-3


@pytest.mark.parametrize("engine", ENGINES)
def test_an_adapter_in_the_decoder_is_trained(folder: Path, engine: str) -> None:
    model = ModelFolder(folder).load_model(engine=find_engine(engine))
    adapter = Adapted(model.decoder)  # type: ignore[arg-type]
    model.decoder = adapter
    where = torch.arange(9)
    batch = Batch.from_documents([list(range(5, 60))])
    loss, count = masked_lm(model, Batch(batch.tokens, batch.layout, where, batch.tokens[where]))
    loss.backward()
    expected = F.cross_entropy(model(batch)[where], batch.tokens[where], reduction="sum")  # type: ignore[operator]
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5) and count == 9
    assert adapter.up.grad is not None and adapter.up.grad.abs().sum() > 0


# --- the C++ boundary ---

BAD_CALLS = """
import sys
import torch
from modernbert.model.config import ModelConfig
from modernbert.model.heads import MaskedLM
from modernbert.engines.registry import find_engine
from modernbert.model.encoder import rope_angles
from modernbert.engines.cpu import calls
from modernbert.batch import Batch, SequenceLengths
from modernbert.training.losses import masked_lm

layout = SequenceLengths.from_lengths([40, 24])
offsets = layout.cu_seqlens
cosines, sines = (part[:, 0] for part in rope_angles(layout.positions, 64, 10_000.0))
qkv, rows = torch.randn(64, 3, 2, 64), torch.randn(64, 128)
logits, bias, labels = torch.randn(64, 128), torch.zeros(128), torch.zeros(64, dtype=torch.int64)
packed = calls.pack_weight(torch.randn(128, 128))
x, ones = torch.zeros(64), torch.ones(1)
wide = torch.randn(64, 256)[:, ::2]
meta = torch.device("meta")
asked = {
    "qkv in float64": lambda: calls.attend(qkv.double(), cosines, sines, offsets, None),
    "qkv in float16": lambda: calls.attend(qkv.half(), cosines, sines, offsets, None),
    "qkv of another device": lambda: calls.attend(qkv.to(meta), cosines, sines, offsets, None),
    "heads of 32": lambda: calls.attend(qkv.view(64, 3, 4, 32), cosines, sines, offsets, None),
    "angles in float64": lambda: calls.attend(qkv, cosines.double(), sines.double(), offsets, None),
    "angles of fewer tokens": lambda: calls.attend(qkv, cosines[:9], sines[:9], offsets, None),
    "angles that are not contiguous": lambda: calls.attend(qkv, cosines.T.contiguous().T, sines, offsets, None),
    "offsets in int64": lambda: calls.attend(qkv, cosines, sines, offsets.long(), None),
    "offsets past the end": lambda: calls.attend(qkv, cosines, sines, offsets * 2, None),
    "offsets of another device": lambda: calls.attend(qkv, cosines, sines, offsets.to(meta), None),
    "rows in float16": lambda: calls.linear(rows.half(), torch.randn(64, 128).half()),
    "rows of another device": lambda: calls.linear(rows.to(meta), torch.randn(64, 128)),
    "a weight of another depth": lambda: calls.linear(rows, torch.randn(64, 192)),
    "packed of another dtype": lambda: calls.multiply_(torch.zeros(64, 128), rows.bfloat16(), packed),
    "an out that is not contiguous": lambda: calls.multiply_(wide, rows, packed),
    "labels in int32": lambda: calls.cross_entropy_(logits, bias, labels.int(), None),
    "fewer labels": lambda: calls.cross_entropy_(logits, bias, labels[:9], None),
    "logits that are not contiguous": lambda: calls.cross_entropy_(wide, bias, labels, None),
    "a bias of another width": lambda: calls.cross_entropy_(logits, bias[:9], labels, None),
    "a delta of fewer rows": lambda: calls.residual_layer_norm(rows, rows[:9], bias, 1e-5),
    "a delta in float64": lambda: calls.residual_layer_norm(rows, rows.double(), bias, 1e-5),
    "a scale of another width": lambda: calls.residual_layer_norm(rows, rows, bias[:64], 1e-5),
    "a float32 delta to a bfloat16 stream": lambda: calls.residual_layer_norm(rows.bfloat16(), rows, bias, 1e-5),
    "an odd width": lambda: calls.geglu(torch.randn(4, 33)),
    "GeGLU of another device": lambda: calls.geglu(rows.to(meta)),
    "a gradient in bfloat16": lambda: calls.update_moments_([x.bfloat16()], [x], [x], (0.9, 0.98), 1e-6),
    "moments of other sizes": lambda: calls.update_moments_([x], [x[:9]], [x], (0.9, 0.98), 1e-6),
    "a weight that is not contiguous": lambda: calls.apply_moments_([wide], [wide], [wide], ones, ones, 1e-6),
}
for name, call in asked.items():
    try:
        call()
        print(name, "was taken", flush=True)
    except ValueError as error:
        assert "found" in str(error) or "expected" in str(error) or "times" in str(error), (name, error)
model = MaskedLM(ModelConfig.preset("tiny"), find_engine("cpu")).eval()
losses = []
for dtype in (torch.int64, torch.int32):
    batch = Batch.from_documents([list(range(5, 60))])
    batch = Batch(batch.tokens, batch.layout, torch.arange(9), torch.arange(9, dtype=dtype))
    losses.append(float(masked_lm(model, batch)[0]))
assert losses[0] == losses[1], losses
"""


@pytest.mark.skipif("cpu" not in ENGINES, reason=f"cpu {unavailable_reason()}")
def test_no_tensor_reaches_c_unchecked() -> None:
    ended = run(BAD_CALLS)
    assert (ended.returncode, ended.stdout) == (0, ""), ended.stderr
