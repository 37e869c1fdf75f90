"""Sweeps and the tasks of GLUE: every setting is tried once, the best is kept, and a table shows the results."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import modernbert, options

from modernbert import ModernBert
from modernbert.errors import InputError
from modernbert.training import sweep as sweeps
from modernbert.training.finetuning import FinetuneConfig
from modernbert.training.glue import GlueConfig, run
from modernbert.training.glue_tasks import PUBLISHED, TASKS, config_of, tasks_in
from modernbert.training.retriever_finetuning import RetrieverConfig
from modernbert.training.sweep import Point, best_of, points_of, sweep

WORDS = ["capital", "country", "city", "land", "rivers"]


def sentences(number: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, int(rng.integers(2, 9)))) for _ in range(number)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, small_bert: ModernBert) -> str:
    folder = tmp_path_factory.mktemp("start") / "model"
    small_bert.save(folder)
    return str(folder)


@pytest.fixture
def base(tmp_path: Path, model: str) -> FinetuneConfig:
    for split, number, seed in (("train", 160, 0), ("dev", 60, 1)):
        lines = [f"{text}\t{int('city' in text)}" for text in sentences(number, seed)]
        (tmp_path / f"{split}.tsv").write_text("text\tlabel\n" + "\n".join(lines) + "\n")
    return FinetuneConfig(
        model=model, task="classify", train=[str(tmp_path / "train.tsv")], dev=[str(tmp_path / "dev.tsv")],
        output=str(tmp_path / "sweep"), epochs=2, batch=16, device="cpu", dtype="float32", engine="torch",
    )  # fmt: skip


def test_a_sweep_keeps_the_best_model_and_goes_on_where_it_was(
    base: FinetuneConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    points = points_of([1e-3, 1e-7], [1e-5], [2], [0, 1])
    first = sweep(base, tmp_path / "sweep", points[:2])
    capsys.readouterr()
    results = sweep(base, tmp_path / "sweep", points)
    assert "4 runs, 2 done" in capsys.readouterr().out
    assert [result.point for result in results] == points and results[:2] == first
    with pytest.raises(InputError, match="started with `batch=16`, found `batch=8`"):
        sweep(replace(base, batch=8), tmp_path / "sweep", points)
    # Whose points are others is of another config all the same.
    with pytest.raises(InputError, match="started with `batch=16`, found `batch=8`"):
        sweep(replace(base, batch=8), tmp_path / "sweep", points_of([3e-3], [1e-5], [2], [0]))
    assert not list((tmp_path / "sweep").glob("lr0.003*"))
    train = Path(base.train[0])
    rows = train.read_text()
    train.write_text(rows.replace("city", "town"))
    with pytest.raises(InputError, match="train.tsv has changed since .* finished; choose another `output`"):
        sweep(base, tmp_path / "sweep", points)
    train.write_text(rows)
    best = best_of(results)
    assert best.point.lr == 1e-3 and best.score == max(result.score for result in results)
    kept = [path.parent.name for path in (tmp_path / "sweep").glob("*/model")]
    assert kept == [best.point.name]


def test_a_sweep_with_fewer_points_keeps_what_there_is(base: FinetuneConfig, tmp_path: Path) -> None:
    points = points_of([1e-3, 1e-7], [1e-5], [2], [0])
    best = best_of(sweep(base, tmp_path / "sweep", points))
    again = sweep(base, tmp_path / "sweep", [point for point in points if point != best.point])
    assert best_of(again) == best and (tmp_path / "sweep" / best.point.name / "model").is_dir()
    assert len(again) == 2


def test_a_rate_that_diverges_ends_its_own_run_alone(base: FinetuneConfig, tmp_path: Path) -> None:
    points = points_of([1e30, 1e-3], [1e-5], [1], [0])
    for _ in range(2):
        (result,) = sweep(base, tmp_path / "sweep", points)
        assert result.point.lr == 1e-3
    with pytest.raises(InputError, match="every run ended with a loss that is not finite"):
        sweep(base, tmp_path / "other", points[:1])
    (tmp_path / "sweep" / points[1].name / "scores.json").write_text("{")
    with pytest.raises(InputError, match="scores.json: is not readable as scores"):
        sweep(base, tmp_path / "sweep", points)


def test_a_run_below_the_median_of_others_is_stopped(base: FinetuneConfig, tmp_path: Path) -> None:
    """Three good runs, then one that learns nothing: it ends at its first scoring."""
    base = replace(base, epochs=2, scorings_per_epoch=4)
    points = [Point(1e-3, 1e-5, 2, seed) for seed in range(3)] + [Point(1e-9, 1e-5, 2, 0)]
    results = sweep(base, tmp_path / "sweep", points)
    assert [result.stopped is None for result in results] == [True, True, True, False]
    assert results[3].stopped is not None and "below the median" in results[3].stopped
    rows = (tmp_path / "sweep" / points[3].name / "log.jsonl").read_text().splitlines()
    assert sum(json.loads(row)["kind"] == "dev" for row in rows) < 8


def test_a_run_is_compared_with_all_that_others_had_scored_by_then(tmp_path: Path) -> None:
    """The log has two of three steps as 0.6667 of an epoch, which is more than they are."""
    point = Point(1e-3, 1e-5, 1, 0)
    folder = tmp_path / point.name
    folder.mkdir()
    (folder / "scores.json").write_text('{"metric": "accuracy", "dev": {"accuracy": 0.9}, "stopped": null}')
    rows = [
        [{"kind": "step", "step": n, "epoch": round(n / 3, 4)}, {"kind": "dev", "step": n, "accuracy": 0.3 * n}]
        for n in (1, 2, 3)
    ]
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for both in rows for row in both))
    for steps, mean in ((1, 0.3), (2, 0.45), (3, 0.6)):
        assert sweeps._mean_until(tmp_path, point, steps / 3) == pytest.approx(mean)


def test_each_device_has_a_process(base: FinetuneConfig, tmp_path: Path) -> None:
    points = points_of([1e-3, 1e-4], [1e-5], [1], [0])
    alone = sweep(base, tmp_path / "alone", points)
    together = sweep(base, tmp_path / "together", points, devices=("cpu", "cpu"))
    assert [result.scores for result in alone] == [result.scores for result in together]


def test_retrievers_are_swept_too(model: str, tmp_path: Path, write_collection: Callable[..., Path]) -> None:
    folder = str(write_collection(tmp_path / "made-up"))
    base = RetrieverConfig(
        model=model, task="embed", train=[folder], dev=[folder], dev_split="train", output=str(tmp_path / "sweep"),
        batch=8, device="cpu", dtype="float32", engine="torch", dropout=0.0,
    )  # fmt: skip
    results = sweep(base, tmp_path / "sweep", points_of([1e-3, 1e-9], [1e-5], [4], [0]))
    assert best_of(results).point.lr == 1e-3 and results[0].metric == "ndcg_10"
    assert [path.parent.name for path in (tmp_path / "sweep").glob("*/model")] == [results[0].point.name]


def test_a_sweep_needs_something_to_compare_by(base: FinetuneConfig, tmp_path: Path) -> None:
    points = points_of([1e-3], [1e-5], [1], [0])
    with pytest.raises(InputError, match="dev: found nothing"):
        sweep(replace(base, dev=[]), tmp_path / "sweep", points)
    with pytest.raises(InputError, match="device: found 'nope'"):
        sweep(base, tmp_path / "sweep", points, devices=("cpu", "nope"))
    with pytest.raises(InputError, match="weight_decay: found 2.0"):
        sweep(base, tmp_path / "sweep", points_of([1e-3], [1e-5, 2.0], [1], [0]))
    with pytest.raises(InputError, match=r"sweep.lr: found 0.001, 0.001, expected each value once"):
        sweep(base, tmp_path / "sweep", points_of([1e-3, 1e-3], [1e-5], [1], [0]))
    assert not (tmp_path / "sweep").exists()


def test_the_command_sweeps(base: FinetuneConfig, tmp_path: Path) -> None:
    given = {name: getattr(base, name) for name in ("task", "output", "batch", "dtype", "engine", "train", "dev")}
    words = options(**given, epochs=1, device="cpu", **{"sweep.lr": [1e-3, 1e-4]})
    done = modernbert("sweep", base.model, *words)
    assert done.returncode == 0, done.stderr
    said = json.loads((Path(base.output) / "sweep.json").read_text())
    assert {run["lr"] for run in said["runs"]} == {1e-3, 1e-4}
    assert (Path(base.output) / said["best"] / "model" / "config.json").exists()


GLUE_ROWS: dict[str, tuple[str, Any]] = {
    "cola": ("sentence\tlabel", lambda a, b: f"{a}\t{int('city' in a)}"),
    "stsb": ("sentence1\tsentence2\tscore", lambda a, b: f"{a}\t{b}\t{len(a.split()) / 2}"),
    "mnli": ("index\tsentence1\tsentence2\tgold_label", lambda a, b: f"0\t{a}\t{b}\t{'yes' if 'city' in b else 'no'}"),
    "rte": ("sentence1\tsentence2\tlabel", lambda a, b: f"{a}\t{b}\t{'yes' if 'city' in b else 'no'}"),
    "qnli": ("index\tquestion\tsentence\tlabel", lambda a, b: f"0\t{a}\t{b}\t{int('city' in b)}"),
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name, (header, row) in GLUE_ROWS.items():
        (tmp_path / "glue" / name).mkdir(parents=True)
        for split, number, seed in (("train", 80, 0), ("dev_matched" if name == "mnli" else "dev", 40, 2)):
            pairs = zip(sentences(number, seed), sentences(number, seed + 1), strict=True)
            lines = [header, *(row(a, b) for a, b in pairs)]
            (tmp_path / "glue" / name / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return tmp_path / "glue"


def test_columns_are_found_whatever_the_files_call_them(data: Path) -> None:
    assert tasks_in(data) == ["cola", "stsb", "mnli", "qnli", "rte"]
    columns = {name: config_of(name, data, FinetuneConfig()).columns for name in tasks_in(data)}
    assert (columns["cola"].text, columns["cola"].pair) == ("sentence", None)
    assert (columns["qnli"].text, columns["qnli"].pair) == ("question", "sentence")
    assert columns["mnli"].label == "gold_label" and columns["stsb"].label == "score"


def test_glue_is_tuned_scored_and_shown(
    data: Path, tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = GlueConfig(
        model, data, output=tmp_path / "out", tasks=["cola", "rte", "mnli"], lrs=[1e-3], epochs=[2], seeds=[0, 1],
        device=["cpu"], dtype="float32",
    )  # fmt: skip
    said = run(config)
    assert list(said) == ["cola", "mnli", "rte"], "what starts from MNLI comes after it"
    assert list(run(replace(config, tasks=["cola"]))) == ["cola", "mnli", "rte"], "what is there already stays"
    with pytest.raises(InputError, match="started with `max_len=256`, found `max_len=64`"):
        run(replace(config, tasks=["cola"], max_len=64))
    assert said["cola"]["started_from"] == model
    start = tmp_path / "out" / "mnli-start"
    assert said["rte"]["started_from"] == str(start)
    kept = tmp_path / "out" / "mnli" / said["mnli"]["best_run"] / "model" / "model.safetensors"
    assert (start / "model.safetensors").read_bytes() == kept.read_bytes()
    for name, summary in said.items():
        assert summary["metric"] == TASKS[name].metric
        assert summary["best"] == max(summary["seeds"]) >= summary["median"]
    assert said["rte"]["best"] > 0.7, "a model that has learned the same thing on MNLI"
    shown = capsys.readouterr().out
    assert "median of seeds" in shown and "87.4" in shown
    again = run(config)
    assert {name: again[name] for name in said} == said, "a finished sweep is read, not run again"
    more = run(replace(config, seeds=[2]))
    assert len(more["mnli"]["runs"]) == 3 and len(more["rte"]["runs"]) == 3, "earlier seeds count on"
    assert (tmp_path / "out" / "mnli" / more["mnli"]["best_run"] / "model").is_dir()
    assert more["rte"]["started_from"] == str(start), "whatever is best of MNLI now"
    alone = replace(config, output=tmp_path / "alone", tasks=["rte"], seeds=[0])
    run(alone)
    with pytest.raises(InputError, match="was started from .*start.*model, but with MNLI among the tasks"):
        run(replace(alone, tasks=["mnli", "rte"]))
    assert not (tmp_path / "alone" / "mnli").exists(), "refused before anything is trained"
    (tmp_path / "out" / "glue.json").write_text("[]")
    with pytest.raises(InputError, match="glue.json: is not readable as results"):
        run(config)


def test_what_is_not_there_is_named(data: Path, tmp_path: Path, model: str) -> None:
    for changes, said in (
        ({"tasks": ["wnli"]}, "tasks: found 'wnli', expected cola, stsb"),
        ({"data": tmp_path / "nowhere"}, "nowhere: holds no task of GLUE"),
    ):
        with pytest.raises(InputError, match=said):
            run(replace(GlueConfig(model, data, output=tmp_path / "out"), **changes))  # type: ignore[arg-type]
    (data / "rte" / "dev.tsv").write_text("sentence1\tsentence2\tlabel\na\t\tyes\n")
    with pytest.raises(InputError, match="rte/dev.tsv:2: sentence2 is empty"):
        run(GlueConfig(model, data, output=tmp_path / "out", tasks=["cola", "rte"]))
    assert not (tmp_path / "out").exists(), "the rows of the last task are read before the first is trained"
    (data / "mnli" / "train.tsv").unlink()
    assert "mnli" not in tasks_in(data)
    (data / "cola" / "dev.tsv").unlink()
    with pytest.raises(InputError, match="cola: has no dev split"):
        run(GlueConfig(model, data, output=tmp_path / "out", tasks=["cola"]))
    assert not (tmp_path / "out").exists()


def test_the_published_table_has_a_score_for_each_task() -> None:
    """Its averages are the GLUE column of the paper's table 1."""
    assert all(len(scores) == len(TASKS) for scores in PUBLISHED.values())
    averages = {"BERT base": 84.7, "RoBERTa base": 86.4, "DeBERTaV3 base": 88.1, "GTE-en-MLM base": 85.6,
                "ModernBERT base": 88.4, "ModernBERT large": 90.4}  # fmt: skip
    for name, average in averages.items():
        assert np.mean(PUBLISHED[name]) == pytest.approx(average, abs=0.25), name
