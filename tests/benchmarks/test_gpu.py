"""The GPU script reports wrong options before it measures."""

import subprocess
import sys
from pathlib import Path


def test_an_output_that_is_a_file_is_refused_first(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    words = [
        sys.executable,
        "-m",
        "benchmarks.gpu",
        "--device",
        "cpu",
        "--small",
        "--out",
        str(tmp_path / "taken"),
    ]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"bench-gpu: {tmp_path}/taken/gpu.json: cannot be written ({tmp_path}/taken is a file)\n"
    assert (tmp_path / "taken").read_text() == "mine"
