"""Errors name options as they are typed, and hint at the nearest name."""

from pathlib import Path

import pytest
from commands import run_here

from modernbert import embed_files
from modernbert.errors import InputError

TOO_LONG = "city " * 1_500


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["classfy", "m"], "Unknown command classfy. Did you mean classify?"),
        (["evaluate", "retrival", "m"], "Unknown command retrival. Did you mean retrieval?"),
        (["--nope"], "Unknown option --nope."),
        (["embed", "m", "--nope", "3"], "Unknown option --nope."),
        (["embed", "m", "--trunc-dim", "3"], "Unknown option --trunc-dim. Did you mean --truncate-dim?"),
        (["pretrain", "--phases.a.tokns", "5"], "Unknown option --phases.a.tokns. Did you mean --phases.a.tokens?"),
        (["pretrain", "--phase.a.tokens", "5"], "Unknown option --phase.a.tokens. Did you mean --phases.a.tokens?"),
        (["pretrain", "--loss-rise", "5"], "Unknown option --loss-rise. Did you mean --guard.loss-rise?"),
        (["pretrain", "--phases.a.x", "5"], "Unknown option --phases.a.x."),
        (["finetune", "m", "--task", "classify", "--negatives", "3"],
         "--negatives: is an option of --task embed, found --task classify."),
        (["finetune", "m", "--negatives", "3"], "--negatives: is an option of --task embed, found no --task."),
        (["sweep", "m", "--task", "late", "--columns.text", "a"],
         "--columns.text: is an option of --task classify, found --task late."),
        (["embed", "m", "--output", "a.npy", "--output=b.npy"], "--output: was given twice, expected once."),
        (["embed", "m", "--normalize", "--no-normalize"], "--normalize: was given twice, expected once."),
        (["tokenizer", "data/articles"],
         "data/articles: is an argument too many, expected options; pass files with --input, as in --input "
         "data/articles."),
        (["finetune", "m", "a.tsv", "--task", "embed"],
         "a.tsv: is an argument too many, expected options; pass files with --train, as in --train a.tsv."),
        (["doctor", "x"], "x: is an argument too many, expected options."),
        (["pretrain", "--phases.a.lr", "1", "--phases.a.lr", "2"], "--phases.a.lr: was given twice, expected once."),
    ],
)  # fmt: skip
def test_an_unknown_or_repeated_name_is_refused_with_a_hint(words: list[str], said: str) -> None:
    done = run_here(*words)
    assert (done.returncode, done.stderr) == (2, f"modernbert: {said}\n")


def test_an_interrupt_says_how_to_continue(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(config: object) -> None:
        raise KeyboardInterrupt("the same command continues runs/a after step 3")

    monkeypatch.setattr("modernbert.doctor.run", interrupted)
    done = run_here("doctor")
    assert done.returncode == 130
    assert done.stderr.strip() == "modernbert: interrupted; the same command continues runs/a after step 3"


def test_an_error_names_options_as_they_are_typed(bert: Path, tmp_path: Path) -> None:
    done = run_here("embed", str(bert), TOO_LONG)
    assert "pass --overflow truncate to cut it, or --overflow split-mean to" in done.stderr
    done = run_here("embed", str(bert), "a", "--truncate-dim", "999")
    assert "modernbert: --truncate-dim: found 999" in done.stderr
    done = run_here("embed", str(bert), "a", "--executor", "ray")
    assert "--executor: ray embeds files or standard input, into a file (--output)" in done.stderr


def test_a_python_error_names_options_as_they_are_in_python(bert: Path) -> None:
    with pytest.raises(InputError, match='pass `overflow="truncate"` to cut it'):
        embed_files(str(bert), [TOO_LONG])
    with pytest.raises(InputError, match="^truncate_dim: found 999"):
        embed_files(str(bert), ["a"], truncate_dim=999)
