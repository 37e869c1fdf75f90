"""Help texts: immediate, of every command and task; and shell completion."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import run_here

from modernbert.cli.verbs import VERBS, Verb
from modernbert.data import example_data
from modernbert.tasks.task import ClassifierTask, RetrievalTask, known_tasks
from modernbert.training.command_options import LABELED_TASKS, RETRIEVAL_TASKS, schema_of
from modernbert.training.finetuning_config import FinetuneConfig
from modernbert.training.retriever_config import RetrieverConfig


def test_no_help_text_waits_for_a_slow_import() -> None:
    pages = [
        [],
        *(verb.split() for verb in VERBS),
        *([verb, "--task", task] for verb in ("finetune", "sweep") for task in (*LABELED_TASKS, *RETRIEVAL_TASKS)),
    ]
    code = f"""
import sys
from modernbert.cli.main import run
for page in {pages!r}:
    run([*page, "--help"])
    slow = {{"torch", "pydantic", "tokenizers"}} & sys.modules.keys()
    assert not slow, (page, slow)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Usage: modernbert") == len(pages)


def test_the_tasks_that_help_knows_have_their_options() -> None:
    """Other tasks are looked up in the registry, so that a task is one file."""
    kinds = {**dict.fromkeys(LABELED_TASKS, ClassifierTask), **dict.fromkeys(RETRIEVAL_TASKS, RetrievalTask)}
    assert all(isinstance(known_tasks()[name], kind) for name, kind in kinds.items())
    for name, task in known_tasks().items():
        assert schema_of(name) is (RetrieverConfig if isinstance(task, RetrievalTask) else FinetuneConfig)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("modernbert pre", {"prepare", "pretrain"}),
        ("modernbert embed m --overf", {"--overflow"}),
        ("modernbert embed m --overflow s", {"split-mean"}),
        ("modernbert evaluate ", {"retrieval", "glue"}),
    ],
)
def test_a_shell_completes_commands_options_and_choices(line: str, expected: set[str]) -> None:
    script = subprocess.run(
        [sys.executable, "-m", "modernbert", "completion", "bash"], capture_output=True, text=True, check=True
    )
    assert "_MODERNBERT_COMPLETE=bash_complete" in script.stdout
    variables = {"COMP_WORDS": line, "COMP_CWORD": str(line.count(" ")), "_MODERNBERT_COMPLETE": "bash_complete"}
    code = "import sys; from modernbert.cli.main import cli; sys.argv[1:] = []; cli.main(prog_name='modernbert')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | variables)
    assert {row.split(",", 1)[1] for row in done.stdout.split()} == expected


EXAMPLES = [(verb, example) for verb in VERBS for example in VERBS[verb].examples]


@pytest.mark.parametrize(("verb", "example"), EXAMPLES, ids=[example for _, example in EXAMPLES])
def test_every_example_of_the_help_is_a_command_that_can_run(
    verb: str, example: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    received: list[Any] = []
    monkeypatch.setattr(Verb, "load_function", lambda self: received.append)
    program, *words = shlex.split(example)
    assert program == "modernbert" and words[: len(verb.split())] == verb.split()
    done = run_here(*words)
    assert done.returncode == 0 and len(received) == 1, done.stderr
    for name in [word for word in words if word.startswith("data/")]:
        assert (Path(example_data.__file__).with_name("example_files") / name.removeprefix("data/")).exists(), name


@pytest.mark.parametrize("words", [verb.split() for verb in VERBS] + [["finetune", "--task", "tag"]], ids=" ".join)
def test_help_shows_examples_before_options_and_fits_a_terminal(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = run_here(*words, "--help").stdout
    headings = re.findall(r"^(\S.*):$", shown, re.MULTILINE)
    assert headings[0] in ("Example", "Examples") and headings[-1] == "General"
    assert re.search(rf"^  modernbert {words[0]}\b", shown, re.MULTILINE)
    assert max(map(len, shown.splitlines())) <= 80
    assert "-h, --help" in shown


def test_the_list_of_commands_has_a_line_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = run_here("--help").stdout
    for verb in VERBS.values():
        assert verb.summary in shown


def test_a_task_has_its_own_example() -> None:
    assert "--task late" in run_here("finetune", "--task", "late", "--help").stdout.partition("Arguments:")[0]
