"""CoNLL in all its dialects: comments, columns by number and name, and files that do not hold together."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from commands import modernbert

from modernbert import ModernBert
from modernbert.data.labeled_rows import read_rows
from modernbert.errors import InputError
from modernbert.tasks.columns import Columns
from modernbert.training.finetuning import FinetuneConfig, check_inputs, finetune

CONLLU = """\
# newdoc id = a
# sent_id = 1
# text = Vámonos al mar.
1-2\tVámonos\t_\t_\t_\t_\t_\t_\t_\t_
1\tVamos\tir\tVERB\t_\t_\t0\troot\t_\t_
2\tnos\tnosotros\tPRON\t_\t_\t1\tobj\t_\t_
3-4\tal\t_\t_\t_\t_\t_\t_\t_\t_
3\ta\ta\tADP\t_\t_\t5\tcase\t_\t_
4\tel\tel\tDET\t_\t_\t5\tdet\t_\t_
5\tmar\tmar\tNOUN\t_\t_\t1\tobl\t_\tSpaceAfter=No
5.1\tfue\tir\tVERB\t_\t_\t_\t_\t_\t_
6\t.\t.\tPUNCT\t_\t_\t1\tpunct\t_\t_

# sent_id = 2
1\t10 000\t10 000\tNUM\t_\t_\t0\troot\t_\t_
2\t#\t#\tSYM\t_\t_\t1\tdep\t_\t_
"""


def write(path: Path, content: str) -> str:
    path.write_text(content, encoding="utf-8")
    return str(path)


def columns(path: str, words: str = "words", tags: str = "tags") -> list[list[tuple[str, str]]]:
    return [list(zip(row.value(words), row.value(tags), strict=True)) for row in read_rows([path])]


@pytest.mark.parametrize(
    "content",
    [
        "# id 5239 domain=train\nthe _ _ O\nNile _ _ B-LOC\n\n# id 77 domain=train\n# _ _ O\n",  # MultiCoNER
        "#\thttps://de.wikipedia.org/wiki/Nil [2009-10-17]\nthe\tO\nNile\tB-LOC\n\n#\tO\n",
        "# newdoc\n# text = the Nile\nthe\tDT\tO\nNile\tNNP\tB-LOC\n\n# text = #\n#\tSYM\tO\n",
        "#begin document (bc/00); part 000\nthe O\nNile B-LOC\n\n# O\n#end document\n",
        "-DOCSTART- -X- O\n\nthe DT O\nNile NNP B-LOC\n\n-DOCSTART- -X- O\n\n# # O\n",
        "-DOCSTART-\nthe\tDT\tO\nNile\tNNP\tB-LOC\n\n\n#\t#\tO\n \n",
        "the\t\t\tO\nNile\tB-LOC\n\n#\t\tO\n",
    ],
)
def test_comments_are_skipped_and_a_number_sign_is_a_word(content: str, tmp_path: Path) -> None:
    assert columns(write(tmp_path / "a.conll", content)) == [[("the", "O"), ("Nile", "B-LOC")], [("#", "O")]]


def test_a_hashtag_is_a_word_in_any_position(tmp_path: Path) -> None:
    path = write(tmp_path / "a.conll", "#Nile\tB-LOC\nis\tO\n\n#\tSYM\n#ff\tHT\n")
    assert columns(path) == [[("#Nile", "B-LOC"), ("is", "O")], [("#", "SYM"), ("#ff", "HT")]]
    assert columns(write(tmp_path / "b.conll", "#Nile\tB-LOC\n#\tO\n")) == [[("#Nile", "B-LOC"), ("#", "O")]]


def test_words_of_wnut_are_all_there(data_folder: Path) -> None:
    for name, sentences, words, signs in (("dev.conll", 1_009, 15_733, 22), ("test.conll", 1_287, 23_394, 0)):
        found = columns(str(data_folder / "ner" / "wnut17" / name))
        assert (len(found), sum(map(len, found))) == (sentences, words)
        assert sum(word == "#" for sentence in found for word, _ in sentence) >= signs


@pytest.mark.parametrize("name", ["a.conllu", "a.conll"])
def test_conllu_has_its_columns_by_name_and_neither_ranges_nor_empty_nodes(name: str, tmp_path: Path) -> None:
    first, second = columns(write(tmp_path / name, CONLLU), "FORM" if name == "a.conll" else "words", "UPOS")
    assert first == [
        ("Vamos", "VERB"), ("nos", "PRON"), ("a", "ADP"), ("el", "DET"), ("mar", "NOUN"), (".", "PUNCT")
    ]  # fmt: skip
    assert second == [("10 000", "NUM"), ("#", "SYM")]
    assert columns(str(tmp_path / name), "2", "8")[0][0] == ("Vamos", "root")
    with pytest.raises(InputError, match=r"no column 'tags', found 'ID', 'FORM'"):
        columns(str(tmp_path / name))


def test_global_columns_name_the_columns(tmp_path: Path) -> None:
    content = "# global.columns = ID FORM NER\n1\tNile\tB-LOC\n2-3\tisn't\t_\n2\tis\tO\n3\tn't\tO\n"
    assert columns(write(tmp_path / "a.conll", content)) == [[("Nile", "B-LOC"), ("is", "O"), ("n't", "O")]]
    with pytest.raises(InputError, match="a.conll:2: found 3 columns, expected 2 .ID FORM."):
        columns(write(tmp_path / "a.conll", content.replace(" NER", "")))
    with pytest.raises(InputError, match="a.conllu:1: found 2 columns, expected 10 .ID FORM"):
        columns(write(tmp_path / "a.conllu", "1\tNile\n"))


@pytest.mark.parametrize(
    "content, said",
    [
        ("a\tO\nb\tX\tO\n", "a.conll:2: found 3 columns, expected 2 as in line 1"),
        ("a NN O\n\nb O\n", "a.conll:3: found 2 columns, expected 3 as in line 1"),
        ("a\tO\nb\t\n", "a.conll:2: found 1 columns, expected 2 as in line 1"),
        ("a\tO\n\tO\n", "a.conll:2: found an empty first column, expected text"),
        ("a\tO\n#tag\nb\tO\n", "a.conll:2: found 1 columns, expected 2; a comment begins with '# '"),
        ("a\tO\n# text = b\nb\tO\n", "a.conll:2: found 1 columns, expected 2; .* stands before its sentence"),
        ("word\nother\n", "a.conll:1: found 'word' alone, expected a word and its tag"),
    ],
)
def test_a_file_that_does_not_hold_together_is_one_line(content: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        read_rows([write(tmp_path / "a.conll", content)])


@pytest.fixture
def config(tmp_path: Path, small_bert: ModernBert) -> FinetuneConfig:
    small_bert.save(tmp_path / "model")
    return FinetuneConfig(
        model=str(tmp_path / "model"), task="tag", train=[str(tmp_path / "a.conllu")], output=str(tmp_path / "run"),
        epochs=1, device="cpu", dtype="float32", engine="torch",
    )  # fmt: skip


@pytest.mark.parametrize(
    "columns", [Columns(tags="UPOS"), Columns(words="2", tags="4"), Columns(words="LEMMA", tags="4")]
)
def test_a_run_chooses_columns(
    columns: Columns, config: FinetuneConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "a.conllu", CONLLU)
    check_inputs(replace(config, columns=columns))
    assert "train: 2 rows" in capsys.readouterr().out


@pytest.mark.parametrize(
    "columns, said",
    [
        (Columns(), "a.conllu:5: no column 'tags'; choose the tags with columns.tags=NAME of ID, .*, MISC, 1 to 10"),
        (Columns(tags="XPOS"), "XPOS: every word is '_', which is CoNLL-U's word for none"),
        (Columns(tags="11"), "no column '11'; choose the tags with"),
        (Columns(tags="UPOS", pair="x"), "columns.pair: found 'x', but tag reads words, tags, text"),
        (Columns(words="mine", tags="UPOS"), "no column 'mine'; choose the words with columns.words=NAME"),
    ],
)
def test_columns_that_are_not_chosen_are_named(
    columns: Columns, said: str, config: FinetuneConfig, tmp_path: Path
) -> None:
    write(tmp_path / "a.conllu", CONLLU)
    with pytest.raises(InputError, match=said):
        finetune(replace(config, columns=columns))
    assert not Path(config.output).exists()


def test_words_that_are_counted_are_not_the_counts(config: FinetuneConfig, tmp_path: Path) -> None:
    """GermEval's form: a column of numbers stands before the words."""
    content = "#\thttp://x [2009]\n1\tNile\tB-LOC\tO\n2\tis\tO\tO\n\n1\tlong\tO\tO\n"
    config = replace(config, train=[write(tmp_path / "a.conll", content)])
    with pytest.raises(
        InputError, match="a.conll:2: no column 'tags'; choose the tags with columns.tags=NAME of 1 to 4"
    ):
        finetune(config)
    folder = finetune(replace(config, columns=Columns(words="2", tags="3")))
    assert json.loads((folder / "config.json").read_text())["id2label"] == {"0": "O", "1": "B-LOC"}


def test_tags_beside_spans_are_refused(config: FinetuneConfig, tmp_path: Path) -> None:
    row: dict[str, Any] = {"text": "a", "words": ["a"], "tags": ["O"], "spans": []}
    with pytest.raises(InputError, match="a.jsonl:1: found tags and spans, expected one of them"):
        finetune(replace(config, train=[write(tmp_path / "a.jsonl", json.dumps(row))]))


def test_a_ragged_file_is_one_line_of_the_command(config: FinetuneConfig, tmp_path: Path) -> None:
    path = write(tmp_path / "a.conll", "a\tO\nb\tX\tO\n")
    done = modernbert("finetune", config.model, "--task", "tag", "--train", str(path), "--output", config.output)
    assert done.returncode == 2
    assert done.stderr == f"modernbert: {path}:2: found 3 columns, expected 2 as in line 1\n"
