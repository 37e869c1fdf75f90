import gzip
import json
import random
import re
import string
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from modernbert.data.corpus import Tally, read_documents
from modernbert.errors import InputError
from modernbert.tokenizer import long_texts
from modernbert.tokenizer.bpe_training import adapt_olmo, train_tokenizer
from modernbert.tokenizer.tokenizer import Tokenizer

TRICKY = [
    "",
    " ",
    "Hello   world",
    "  indented\n\n\tcode = 'x'  # done\n",
    "The capital is [MASK].",
    "a   [MASK]b[CLS] [unused7]  ",
    "naïve cafe\u0301 \U0001f468\u200d\U0001f469 \x00 \ufffd",
    "it's WE'LL 12345 3.14",
    " " * 60 + "x",
]


def ids(tokenizer: Tokenizer, text: str, special: bool = False) -> list[int]:
    return tokenizer.encode([text], special=special)[0].tolist()


def test_a_learned_vocabulary_has_the_published_layout(tokenizer: Tokenizer) -> None:
    text_of = tokenizer._core.id_to_token
    first_run = 512 - 83 - 5 - 23
    assert tokenizer.vocab_size == 512
    assert [text_of(first_run + n) for n in range(23)] == [" " * n for n in range(24, 1, -1)]
    assert [text_of(first_run + 23 + n) for n in range(5)] == ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
    assert [text_of(first_run + 28 + n) for n in range(83)] == [f"[unused{n}]" for n in range(83)]
    assert tokenizer.special_ids.tolist() == list(range(first_run + 23, first_run + 28))
    assert tokenizer.ordinary_ids.tolist() == list(range(first_run + 23))
    assert (tokenizer.cls_id, tokenizer.sep_id) == (first_run + 24, first_run + 25)
    assert (tokenizer.pad_id, tokenizer.mask_id) == (first_run + 26, first_run + 27)


def test_learning_twice_gives_the_same_and_other_text_gives_another(make_texts: Any, tokenizer: Tokenizer) -> None:
    again = train_tokenizer(make_texts(400, seed=1), 512)
    assert again.fingerprint == tokenizer.fingerprint
    assert train_tokenizer(make_texts(400, seed=2), 512).fingerprint != tokenizer.fingerprint


@pytest.mark.parametrize("text", TRICKY)
def test_decoding_gives_back_the_normalised_text(tokenizer: Tokenizer, text: str) -> None:
    # The mask takes the blanks on its left, so these cannot come back.
    expected = re.sub(r"\s+\[MASK\]", "[MASK]", unicodedata.normalize("NFC", text))
    assert tokenizer.decode(ids(tokenizer, text)) == expected
    assert tokenizer.decode(ids(tokenizer, text, special=True)) == f"[CLS]{expected}[SEP]"


def test_template_wraps_one_and_two_texts(tokenizer: Tokenizer) -> None:
    a, b = ids(tokenizer, "one"), ids(tokenizer, "two two")
    cls, sep = tokenizer.cls_id, tokenizer.sep_id
    assert ids(tokenizer, "one", special=True) == [cls, *a, sep]
    assert tokenizer.encode_pairs([("one", "two two")])[0].tolist() == [cls, *a, sep, *b, sep]
    assert ids(tokenizer, "", special=True) == [cls, sep]
    assert tokenizer.encode([]) == []


