"""The passage index: passages that fit, updates of the index, and results at the right file and line."""

import json
import os
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import modernbert
from hypothesis import given
from hypothesis import strategies as st

from modernbert import InputError, ModernBert
from modernbert.config_files import resolve
from modernbert.data.corpus import Document, Tally, read_documents
from modernbert.search import passage_index as catalogs
from modernbert.search.index_files import IndexConfig, run
from modernbert.search.passage_index import PassageIndex, SearchResult
from modernbert.search.passages import passages_of
from modernbert.search.search_files import SearchConfig
from modernbert.search.search_files import run as run_search

pytest.importorskip("lancedb")

NOTES = {
    "rivers.md": "# Rivers\n\nThe country has two rivers.\nBoth are long.\n",
    "cities.txt": "A city is on the land.\n\nThe capital is a city too, it's said.\n",
    "code/sort.py": "def sort_list(values):\n    return sorted(values)\n\n\ndef read(path):\n    return open(path)\n",
}


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    for name, text in NOTES.items():
        path = tmp_path / "notes" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "notes"


@pytest.fixture
def config(notes: Path, tmp_path: Path, small_bert: ModernBert) -> IndexConfig:
    small_bert.save(tmp_path / "model")
    return IndexConfig(
        str(tmp_path / "model"), input=[str(notes)], output=tmp_path / "index", device="cpu", dtype="float32"
    )


def index(
    notes: Path, folder: Path, bert: ModernBert, passage_tokens: int = 32
) -> tuple[PassageIndex, tuple[int, ...]]:
    catalog = PassageIndex.begin(folder, bert, "model", "bits", passage_tokens)
    update = catalog.update(bert, read_documents([str(notes)], Tally()))
    return catalog, (update.added, update.kept, update.removed)


@given(st.lists(st.text("ab \n.é", min_size=0, max_size=40), max_size=30).map("\n".join), st.integers(8, 60))
def test_passages_fit_and_hold_every_line_in_order(small_bert: ModernBert, text: str, longest: int) -> None:
    tokenizer = small_bert.tokenizer
    passages = passages_of(text, tokenizer, longest)
    assert all(len(ids) <= longest for ids in tokenizer.encode([each.text for each in passages]))
    kept = "".join(each.text for each in passages)
    assert "".join(kept.split()) == "".join(text.split()), "no character is lost or said twice"
    lines = text.split("\n")
    assert all(each.text.split("\n")[0].strip() in lines[each.line - 1] for each in passages)
    assert [each.line for each in passages] == sorted(each.line for each in passages)


def test_an_empty_line_is_where_a_passage_ends(small_bert: ModernBert) -> None:
    text = "\n".join(["one two three"] * 8 + [""] + ["four five six"] * 4)
    sizes = {len(ids) for ids in small_bert.tokenizer.encode([text])}
    first, second = passages_of(text, small_bert.tokenizer, max(sizes) - 3)
    assert first.text == "\n".join(["one two three"] * 8) and second.line == 10


@pytest.mark.parametrize("pooling", ["mean", "tokens"])
def test_results_equal_the_indexed_passages(pooling: str, notes: Path, tmp_path: Path, small_bert: ModernBert) -> None:
    vectors = replace(small_bert.vectors, pooling=pooling)
    bert = ModernBert(small_bert.tokenizer, small_bert.model, vectors=vectors)
    catalog, _ = index(notes, tmp_path / "index", bert)
    passages = [
        (each.text, str(notes / name), each.line)
        for name, text in NOTES.items()
        for each in passages_of(text, bert.tokenizer, 32)
    ]
    assert len(catalog) == len(passages)
    hits = catalog.search(bert, "the capital", len(passages), how="vectors")
    scores = bert.similarity("the capital", [text for text, _, _ in passages])[0]
    assert {(hit.text, hit.origin, hit.line) for hit in hits} == set(passages)
    np.testing.assert_allclose([hit.score for hit in hits], np.sort(scores)[::-1], rtol=1e-4, atol=1e-5)
    by_words = catalog.search(bert, "sorted values", 2, how="words")
    assert by_words[0].origin.endswith("sort.py") and "sorted(values)" in by_words[0].text
    both = catalog.search(bert, "sorted values", 3)
    ranked = [catalog.search(bert, "sorted values", 50, how=how) for how in ("vectors", "words")]
    places = [{hit.text: place for place, hit in enumerate(found, 1)} for found in ranked]
    fused = {text: sum(1 / (60 + each[text]) for each in places if text in each) for text in places[0]}
    assert [hit.score for hit in both] == pytest.approx(sorted(fused.values(), reverse=True)[:3])
    judged = catalog.search(bert, "the capital", 3, reranker=small_bert)
    expected = small_bert.similarity("the capital", [hit.text for hit in judged])[0]
    np.testing.assert_allclose([hit.score for hit in judged], expected, atol=1e-5)
    assert [hit.score for hit in judged] == sorted((hit.score for hit in judged), reverse=True)


