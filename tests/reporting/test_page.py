"""The page of a report: every text is escaped, it loads nothing, and its charts take the colors of the page."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from modernbert.errors import InputError
from modernbert.reporting.charts import BarPanel, draw_bars, draw_lines
from modernbert.reporting.report_page import Bar, Chart, Code, Figure, Key, Report, Section, Table, write_report
from modernbert.reporting.run_panels import loss_panel, optimizer_panels, speed_panels
from modernbert.reporting.run_reader import Run, read_run
from modernbert.reporting.run_report import loss_section, speed_section
from modernbert.training.run_log import read_log

HOSTILE = "<script>alert('x')</script> & \"quoted\" </code>"
SVG = "{http://www.w3.org/2000/svg}"


def write_run(folder: Path, steps: int = 600) -> Run:
    """Write the log and timing of a run of three phases, 70 % / 15 % / 15 % of the steps."""
    rng = np.random.default_rng(5)
    log: list[dict[str, Any]] = []
    timing: list[dict[str, Any]] = []
    tokens, elapsed = 0, 0.0
    for step in range(1, steps + 1):
        phase = "stable" if step <= 0.7 * steps else "extension" if step <= 0.85 * steps else "decay"
        fill = float(rng.uniform(0.998, 1.0))
        tokens += int(16_384 * fill)
        elapsed += 0.8
        loss = 3 + 6 * float(np.exp(-step / 100)) + float(rng.normal(0, 0.1))
        log.append(
            {"kind": "step", "phase": phase, "step": step, "tokens": tokens, "lr": 1e-3, "loss": loss, "fill": fill}
        )
        timing.append({"step": step, "seconds": 0.8, "tokens_per_s": 20_000.0, "elapsed": elapsed})
        if step in (int(0.7 * steps), int(0.85 * steps), steps):
            log.append(
                {"kind": "heldout", "phase": phase, "step": step, "tokens": tokens, "loss": loss, "accuracy": 0.3}
            )
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("log", log), ("timing", timing)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return read_run(folder, "run")


def report(run: Run) -> Report:
    bars = [Bar(0.5, HOSTILE, HOSTILE), Bar(0.25, "25 %", " enumerate", is_marked=True)]
    return Report(
        title=f"A run {HOSTILE}",
        subtitle=[HOSTILE],
        headline=[Figure(HOSTILE, "41 %", HOSTILE)],
        keys=[Key(HOSTILE, "run-1")],
        sections=[
            loss_section([run]),
            speed_section([run]),
            Section(
                HOSTILE,
                HOSTILE,
                [Chart("<svg></svg>", "<svg></svg>", HOSTILE)],
                [
                    Table(HOSTILE, ["Phase", HOSTILE], [["stable", "1,024"], [HOSTILE, "8,192"]], HOSTILE),
                    Table("Masks", ["line", "guesses"], [[Code(f"for {HOSTILE} in", HOSTILE, HOSTILE), bars]]),
                    Table("Hits", ["query", "hit"], [[HOSTILE, Code(HOSTILE, summary=HOSTILE)]]),
                    Table("Sizes", ["Name", "Size"], [["a", "1"]]),
                ],
                code=HOSTILE,
            ),
        ],
        facts={HOSTILE: [(HOSTILE, HOSTILE)]},
    )


class Page(HTMLParser):
    """Collect the tags of a page, their attributes and its text; fail for tags that do not match."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("report")
    write_report(folder / "report.html", report(write_run(folder / "run")))
    return (folder / "report.html").read_text(encoding="utf-8")


def test_every_text_is_escaped(html: str) -> None:
    page = Page(html)
    assert sum(tag == "script" for tag, _ in page.tags) == 1  # the page's own
    # Title twice, subtitle, headline, key, section, chart, tables with cells of all kinds, code, facts.
    assert page.text.count(HOSTILE) >= 20


