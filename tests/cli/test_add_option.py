"""The option of CONTRIBUTING.md: its change of one file is applied to a copy of the package, and used."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PHASE = [
    "--output",
    "x",
    "--tokenizer",
    "x",
    "--text",
    "x",
    "--phases.adapt.tokens",
    "1000000",
    "--phases.adapt.lr",
    "1",
]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run Python with the changed copy of the package."""
    root = tmp_path_factory.mktemp("changed")
    shutil.copytree(ROOT / "modernbert", root / "modernbert", ignore=shutil.ignore_patterns("__pycache__"))
    section = (ROOT / "CONTRIBUTING.md").read_text().split("## Add an option")[1].split("\n## ")[0]
    (diff,) = re.findall(r"```diff\n(.*?)```", section, re.DOTALL)
    assert re.findall(r"^\+\+\+ b/(.*)", diff, re.MULTILINE) == ["modernbert/training/pretraining_config.py"]
    subprocess.run(["git", "apply", "--unidiff-zero", "-"], input=diff, text=True, cwd=root, check=True)

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        variables = os.environ | {"PYTHONPATH": str(root)}
        return subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=root, env=variables)

    return run


def test_the_command_line_has_the_option(python: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    shown = " ".join(python("-m", "modernbert", "pretrain", "--help").stdout.split())
    assert "--phases.NAME.warmup-share NUMBER Share of the tokens of the phase" in shown
    assert "if warmup_tokens is 0. [default: 0.0]" in shown
    done = python("-m", "modernbert", "pretrain", *PHASE, "--phases.adapt.warmup-share", "0.05", "--print")
    assert yaml.safe_load(done.stdout)["phases"]["adapt"]["warmup_share"] == 0.05, done.stderr
    done = python("-m", "modernbert", "pretrain", *PHASE, "--phases.adapt.warmup-share", "1.5")
    assert done.stderr == "modernbert: --phases.adapt.warmup-share: found '1.5', expected at most 1.\n"


def test_the_option_takes_effect_in_python_and_in_a_config_file(
    python: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    (tmp_path / "mine.yaml").write_text("phases: {adapt: {tokens: 1_000_000, lr: 1.0, warmup_share: 0.5}}\n")
    code = """
import json, sys
from modernbert.config_files import resolve
from modernbert.training.pretraining_config import PretrainConfig, schedule_of
for given in ({}, {"phases": {"adapt": {"warmup_share": 0.05}}}, {"phases": {"adapt": {"warmup_tokens": 7}}}):
    config = resolve(PretrainConfig, {"output": "x"} | given, sys.argv[1])
    print(json.dumps(schedule_of(config.phases["adapt"]).warmup_tokens))
"""
    done = python("-c", code, str(tmp_path / "mine.yaml"))
    assert list(map(json.loads, done.stdout.split())) == [500_000, 50_000, 7], done.stderr