def test_stored_truncation_and_padding_have_no_effect(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    core = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    core.enable_truncation(4)
    core.enable_padding(length=16)
    core.save(str(tmp_path / "tokenizer.json"))
    loaded = Tokenizer.load(tmp_path)
    assert ids(loaded, "many words of text here") == ids(tokenizer, "many words of text here")
    assert loaded.fingerprint == tokenizer.fingerprint


def test_a_text_has_the_same_tokens_each_time_whatever_it_was_trained_with(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    tokenizer.save(tmp_path)
    found = json.loads((tmp_path / "tokenizer.json").read_text())
    found["model"]["dropout"] = 0.5
    (tmp_path / "tokenizer.json").write_text(json.dumps(found))
    text = "The capital of the country is a city of many rivers."
    again = Tokenizer.load(tmp_path)
    assert all(ids(again, text) == ids(tokenizer, text) for _ in range(20))
    assert again.fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize("size", [500, 384 - 64, 0])
def test_a_vocabulary_size_that_cannot_be_is_refused(size: int) -> None:
    with pytest.raises(InputError, match=f"found {size}, expected a multiple of 64, at least 384"):
        train_tokenizer(["text"], size)


def test_too_little_text_says_how_many_entries_it_gives() -> None:
    with pytest.raises(InputError, match=r"the text gives \d+ entries, expected 1024"):
        train_tokenizer(["too little text"] * 3, 1024)


def test_folder_gives_equal_ids_in_transformers(tokenizer: Tokenizer, tokenizer_folder: Path) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(tokenizer_folder)
    assert theirs(TRICKY)["input_ids"] == [row.tolist() for row in tokenizer.encode(TRICKY)]
    pair = theirs(["one"], ["two"])
    assert pair["input_ids"] == [row.tolist() for row in tokenizer.encode_pairs([("one", "two")])]
    assert set(pair) == {"input_ids", "attention_mask"}
    assert (theirs.cls_token_id, theirs.sep_token_id) == (tokenizer.cls_id, tokenizer.sep_id)
    assert (theirs.pad_token_id, theirs.mask_token_id) == (tokenizer.pad_id, tokenizer.mask_id)
    assert (theirs.model_max_length, len(theirs)) == (1024, tokenizer.vocab_size)
    for row in tokenizer.encode(TRICKY):
        assert theirs.decode(row.tolist()) == tokenizer.decode(row)
        assert theirs.decode(row.tolist(), skip_special_tokens=True) == tokenizer.decode(row, special=False)


PARTS = ["a", "Z", "7", "'s", ".", "--", "e\u0301", "\u0301", "\u0308", "\u212b", "\u1100", "\u1161", "\U0001f600"]
PARTS += [" ", "  ", "\n", "\t", "\u00a0", "\u3000", "\x00", "\x1c", "[MASK]", "[CLS]", "[unused3]"]


@given(st.lists(st.sampled_from(PARTS), min_size=1, max_size=80).map("".join))
@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_long_texts_are_cut_only_where_ids_cannot_change(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr(long_texts, "LONG_CHARS", 3)
    core = tokenizers.Tokenizer.from_str(tokenizer._core.to_str())
    core.add_tokens([AddedToken("aZ", single_word=True)])
    for used in (tokenizer, Tokenizer(core)):
        assert "".join(used._splitter.split(text)) == text
        assert ids(used, text) == used._core.encode(text, add_special_tokens=False).ids


def test_a_long_line_is_cut_and_its_ids_are_those_of_the_whole(make_texts: Any, tokenizer: Tokenizer) -> None:
    prose = "  ".join(make_texts(2_000, seed=3))
    base64 = "".join(random.Random(0).choices(string.ascii_letters + string.digits, k=500_000))
    for text in (prose, base64, base64 + prose):
        assert len(list(tokenizer._splitter.split(text))) >= 2
        assert ids(tokenizer, text) == tokenizer._core.encode(text, add_special_tokens=False).ids


def test_a_tokenizer_that_could_join_across_blanks_is_never_cut(tokenizer: Tokenizer) -> None:
    core = tokenizers.Tokenizer.from_str(tokenizer._core.to_str())
    core.add_tokens([AddedToken("on day")])
    assert len(list(Tokenizer(core)._splitter.split("on day " * 100_000))) == 1
    assert len(list(tokenizer._splitter.split("on day " * 100_000))) > 1


def gemma_like() -> tokenizers.Tokenizer:
    """A tokenizer of the family of mmBERT: other names, byte fallback, blanks as U+2581, no NFC."""
    names = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<unused0>", "<unused1>"]
    pieces = names + [f"<0x{byte:02X}>" for byte in range(256)] + list("▁helowrd") + ["he", "ll", "hell"]
    merges = [("h", "e"), ("l", "l"), ("he", "ll")]
    core = tokenizers.Tokenizer(
        models.BPE({piece: n for n, piece in enumerate(pieces)}, merges, byte_fallback=True, unk_token="<unk>")
    )
    core.normalizer = normalizers.Replace(" ", "▁")
    core.pre_tokenizer = pre_tokenizers.Split(Regex(" "), "merged_with_previous")
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    core.add_special_tokens([AddedToken(name, normalized=False) for name in names[:5]])
    core.add_tokens([AddedToken(name, normalized=False) for name in names[5:]])
    core.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", pair="<bos> $A <eos> $B <eos>", special_tokens=[("<bos>", 2), ("<eos>", 1)]
    )
    return core


def test_another_family_is_understood_from_its_template_and_names(tmp_path: Path) -> None:
    core = gemma_like()
    core.save(str(tmp_path / "tokenizer.json"))
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    assert (loaded.cls_id, loaded.sep_id, loaded.pad_id, loaded.mask_id) == (2, 1, 0, 4)
    assert loaded.special_ids.tolist() == [0, 1, 2, 3, 4]
    assert loaded.ordinary_ids.tolist() == list(range(7, loaded.vocab_size))
    text = "hello wörld <mask>"
    assert ids(loaded, text, special=True) == core.encode(text).ids
    assert loaded.decode(ids(loaded, text)) == text
    assert len(list(loaded._splitter.split("hello " * 100_000))) == 1


@pytest.mark.parametrize("template", ["[CLS] $A", "[CLS] $A [SEP]", "[CLS] $A [SEP] [SEP]", "$A"])
def test_truncation_equals_that_of_the_library(tokenizer: Tokenizer, template: str) -> None:
    core = tokenizers.Tokenizer.from_str(tokenizer._core.to_str())
    special = [("[CLS]", tokenizer.cls_id), ("[SEP]", tokenizer.sep_id)]
    core.post_processor = processors.TemplateProcessing(single=template, pair=f"{template} $B", special_tokens=special)
    ours = Tokenizer(tokenizers.Tokenizer.from_str(core.to_str()))
    (whole,) = ours.encode(["many words of text here"])
    assert sum(ours.num_special) == template.count("[")
    for longest in range(4, len(whole) + 2):
        core.enable_truncation(longest)
        assert ours.truncate(whole, longest).tolist() == core.encode("many words of text here").ids


@pytest.mark.parametrize("place", ["tokenizer.json", "tokenizer_config.json"])
def test_a_folder_that_cuts_the_start_of_texts_cuts_none(tokenizer: Tokenizer, tmp_path: Path, place: str) -> None:
    tokenizer.save_folder(tmp_path, 100)
    path = tmp_path / place
    if place == "tokenizer.json":
        core = tokenizers.Tokenizer.from_file(str(path))
        core.enable_truncation(4, direction="left")
        core.save(str(path))
        (tmp_path / "tokenizer_config.json").unlink()
    else:
        path.write_text(path.read_text().replace('"truncation_side": "right"', '"truncation_side": "left"'))
    loaded = Tokenizer.load(tmp_path)
    (whole,) = loaded.encode(["many words of text here"])
    assert loaded.truncate(whole, len(whole)).tolist() == ids(tokenizer, "many words of text here", special=True)
    for cut in (lambda: loaded.truncate(whole, 5), lambda: loaded.encode_pairs([("many words", "of text")], 5)):
        with pytest.raises(InputError, match="json: truncation_side is 'left', expected 'right'"):
            cut()
    loaded.save_folder(tmp_path, 100)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["truncation_side"] == "left"


def test_role_names_come_from_the_config_beside_it(tokenizer: Tokenizer, tmp_path: Path) -> None:
    plan = json.loads(tokenizer._core.to_str())
    text = json.dumps(plan).replace("[MASK]", "<<blank>>")
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(InputError, match=r"tokenizer\.json: no mask token, expected \[MASK\] or <mask>"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"mask_token": {"content": "<<blank>>"}}))
    assert Tokenizer.load(tmp_path).mask_id == tokenizer.mask_id
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(InputError, match=r"tokenizer_config\.json: is not readable JSON"):
        Tokenizer.load(tmp_path)


