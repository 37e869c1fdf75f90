"""Table 1 of the paper: means equal the published ones, and missing sets are named."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.paper import PaperConfig, run
from benchmarks.paper_table import BEIR, COLUMNS, GLUE, PUBLISHED, missing_sets, score_of
from modernbert.errors import InputError
from modernbert.training import glue_tasks as glue

# ModernBERT base's rows of the paper's tables 7 and 8, in the order of BEIR.
ONE_VECTOR = (23.7, 57.0, 72.1, 28.8, 35.7, 23.6, 23.8, 59.9, 46.1, 61.6, 39.5, 85.9, 12.5, 20.8, 33.1)
LATE = (35.2, 73.0, 80.5, 38.0, 49.1, 22.2, 42.0, 85.8, 70.4, 45.4, 57.1, 86.3, 16.0, 33.9, 35.1)
TITLES = [column.title for column in COLUMNS]


def rows(**scores: float) -> dict[str, Any]:
    return {"rows": [{"collection": name, "system": "m", "ndcg_10": score} for name, score in scores.items()]}


def test_means_are_those_of_the_published_parts() -> None:
    column = COLUMNS[TITLES.index("GLUE")]
    # Parts and means are rounded to 0.1; some rows that the paper copied from others differ more.
    for name in ("BERT base", "RoBERTa base", "ModernBERT base", "ModernBERT large"):
        parts = zip(glue.TASKS, glue.PUBLISHED[name], strict=True)
        found = score_of(column, {("glue", task): score / 100 for task, score in parts})
        assert found == pytest.approx(PUBLISHED[name][TITLES.index("GLUE")], abs=0.1)
    assert set(GLUE) == set(glue.TASKS)
    for kind, parts, title in (
        ("single", ONE_VECTOR, "BEIR, one vector"),
        ("late", LATE, "BEIR, late interaction"),
    ):
        measured = {(kind, name): score / 100 for name, score in zip(BEIR, parts, strict=True)}
        found = score_of(COLUMNS[TITLES.index(title)], measured)
        assert found == pytest.approx(PUBLISHED["ModernBERT base"][TITLES.index(title)], abs=0.051)


def test_a_set_of_parts_is_their_mean_and_a_missing_part_is_named() -> None:
    column = COLUMNS[TITLES.index("CodeSearchNet")]
    measured = {("single", f"codesearchnet-{name}"): 0.5 for name in ("go", "java", "javascript", "php", "python")}
    assert score_of(column, measured) is None and missing_sets(column, measured) == ["codesearchnet-ruby"]
    assert score_of(column, {**measured, ("single", "codesearchnet-ruby"): 0.8}) == pytest.approx(55)
    assert missing_sets(column, {}) == ["codesearchnet"]


def test_the_table_shows_whole_columns_and_names_the_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("mine", "theirs"):
        (tmp_path / name).mkdir()
    scored = rows(MLDR=0.25, scifact=0.5)
    scored["rows"].append({"collection": "stackoverflow-qa", "system": "BM25", "ndcg_10": 0.9})
    (tmp_path / "mine" / "single.json").write_text(json.dumps(scored))
    (tmp_path / "mine" / "glue.json").write_text(json.dumps({name: {"best": 0.5} for name in GLUE}))
    said = run(PaperConfig(tmp_path, tmp_path / "table.json"))
    assert json.loads((tmp_path / "table.json").read_text()) == said
    assert said["mine"]["MLDR, out of domain"] == {"score": 25.0, "missing": []}
    assert said["mine"]["GLUE"]["score"] == 50.0
    assert said["mine"]["BEIR, one vector"]["score"] is None
    assert "scifact" not in said["mine"]["BEIR, one vector"]["missing"]
    assert said["mine"]["StackOverflow-QA"]["missing"] == ["stackoverflow-qa"], "words are not the model"
    assert all(said["theirs"][title]["missing"] for title in TITLES)
    shown = capsys.readouterr().out
    assert "ModernBERT base" in shown and "mine, BEIR, one vector: 1 of 15; missing nfcorpus" in shown
    assert f"modernbert evaluate glue MODEL DATA --output {tmp_path / 'theirs'}" in shown


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is not readable JSON"),
        ("[]", "found no results"),
        ('{"rows": 3}', "found no results"),
        ('{"rows": [{"collection": "mldr", "system": "m", "ndcg_10": 25}]}', "ndcg_10 is 25, expected a score"),
        ('{"rows": [{"collection": "mldr", "system": "m", "ndcg_10": NaN}]}', "ndcg_10 is nan, expected a score"),
        ('{"rows": [{"system": "m", "ndcg_10": 0.2}]}', "found a row without a collection"),
        ('{"rows": ["mldr"]}', "found a row without a collection"),
    ],
)
def test_results_of_another_make_are_refused_in_one_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "late.json").write_text(text)
    with pytest.raises(InputError, match=said) as found:
        run(PaperConfig(tmp_path, tmp_path / "table.json"))
    assert "late.json" in str(found.value) and not (tmp_path / "table.json").exists()


def test_a_folder_without_models_is_refused(tmp_path: Path) -> None:
    for folder, said in ((tmp_path / "nowhere", "no such folder"), (tmp_path, "found no folder in it")):
        with pytest.raises(InputError, match=said):
            run(PaperConfig(folder))
