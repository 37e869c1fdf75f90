"""The repository: pages and configs are true, modules import only declared libraries, tests can fail."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import TypeCheckError

from modernbert import ModernBert, __version__
from modernbert.config_files import nested, resolve
from modernbert.errors import InputError
from modernbert.evaluation.ranking_metrics import rank_ids
from modernbert.extras import EXTRAS
from modernbert.tasks.metrics import accuracy
from modernbert.training.pretraining_config import PretrainConfig, schedule_of

ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "modernbert" / "configs" / "pretrain").glob("*.yaml"))


def test_the_architecture_page_names_every_package() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text()
    for folder in (ROOT / "modernbert").iterdir():
        if folder.is_dir() and folder.name not in ("__pycache__", "configs"):
            assert f"`{folder.name}`" in page


def test_no_two_modules_share_a_name() -> None:
    for folder in ("modernbert", "tests", "benchmarks"):
        names = [path.name for path in (ROOT / folder).rglob("*.py")]
        repeated = {name for name in names if names.count(name) > 1}
        assert repeated <= {"__init__.py", "__main__.py", "conftest.py"}


def test_the_efficiency_tables_of_the_documentation_are_those_of_the_results() -> None:
    subprocess.run([sys.executable, "-m", "benchmarks.efficiency_tables", "--check"], cwd=ROOT, check=True)


def config_of(name: str) -> PretrainConfig:
    path = ROOT / "modernbert" / "configs" / "pretrain" / f"{name}.yaml"
    given = {
        "output": "x",
        "tokenizer": "t",
        "data.sources.code": "a",
        "data.sources.prose": "b",
        "data.heldout.mix": "c",
        "init_from": "d",
    }
    config = resolve(PretrainConfig, nested(given), path)
    config.check()
    return config


@pytest.mark.parametrize("name", [path.stem for path in CONFIGS if path.stem != "adapt"])
def test_every_config_from_noise_is_the_three_phases(name: str) -> None:
    phases = list(config_of(name).phases.values())
    lengths = list(dict.fromkeys(phase.max_len for phase in phases))
    assert lengths == [1024, 8192]
    assert all(phase.global_rope_theta == (160_000 if phase.max_len == 8192 else 10_000) for phase in phases)
    assert all(phase.local_rope_theta == 10_000 for phase in phases)
    assert [phase.decay for phase in phases] == ["none"] * (len(phases) - 1) + ["one_minus_sqrt"]
    assert all(schedule_of(phase).num_steps > 0 for phase in phases)


def test_base_is_the_run_of_the_paper() -> None:
    """Table 3 and appendix A.2 of the paper: tokens, batches, where the batch grows, rates."""
    schedules = [schedule_of(phase) for phase in config_of("base").phases.values()]
    assert [round(schedule.tokens / 1e9) for schedule in schedules] == [1719, 250, 50]
    full = [schedule.plan(schedule.num_steps - 1).num_micro_batches for schedule in schedules]
    assert [size * 98_304 for size in full] == [4608 * 1024, 576 * 8192, 576 * 8192]
    assert [schedule.num_steps for schedule in schedules[1:]] == [250_000_000_000 // 4_718_592, 10_596]
    stable = schedules[0]
    assert [round(stable.plan(size * stable.steps_per_size).tokens_before / 1e9, 1) for size in range(1, 6)] == [
        3.3,
        10.0,
        20.0,
        33.3,
        50.0,
    ]
    assert [stable.plan(size * stable.steps_per_size).num_micro_batches for size in range(6)] == [8, 16, 24, 32, 40, 48]
    assert stable.learning_rate(1_500_000_000) == pytest.approx(4e-4)
    assert [schedule.learning_rate(4_000_000_000) for schedule in schedules[:2]] == [8e-4, 3e-4]
    assert schedules[2].learning_rate(50_000_000_000) == pytest.approx(3e-7)


def test_large_is_the_run_of_the_paper() -> None:
    phases = config_of("large").phases
    schedules = {name: schedule_of(phase) for name, phase in phases.items()}
    assert round((schedules["stable"].tokens + schedules["stable_restarted"].tokens) / 1e9) == 1719
    sizes = {name: s.plan(s.num_steps - 1).num_micro_batches * s.micro_batch_tokens for name, s in schedules.items()}
    assert list(sizes.values()) == [4928 * 1024, 4928 * 1024, 616 * 8192, 624 * 8192]
    stable = schedules["stable"]
    grown = [stable.plan(size * stable.steps_per_size).tokens_before / 1e9 for size in range(1, 11)]
    # Sizes last whole steps.
    assert grown == pytest.approx([0.18, 0.55, 1.09, 1.82, 2.73, 3.82, 5.09, 6.55, 8.18, 10.0], abs=0.03)
    assert [phase.lr for phase in phases.values()] == [5e-4, 5e-5, 5e-5, 5e-5]
    assert [phase.weight_decay for phase in phases.values()] == [1e-5, 1e-6, 1e-6, 1e-6]


def test_an_unknown_key_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("phases:\n  stable:\n    tokns: 3\n")
    with pytest.raises(InputError, match=r"c.yaml: phases.stable.tokns: unknown option. Did you mean tokens"):
        resolve(PretrainConfig, {}, tmp_path / "c.yaml")
    with pytest.raises(InputError, match="seeed: unknown option. Did you mean seed"):
        resolve(PretrainConfig, {"seeed": 3})
    (tmp_path / "c.yaml").write_text("seed: [1\n")
    with pytest.raises(InputError, match="c.yaml: is not YAML"):
        resolve(PretrainConfig, {}, tmp_path / "c.yaml")
    with pytest.raises(InputError, match="seed: found 'x', expected a valid integer"):
        resolve(PretrainConfig, {"seed": "x"})


def test_every_module_imports_without_the_extras() -> None:
    """Libraries of the extras are imported only when a file or page needs them, and importing prints nothing."""
    code = """