def test_an_invalid_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tokenizer\.json: no such tokenizer file"):
        Tokenizer.load(tmp_path)
    path = tmp_path / "tokenizer.json"
    for content in (b"", b"{}", b"\xff\xfe", b"not json"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"tokenizer\.json: is not a tokenizer\.json"):
            Tokenizer.load(path)


def test_a_lone_surrogate_names_the_text(tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match=r"text 1: unpaired surrogate U\+D800 at character 3"):
        tokenizer.encode(["fine", "bad\ud800"])
    with pytest.raises(InputError, match=r"text 4097: unpaired surrogate"):
        tokenizer.encode(["fine", "bad\ud800"], first=4_096)
    with pytest.raises(InputError, match=r"text 0: unpaired surrogate"):
        tokenizer.encode_pairs([("fine", "\udfff")])


def test_only_olmo_is_adapted(tokenizer_folder: Path) -> None:
    with pytest.raises(InputError, match=r"found a vocabulary of 512, expected OLMo's of 50,280"):
        adapt_olmo(tokenizer_folder / "tokenizer.json")


def test_adapted_olmo_is_the_published_tokenizer(data_folder: Path) -> None:
    published = Tokenizer.load(data_folder / "tokenizer" / "modernbert")
    adapted = adapt_olmo(data_folder / "tokenizer" / "olmo" / "tokenizer.json.gz")
    assert adapted.fingerprint == published.fingerprint
    assert adapted.vocab_size == 50_368
    documents = read_documents([data_folder / "corpus" / "cpp_docs.jsonl.gz"], Tally())
    texts = [document.text for document, _ in zip(documents, range(100), strict=False)]
    for ours, theirs in zip(adapted.encode(texts), published._core.encode_batch(texts), strict=True):
        assert np.array_equal(ours, theirs.ids)


def test_published_vectors_are_reproduced(data_folder: Path) -> None:
    folder = data_folder / "tokenizer" / "modernbert"
    published = Tokenizer.load(folder)

    def rows(name: str) -> list[dict[str, object]]:
        opened = gzip.open if name.endswith(".gz") else open
        with opened(folder / name, "rt", encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]

    for row in rows("vectors_modernbert_jl.jsonl"):
        assert ids(published, row["text"], special=True) == row["ids"]
    for row in rows("vectors_generated.jsonl.gz"):
        assert ids(published, row["text"]) == row["ids"]
    for row in rows("vectors_pairs.jsonl"):
        assert published.encode_pairs([(row["text"], row["pair"])])[0].tolist() == row["ids"]
