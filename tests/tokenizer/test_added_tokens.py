"""Tokens that only the files beside `tokenizer.json` have: the ids of transformers, or an error."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, BertTokenizer

from modernbert import ModernBert
from modernbert.checkpoints.folder import ModelFolder
from modernbert.errors import InputError
from modernbert.tokenizer.tokenizer import Tokenizer

TEXTS = [
    "one <ent>two<ent> <a> <b>three <c>",
    "a <image> of the country  [MASK]  and [unused3]",
    "<ent> <ent>\n<A>  <new>s, the land of rivers",
    "cityland, city land",
]
CONFIG, MAP, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
ENT = {
    "content": "<ent>",
    "lstrip": False,
    "rstrip": False,
    "normalized": False,
    "single_word": False,
    "special": False,
}
Files = dict[str, dict[str, Any]]

ADDING: dict[str, Files] = {
    "added_tokens_decoder": {CONFIG: {"added_tokens_decoder": {"512": ENT}}},
    "two of added_tokens_decoder, not in order": {
        CONFIG: {"added_tokens_decoder": {"513": ENT | {"content": "<a>"}, "512": ENT | {"rstrip": True}}}
    },
    "an entry of the vocabulary that is never split": {
        CONFIG: {"added_tokens_decoder": {"260": ENT | {"content": None, "single_word": True}}}
    },
    "another flag of an added token": {
        CONFIG: {"added_tokens_decoder": {"mask": ENT | {"content": "[MASK]", "special": True, "lstrip": False}}}
    },
    "additional_special_tokens": {CONFIG: {"additional_special_tokens": ["<a>", "<b>", "[SEP]"]}},
    "extra_special_tokens": {CONFIG: {"extra_special_tokens": ["<b>", "<a>"]}},
    "extra_special_tokens with names": {CONFIG: {"extra_special_tokens": {"image_token": "<image>"}}},
    "a role with another name": {CONFIG: {"image_token": "<image>", "add_bos_token": False}},
    "a role whose token is new": {CONFIG: {"bos_token": "<a>", "eos_token": "<b>"}},
    "a role whose token is an object": {CONFIG: {"bos_token": ENT | {"content": "<a>", "__type": "AddedToken"}}},
    "added_tokens.json": {ADDED: {"<new>": 513, "<c>": 512}},
    "added_tokens.json with a special token": {ADDED: {"<c>": 512}, MAP: {"bos_token": "<c>"}},
    "special_tokens_map.json": {MAP: {"additional_special_tokens": ["<a>", "<c>"], "bos_token": "<b>"}},
    "special_tokens_map.json beside added_tokens_decoder": {
        CONFIG: {"added_tokens_decoder": {"512": ENT}}, MAP: {"additional_special_tokens": ["<a>"]}, ADDED: {"<c>": 900}
    },
}  # fmt: skip


def write(folder: Path, tokenizer: Tokenizer, files: Files) -> Path:
    folder.mkdir()
    tokenizer.save(folder / "tokenizer.json")
    filled = json.loads(json.dumps(files))
    for entry in filled.get(CONFIG, {}).get("added_tokens_decoder", {}).values():
        entry["content"] = entry["content"] or tokenizer.id_to_token(260)
    decoder = filled.get(CONFIG, {}).get("added_tokens_decoder", {})
    if "mask" in decoder:
        decoder[str(tokenizer.mask_id)] = decoder.pop("mask")
    roles = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "cls", "sep", "pad", "mask")}
    filled[CONFIG] = {"tokenizer_class": "PreTrainedTokenizerFast", **roles, **filled.get(CONFIG, {})}
    for name, content in filled.items():
        (folder / name).write_text(json.dumps(content))
    return folder


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ADDING)
def test_tokens_beside_are_added_as_transformers_adds_them(tokenizer: Tokenizer, tmp_path: Path, name: str) -> None:
    folder = write(tmp_path / "model", tokenizer, ADDING[name])
    ours, theirs = Tokenizer.load(folder), AutoTokenizer.from_pretrained(folder)
    texts = [*TEXTS, f"one {tokenizer.id_to_token(260)} two"]
    assert [row.tolist() for row in ours.encode(texts)] == theirs(texts)["input_ids"]
    assert ours.vocab_size == len(theirs)
    assert {token for token in theirs.all_special_ids if token is not None} <= set(ours.special_ids.tolist())
    assert [row.tolist() for row in ours.encode(texts)] != [row.tolist() for row in tokenizer.encode(texts)]
    assert ours.fingerprint != tokenizer.fingerprint
    # The files written for transformers have them, too.
    (tmp_path / "saved").mkdir()
    ours.save_folder(tmp_path / "saved", 100)
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert again(texts)["input_ids"] == theirs(texts)["input_ids"]
    assert Tokenizer.load(tmp_path / "saved").fingerprint == ours.fingerprint


def test_files_that_add_nothing_leave_the_tokenizer_as_it_was(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save_folder(tmp_path, 100)
    assert Tokenizer.load(tmp_path).fingerprint == tokenizer.fingerprint


REFUSED: dict[str, Files] = {
    r"added_tokens_decoder: the token '<ent>' has the id 600, expected 512, its id in": {
        CONFIG: {"added_tokens_decoder": {"600": ENT}}
    },
    r"added_tokens_decoder: the token '\[MASK\]' has the id 0, expected": {
        CONFIG: {"added_tokens_decoder": {"0": ENT | {"content": "[MASK]"}}}
    },
    r"added_tokens.json: the token '<new>' has the id 3, expected 512": {ADDED: {"<new>": 3}},
    r"added_tokens.json: '<new>' is 'x', expected an id": {ADDED: {"<new>": "x"}},
    "added_tokens_decoder: found the unknown key 'trim'": {
        CONFIG: {"added_tokens_decoder": {"512": ENT | {"trim": True}}}
    },
    "added_tokens_decoder: found .* expected flags that are true or false": {
        CONFIG: {"added_tokens_decoder": {"512": ENT | {"lstrip": "yes"}}}
    },
    "added_tokens_decoder: found 5, expected a token": {CONFIG: {"added_tokens_decoder": {"512": 5}}},
    "added_tokens_decoder: found .* expected an entry per id": {CONFIG: {"added_tokens_decoder": {"first": ENT}}},
    "additional_special_tokens: found 5, expected a token": {CONFIG: {"additional_special_tokens": ["<a>", 5]}},
    "additional_special_tokens: found '<a>', expected a list": {CONFIG: {"additional_special_tokens": "<a>"}},
    "cls_token: found 5, expected a token": {CONFIG: {"cls_token": 5}},
    "split_special_tokens: found True, expected false": {CONFIG: {"split_special_tokens": True}},
}


@pytest.mark.parametrize("message", REFUSED)
def test_contradictory_or_invalid_tokens_are_refused(tokenizer: Tokenizer, tmp_path: Path, message: str) -> None:
    tokenizer.save(tmp_path / "tokenizer.json")
    for name, content in REFUSED[message].items():
        (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(InputError, match=message) as caught:
        Tokenizer.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_added_tokens_need_embeddings(small_bert: ModernBert, tmp_path: Path) -> None:
    small_bert.save(tmp_path / "model")
    found = json.loads((tmp_path / "model" / CONFIG).read_text())
    digest = ModelFolder(tmp_path / "model").digest
    (tmp_path / "model" / CONFIG).write_text(json.dumps(found | {"additional_special_tokens": ["<a>"]}))
    with pytest.raises(InputError, match="has 513 entries, which does not fit the model's vocabulary of 512"):
        ModernBert.load(tmp_path / "model", device="cpu")
    (tmp_path / "model" / CONFIG).write_text(json.dumps(found))
    (tmp_path / "model" / ADDED).write_text(json.dumps({}))
    assert ModelFolder(tmp_path / "model").digest != digest


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("key", "wrong"), [("do_lower_case", False), ("strip_accents", False), ("tokenize_chinese_chars", False)]
)
def test_a_normalizer_that_tokenizer_config_contradicts_is_refused(tmp_path: Path, key: str, wrong: bool) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "nai", "##ve", "naive", "東", "京", "東京"]
    theirs = BertTokenizer(vocab={word: number for number, word in enumerate(words)})
    theirs.save_pretrained(tmp_path)
    texts = ["Hello", "naïve", "東京"]
    assert [row.tolist() for row in Tokenizer.load(tmp_path).encode(texts)] == theirs(texts)["input_ids"]

    config = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(config | {key: wrong}))
    assert AutoTokenizer.from_pretrained(tmp_path)(texts)["input_ids"] != theirs(texts)["input_ids"]
    with pytest.raises(InputError, match=f"{CONFIG}: {key}: found False, expected True as in tokenizer.json"):
        Tokenizer.load(tmp_path)

    # transformers ignores the setting for this class.
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    (tmp_path / CONFIG).write_text(json.dumps(config | {key: wrong}))
    assert [row.tolist() for row in Tokenizer.load(tmp_path).encode(texts)] == theirs(texts)["input_ids"]
