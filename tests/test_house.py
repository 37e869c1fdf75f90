"""The house in order: documents that hold, configs that load, rooms that need only what they say."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from modernbert import ModernBert
from modernbert.config import load
from modernbert.errors import InputError
from modernbert.train.recipe import PretrainConfig, schedule_of

ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "modernbert" / "configs" / "pretrain").glob("*.yaml"))


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_the_python_example_of_the_readme_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], small_bert: ModernBert
) -> None:
    small_bert.save(tmp_path / "model")
    (example,) = blocks("python")
    assert "answerdotai/ModernBERT-base" in example
    exec(example.replace("answerdotai/ModernBERT-base", str(tmp_path / "model")), {})
    assert capsys.readouterr().out


def test_the_commands_of_the_readme_are_commands() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for line in "".join(blocks("sh")).splitlines():
        words = line.split("#")[0].split()
        if words[:1] == ["make"]:
            assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE), line
        if words[:1] == ["modernbert"]:
            done = subprocess.run(
                [sys.executable, "-m", "modernbert.cli", words[1], "--help"], capture_output=True, text=True
            )
            assert done.returncode == 0, line
            for option in (word for word in words if word.startswith("--")):
                assert option in done.stdout, line


def test_the_tree_of_the_readme_is_the_tree() -> None:
    (tree,) = (block for block in blocks("text") if "ragged.py" in block)
    for line in tree.splitlines():
        name = line.split()[0]
        places = [ROOT / name, ROOT / "modernbert" / name]
        assert any(place.exists() for place in places), name
    for folder in (ROOT / "modernbert").iterdir():
        if folder.is_dir() and folder.name != "__pycache__":
            assert f"{folder.name}/" in tree


def test_numbers_of_the_readme_have_their_record() -> None:
    linked = re.findall(r"\]\((records/[^)]*)\)", (ROOT / "README.md").read_text())
    assert linked
    for path in linked:
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_config_loads_and_plans(path: Path) -> None:
    config = load(PretrainConfig, path, ["out=x", "tokenizer=t", "sources.code=a", "sources.prose=b"])
    config.check()
    phases = list(config.phases.values())
    assert [phase.max_len for phase in phases] == [1024, 8192, 8192]
    assert [phase.global_rope_theta for phase in phases] == [10_000, 160_000, 160_000]
    assert [phase.decay for phase in phases] == ["none", "none", "one_minus_sqrt"]
    assert all(schedule_of(phase).num_steps > 0 for phase in phases)


def test_an_unknown_key_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("phases:\n  stable:\n    tokns: 3\n")
    with pytest.raises(InputError, match=r"c.yaml: phases.stable.tokns: .*'tokens'"):
        load(PretrainConfig, tmp_path / "c.yaml")
    with pytest.raises(InputError, match=r"seeed=3.*'seed'"):
        load(PretrainConfig, None, ["seeed=3"])
    (tmp_path / "c.yaml").write_text("seed: [1\n")
    with pytest.raises(InputError, match="c.yaml: is not YAML"):
        load(PretrainConfig, tmp_path / "c.yaml")
    with pytest.raises(InputError, match="seed=x: .*Integer"):
        load(PretrainConfig, None, ["seed=x"])


def test_every_module_imports_without_the_extras() -> None:
    """Libraries of the extras are asked for when a file or a page needs them, never before."""
    code = """
import importlib, pkgutil, sys
for name in ("pyarrow", "zstandard", "bm25s", "matplotlib", "jinja2", "transformers"):
    if name != "jinja2":  # torch brings it
        sys.modules[name] = None
import modernbert
for module in pkgutil.walk_packages(modernbert.__path__, "modernbert."):
    importlib.import_module(module.name)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_tokenising_never_waits_for_torch() -> None:
    code = (
        "import sys; from modernbert import Tokenizer; import modernbert.text.shards; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