def test_indexing_again_follows_the_files(notes: Path, tmp_path: Path, small_bert: ModernBert) -> None:
    catalog, counts = index(notes, tmp_path / "index", small_bert)
    assert counts == (3, 0, 0)
    before = len(catalog)
    assert index(notes, tmp_path / "index", small_bert)[1] == (0, 3, 0)
    (notes / "rivers.md").write_text("Mountains now.\n")
    (notes / "cities.txt").unlink()
    (notes / "it's new.txt").write_text("A quoted 'name'.\n")
    catalog, counts = index(notes, tmp_path / "index", small_bert)
    assert counts == (2, 1, 1)
    texts = {hit.text for hit in catalog.search(small_bert, "a", 50, how="vectors")}
    assert "Mountains now." in texts and "A quoted 'name'." in texts and not any("rivers" in text for text in texts)
    assert catalog.search(small_bert, "mountains", 5, how="words")[0].text == "Mountains now."
    assert not catalog.search(small_bert, "capital", 5, how="words")
    assert PassageIndex.open(tmp_path / "index").about["model"] == "model" and before != len(catalog)


def test_a_stop_loses_nothing(
    notes: Path, tmp_path: Path, small_bert: ModernBert, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogs, "_BLOCK_CHARACTERS", 10)
    catalog = PassageIndex.begin(tmp_path / "index", small_bert, "model", "bits", 32)
    documents = list(read_documents([str(notes)], Tally()))

    def stopping(number: int) -> object:
        yield from documents[:number]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        catalog.update(small_bert, stopping(3))  # type: ignore[arg-type]
    assert 0 < len(catalog)
    update = catalog.update(small_bert, documents)
    assert (update.added + update.kept, update.removed) == (3, 0) and update.kept == 2
    whole, _ = index(notes, tmp_path / "other", small_bert)
    assert {hit.text for hit in catalog.search(small_bert, "a", 50, how="vectors")} == {
        hit.text for hit in whole.search(small_bert, "a", 50, how="vectors")
    }


def test_a_folder_without_the_expected_index_is_refused(notes: Path, tmp_path: Path, small_bert: ModernBert) -> None:
    catalog, _ = index(notes, tmp_path / "index", small_bert)
    with pytest.raises(InputError, match=r"index: was made with another model \(model, as it was then\); make a new"):
        PassageIndex.begin(tmp_path / "index", small_bert, "model", "others", 32)
    with pytest.raises(InputError, match="was made with passage_tokens=32, found 64"):
        PassageIndex.begin(tmp_path / "index", small_bert, "model", "bits", 64)
    with pytest.raises(InputError, match="notes: exists and is not an index"):
        PassageIndex.begin(notes, small_bert, "model", "bits", 32)
    for folder in (notes, tmp_path / "nowhere"):
        with pytest.raises(InputError, match="is not an index"):
            PassageIndex.open(folder)
    with pytest.raises(InputError, match="how: found 'meaning', expected hybrid, vectors, words"):
        catalog.search(small_bert, "a", 1, how="meaning")
    with pytest.raises(InputError, match="found 0 passages"):
        PassageIndex.begin(tmp_path / "empty", small_bert, "model", "bits", 32).search(small_bert, "a", 1)
    for query, k, said in (
        (" \n", 1, "query: found no word, expected at least one"),
        ("a", 0, "k: found 0, expected at"),
    ):
        with pytest.raises(InputError, match=said):
            catalog.search(small_bert, query, k)
    with pytest.raises(InputError, match="passage_tokens: found 5"):
        passages_of("a", small_bert.tokenizer, 5)


