"""Progress without a terminal: at most one line every few seconds, and the final state if it is to stay."""

import pytest

from modernbert.progress import show_progress, show_steps, show_texts


def test_lines_tell_the_share_and_the_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    with show_progress(200, start=100, interval_s=0.0) as update:
        update(100, "a start")
        update(150, lambda: "half of the rest")
    first, second = capsys.readouterr().err.splitlines()
    assert first == "a start  50%"
    assert second.startswith("half of the rest  75%  ") and second.endswith(" s left")


def test_only_the_last_state_is_shown_within_the_interval(capsys: pytest.CaptureFixture[str]) -> None:
    def never() -> str:
        raise AssertionError

    with show_progress(None) as update:
        update(1, never)
        update(2, lambda: "2 of them")
    assert capsys.readouterr().err == "2 of them\n"


def test_few_texts_or_unwanted_progress_print_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    for wanted in (True, False):
        with show_texts(2, wanted) as show:
            show(2, 100)
    assert capsys.readouterr().err == ""


def test_the_last_step_is_always_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with show_steps(num_steps=2, num_tokens=2_000, done_tokens=0) as show:
        show("stable", 1, 1_000, 3.0, 500.0)
        show("stable", 2, 2_000, 2.5, 500.0)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("stable  step 2/2  loss 2.500  500 tokens/s  100%")


def test_nothing_is_added_to_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="broken"), show_progress(2) as update:
        update(1, "one")
        raise ValueError("broken")
    assert capsys.readouterr().err == ""
