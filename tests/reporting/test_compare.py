"""Reports of several runs: the rows that count, their display, and incomplete folders."""

import json
import math
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from modernbert.errors import InputError
from modernbert.reporting.charts import draw_lines
from modernbert.reporting.report import ReportConfig, run
from modernbert.reporting.run_panels import (
    heldout_panels,
    loss_panel,
    optimizer_panels,
    position_panels,
    source_panels,
    speed_panels,
)
from modernbert.reporting.run_reader import Run, mean_heldout, read_run
from modernbert.reporting.run_report import build_report

SVG = "{http://www.w3.org/2000/svg}"


def step(number: int, loss: float, phase: str = "stable") -> dict[str, Any]:
    return {
        "kind": "step", "phase": phase, "step": number, "tokens": 1000 * number, "lr": 1e-3, "micro_batches": 1,
        "loss": loss, "grad_norm": 1.5, "fill": 0.999, "masked": 300, "source_tokens": {"prose": 1000},
        "epochs": {"prose": number / 100},
    }  # fmt: skip


def heldout(number: int, loss: float, source: str = "prose", max_len: int = 2048, masked: int = 100) -> dict[str, Any]:
    positions = {"0-1023": {"loss": loss + 0.1, "masked": 50}, "1024-2047": {"loss": loss - 0.1, "masked": 50}}
    return {
        "kind": "heldout", "phase": "stable", "step": number, "tokens": 1000 * number, "source": source,
        "max_len": max_len, "loss": loss, "accuracy": 0.3, "perplexity": math.exp(loss), "masked": masked,
        "positions": positions,
    }  # fmt: skip


def time(number: int, mfu: float | None = 0.4) -> dict[str, Any]:
    return {
        "step": number, "seconds": 0.5, "tokens_per_s": 2000.0, "elapsed": 0.5 * number, "tflops_per_s": 3.0,
        "mfu": mfu, "memory_gib": 1.5,
    }  # fmt: skip


def skipped(number: int, loss: float | None = None) -> dict[str, Any]:
    return {"kind": "skipped", "phase": "stable", "step": number, "loss": loss, "grad_norm": None, "reason": "nan"}


def rollback(number: int, to_step: int) -> dict[str, Any]:
    return {"kind": "rollback", "phase": "stable", "step": number, "to_step": to_step, "reason": "nan"}


def write(folder: Path, log: list[dict[str, Any]], timing: list[dict[str, Any]] | None, config: str = "") -> Path:
    folder.mkdir(parents=True)
    for name, rows in (("log", log), ("timing", timing)):
        if rows is not None:
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    if config:
        (folder / "config.yaml").write_text(config, encoding="utf-8")
    return folder


def steady(folder: Path, lr: str = "0.001", steps: int = 40) -> Path:
    log = [heldout(0, 6.0), *(step(number, 5 - number / 40) for number in range(1, steps + 1)), heldout(steps, 4.0)]
    config = f"output: {folder}\nseed: 17\nphases:\n  stable:\n    lr: {lr}\n    weights: {{}}\n"
    start = {"kind": "start", "world_size": 1, "device": "cpu", "dtype": "float32", "engine": "torch"}
    return write(folder, log, [start, *(time(number) for number in range(1, steps + 1))], config)


@pytest.fixture
def went_back(tmp_path: Path) -> Run:
    """Two steps are refused after step 5, the run returns to step 3 and does better."""
    log = [
        heldout(0, 6.0), *(step(number, 5.0) for number in range(1, 6)), heldout(5, 1.0), skipped(6), skipped(7, 9.0),
        rollback(7, 3), *(step(number, 4.0) for number in range(4, 9)), heldout(8, 3.0),
    ]  # fmt: skip
    return read_run(write(tmp_path / "back", log, [time(number) for number in (1, 2, 3, 4, 5, 4, 5, 6, 7, 8)]), "back")


def test_the_later_row_of_a_step_counts(went_back: Run) -> None:
    assert [(row["step"], row["loss"]) for row in went_back.steps] == [
        (1, 5.0), (2, 5.0), (3, 5.0), (4, 4.0), (5, 4.0), (6, 4.0), (7, 4.0), (8, 4.0),
    ]  # fmt: skip
    assert [[row["step"] for row in piece] for piece in went_back.abandoned] == [[4, 5]]
    # The score of weights that were given up is none of the run's.
    assert [row["step"] for row in went_back.heldout] == [0, 8]
    assert (went_back.count("skipped"), went_back.count("rollback")) == (2, 1)
    assert [row["tokens"] for row in went_back.events] == [5000, 5000, 5000]


def test_steps_that_come_again_without_a_word_count_once(tmp_path: Path) -> None:
    log = [step(1, 5.0), step(2, 5.0), step(3, 5.0), step(2, 4.0), step(3, 4.0)]
    again = read_run(write(tmp_path / "run", log, None), "run")
    assert [(row["step"], row["loss"]) for row in again.steps] == [(1, 5.0), (2, 4.0), (3, 4.0)]


