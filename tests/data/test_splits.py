"""Data sets of several splits: only the one that is asked for is read, found as the `datasets` library finds it."""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import modernbert, options

from modernbert import ModernBert
from modernbert.data import hub_datasets
from modernbert.data.beir import read_texts
from modernbert.data.labeled_rows import check_files, read_rows
from modernbert.errors import InputError
from modernbert.training.finetuning import FinetuneConfig, check_inputs, finetune
from modernbert.training.glue_tasks import config_of
from modernbert.training.retriever_finetuning import RetrieverConfig, finetune_retriever


def make(folder: Path, *names: str, readme: str | None = None) -> str:
    """Write files whose only text is their own path."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        row = {"text": name, "label": "a"}
        if path.suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist([row]), path)
        elif path.suffix == ".jsonl":
            path.write_text(json.dumps(row) + "\n")
        else:
            comma = "," if path.suffix == ".csv" else "\t"
            path.write_text(f"text{comma}label\n{name}{comma}a\n")
    if readme is not None:
        (folder / "README.md").write_text(f"---\n{readme}---\n# Some data\n")
    return str(folder)


def names_in(source: str, split: str = "train", subset: str | None = None) -> list[str]:
    return [row.text("text") for row in read_rows([source], split, subset)]


LAYOUTS = {
    "files": ["train.csv", "validation.csv", "test.csv"],
    "other words": ["training.tsv", "dev.tsv", "eval.tsv"],
    "shards": [
        "data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/test-00000-of-00001.parquet",
        "data/validation_matched-00000-of-00001.parquet", "data/extra.parquet",
    ],
    "folders": ["train/part.csv", "valid/part.csv", "testing/a/b.csv", "stray.csv"],
    "names in the middle": ["my_train_1.csv", "my-val.csv", "sub/x.test.csv", "other.csv"],
    "hidden": ["train.csv", ".cache/train.csv", "__pycache__/train.csv", ".train.csv", "test.csv"],
    "no names": ["part1.tsv", "part2.tsv", "more/part3.tsv"],
    "no keyword": ["trained.csv", "latest.csv"],
    "only a test": ["test.csv"],
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_splits_are_those_of_the_datasets_library(layout: list[str], tmp_path: Path) -> None:
    """Its own resolution of names, whatever it then reads."""
    data_files = pytest.importorskip("datasets.data_files")
    source = make(tmp_path / "some", *layout)
    patterns = data_files.get_data_patterns(source)
    theirs = {
        str(split): sorted(str(Path(path).relative_to(source)) for path in paths)
        for split, paths in data_files.DataFilesDict.from_patterns(patterns, source).items()
    }
    assert theirs
    for split in ("train", "validation", "test", "validation_matched"):
        if split in theirs:
            assert sorted(names_in(source, split)) == theirs[split]
        else:
            with pytest.raises(InputError, match=f"^{source}: "):
                read_rows([source], split)


def test_a_folder_behind_a_url_has_the_same_splits(tmp_path: Path) -> None:
    source = make(tmp_path / "some", *LAYOUTS["shards"])
    filesystem = fsspec.filesystem("memory")
    filesystem.put(source, "/split/some", recursive=True)
    for split in ("train", "test", "validation_matched"):
        for url in (f"file://{source}", "memory://split/some"):
            assert names_in(url, split) == names_in(source, split)
    filesystem.rm("/split", recursive=True)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The data set owner/name with two subsets; `datasets` is given a local folder instead of the name."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    subsets = "".join(
        f"- config_name: {name}\n  data_files:\n"
        + "".join(f"  - split: {split}\n    path: {name}/{split}-*\n" for split in ("train", "validation", "test"))
        for name in ("cola", "sst2")
    )
    source = make(
        tmp_path / "some",
        *(f"{name}/{split}-0.parquet" for name in ("cola", "sst2") for split in ("train", "validation", "test")),
        readme=f"configs:\n{subsets}",
    )
    open_builder = datasets.load_dataset_builder

    def local(path: str, name: str | None, revision: str | None) -> Any:
        assert (path, revision) in (("owner/name", None), ("owner/name", "v1"))
        return open_builder(source, name)

    monkeypatch.setattr(datasets, "load_dataset_builder", local)
    hub_datasets._open_builder.cache_clear()
    yield
    hub_datasets._open_builder.cache_clear()


def test_a_dataset_of_the_hub_is_read_by_split(hub: None, capsys: pytest.CaptureFixture[str]) -> None:
    for source in ("owner/name", "hf://datasets/owner/name", "owner/name@v1"):
        assert names_in(source, "train", "sst2") == ["sst2/train-0.parquet"]
    assert names_in("owner/name", "dev", "cola") == ["cola/validation-0.parquet"]
    assert "owner/name: split validation, 1 row" in capsys.readouterr().out
    (row,) = read_rows(["owner/name"], "test", "sst2")
    assert (row.values, row.origin) == ({"text": "sst2/test-0.parquet", "label": "a"}, "owner/name:test[0]")
    with pytest.raises(InputError, match="^owner/name: .*available configs: .'cola', 'sst2'.*`subset=NAME`$"):
        read_rows(["owner/name"])
    with pytest.raises(InputError, match="^owner/name: .*'rte' not found.*'cola', 'sst2'.*`subset=NAME`$"):
        check_files(["owner/name"], "train", "rte")
    with pytest.raises(InputError, match="^owner/name: has no split 'heldout', found train, validation, test; choose"):
        check_files(["owner/name"], "heldout", "sst2")


def test_a_hub_that_cannot_be_reached_is_one_line() -> None:
    pytest.importorskip("datasets")
    hub_datasets._open_builder.cache_clear()
    for source in ("owner/absent", "hf://datasets/owner/absent"):
        with pytest.raises(InputError, match=f"^{source}: .*owner/absent") as caught:
            read_rows([source])
        assert "\n" not in str(caught.value)


def test_the_library_for_hub_datasets_may_be_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    hub_datasets._open_builder.cache_clear()
    with pytest.raises(InputError, match=r"^owner/name: datasets is not installed: pip install 'modernbert\[train\]'$"):
        check_files(["owner/name"], "train")


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_local_rows_are_those_of_the_datasets_library(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    source = make(tmp_path / "some", f"train{suffix}", f"dev{suffix}", f"test{suffix}")
    theirs = datasets.load_dataset(source, split="validation", cache_dir=str(tmp_path / "cache"))
    assert [row.values for row in read_rows([source], "dev")] == theirs.to_list() != []


def test_a_conversion_of_the_hub_has_a_folder_for_each_subset(tmp_path: Path) -> None:
    source = make(
        tmp_path / "name@refs" / "convert" / "parquet",
        "cola/train/0.parquet",
        "cola/test/0.parquet",
        "rte/train/0.parquet",
    )
    assert names_in(source, "train", "cola") == ["cola/train/0.parquet"]
    with pytest.raises(InputError, match="parquet: found the subsets cola, rte; choose one with `subset=NAME`"):
        read_rows([source])
    with pytest.raises(InputError, match="subset: found 'cola', but .*train/0.parquet is a file"):
        read_rows([f"{source}/cola/train/0.parquet"], subset="cola")
    with pytest.raises(InputError, match="subset: found 'x', but .* has no README.md that lists subsets"):
        read_rows([f"{source}/cola"], subset="x")


def test_a_readme_says_which_files_are_a_split(tmp_path: Path) -> None:
    header = (
        "configs:\n- config_name: one\n  data_files: 'a/**/*.csv'\n- config_name: two\n  default: true\n"
        "  data_files:\n  - split: train\n    path: [b/x.csv, 'c/*.csv']\n  - split: heldout\n    path: b/y.csv\n"
        "- config_name: three\n  data_dir: d\n- config_name: four\n  data_files: a/x.csv\n  sep: ';'\n"
    )
    source = make(
        tmp_path / "some", "a/x.csv", "a/deep/test.csv", "b/x.csv", "b/y.csv", "c/z.csv", "c/deep/z.csv",
        "d/train.csv", "d/dev.csv", readme=header,
    )  # fmt: skip
    assert names_in(source) == ["b/x.csv", "c/z.csv"]
    assert names_in(source, "heldout") == ["b/y.csv"]
    assert names_in(source, "train", "one") == ["a/deep/test.csv", "a/x.csv"]
    assert names_in(source, "validation", "three") == ["d/dev.csv"]
    with pytest.raises(InputError, match="README.md: configs: four: sep is not supported; name the files"):
        read_rows([source], subset="four")
    (Path(source) / "e.xlsx").write_text("[]")
    for broken, said in (
        ("configs:\n- config_name: a\n  data_files: e.xlsx\n", "e.xlsx: unknown format ..xlsx."),
        ("configs:\n- config_name: a\n  data_files: f.csv\n", "some: has no split 'train', found none"),
        ("configs: 3\n", "README.md: configs is '3', expected entries with config_name"),
        ("configs: [\n", "README.md: header is not YAML"),
        ("configs:\n- config_name: a\n  data_files: {x: y}\n", "data_files is .*, expected paths, or entries"),
    ):
        make(Path(source), readme=broken)
        with pytest.raises(InputError, match=said):
            read_rows([source])


@pytest.mark.parametrize(
    "names, split, said",
    [
        (
            ["train.csv", "test.csv"],
            "dev",
            r"has no split 'dev', found train \(train.csv\); test \(test.csv\); name the",
        ),
        (["test.csv"], "train", r"has no split 'train', found test \(test.csv\)"),
        (["part1.csv"], "dev", "no file name there has a split, so that all rows are the split train, expected dev"),
        (["train_test.csv"], "train", "the name train_test.csv has the splits train and test, expected one"),
        (["train.csv", "train.xlsx"], "train", "train.xlsx: unknown format, but its name is that of the split"),
        (
            ["data/dev-00000-of-00001.csv", "data/valid-00000-of-00001.csv"],
            "validation",
            "found the splits dev, valid for 'validation'; choose one by its own name",
        ),
        (
            ["train.csv", "training/more.csv", "test.txt"],
            "test",
            r"has no split 'test', found train .training/more.csv.",
        ),
        (["notes.doc"], "train", "no labeled file there, expected .jsonl"),
    ],
)
def test_an_invalid_split_is_an_error_of_one_line(names: list[str], split: str, said: str, tmp_path: Path) -> None:
    source = make(tmp_path / "some", *names)
    with pytest.raises(InputError, match=said) as caught:
        read_rows([source], split)
    assert "\n" not in str(caught.value)


def test_a_named_file_is_read_whatever_its_name(tmp_path: Path) -> None:
    source = make(tmp_path / "some", "Train.csv", "test.csv", "test-2.csv", "dev/part1.csv", "dev/part2.csv")
    assert names_in(f"{source}/test.csv") == ["test.csv"]
    assert names_in(f"file://{source}/test*.csv") == ["test-2.csv", "test.csv"]
    assert names_in(f"{source}/dev", "validation") == ["dev/part1.csv", "dev/part2.csv"]
    assert names_in(f"file://{source}/*.csv") == ["Train.csv"], "a pattern of several splits is a data set"


def test_a_link_to_a_folder_is_read(tmp_path: Path) -> None:
    make(tmp_path / "elsewhere", "part.csv")
    (tmp_path / "some").mkdir()
    for split in ("train", "test"):
        (tmp_path / "some" / split).symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "again").symlink_to(tmp_path / "some")
    assert names_in(str(tmp_path / "some")) == names_in(str(tmp_path / "some"), "test") == ["part.csv"]


@pytest.fixture
def config(tmp_path: Path, small_bert: ModernBert) -> FinetuneConfig:
    """A run on a data set whose test has the labels withheld."""
    rows = {"train": "a city\t0\na land\t1\n", "validation": "a river\t1\n", "test": "a country\t-1\nrivers\t-1\n"}
    (tmp_path / "ds").mkdir()
    for name, lines in rows.items():
        (tmp_path / "ds" / f"{name}.tsv").write_text("text\tlabel\n" + lines)
    small_bert.save(tmp_path / "model")
    return FinetuneConfig(
        model=str(tmp_path / "model"), task="classify", train=[str(tmp_path / "ds")], output=str(tmp_path / "run"),
        epochs=1, device="cpu",
    )  # fmt: skip


def words(config: FinetuneConfig, **changes: str) -> list[str]:
    given = {name: getattr(config, name) for name in ("task", "output", "epochs", "device")}
    given |= {"train": config.train, "dtype": "float32", "engine": "torch"} | changes
    return [config.model, *options(**given)]


def test_a_run_learns_from_the_split_train_and_is_scored_by_dev(config: FinetuneConfig, tmp_path: Path) -> None:
    done = modernbert("finetune", *words(config, dev=f"file://{tmp_path}/ds"))
    assert done.returncode == 0, done.stderr
    assert "train: 2 rows" in done.stdout and "dev: 1 row," in done.stdout and "classify: 2 labels" in done.stdout
    assert f"{tmp_path}/ds: split train, 1 of 3 files; left out test.tsv, validation.tsv" in done.stdout
    written = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert written["id2label"] == {"0": "0", "1": "1"}


def test_a_split_that_is_not_there_is_one_line_of_the_command(config: FinetuneConfig, tmp_path: Path) -> None:
    done = modernbert("finetune", *words(config, train_split="heldout"))
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and not (tmp_path / "run").exists()
    assert "ds: has no split 'heldout', found train (train.tsv); validation (validation.tsv); test" in done.stderr


def test_withheld_labels_are_refused(config: FinetuneConfig, tmp_path: Path) -> None:
    whole = tmp_path / "all.tsv"
    whole.write_text("text\tlabel\na city\t0\na land\t-1\na river\t1\n")
    for changes, said in (
        ({"test": config.train}, "test.tsv:2: label is -1, the mark of a label that was withheld"),
        ({"train": [str(whole)]}, "all.tsv:3: label is -1, the mark of a label that was withheld"),
        ({"test": config.train, "task": "regress"}, "test.tsv:2: label is -1 here and in every other row"),
    ):
        with pytest.raises(InputError, match=said):
            finetune(replace(config, **changes))
    assert not (tmp_path / "run").exists()


def test_signs_are_labels(config: FinetuneConfig, tmp_path: Path) -> None:
    (tmp_path / "signs.tsv").write_text("text\tlabel\na city\t-1\na land\t1\n")
    check_inputs(replace(config, train=[str(tmp_path / "signs.tsv")]))


def test_a_split_can_be_named(config: FinetuneConfig, capsys: pytest.CaptureFixture[str]) -> None:
    check_inputs(replace(config, dev=config.train, dev_split="train"))
    assert "dev: 2 rows are also trained on" in capsys.readouterr().out


def test_a_retriever_learns_from_the_split_train(
    config: FinetuneConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row: dict[str, Any] = {"query": "a", "positive": "b"}
    for name, number in (("train", 3), ("test", 5)):
        (tmp_path / "ds" / f"{name}.tsv").unlink()
        (tmp_path / "ds" / f"{name}.jsonl").write_text((json.dumps(row) + "\n") * number)
    finetune_retriever(
        RetrieverConfig(
            model=config.model, task="embed", train=config.train, output=config.output, device="cpu", dtype="float32",
            engine="torch",
        )
    )  # fmt: skip
    assert "embed: 3 examples" in capsys.readouterr().out


@pytest.mark.parametrize(
    "task, row, said",
    [
        ("multilabel", {"text": "a city", "label": []}, "label has no label here nor in any other row"),
        ("multilabel", {"text": "a city", "label": [-1]}, "label has '-1', which no training row has"),
        (
            "extract",
            {"text": "a city", "context": "a city", "answers": {"text": [], "answer_start": []}},
            "answers has no answer here nor in any other row",
        ),
        ("choose", {"text": "a city", "choices": ["a", "b"], "label": -1}, "label is -1, expected 0 to 1"),
    ],
)
def test_withheld_labels_of_every_task_are_refused(
    task: str, row: dict[str, Any], said: str, tmp_path: Path, small_bert: ModernBert
) -> None:
    small_bert.save(tmp_path / "model")
    label: Any = {"text": ["city"], "answer_start": [2]} if task == "extract" else ["x"] if task == "multilabel" else 1
    known = {**row, "answers" if task == "extract" else "label": label}
    for split, of_split in (("train", known), ("test", row)):
        (tmp_path / "ds").mkdir(exist_ok=True)
        (tmp_path / "ds" / f"{split}.jsonl").write_text((json.dumps(of_split) + "\n") * 2)
    source = [str(tmp_path / "ds")]
    config = FinetuneConfig(
        model=str(tmp_path / "model"), task=task, train=source, test=source, output=str(tmp_path / "run"), device="cpu"
    )
    with pytest.raises(InputError, match=f"test.jsonl:1: {said}"):
        finetune(config)


def test_two_files_of_one_name_are_not_chosen_between(config: FinetuneConfig, tmp_path: Path) -> None:
    for name in ("cola/train.tsv", "cola/train.csv", "cola/dev.tsv", "beir/corpus.jsonl", "beir/corpus.jsonl.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("sentence\tlabel\na\t0\n")
    with pytest.raises(InputError, match="cola: found train.csv and train.tsv, expected one file of the split"):
        config_of("cola", tmp_path, config)
    (tmp_path / "cola" / "train.csv").unlink()
    assert config_of("cola", tmp_path, config).dev == [str(tmp_path / "cola" / "dev.tsv")]
    with pytest.raises(InputError, match="beir: found corpus.jsonl and corpus.jsonl.gz, expected one of them"):
        read_texts(tmp_path / "beir")