def test_the_page_asks_nothing_of_a_network(html: str) -> None:
    for tag, carried in Page(html).tags:
        assert tag not in ("link", "img", "iframe", "object")
        assert not {"src", "srcset", "xlink:href", "action"} & set(carried)
        assert (carried.get("href") or "#").startswith("#")
    assert re.findall(r"url\((?!#)", html) == [] and "@import" not in html
    assert set(re.findall(r"https?://[^\"' ]+", html)) == {"http://www.w3.org/2000/svg"}


def test_a_marked_bar_is_marked_without_color(html: str) -> None:
    assert "enumerate ✓" in Page(html).text


def test_the_same_report_gives_the_same_bytes(html: str, tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", report(write_run(tmp_path / "run")))
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == html


def test_empty_parts_are_left_out(tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", Report("Nothing yet"))
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "Nothing yet" in page.text
    assert not {"h2", "table", "svg", "script", "dl"} & {tag for tag, _ in page.tags}


@pytest.mark.parametrize("narrow", [False, True])
def test_charts_are_svg_with_names_for_colors_and_text_as_text(tmp_path: Path, narrow: bool) -> None:
    run = write_run(tmp_path)
    bars = BarPanel("short", "tokens per second", {"ours": [3.0, 4.0], "theirs": [1.0]}, frozenset(["ours"]))
    phases = {"stable", "extension", "decay"}
    for svg, words, colors in (
        (draw_lines([loss_panel([run])], "Loss", narrow=narrow), phases, {"ink", "faint", "grid", "page", "run-1"}),
        (draw_lines(optimizer_panels([run]), "Rate", narrow=narrow), {"Learning rate"}, {"ink", "faint", "run-1"}),
        (draw_lines(speed_panels([run]), "Speed", narrow=narrow), {"Tokens per second"}, {"ink", "faint", "run-1"}),
        (draw_bars([bars], "Bars", narrow=narrow), {"short", "ours", "theirs"}, {"ink", "run-2", "run-8"}),
    ):
        tree = ElementTree.fromstring(svg)
        texts = ["".join(text.itertext()) for text in tree.iter(f"{SVG}text")]
        assert words <= set(texts)
        assert tree.findtext(f"{SVG}title")
        assert set(re.findall(r"var\(--([a-z0-9-]+)\)", svg)) >= colors
        assert re.findall(r"#[0-9a-f]{6}\b", svg) == []
        assert not re.search(r"DejaVu|<style|<metadata", svg)


def test_the_held_out_loss_of_each_phase_is_written_out(tmp_path: Path) -> None:
    run = write_run(tmp_path, steps=50)
    svg = draw_lines([loss_panel([run])], "Loss", narrow=False)
    held_out = [row["loss"] for row in run.heldout]
    assert len(held_out) == 3 and f"held-out {held_out[0]:.2f}" in svg
    assert all(f"{loss:.2f}" in svg for loss in held_out)


def test_a_long_run_makes_no_larger_a_chart(tmp_path: Path) -> None:
    short, long = (
        len(draw_lines([loss_panel([write_run(tmp_path / str(steps), steps)])], "Loss", narrow=False))
        for steps in (600, 6_000)
    )
    assert long < 1.5 * short


def test_a_run_of_one_step_is_drawn(tmp_path: Path) -> None:
    assert "<svg" in draw_lines(speed_panels([write_run(tmp_path, steps=1)]), "Speed", narrow=False)


def test_a_torn_last_line_is_passed_over_and_a_damaged_one_named(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"st', encoding="utf-8")
    assert read_log(tmp_path) == [{"step": 1}, {"step": 2}]
    path.write_text('{"step": 1}\nnonsense\n', encoding="utf-8")
    with pytest.raises(InputError, match=r"log\.jsonl:2: expected a JSON object"):
        read_log(tmp_path)
    with pytest.raises(InputError, match="absent/log.jsonl: cannot be read"):
        read_log(tmp_path / "absent")
