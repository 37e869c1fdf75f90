"""Help texts: immediate, of every command and task; and shell completion."""

import os
import subprocess
import sys

import pytest

from modernbert.cli.verbs import VERBS
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
