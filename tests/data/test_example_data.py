"""The data sets of the documentation."""

from collections import Counter
from pathlib import Path

from commands import modernbert

from modernbert.data.beir import read_collection
from modernbert.data.labeled_rows import read_rows


def test_they_have_the_sizes_that_the_command_prints_and_answers_that_exist(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    done = modernbert("example-data", str(folder))
    assert done.returncode == 0 and f"{folder}/tickets-train.tsv: 160 messages" in done.stderr
    labels = {
        name: Counter(str(row.values["label"]) for row in read_rows([f"{folder}/tickets-{name}.tsv"]))
        for name in ("train", "dev")
    }
    assert labels["train"] == dict.fromkeys(("account", "billing", "delivery", "technical"), 40)
    assert labels["dev"] == dict.fromkeys(("account", "billing", "delivery", "technical"), 10)
    assert [len(read_rows([f"{folder}/orders-{name}.conll"])) for name in ("train", "dev")] == [32, 8]
    collection = read_collection(folder / "faq")
    questions = read_rows([f"{folder}/questions-train.jsonl"])
    assert (
        len(collection.documents)
        == len(collection.queries)
        == len(questions)
        == len(list((folder / "articles").iterdir()))
        == 18
    )
    assert not {row.values["query"] for row in questions} & set(collection.queries.values())
    assert all(any(str(row.values["positive"]) in text for text in collection.documents.values()) for row in questions)


def test_a_second_call_changes_nothing_and_a_changed_file_is_not_overwritten(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    assert modernbert("example-data", str(folder)).returncode == 0
    again = modernbert("example-data", str(folder))
    assert again.returncode == 0 and "160 messages" in again.stderr
    (folder / "tickets-dev.tsv").write_text("mine")
    assert modernbert("example-data", str(folder)).returncode == 2
    assert (folder / "tickets-dev.tsv").read_text() == "mine"


def test_an_existing_folder_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("kept")
    done = modernbert("example-data", str(tmp_path))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
