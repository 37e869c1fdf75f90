"""`modernbert embed --executor ray`: a cluster gives the same rows, whatever dies or stops."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from modernbert import InputError, ModernBert
from modernbert.inference import embed_files as embed
from modernbert.inference.embed_files import EmbedConfig, run
from modernbert.inference.text_parts import chunks_of
from modernbert.inference.text_rows import TextRow

PART_TEXTS = 100
TEXTS = [f"the capital of country {n}" + " word" * (n % 37) for n in range(2_400)]


@pytest.fixture(scope="module")
def folder(small_bert: ModernBert, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cluster") / "model"
    small_bert.save(path)
    return path


@pytest.fixture
def words(folder: Path, tmp_path: Path) -> list[str]:
    file = tmp_path / "t.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    out = str(tmp_path / "v.npy")
    return ["embed", str(folder), "--input", str(file), "--output", out, "--device", "cpu", "--dtype", "float32"]


def started(*words: str) -> subprocess.Popen[str]:
    """Start a command with small parts, in a new process group."""
    code = (
        f"from modernbert.inference import embed_files; embed_files.PART_CHARACTERS = {PART_TEXTS * 500}; "
        "from modernbert.cli.main import main; main()"
    )
    return subprocess.Popen([sys.executable, "-c", code, *words], stderr=subprocess.PIPE, text=True)


def ended(running: subprocess.Popen[str]) -> str:
    _, errors = running.communicate(timeout=240)
    assert running.returncode == 0, errors
    return errors


def wait_for(running: subprocess.Popen[str], there: Callable[[], object]) -> None:
    until = time.monotonic() + 240
    while not there():
        assert running.poll() is None and time.monotonic() < until, running.communicate()[1]
        time.sleep(0.05)


def below(process: int, name: str) -> list[int]:
    """Return the processes of a name that a process started, or those it started."""
    parents, names = {}, {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            names[int(path.name)] = (path / "cmdline").read_bytes().decode("utf-8", "replace")
        except OSError:
            continue

    def is_below(number: int) -> bool:
        return number == process or (number in parents and is_below(parents[number]))

    return [number for number in parents if name in names.get(number, "") and is_below(number)]


@pytest.mark.slow
def test_begun_here_killed_and_ended_on_a_cluster_of_which_a_process_dies(words: list[str], tmp_path: Path) -> None:
    parts = tmp_path / "v.npy.parts"
    here = started(*words)
    wait_for(here, lambda: len(list(parts.glob("*.npy"))) >= 6)
    here.kill()
    here.communicate()
    # Finished chunks are not computed again: these numbers stay.
    third = list(chunks_of((TextRow(f"t:{n}", text) for n, text in enumerate(TEXTS)), PART_TEXTS * 500))[3]
    np.save(parts / f"{third.digest}.npy", np.full((len(third.rows), 64), 7, np.float32))
    done = len(list(parts.glob("*.npy")))
    there = started(*words, "--executor", "ray", "--processes", "2")
    wait_for(there, lambda: len(list(parts.glob("*.npy"))) > done)
    workers = below(there.pid, "ray::_Worker")
    os.kill(workers[0], signal.SIGKILL)
    ended(there)
    expected = ModernBert.load(words[1], device="cpu", dtype="float32").embed(TEXTS)
    first = int(third.rows[0].origin.partition(":")[2])
    expected[first : first + len(third.rows)] = 7
    np.testing.assert_allclose(np.load(tmp_path / "v.npy"), expected, atol=1e-5)
    assert len(workers) == 2 and not parts.exists()


@pytest.mark.slow
def test_begun_on_a_cluster_killed_and_ended_here(words: list[str], tmp_path: Path) -> None:
    parts = tmp_path / "v.npy.parts"
    there = started(*words, "--executor", "ray")
    wait_for(there, lambda: len(list(parts.glob("*.npy"))) >= 5)
    there.kill()
    there.communicate()
    assert not (tmp_path / "v.npy").exists()
    ended(started(*words))
    expected = ModernBert.load(words[1], device="cpu", dtype="float32").embed(TEXTS)
    np.testing.assert_allclose(np.load(tmp_path / "v.npy"), expected, atol=1e-5)


@pytest.mark.slow
def test_what_is_wrong_is_one_line_from_there_too(words: list[str], tmp_path: Path) -> None:
    with (tmp_path / "t.jsonl").open("a") as file:
        file.write('{"text": "' + "word " * 3_000 + '"}\n')
    there = started(*words, "--executor", "ray")
    _, errors = there.communicate(timeout=240)
    assert there.returncode == 2 and "Traceback" not in errors
    (line,) = [line for line in errors.splitlines() if line.startswith("modernbert: ")]
    assert f"t.jsonl:{len(TEXTS) + 1}: has 15,002 tokens" in line and "expected at most 1,000" in line
    assert not (tmp_path / "v.npy").exists()


def test_a_cluster_is_asked_for_what_it_can_do(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t.txt").write_text("a\n")
    config = EmbedConfig(str(folder), input=[tmp_path / "t.txt"], output=tmp_path / "v.npy", executor="ray")
    for changes, said in (
        ({"output": None}, "executor: ray embeds files or standard input, into a file"),
        ({"input": (), "texts": ["a"]}, "executor: ray embeds files or standard input, into a file"),
        ({"device": ["cpu", "cpu"]}, "device: found 2, expected one; `processes` says how many"),
    ):
        with pytest.raises(InputError, match=said):
            run(EmbedConfig(**(vars(config) | changes)))
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"ray is not installed: pip install 'modernbert\[ray\]'"):
        run(config)


def test_what_is_sent_to_a_machine_is_whole_and_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("".join(f"{text}\n" for text in TEXTS[:250]))
    config = EmbedConfig(str(folder), input=[tmp_path / "t.txt"], dtype="float32", device=["cpu"])
    whole = list(chunks_of((TextRow(f"t:{n}", text) for n, text in enumerate(TEXTS[:250])), PART_TEXTS * 500))
    read = partial(embed._parts, config, None, {whole[1].digest}, PART_TEXTS * 500)
    sent = pickle.loads(pickle.dumps((read, partial(embed._load_there, config, "0" * 64), embed._embed)))
    numbers = [(part.digest, len(part.rows)) for part in sent[0]()]
    assert numbers == [(part.digest, len(part.rows)) for n, part in enumerate(whole) if n != 1], "part 1 is done"
    with pytest.raises(InputError, match="has other files on another machine of the cluster"):
        sent[1]("cpu")
