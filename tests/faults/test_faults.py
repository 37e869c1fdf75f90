"""A few cases of each part; `make faults` runs them all."""

import subprocess
import sys
from pathlib import Path


def test_a_few_of_each_kind_go_as_they_should(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    # In a process of its own: the cases are forks, and this one has threads.
    for part, only in (("kill", "rmtree"), ("storage", "optimizer"), ("step", "nan in one gradient"), ("mistake", "t")):
        words = [sys.executable, "-m", "tests.faults", "--parts", part, "--only", only, "--per-point", "1"]
        done = subprocess.run([*words, "--out", str(tmp_path / part)], cwd=root, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert (tmp_path / part / "cases.jsonl").read_text().count("\n") >= 1
        assert f"## {part}: " in (tmp_path / part / "table.md").read_text()