def test_events_and_abandoned_steps_are_drawn_and_listed(went_back: Run) -> None:
    styles = {line.style: len(line.x) for line in loss_panel([went_back]).lines}
    assert styles == {"raw": 8, "mean": 8, "abandoned": 2, "dots": 2, "skipped": 2, "rollback": 1}
    tables = {table.title: table for part in build_report([went_back]).sections for table in part.tables}
    events = tables["Skipped steps and rollbacks"].rows
    assert [row[2:4] for row in events] == [["6", "step skipped"], ["7", "step skipped"], ["7", "rollback to step 3"]]
    (row,) = tables["Run"].rows
    told = dict(zip(tables["Run"].columns, row, strict=True))
    assert (told["steps"], told["skipped"], told["rollbacks"]) == ("8", "2", "1")
    assert (told["best held-out"], told["MFU"], told["tokens/s"]) == ("3.000", "40 %", "2,000")


@pytest.mark.parametrize("nothing", [None, math.nan])  # as it is written, and as it was
def test_a_heldout_loss_that_is_not_finite_is_left_out(tmp_path: Path, nothing: float | None) -> None:
    bad = heldout(2, 3.0) | {"loss": nothing, "perplexity": nothing}
    bad["positions"] = {name: {"loss": nothing, "masked": 50} for name in bad["positions"]}
    log = [heldout(0, 6.0), step(1, 5.0), step(2, 4.0), bad, heldout(2, 1.0, "code")]
    found = read_run(write(tmp_path / "run", log, None), "run")
    assert [(row["step"], loss) for row, loss in found.scores] == [(0, 6.0)]
    prose, _ = position_panels([found])
    assert {line.style: len(line.x) for line in prose.lines} == {"first": 2, "last": 0, "dots": 0}


def test_the_mean_over_sources_weighs_masked_tokens_at_the_first_length() -> None:
    rows = [
        heldout(4, 2.0, "prose", 512, masked=300),
        heldout(4, 9.0, "prose", 2048),
        heldout(4, 4.0, "code", 512, masked=100),
        heldout(4, 9.0, "code", 2048),
    ]
    ((row, loss),) = mean_heldout(rows)
    assert (row["step"], loss) == (4, 2.5)
    older = [{"kind": "heldout", "phase": "stable", "step": 4, "tokens": 9, "loss": 3.0, "accuracy": 0.1}]
    assert [loss for _, loss in mean_heldout(older)] == [3.0]


def test_each_source_and_length_has_its_panel(tmp_path: Path) -> None:
    log = [step(1, 5.0)]
    for source in ("prose", "code"):
        log += [heldout(1, 5.0, source, max_len) for max_len in (512, 2048)]
    runs = [read_run(write(tmp_path / "run", log, None), "run")]
    titles = ["prose, 512 tokens", "prose, 2,048 tokens", "code, 512 tokens", "code, 2,048 tokens"]
    assert [panel.title for panel in heldout_panels(runs)] == titles
    assert [panel.title for panel in source_panels(runs)] == ["prose"]


def test_long_positions_are_shown_first_against_last(tmp_path: Path) -> None:
    (panel,) = position_panels([read_run(steady(tmp_path / "run"), "run")])
    first, last = (line for line in panel.lines if line.style in ("first", "last"))
    assert first.y.tolist() == pytest.approx([6.1, 5.9])
    assert last.y.tolist() == pytest.approx([4.1, 3.9])
    assert last.x.tolist() == [511, 1535]


def test_a_value_that_no_run_measured_has_no_panel(tmp_path: Path) -> None:
    log = [step(1, 5.0), step(2, 5.0)]
    runs = [read_run(write(tmp_path / "run", log, [time(1, mfu=None), time(2, mfu=None)]), "run")]
    steps, speed = ([panel.title for panel in panels] for panels in (optimizer_panels(runs), speed_panels(runs)))
    assert steps == ["Learning rate", "Gradient norm", "Micro-batches per step"]
    assert speed == ["Tokens per second", "Memory, GiB", "Fill of the token budget"]
    assert position_panels(runs) == [] == heldout_panels(runs)


@pytest.mark.parametrize("narrow", [False, True])
def test_panels_are_svg_with_names_for_colours(tmp_path: Path, narrow: bool) -> None:
    runs = [read_run(steady(tmp_path / name), name) for name in ("a", "b")]
    for panels in ([loss_panel(runs)], heldout_panels(runs), optimizer_panels(runs), speed_panels(runs)):
        svg = draw_lines(panels, "Title", narrow=narrow)
        texts = ["".join(text.itertext()) for text in ElementTree.fromstring(svg).iter(f"{SVG}text")]
        assert {panel.title for panel in panels} <= set(texts)
        assert "Thousand tokens seen" in texts
        assert "var(--run-1)" in svg and "var(--run-2)" in svg
        assert "#0" not in svg.replace("href=", "")