def test_passages_of_an_index_stay_as_long_as_they_were(config: IndexConfig) -> None:
    begun = replace(config, passage_tokens=12)
    for again in (begun, replace(config, passage_tokens=None), begun):
        run(again)
        assert PassageIndex.open(config.output).about["passage_tokens"] == 12
    with pytest.raises(InputError, match="was made with passage_tokens=12, found 13"):
        run(replace(config, passage_tokens=13))


def test_two_commands_search_notes(notes: Path, tmp_path: Path, small_bert: ModernBert) -> None:
    small_bert.save(tmp_path / "model")
    done = modernbert(
        "index", str(tmp_path / "model"), "--input", str(notes), "--output", str(tmp_path / "index"), "--device", "cpu"
    )
    assert done.returncode == 0, done.stderr
    assert "documents: 3 new or changed, 0 unchanged, 0 removed" in done.stdout
    (tmp_path / "model").rename(tmp_path / "moved")  # words are found without the model
    done = modernbert("search", str(tmp_path / "index"), "sorted values", "--how", "words", "--json", "--device", "cpu")
    assert done.returncode == 0 and not done.stderr, done.stderr
    (tmp_path / "moved").rename(tmp_path / "model")
    hit = SearchResult(**json.loads(done.stdout.splitlines()[0]))
    assert Path(hit.origin).name == "sort.py" and Path(hit.origin).read_text().split("\n")[hit.line - 1] in hit.text
    done = modernbert("search", str(tmp_path / "index"), "sorted values", "--device", "cpu")
    assert f"sort.py:{hit.line}" in done.stdout
    done = modernbert("search", str(notes), "a")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    done = modernbert("search", str(tmp_path / "index"), "a", "--how", "words", "--model", str(tmp_path / "m"))
    assert done.returncode == 2 and "m: no such folder" in done.stderr


def test_documents_have_their_text_whole(small_bert: ModernBert) -> None:
    document = Document("x" * 5_000, "o")
    assert "".join(each.text for each in passages_of(document.text, small_bert.tokenizer, 64)) == document.text


