"""A few cases of each part; `make faults` runs them all."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    "part, only",
    [
        ("kill", "rmtree"),
        pytest.param("storage", "optimizer", marks=pytest.mark.slow),
        pytest.param("step", "nan in one gradient", marks=pytest.mark.slow),
        ("mistake", "checkpoint"),
    ],
)
def test_a_few_cases_of_each_part(part: str, only: str, tmp_path: Path) -> None:
    # A new process, since the cases fork and this process has threads.
    words = [sys.executable, "-m", "tests.faults", "--parts", part, "--only", only, "--per-point", "1"]
    root = Path(__file__).parents[2]
    done = subprocess.run([*words, "--out", str(tmp_path)], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "cases.jsonl").read_text().count("\n") >= 1
    assert f"## {part}: " in (tmp_path / "table.md").read_text()