def test_runs_are_compared_with_their_differences(tmp_path: Path) -> None:
    folders = [steady(tmp_path / "low"), steady(tmp_path / "high", lr="0.003")]
    report = build_report([read_run(folder, folder.name) for folder in folders])
    assert [key.name for key in report.keys] == ["low", "high"]
    assert report.keys[0].color != report.keys[1].color
    tables = {table.title: table for part in report.sections for table in part.tables}
    assert [row[0] for row in tables["Runs"].rows] == ["low", "high"]
    # Neither `output`, which always differs, nor equal fields.
    assert tables["Differences"].rows == [["phases.stable.lr", "0.001", "0.003"]]


def test_more_runs_than_colours_have_other_strokes(tmp_path: Path) -> None:
    runs = [read_run(steady(tmp_path / str(number), steps=2), str(number)) for number in range(9)]
    keys = build_report(runs).keys
    assert len({(key.color, key.dash) for key in keys}) == 9
    assert keys[0].color == keys[8].color


def test_a_run_without_a_step_is_compared(tmp_path: Path) -> None:
    runs = [read_run(write(tmp_path / "empty", [], None), "empty"), read_run(steady(tmp_path / "whole"), "whole")]
    (table,) = (table for part in build_report(runs).sections for table in part.tables if table.title == "Runs")
    assert table.rows[0] == ["empty", "open", "0", "0", "0.0 s", "–", "–", "–", "–", "0", "0"]


def test_the_page_is_put_into_the_run_and_leaves_it_as_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = steady(tmp_path / "a & <b>")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    out = run(ReportConfig([folder]))
    assert out == folder / "report.html" and str(out) in capsys.readouterr().out
    page = out.read_text(encoding="utf-8")
    assert "a &amp; &lt;b&gt;" in page and "<b>" not in page
    assert "phases.stable" not in page and "phase stable" in page
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path != out} == before


def test_runs_of_one_name_are_distinguished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [steady(tmp_path / parent / "run", steps=3) for parent in ("one", "two")]
    monkeypatch.chdir(tmp_path)
    out = run(ReportConfig([*folders, tmp_path / "two" / ".." / "two" / "run"]))
    assert out == Path("report.html")
    page = out.read_text(encoding="utf-8")
    assert "2 runs" in page and "one/run" in page and "two/run" in page


@pytest.mark.parametrize("torn", [b"", b'{"kind": "st', b"\xe2\x80", b"\0\0\0\0"])
def test_an_unfinished_run_is_read(tmp_path: Path, torn: bytes) -> None:
    folder = steady(tmp_path / "run", steps=5)
    for name in ("log", "timing"):
        with (folder / f"{name}.jsonl").open("ab") as file:
            file.write(torn)
    found = read_run(folder, "run")
    assert ([row["step"] for row in found.steps], found.elapsed_s) == ([1, 2, 3, 4, 5], 2.5)
    assert not found.is_finished
    (folder / "model").mkdir()
    assert read_run(folder, "run").is_finished


@pytest.mark.parametrize("log", [[], [heldout(0, 6.0)], [skipped(1)], [step(1, 5.0)]])
def test_a_run_without_results_is_shown(tmp_path: Path, log: list[dict[str, Any]]) -> None:
    folder = write(tmp_path / "run", log, None)
    assert "Not finished: at step" in run(ReportConfig([folder])).read_text(encoding="utf-8")


def test_rows_of_the_older_form_are_shown(tmp_path: Path) -> None:
    log = [
        {"kind": "step", "phase": "stable", "step": 1, "tokens": 10, "lr": 1e-3, "loss": 5.0, "fill": 1.0},
        {"kind": "heldout", "phase": "stable", "step": 1, "tokens": 10, "loss": 5.0, "accuracy": 0.1},
    ]
    timing = [{"step": 1, "seconds": 0.1, "tokens_per_s": 100.0, "elapsed": 0.1}]
    page = run(ReportConfig([write(tmp_path / "run", log, timing)])).read_text(encoding="utf-8")
    assert "all sources" in page


def test_a_folder_without_a_run_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("empty", "absent"):
        with pytest.raises(InputError, match=f"{name}: is not the folder of a run, expected log.jsonl in it"):
            run(ReportConfig([tmp_path / name]))
    folder = steady(tmp_path / "run", steps=2)
    (folder / "log.jsonl").write_text('{"kind": "step"\n{}\n', encoding="utf-8")
    with pytest.raises(InputError, match=r"log\.jsonl:1: expected a JSON object"):
        run(ReportConfig([folder]))
    with pytest.raises(InputError, match="runs: found none"):
        run(ReportConfig([]))
    damaged = steady(tmp_path / "damaged", steps=2)
    (damaged / "config.yaml").write_text("a: [1\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"config\.yaml: cannot be read as YAML"):
        run(ReportConfig([damaged]))
    assert not (damaged / "report.html").exists()


def test_the_same_runs_give_the_same_bytes(tmp_path: Path) -> None:
    folder = steady(tmp_path / "run")
    first = run(ReportConfig([folder], output=tmp_path / "1.html")).read_bytes()
    moved = Path(shutil.copytree(folder, tmp_path / "else" / "run"))
    assert run(ReportConfig([moved], output=tmp_path / "2.html")).read_bytes() == first
