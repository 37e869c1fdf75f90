"""Hostile tokenizers: text that grows without bound, catastrophic patterns, ids without a token."""

import base64
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .making import Case, Make, add, all_of, edited

__all__ = ["cases"]

TOKENIZER = "tokenizer.json"
FAILS = "tokenizer.json: fails on a text"
UNREADABLE = "tokenizer.json: is not a tokenizer.json"
# tokenizer_config.json also lists the ids of all added tokens, and its check would fail first.
ALONE = edited("tokenizer_config.json", lambda found: found.pop("added_tokens_decoder"))


def cases() -> Iterator[Case]:
    """Yield all cases."""
    yield from _growing()
    yield from _patterns()
    yield from _ids()
    yield from _forms()


def _case(name: str, change: Any, says: str | None) -> Case:
    return Case("tokenizer", name, all_of(edited(TOKENIZER, change), ALONE), says)


def _growing() -> Iterator[Case]:
    double = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    say = "tokenizer.json: its normalizer may make a text"
    yield _case("40 replacements that double", {"normalizer": {"type": "Sequence", "normalizers": [double] * 40}}, say)
    nested = {"type": "Sequence", "normalizers": [{"type": "Sequence", "normalizers": [double] * 20}] * 20}
    yield _case("replacements in sequences", {"normalizer": nested}, say)
    yield _case("a letter that becomes a megabyte", {"normalizer": double | {"content": "b" * 10**6}}, say)
    empty = {"type": "Replace", "pattern": {"Regex": ""}, "content": "a" * 500}
    yield _case("nothing that becomes much", {"normalizer": {"type": "Sequence", "normalizers": [empty] * 4}}, say)
    yield _case("a megabyte before each text", {"normalizer": {"type": "Prepend", "prepend": "b" * 10**6}}, say)
    table = base64.b64encode((4).to_bytes(4, "little") + bytes(4) + b"x" * 10**6 + b"\0").decode()
    yield _case(
        "a table with a megabyte in it", {"normalizer": {"type": "Precompiled", "precompiled_charsmap": table}}, say
    )
    old = {"normalizers": [{"pattern": {"String": "a"}, "content": "aa"}] * 40}
    yield _case("replacements that do not name their type", {"normalizer": old}, say)
    yield Case("tokenizer", "replacements under a name that is spelled out", _spelled_out(double), say)
    some = [{"content": f"added {n} " + "a" * 20, "id": 600 + n, "normalized": True} for n in range(2_000)]
    yield _case("added tokens that grow", {"normalizer": empty, "added_tokens": some}, "its added tokens may become")
    decoder = {"type": "Sequence", "decoders": [double] * 40}
    yield _case("a decoder that doubles", {"decoder": decoder}, "its decoder may make a text")


def _spelled_out(double: Any) -> Make:
    def make(folder: Path) -> None:
        edited(TOKENIZER, {"normalizer": {"type": "Sequence", "normalizers": [double] * 40}})(folder)
        content = (folder / TOKENIZER).read_text().replace('"normalizer"', '"norm\\u0061lizer"')
        (folder / TOKENIZER).write_text(content)

    return make


def _patterns() -> Iterator[Case]:
    def split(pattern: str) -> dict[str, Any]:
        regex = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        letters = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
        return {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [regex, letters]}}

    yield _case("a pattern that tries everything", split("(a+)+$"), f"{FAILS} (Onig: Regex search error")
    yield _case("another", split("^(([a-z])+.)+[A-Z]([a-z])+$"), f"{FAILS} (Onig: Regex search error")
    yield _case("4,000 parentheses", split("(" * 4_000 + "a" + ")" * 4_000), UNREADABLE)
    yield _case("100,000 parentheses", split("(" * 100_000), UNREADABLE)
    yield _case("an unfinished pattern", split("(a"), UNREADABLE)
    yield _case("a pattern that calls itself", split(r"(?<n>\g<n>)"), UNREADABLE)
    replace = {"normalizer": {"type": "Replace", "pattern": {"Regex": "(x+x+)+y"}, "content": "b"}}
    yield _case("a replacement that tries everything", replace, f"{FAILS} (Onig: Regex search error")
    for name, table in {"none": b"", "zeros": bytes(5), "a trie beyond it": b"\xff" * 20, "a trie of garbage":
                        (16).to_bytes(4, "little") + b"\xff" * 16 + b"xyz\0"}.items():  # fmt: skip
        charsmap = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(table).decode()}
        yield _case(f"a table that is {name}", {"normalizer": charsmap}, "tokenizer.json: ")


