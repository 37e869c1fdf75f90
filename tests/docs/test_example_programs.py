"""The programs and the notebook of `examples/` run, with models that are small or real, and print their results."""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
# The options of each program, and what it prints; a random model has no useful answers.
PROGRAMS = {
    "embed_and_search.py": (
        ["--model", MINILM],
        r"18 pages, 384 numbers each: \S*work/vectors.npy\n\nmy bank card does not work\n0\.\d+  declined-cards.md\n",
    ),
    "classify.py": ([], r"\d+ of 40 messages have the right label\. The model is \S*work/run/model\.\n"),
    "tag.py": (["--epochs", "1"], r"two\]? \[?lamps.*\n(  (PRODUCT|PLACE|DATE): .+ \(\d+%\)\n)+\n\[?Please"),
    "late_interaction.py": (["--epochs", "1"], r"address-change.md: \d+ vectors of 128 numbers\ncan I pay in parts\n"),
    "continued_pretraining.py": (
        ["--tokens", "16384"],
        r"three \[MASK\] without interest\.\n  before: .+ \(\d+%\), .+\n  after: .+ \(\d+%\), ",
    ),
    "serve_and_query.py": (
        ["--model", MINILM], r"/embed: 18 vectors of 384 numbers\n/rerank: 0\.\d+  # Declined cards\n/rerank"
    ),
}  # fmt: skip


def test_every_example_is_listed_and_tested() -> None:
    names = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")}
    assert names == {*PROGRAMS, "search.ipynb"}
    assert names == set(re.findall(r"^\| \[(\S+)\]\(\1\)", (EXAMPLES / "README.md").read_text(), re.MULTILINE))


@pytest.mark.parametrize("name", PROGRAMS)
def test_an_example_reports_a_wrong_option_in_one_line(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [name, "--model", str(tmp_path), "--output", str(tmp_path / "work")])
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES.parent))
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    assert end.value.code == 2
    assert re.fullmatch(rf"{name}: {tmp_path}\S*: .+\n", capfd.readouterr().err)


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_an_example_runs_and_prints_its_results(name: str, hub: Path, tmp_path: Path) -> None:
    options, expected = PROGRAMS[name]
    printed = run_python([str(EXAMPLES / name), "--output", "work", *options], hub, tmp_path)
    assert re.search(expected, printed), printed


@pytest.mark.slow
def test_the_cells_of_the_notebook_run_in_order(hub: Path, tmp_path: Path) -> None:
    notebook = json.loads((EXAMPLES / "search.ipynb").read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    program = "\n\n".join("".join(cell["source"]) for cell in cells)
    assert "nomic-ai/modernbert-embed-base" in program
    (tmp_path / "cells.py").write_text(program.replace("nomic-ai/modernbert-embed-base", MINILM))
    printed = run_python(["cells.py"], hub, tmp_path)
    assert re.search(r"my bank card does not work\n  0\.\d+  declined-cards\n", printed), printed
    assert re.search(r"nDCG@10: 0\.9\d+ before, 0\.9\d+ after", printed), printed


def run_python(words: list[str], hub: Path, folder: Path) -> str:
    """Run a program in a folder with the stand-in for the Hub, and return what it prints."""
    variables = {"HF_HUB_CACHE": str(hub), "PYTHONPATH": str(EXAMPLES.parent), "TMPDIR": str(folder)}
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env=os.environ | variables, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
