"""Hostile model folders: none executes code or crashes the process, and each is refused quickly by name.

A folder whose hostile part is ignored loads, and computes the same as the good folder.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from modernbert.errors import InputError
from modernbert.safe_files import read_bytes

from .__main__ import cases

ROOT = Path(__file__).parents[2]
KINDS = Counter(case.kind for case in cases())


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """Run all cases in a separate process, since any may crash it; once for all test processes."""
    folder = tmp_path_factory.getbasetemp()
    out = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "hostile"
    out.mkdir(exist_ok=True)
    with FileLock(out / "lock"):
        if not (out / "cases.jsonl").exists():
            words = [sys.executable, "-m", "tests.hostile", "--out", str(out)]
            done = subprocess.run(
                words, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=600
            )
            (out / "ended.json").write_text(json.dumps([done.returncode, done.stderr[-3000:]]))
    lines = [json.loads(line) for line in (out / "cases.jsonl").read_text().splitlines()]
    status, errors = json.loads((out / "ended.json").read_text())
    assert status == 0, f"after {lines[-1:]}: {errors}"
    assert not (out / "canary").exists()
    return {kind: [line for line in lines if line["kind"] == kind] for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_every_folder_is_refused_by_name_or_computes_what_the_good_one_does(
    results: dict[str, list[dict[str, Any]]], kind: str
) -> None:
    assert len(results[kind]) == KINDS[kind]
    for line in results[kind]:
        if line["says"] is None:
            assert line["outcome"] == "loaded" and line["same"], line
        else:
            assert line["outcome"] == "refused" and line["says"] in line["message"], line
            assert line["message"].isprintable() and len(line["message"]) < 2_100, line


@pytest.mark.parametrize("kind", KINDS)
def test_no_folder_runs_code_or_takes_long_or_much(results: dict[str, list[dict[str, Any]]], kind: str) -> None:
    for line in results[kind]:
        assert not line["canary"] and not line["events"] and not line["imported"], line
        # CPU time, since other tests run at the same time.
        assert line["cpu_s"] < 2 and line["peak_bytes"] < 500e6, line


def test_a_file_is_read_no_further_than_it_is_long() -> None:
    """A system file of size 0 may return bytes forever."""
    assert read_bytes(Path("/proc/self/status"), 100) == b""
    with pytest.raises(InputError, match="/dev/zero: is a pipe or a device, expected a file"):
        read_bytes(Path("/dev/zero"), 100)
