"""`modernbert report` on the folders that the other commands write."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from cli.conftest import succeed
from modernbert.reporting.report import ReportConfig, run

RUNS = ("classifier_run", "regressor_run", "embedder_run", "pretraining_run")


class _Page(HTMLParser):
    """Collect headings, the cells of tables, and the texts of drawings."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.headings: list[str] = []
        self.rows: list[list[str]] = []
        self.drawn: list[str] = []
        self._open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "h2" in self._open or "h1" in self._open:
            self.headings.append(data.strip())
        elif "td" in self._open or "th" in self._open:
            self.rows[-1][-1] += data.strip()
        elif "text" in self._open:
            self.drawn.append(data.strip())


def page_of(out: Path, *runs: Path) -> _Page:
    assert run(ReportConfig(runs, output=out)) == out
    return _Page(out.read_text(encoding="utf-8"))


def test_a_fine_tuning_run_has_a_page(classifier_run: Path, tmp_path: Path) -> None:
    page = page_of(tmp_path / "page.html", classifier_run)
    scores = json.loads((classifier_run / "scores.json").read_text())
    assert {"Summary", "Training", "Dev set", "Optimization"} <= set(page.headings)
    assert {"accuracy", "matthews", "Training loss", "Learning rate"} <= set(page.drawn)
    columns = next(row for row in page.rows if row[:2] == ["run", "rows"])
    found = {row[1]: dict(zip(columns, row, strict=True)) for row in page.rows if len(row) == len(columns)}
    assert found["test"]["accuracy"] == f"{scores['test']['accuracy']:.4f}"
    assert found[f"dev, step {scores['best_step']}"]["accuracy"] == f"{scores['dev']['accuracy']:.4f}"
    overview = next(row for row in page.rows if "state" in row)
    # Nothing of a pretraining run.
    assert overview == ["run", "state", "steps", "tokens", "time", "training loss", "tokens/s"]
    told = dict(zip(overview, page.rows[page.rows.index(overview) + 1], strict=True))
    assert (told["state"], told["steps"]) == ("finished", "24") and told["time"] != "0.0 s"


def test_a_retriever_run_has_a_page_with_scores_of_its_collections(embedder_run: Path, tmp_path: Path) -> None:
    page = page_of(tmp_path / "page.html", embedder_run)
    scores = json.loads((embedder_run / "scores.json").read_text())
    columns = next(row for row in page.rows if row[:2] == ["run", "rows"])
    found = {row[1]: dict(zip(columns, row, strict=True)) for row in page.rows if len(row) == len(columns)}
    assert found["test, collection"]["ndcg_10"] == f"{scores['test']['collection']['ndcg_10']:.4f}"
    assert "ndcg_10" in page.drawn


def test_a_pretraining_run_has_the_page_it_had(pretraining_run: Path, tmp_path: Path) -> None:
    page = page_of(tmp_path / "page.html", pretraining_run)
    assert {"Held-out text", "Training"} <= set(page.headings) and "Dev set" not in page.headings
    assert "Training loss, nats per masked token" in page.drawn
    overview = next(row for row in page.rows if "state" in row)
    assert {"best held-out", "MFU", "rollbacks"} <= set(overview)


def test_runs_of_all_kinds_stand_side_by_side(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    runs = [request.getfixturevalue(name) for name in RUNS]
    out = tmp_path / "page.html"
    assert succeed("report", *runs, "--output", out) == f"report: {out}\n"
    page = _Page(out.read_text(encoding="utf-8"))
    overview = next(row for row in page.rows if "state" in row)
    shown = [dict(zip(overview, row, strict=True)) for row in page.rows if len(row) == len(overview)][1:5]
    assert [row["run"] for row in shown] == [run.name for run in runs]
    assert {row["state"] for row in shown} == {"finished"}
    assert [row["best held-out"] == "–" for row in shown] == [True, True, True, False]
    assert {"accuracy", "ndcg_10", "Training loss"} <= set(page.drawn)
    assert {"Dev set", "Held-out text", "Comparison"} <= set(page.headings)


def test_a_fine_tuning_run_that_is_not_finished_has_a_page(classifier_run: Path, tmp_path: Path) -> None:
    stopped = Path(shutil.copytree(classifier_run, tmp_path / "stopped"))
    (stopped / "scores.json").unlink()  # the model is written before
    lines = (stopped / "log.jsonl").read_text().splitlines(keepends=True)
    (stopped / "log.jsonl").write_text("".join(lines[:10]) + lines[10][:9])
    page = stopped / "report.html"
    run(ReportConfig([stopped]))
    assert "Not finished: at step 9" in re.sub(r"\s+", " ", page.read_text(encoding="utf-8"))
    (stopped / "log.jsonl").write_text("")
    run(ReportConfig([stopped]))
    assert "Not finished: at step 0." in page.read_text(encoding="utf-8")