def test_words_are_found_after_a_stop_that_came_before_they_were_indexed(
    notes: Path, tmp_path: Path, small_bert: ModernBert, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(catalog: PassageIndex) -> None:
        raise KeyboardInterrupt

    for number in range(2):
        (notes / "new.md").write_text(f"Mountains {len(list(notes.iterdir()))}.\n")
        with monkeypatch.context() as patch:
            patch.setattr(PassageIndex, "_index_words", stop)
            with pytest.raises(KeyboardInterrupt):
                index(notes, tmp_path / "index", small_bert)
        if number == 0:
            with pytest.raises(InputError, match="index: has no full-text index, .* run `modernbert index` again"):
                PassageIndex.open(tmp_path / "index").search(small_bert, "mountains", 5)
        catalog, counts = index(notes, tmp_path / "index", small_bert)
        assert counts == (0, 4, 0)
        assert catalog.search(small_bert, "mountains", 5, how="words")[0].origin.endswith("new.md")
        assert catalog._has_words()


def test_passages_are_no_longer_than_documents_may_be(tmp_path: Path, small_bert: ModernBert) -> None:
    vectors = replace(small_bert.vectors, document_length=40, document_prompt="a text to be found: ")
    bert = ModernBert(small_bert.tokenizer, small_bert.model, vectors=vectors)
    (tmp_path / "a.md").write_text("".join(f"Country {n} has the capital city {n * 7}.\n" for n in range(60)))
    catalog = PassageIndex.begin(tmp_path / "index", bert, "model", "bits", 256)
    assert catalog.update(bert, read_documents([str(tmp_path / "a.md")], Tally())).cut == 0
    hits = catalog.search(bert, "capital", 500, how="vectors")
    prompted = bert.tokenizer.encode([vectors.document_prompt + hit.text for hit in hits])
    assert 30 < max(map(len, prompted)) <= 40
    assert sum(hit.text.count("capital") for hit in hits) == 60
    short = ModernBert(small_bert.tokenizer, small_bert.model, vectors=replace(vectors, document_length=12))
    with pytest.raises(InputError, match="document_length: leaves 0 tokens"):
        PassageIndex.begin(tmp_path / "other", short, "model", "bits", 256)
    assert not (tmp_path / "other").exists()


def test_an_index_that_says_nothing_of_a_newer_setting_stays_of_use(
    notes: Path, tmp_path: Path, small_bert: ModernBert, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(catalogs, "asdict", lambda vectors: {key: v for key, v in asdict(vectors).items() if v})
        index(notes, tmp_path / "index", small_bert)
    assert index(notes, tmp_path / "index", small_bert)[1] == (0, 3, 0)
    tuned = replace(small_bert.vectors, truncate_dim=16)
    bert = ModernBert(small_bert.tokenizer, small_bert.model, vectors=tuned)
    with pytest.raises(InputError, match="was made with vectors="):
        index(notes, tmp_path / "index", bert)
    catalog, _ = index(notes, tmp_path / "narrow", bert)
    assert len(catalog.search(bert, "the capital", 3, how="vectors")) == 3


def test_a_refused_index_leaves_no_folder(config: IndexConfig, notes: Path, tmp_path: Path) -> None:
    (tmp_path / "blank").mkdir()
    (tmp_path / "blank" / "a.md").write_text(" \n")
    for change, said in (
        ({"passage_tokens": 4}, "passage_tokens: found 4, expected at least 8"),
        ({"input": [str(tmp_path / "blank")]}, "no document with text"),
        ({"input": [str(tmp_path / "absent")]}, "absent: no such file or folder"),
    ):
        with pytest.raises(InputError, match=said):
            run(replace(config, **change))  # type: ignore[arg-type]
        assert not config.output.exists()
    run(config)


def test_a_folder_that_cannot_be_written_is_refused_before_the_model_is_loaded(
    config: IndexConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(InputError, match=f"^{config.output}: cannot be written \\({config.output.parent} is not wri"):
        run(replace(config, model="/absent"))


def test_a_file_that_is_named_twice_is_indexed_once(
    config: IndexConfig, notes: Path, capsys: pytest.CaptureFixture[str], small_bert: ModernBert
) -> None:
    (notes / "rows.jsonl").write_text('{"text": "first row"}\n{"text": "second row"}\n')
    sources = [str(notes), str(notes / "rivers.md"), f"{notes}/code/../rows.jsonl", str(notes / "code")]
    for said in ("documents: 5 new or changed, 0 unchanged", "documents: 0 new or changed, 5 unchanged"):
        run(replace(config, input=sources))
        assert said in capsys.readouterr().out
    catalog = PassageIndex.open(config.output)
    hits = catalog.search(small_bert, "a", 50, how="vectors")
    assert len(hits) == len(catalog) == len({(hit.origin, hit.line) for hit in hits})
    update = catalog.update(small_bert, [Document("one", "o"), Document("one", "o"), Document("two", "o")])
    assert (update.added, update.passages) == (1, 1)


def test_all_documents_can_be_removed(config: IndexConfig, notes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(config)
    for path in [*notes.glob("*.*"), notes / "code" / "sort.py"]:
        path.unlink()
    run(config)
    assert "index: 0 passages; documents: 0 new or changed, 0 unchanged, 3 removed" in capsys.readouterr().out
    (notes / "blank.md").write_text("\n")
    run(config)
    (notes / "cities.txt").write_text(NOTES["cities.txt"])
    run(config)
    assert "documents: 1 new or changed" in capsys.readouterr().out
    with pytest.raises(InputError, match="absent: no such file or folder"):
        run(replace(config, input=[str(notes / "absent")]))


def test_broken_rows_are_skipped_on_request_and_nothing_is_removed(
    config: IndexConfig, notes: Path, small_bert: ModernBert, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = notes / "rows.jsonl"
    rows.write_text('{"text": "first row"}\n{"text": "second row"}\n')
    run(config)
    rows.write_text('{"text": "first row"}\n{"text": "sec\n{"text": "third row"}\n')
    with pytest.raises(InputError, match="rows.jsonl:2: is not JSON"):
        run(config)
    run(replace(config, on_error="skip"))
    said = capsys.readouterr().out.splitlines()[-1]
    assert "documents: 1 new or changed, 4 unchanged, 0 removed; 1 broken skipped" in said
    assert "rows.jsonl:2: is not JSON" in said and said.endswith("none removed")
    texts = [hit.text for hit in PassageIndex.open(config.output).search(small_bert, "row", 50, how="words")]
    assert sorted(texts) == ["first row", "second row", "third row"]
    rows.write_text('{"text": "first row"}\n')
    run(config)
    assert "0 new or changed, 4 unchanged, 2 removed" in capsys.readouterr().out
    with pytest.raises(InputError, match="on_error: found 'pass', expected 'fail' or 'skip'"):
        resolve(IndexConfig, vars(config) | {"on_error": "pass"})


def test_a_name_that_is_no_text_is_spelled_out(
    config: IndexConfig, notes: Path, small_bert: ModernBert, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(os.fsdecode(os.fsencode(notes) + b"/caf\xe9.md")).write_text("coffee\n")
    run(config)
    run(config)
    assert "0 new or changed, 4 unchanged, 0 removed" in capsys.readouterr().out
    (hit,) = PassageIndex.open(config.output).search(small_bert, "coffee", 5, how="words")
    assert hit.origin == str(notes) + "/caf\\xe9.md"


def test_results_cannot_control_a_terminal(
    config: IndexConfig, notes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (notes / "a\x1b[2Jb\nc.md").write_text("coffee\x1b[31m\n tea\r\n")
    run(config)
    asked = SearchConfig(config.output, "coffee", how="words", device="cpu", dtype="float32")
    capsys.readouterr()
    run_search(asked)
    said = capsys.readouterr().out
    assert said.splitlines()[1:] == ["    coffee\ufffd[31m", "     tea\ufffd"] and "a\\x1b[2Jb\\nc.md:1" in said
    run_search(replace(asked, json=True))
    assert json.loads(capsys.readouterr().out)["text"] == "coffee\x1b[31m\n tea\r"


def test_queries_are_embedded_by_the_model_of_their_passages(
    config: IndexConfig, tmp_path: Path, small_bert: ModernBert, capsys: pytest.CaptureFixture[str]
) -> None:
    run(config)
    asked = SearchConfig(config.output, "sorted values", json=True, device="cpu", dtype="float32")
    run_search(asked)
    expected = capsys.readouterr().out.splitlines()[-1]
    (tmp_path / "model").rename(tmp_path / "moved")
    with pytest.raises(InputError, match="model: no such folder, and not a name on the hub .*; if the model was moved"):
        run_search(asked)
    run_search(replace(asked, model=str(tmp_path / "moved")))
    assert capsys.readouterr().out.splitlines()[-1] == expected
    with torch.no_grad():
        other = deepcopy(small_bert.model)
        other.head.dense.weight += 1  # type: ignore[union-attr, operator]
    ModernBert(small_bert.tokenizer, other).save(tmp_path / "model")
    for named in (None, str(tmp_path / "model")):
        with pytest.raises(InputError, match="index: was made with another model \\("):
            run_search(replace(asked, model=named))
    settings = tmp_path / "moved" / "config.json"
    settings.write_text(settings.read_text().replace("160000.0", "80000.0"))
    with pytest.raises(InputError, match="was made with another model \\("):
        run_search(replace(asked, model=str(tmp_path / "moved")))


def test_a_line_that_repeats_itself_is_found_once(tmp_path: Path, notes: Path, small_bert: ModernBert) -> None:
    (notes / "dump.txt").write_text("0123456789abcdef " * 1_000)
    catalog, _ = index(notes, tmp_path / "index", small_bert)
    for how in ("vectors", "hybrid"):
        hits = catalog.search(small_bert, "0123456789abcdef", 500, how=how)
        places = {(hit.origin, hit.line, hit.text) for hit in hits}
        assert len(hits) == len(places) == len(catalog), how
    # Each ranking counts a passage once: nothing has more than two first places.
    assert max(hit.score for hit in hits) <= 2 / 61


@pytest.mark.parametrize("query", ['"sorted values"', '"', "sorted (((", "it's", "a AND -b^2"])
def test_a_query_is_words_whatever_its_signs(tmp_path: Path, notes: Path, small_bert: ModernBert, query: str) -> None:
    catalog, _ = index(notes, tmp_path / "index", small_bert)
    hits = catalog.search(small_bert, query, 5, how="words")
    assert all(hit.origin.endswith("sort.py") for hit in hits[:1] if "sorted" in query)
    assert ("sorted" in query) <= bool(hits) and len(catalog.search(small_bert, query, 5)) == 5
