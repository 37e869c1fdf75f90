"""Adds the tokens that the files beside `tokenizer.json` list, as transformers does.

They are in `tokenizer_config.json`, or, if that has no `added_tokens_decoder`, in `special_tokens_map.json` and
`added_tokens.json`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from modernbert.errors import InputError, shown
from modernbert.safe_files import check_keys, read_json

__all__ = ["add_tokens_beside"]

_CONFIG, _MAP, _ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
# The order in which transformers adds them.
_ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def add_tokens_beside(core: tokenizers.Tokenizer, folder: Path, max_vocab_size: int | None) -> bool:
    """Add the tokens that the files in a folder list to a tokenizer; return whether that changed it.

    Args:
        core: The tokenizer, which is changed.
        folder: The folder of the files.
        max_vocab_size: The vocabulary size of the model.

    Raises:
        InputError: An entry is not a token, a stated id differs from the token's id, or there are more tokens than the
            model has embeddings; names the file.

    Source: transformers 5.24, `PreTrainedTokenizerBase._from_pretrained` and `TokenizersBackend.__init__`.
    """
    stated, others = _read_tokens(folder)
    known = {token.content for token in core.get_added_tokens_decoder().values()} | {
        token.content for token, _, _ in stated
    }
    tokens = [token for token, _, _ in stated] + [token for token in others if token.content not in known]
    new = {token.content for token in tokens if token.content and core.token_to_id(token.content) is None}
    size = core.get_vocab_size(with_added_tokens=True) + len(new)
    if new and max_vocab_size is not None and size > max_vocab_size:
        raise InputError(
            f"{folder / _CONFIG}: with its added tokens the vocabulary has {size:,} entries, which does not fit the "
            f"model's vocabulary of {max_vocab_size:,}"
        )
    before = _added_in(core)
    core.add_tokens(tokens)
    for token, number, place in stated:
        found = core.token_to_id(token.content)
        if token.content and found != number:
            raise InputError(
                f"{place}: the token {shown(repr(token.content), 60)} has the id {number}, expected {found}, its id in "
                "tokenizer.json or the next free one"
            )
    return _added_in(core) != before


def _added_in(core: tokenizers.Tokenizer) -> list[str]:
    return [f"{number} {token!r}" for number, token in sorted(core.get_added_tokens_decoder().items())]


def _read_tokens(folder: Path) -> tuple[list[tuple[AddedToken, int, str]], list[AddedToken]]:
    """Return tokens with their stated ids and their file, sorted by id; and tokens without ids."""
    config = read_json(folder / _CONFIG, missing_ok=True)
    if config.get("split_special_tokens"):
        raise InputError(
            f"{folder / _CONFIG}: split_special_tokens: found {config['split_special_tokens']!r}, expected false"
        )
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens")
    named = {key: value for key, value in config.items() if key.endswith("_token")}
    stated: list[tuple[AddedToken, int, str]] = []
    place = f"{folder / _CONFIG}: added_tokens_decoder"
    if "added_tokens_decoder" in config:
        stated = [(_token_of(each, place), number, place) for number, each in _by_id(config, place)]
    else:
        special_map = read_json(folder / _MAP, missing_ok=True)
        named |= {key: value for key, value in special_map.items() if key.endswith("_token")}
        extra = extra or special_map.get("extra_special_tokens") or special_map.get("additional_special_tokens")
    if isinstance(extra, Mapping):  # named tokens
        named, extra = {**named, **extra}, []
    roles = [key for key in _ROLES if named.get(key) is not None]
    # Other keys with this ending may be flags, such as add_bos_token.
    own = [key for key, value in named.items() if key not in _ROLES and isinstance(value, str | Mapping)]
    special = [_token_of(named[key], f"{folder / _CONFIG}: {key}", special=True) for key in [*roles, *own]]
    if extra is not None and not isinstance(extra, list):
        raise InputError(
            f"{folder / _CONFIG}: additional_special_tokens: found {shown(repr(extra), 60)}, expected a list"
        )
    more = [_token_of(each, f"{folder / _CONFIG}: additional_special_tokens", special=True) for each in extra or []]
    if "added_tokens_decoder" not in config:
        are_special = {token.content for token in (*special, *more)}
        place = str(folder / _ADDED)
        for content, number in sorted(
            read_json(folder / _ADDED, missing_ok=True).items(), key=lambda each: str(each[1])
        ):
            if type(number) is not int or number < 0:
                raise InputError(f"{place}: {shown(repr(content), 60)} is {shown(repr(number), 60)}, expected an id")
            is_special = content in are_special
            stated.append((AddedToken(content, normalized=not is_special, special=is_special), number, place))
    names = {token.content for token in special}
    for token, _, _ in stated:
        if token.content in names:
            token.special = True
    return sorted(stated, key=lambda each: each[1]), [*special, *more]


def _by_id(config: Mapping[str, Any], place: str) -> list[tuple[int, Any]]:
    found = config["added_tokens_decoder"]
    if not isinstance(found, Mapping) or not all(key.isascii() and key.isdigit() for key in found):
        raise InputError(f"{place}: found {shown(repr(found), 60)}, expected an entry per id")
    return [(int(key[:12]), value) for key, value in found.items()]


def _token_of(found: Any, place: str, *, special: bool = False) -> AddedToken:
    """Parse an entry: the text of a token, or an object with its text and flags."""
    if isinstance(found, str):
        return AddedToken(found, special=True) if special else AddedToken(found)
    if not isinstance(found, Mapping) or not isinstance(found.get("content"), str):
        raise InputError(f"{place}: found {shown(repr(found), 60)}, expected a token, or an object with its content")
    check_keys(found, ("content", *_FLAGS, "__type", "id"), place)
    flags = {key: found[key] for key in _FLAGS if found.get(key) is not None}
    if not all(isinstance(flag, bool) for flag in flags.values()):
        raise InputError(f"{place}: found {shown(json.dumps(flags), 100)}, expected flags that are true or false")
    return AddedToken(found["content"], **(flags | ({"special": True} if special else {})))