import importlib, importlib.util, pkgutil, sys
has_triton = importlib.util.find_spec("triton")  # it comes with torch for CUDA, and is for GPUs alone
from modernbert.extras import EXTRAS
from modernbert.tasks.metrics import accuracy
for name in [*EXTRAS, "httptools", "uvloop"]:
    if name != "jinja2":  # torch brings it
        sys.modules[name] = None
import modernbert
for module in pkgutil.walk_packages(modernbert.__path__, "modernbert."):
    if module.name.startswith("modernbert.engines.cuda.") and not has_triton:
        continue
    if module.name == "modernbert.inference.sentence_transformers_module":  # imports that library itself
        continue
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as error:  # `serve` imports these when it has found their libraries
        library = error.name.split(".")[0]
        assert module.name.startswith("modernbert.serving.") and EXTRAS[library][1] == "serve", (module.name, error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), "importing printed something"


def _imports(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


def test_every_library_that_is_imported_is_declared() -> None:
    """In the core if a command always imports it, else in the extra that its error names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    core = {_plain_name(line) for line in project["dependencies"]}
    extras = {name: {_plain_name(line) for line in lines} for name, lines in project["optional-dependencies"].items()}
    for package, extra in EXTRAS.values():
        assert package in extras[extra], (package, extra)
    assert "pyarrow" in extras["index"]  # `index` names it in its errors
    packages = set().union(*(extras[name] for name in extras)) - {"modernbert"}
    # uvicorn takes these when they are there.
    assert packages - {package for package, _ in EXTRAS.values()} == {"httptools", "uvloop"}
    (everything,) = project["optional-dependencies"]["all"]
    assert set(re.findall(r"[\w-]+", everything)) == {"modernbert", *extras} - {"all"}
    imported = set().union(*(_imports(ast.parse(path.read_text())) for path in (ROOT / "modernbert").rglob("*.py")))
    ours = {"modernbert", "optimi", "triton", "flash_attn", "flash_attn_interface", "mpi4py"}
    unknown = imported - set(sys.stdlib_module_names) - set(EXTRAS) - ours
    names = {"yaml": "pyyaml", "annotated_types": "annotated-types", "huggingface_hub": "huggingface_hub"}
    assert {names.get(name, name) for name in unknown} <= core, unknown


def _plain_name(requirement: str) -> str:
    return re.split(r"[\[<>=;~! ]", requirement)[0]


def test_the_version_is_printed() -> None:
    done = subprocess.run([sys.executable, "-m", "modernbert", "--version"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith(f"modernbert {__version__}, ")


def test_a_command_that_used_kernels_prints_nothing_at_its_end() -> None:
    pytest.importorskip("triton")
    code = "import sys, triton.language; from modernbert.cli.main import main; sys.argv[1:] = ['--version']; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_tokenizing_does_not_import_torch() -> None:
    code = (
        "import sys; from modernbert import Tokenizer; import modernbert.data.shards; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_embedding_imports_no_slow_library(small_bert: ModernBert, tmp_path: Path) -> None:
    """Torch's compiler, rich, and libraries with adapters for this package are not imported for a vector."""
    small_bert.save(tmp_path / "model")
    unwanted = ("torch._dynamo", "sympy", "triton", "rich", "sentence_transformers", "mteb")
    code = (
        "import sys; from modernbert import ModernBert; ModernBert.load(sys.argv[1], device='cpu').embed(['a text']); "
        f"print([n for n in {unwanted} if n in sys.modules])"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "model")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_training_imports_neither_compiler_nor_fsdp() -> None:
    code = (
        "import sys, torch, modernbert.training.pretraining; "
        "from modernbert.training.optimizers import StableAdamW; "
        "weight = torch.nn.Parameter(torch.ones(2)); optimizer = StableAdamW([weight], lr=0.1); "
        "weight.grad = torch.ones(2); optimizer.step(); optimizer.zero_grad(); "
        "print([n for n in ('torch._dynamo', 'sympy', 'torch.distributed.fsdp') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_tests_check_the_axes_and_the_types_of_annotations() -> None:
    with pytest.raises(TypeCheckError, match="expected"):
        accuracy(np.zeros(3, dtype=int), np.zeros(5, dtype=int))
    with pytest.raises(BeartypeCallHintViolation, match="scores"):
        rank_ids(["a", "b"])  # type: ignore[arg-type]


def _cannot_fail(node: ast.AST) -> str | None:
    """Return why a statement of a test cannot fail, or asserts something else than it seems to."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.IfExp | ast.Compare | ast.BoolOp | ast.GeneratorExp):
        return "an unused value"
    if isinstance(node, ast.Assert) and isinstance(node.test, ast.Tuple | ast.GeneratorExp | ast.ListComp):
        return "is always true"
    if isinstance(node, ast.Compare) and ast.dump(node.left) == ast.dump(node.comparators[0]):
        return "compares an expression with itself"
    if isinstance(node, ast.With) and len(node.body) > 1 and not isinstance(node.body[-1], ast.Raise):
        if any(ast.unparse(item.context_expr).startswith("pytest.raises(") for item in node.items):
            return "any of several statements may raise"
    return None


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("*.py")), ids=lambda path: path.stem)
def test_no_assertion_of_a_test_is_one_that_cannot_fail(path: Path) -> None:
    found = {node.lineno: why for node in ast.walk(ast.parse(path.read_text())) if (why := _cannot_fail(node))}
    assert not found


def test_project_files_name_the_same_versions() -> None:
    """The version of the package, of Python and of torch, in all files that repeat them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text()
    pythons = [line.split(" :: ")[-1] for line in project["classifiers"] if " :: 3." in line]
    assert f"python: {json.dumps(pythons)}\n" in (ROOT / ".github" / "workflows" / "test.yml").read_text()
    assert project["requires-python"] == f">={pythons[0]}"
    pinned = {
        name: set(re.findall(r"torch==([\d.]+)", (ROOT / name).read_text()))
        for name in ("Makefile", "Dockerfile", "Dockerfile.cuda")
    }
    assert len(set().union(*pinned.values())) == 1 and all(pinned.values()), pinned