def _ids() -> Iterator[Case]:
    def template(**change: Any) -> dict[str, Any]:
        special = {"SpecialToken": {"id": "[CLS]", "type_id": 0}}
        whole = {
            "type": "TemplateProcessing", "single": [special, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [special, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [10**8], "tokens": ["[CLS]"]}},
        }  # fmt: skip
        return {"post_processor": whole | change}

    yield _case("a template with ids of no token", template(), "its template puts in token 100000000")
    yield _case("a template with a token it does not name", template(special_tokens={}), "tokenizer.json: ")
    for name, token in (("4 billion", 4_000_000_000), ("512", 600)):
        added = {
            "content": "zzz",
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        new = added | {"id": token}
        yield _case(f"an added token beyond {name}", lambda t, a=new: t["added_tokens"].append(a), "tokenizer.json: ")
    yield _case(
        "a vocabulary with an id of 4 billion",
        lambda t: t["model"]["vocab"].update(zzzz=4_294_967_295),
        "tokenizer.json: has 4,294,967,296 entries",
    )
    yield _case("an id beyond 32 bits", lambda t: t["model"]["vocab"].update(zzzz=2**40), UNREADABLE)
    yield _case("a negative id", lambda t: t["model"]["vocab"].update(zzzz=-1), UNREADABLE)
    many = {f"t{number}": number + 600 for number in range(100_000)}
    yield _case(
        "a vocabulary of 100,000 for a model of 512",
        lambda t: t["model"]["vocab"].update(many),
        "tokenizer.json: ",
    )
    more = {f"t{number}": number + 600 for number in range(200_000)}
    yield _case("a vocabulary of 200,000", lambda t: t["model"]["vocab"].update(more), "tokenizer.json: has ")
    yield _case(
        "merges of tokens that are not there", lambda t: t["model"]["merges"].append(["qqq", "rrr"]), UNREADABLE
    )
    yield _case("no vocabulary", lambda t: t["model"].update(vocab={}, merges=[]), "tokenizer.json: ")


def _forms() -> Iterator[Case]:
    cut = {"max_length": 2, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    yield _case("truncation to two tokens", {"truncation": cut}, None)
    yield _case("truncation with a stride beyond it", {"truncation": cut | {"stride": 10}}, None)
    pad = {
        "strategy": {"Fixed": 10**9},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 3,
        "pad_type_id": 0,
        "pad_token": "[PAD]",
    }
    yield _case("padding to a billion tokens", {"padding": pad}, None)
    yield _case(
        "padding to a multiple of 2^60",
        {"padding": pad | {"strategy": "BatchLongest", "pad_to_multiple_of": 2**60}},
        None,
    )
    yield _case("an unknown kind of model", {"model": {"type": "Evil", "vocab": {}}}, UNREADABLE)
    yield _case("a normalizer that is code", {"normalizer": {"type": "Custom", "code": "import os"}}, UNREADABLE)
    yield _case("a text for a model", {"model": "os.system"}, UNREADABLE)
    words = {
        "type": "WordPiece",
        "unk_token": "[none]",
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
        "vocab": {"b": 0},
    }
    yield _case("words without a token for the unknown", {"model": words, "added_tokens": []}, FAILS)
    yield _case(
        "an empty vocabulary of unigrams",
        {"model": {"type": "Unigram", "unk_id": None, "vocab": []}},
        "tokenizer.json: ",
    )
    yield _case(
        "weights of unigrams that are NaN",
        {"model": {"type": "Unigram", "unk_id": 0, "vocab": [["a", "NaN"]]}},
        UNREADABLE,
    )
    deep: Any = {"type": "NFC"}
    for _ in range(400):
        deep = {"type": "Sequence", "normalizers": [deep]}
    yield _case("sequences in each other", {"normalizer": deep}, UNREADABLE)
    wholes = {
        "a list": b"[]", "null": b"null", "nothing": b"", "brackets": b"[" * 10**6, "not UTF-8": b"\xff",
        "a number": b"1", "a version alone": b'{"version": "1.0"}',
    }  # fmt: skip
    for name, content in wholes.items():
        yield Case("tokenizer", f"a file that is {name}", add(TOKENIZER, content), UNREADABLE)
    beside: dict[str, tuple[Callable[[], Any] | Any, str | None]] = {
        "names that are numbers": ({"cls_token": 5, "sep_token": ["[SEP]"], "mask_token": {"content": 7}}, None),
        "names that are objects in objects": ({"cls_token": {"content": {"content": "[CLS]"}}}, None),
        "half a character for a name": (b'{"cls_token": "\\ud800"}', "is not readable JSON"),
        "a name of a megabyte": ({"mask_token": "x" * 10**6}, None),
        "a list": ([1], "found list, expected an object"),
    }
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        for name, (content, says) in beside.items():
            yield Case("tokenizer", f"{file}: {name}", add(file, content), says)
        # transformers ignores the added tokens of this file if the other file has some.
        says = "the vocabulary has 100,512 entries" if file == "tokenizer_config.json" else None
        many = {"additional_special_tokens": [f"<{n}>" for n in range(100_000)]}
        yield Case("tokenizer", f"{file}: a hundred thousand special tokens", add(file, many), says)
    decoder = {str(n): {"content": f"<{n}>"} for n in range(50_000)}
    stated = edited("tokenizer_config.json", {"added_tokens_decoder": decoder})
    yield Case("tokenizer", "fifty thousand added tokens", stated, "the vocabulary has 50,512 entries")
    empty = {"unk_token": "", "cls_token": "", "sep_token": "", "pad_token": "", "mask_token": ""}
    both = all_of(add("tokenizer_config.json", empty), add("special_tokens_map.json", empty))
    yield Case("tokenizer", "names that are empty", both, None)
