"""Texts to token ids and back, with any `tokenizer.json`.

Token ids equal the ids of transformers and of the published checkpoints. The files beside `tokenizer.json` name the
special tokens, may add tokens, and say whether sentence-transformers lowercases texts first.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from jaxtyping import Bool, Int64
from tokenizers import normalizers

from modernbert.errors import InputError
from modernbert.files import write_file
from modernbert.safe_files import read_json
from modernbert.tokenizer.added_tokens import add_tokens_beside
from modernbert.tokenizer.long_texts import LongTextSplitter, bounded_batches
from modernbert.tokenizer.token_expansion import check_token_expansion
from modernbert.tokenizer.tokenizer_files import (
    check_normalizer,
    read_special_token_names,
    read_tokenizer_json,
    translate_errors,
)

__all__ = ["Tokenizer", "check_not_table"]

ROLES = ("unk", "cls", "sep", "pad", "mask")
# The keys of a role in tokenizer_config.json, then its names in vocabularies.
CONFIG_KEYS = {"cls": ("cls_token", "bos_token"), "sep": ("sep_token", "eos_token")}
USUAL_NAMES = {
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<cls>", "<bos>", "<s>"),
    "sep": ("[SEP]", "<sep>", "<eos>", "</s>"),
    "pad": ("[PAD]", "<pad>"),
    "mask": ("[MASK]", "<mask>"),
}
_SENTENCE_TRANSFORMERS_CONFIG = "sentence_bert_config.json"
_UNUSED = re.compile(r"[\[<]unused\d+[\]>]")
_MAX_NAMES = 8


class Tokenizer:
    """Encodes and decodes text, and knows the ids of the special tokens.

    `cls_id`, `sep_id`, `pad_id` and `mask_id` come from the template and the names in the file. `special_ids` are never
    masked. `ordinary_ids` are the ids that masking may draw as a replacement: neither special nor unused entries.
    """

    def __init__(self, core: tokenizers.Tokenizer, named: Mapping[str, str] | None = None, origin: str = "tokenizer"):
        self._truncation_side = str((core.truncation or {}).get("direction", "right")).lower()
        core.no_truncation()
        core.no_padding()
        if getattr(core.model, "dropout", None):
            # BPE dropout is for training: without it, a text has the same tokens each time.
            core.model.dropout = None
        self._core = core
        self._origin = origin
        self._splitter = LongTextSplitter(core)
        with translate_errors(origin):
            probe = core.encode("a", add_special_tokens=False).ids
            wrapped, pair = core.encode("a").ids, core.encode("a", "a").ids
        start = next((i for i in range(len(wrapped)) if wrapped[i : i + len(probe)] == probe), 0)
        self._prefix, self._suffix = wrapped[:start], wrapped[start + len(probe) :]
        roles = {role: self._find_role(role, named or {}) for role in ROLES}
        self.cls_id = self._required("cls", self._prefix[0] if self._prefix else roles["cls"])
        self.sep_id = self._required("sep", self._suffix[-1] if self._suffix else roles["sep"])
        self.pad_id = self._required("pad", roles["pad"])
        self.mask_id = self._required("mask", roles["mask"])
        self._unk_id = roles["unk"]
        self._ids = sorted(core.get_vocab(with_added_tokens=True).values())
        self.vocab_size = self._ids[-1] + 1
        beyond = sorted({*wrapped, *pair} - set(self._ids))
        if beyond:
            raise InputError(f"{origin}: its template puts in token {beyond[0]}, which its vocabulary does not have")

    def __repr__(self) -> str:
        return f"Tokenizer({self._origin}: {self.vocab_size:,} entries)"

    @staticmethod
    def load(path: Path | str, max_vocab_size: int | None = None) -> "Tokenizer":
        """Load a `tokenizer.json`, or the one in a folder, with the tokens that the files beside it add.

        Args:
            path: The file or its folder.
            max_vocab_size: The vocabulary size of the model, which the tokenizer must not exceed.

        Raises:
            InputError: The file does not exist, is not a tokenizer, lacks a special token, has too many entries, or
                contradicts the files beside it.
        """
        path = Path(path)
        file = path / "tokenizer.json" if path.is_dir() else path
        core = read_tokenizer_json(file, max_vocab_size)
        with translate_errors(str(file), "cannot take the tokens that files beside it add"):
            if add_tokens_beside(core, file.parent, max_vocab_size):
                check_token_expansion(core.to_str().encode(), str(file))
        check_normalizer(core, file.parent)
        if read_json(file.parent / _SENTENCE_TRANSFORMERS_CONFIG, missing_ok=True).get("do_lower_case"):
            # As sentence-transformers does, before the normalizer of the file.
            own = [] if core.normalizer is None else [core.normalizer]
            core.normalizer = normalizers.Sequence([normalizers.Lowercase(), *own])
        tokenizer = Tokenizer(core, read_special_token_names(file.parent), str(file))
        config = read_json(file.parent / "tokenizer_config.json", missing_ok=True)
        tokenizer._truncation_side = str(config.get("truncation_side") or tokenizer._truncation_side)[:60]
        if max_vocab_size is not None and tokenizer.vocab_size > max_vocab_size:
            raise InputError(
                f"{file}: has {tokenizer.vocab_size:,} entries, which does not fit the model's vocabulary of "
                f"{max_vocab_size:,}"
            )
        return tokenizer

    @cached_property
    def special_ids(self) -> Int64[np.ndarray, " _"]:
        """Sorted ids of the special tokens: tokens with a role, and all that are flagged special."""
        flagged = {i for i, token in self._core.get_added_tokens_decoder().items() if token.special}
        roles = {self.cls_id, self.sep_id, self.pad_id, self.mask_id}
        unk = set() if self._unk_id is None else {self._unk_id}
        return np.array(sorted(flagged | roles | unk), dtype=np.int64)

    @cached_property
    def is_special(self) -> Bool[np.ndarray, " V"]:
        """For each id, whether it is among `special_ids`."""
        table = np.zeros(self.vocab_size, dtype=bool)
        table[self.special_ids] = True
        return table

    @cached_property
    def ordinary_ids(self) -> Int64[np.ndarray, " _"]:
        """Sorted ids of text: all but special tokens and unused entries."""
        unused = {i for text, i in self._core.get_vocab().items() if _UNUSED.fullmatch(text)}
        return np.array([i for i in self._ids if not self.is_special[i] and i not in unused], dtype=np.int64)

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that change with any part of the tokenizer."""
        canonical = json.dumps(json.loads(self._core.to_str()), sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def encode(self, texts: Sequence[str], *, special: bool = True, first: int = 0) -> list[Int64[np.ndarray, " _"]]:
        """Encode texts on all cores, without truncation.

        Args:
            texts: The texts.
            special: Whether to wrap each text in the special tokens of the template.
            first: The number of the first text, for errors.

        Raises:
            InputError: A text has an unpaired surrogate; names the text by its number.
        """
        _check(texts, first)
        prefix, suffix = (self._prefix, self._suffix) if special else ([], [])
        ids = [[np.array(prefix, dtype=np.int64)] for _ in texts]
        for batch in bounded_batches(
            [(n, part) for n, text in enumerate(texts) for part in self._splitter.split(text)]
        ):
            with translate_errors(self._origin):
                encodings = self._core.encode_batch_fast([part for _, part in batch], add_special_tokens=False)
            for (n, _), encoding in zip(batch, encodings, strict=True):
                ids[n].append(np.array(encoding.ids, dtype=np.int64))
        end = np.array(suffix, dtype=np.int64)
        return [np.concatenate([*of_text, end]) for of_text in ids]

    def encode_pairs(
        self, pairs: Sequence[tuple[str, str]], max_length: int | None = None
    ) -> list[Int64[np.ndarray, " _"]]:
        """Encode each pair of texts into one row with the template for pairs: [CLS] A [SEP] B [SEP].

        Args:
            pairs: The pairs.
            max_length: The maximum length; longer rows lose tokens from the end of the text that is longer at the time.

        Raises:
            InputError: A text has an unpaired surrogate; names the pair by its number.
        """
        rows = [np.array(encoding.ids, dtype=np.int64) for encoding in self._encode_batch(pairs, offsets=False)]
        too_long = [] if max_length is None else [n for n, row in enumerate(rows) if len(row) > max_length]
        for n in too_long:
            self._check_truncation_side()
            first, second = self.encode(pairs[n], special=False)
            between = rows[n][len(self._prefix) + len(first) : len(rows[n]) - len(second) - len(self._suffix)]
            budget = max(0, int(max_length or 0) - len(self._prefix) - len(between) - len(self._suffix))
            kept = min(len(first), max(budget - len(second), budget - budget // 2))
            parts = [self._prefix, first[:kept], between, second[: budget - kept], self._suffix]
            rows[n] = np.concatenate([np.asarray(part, dtype=np.int64) for part in parts])
        return rows

    def encode_words(
        self, texts: Sequence[str], starts: Sequence[Sequence[int]]
    ) -> list[tuple[Int64[np.ndarray, " _"], Int64[np.ndarray, " _"]]]:
        """Encode texts with the special tokens; return for each its ids and the position of each word's first token.

        Args:
            texts: The texts.
            starts: For each text, the characters at which its words begin. The first token of a word is the token that
                holds its first character.

        Raises:
            InputError: A text has an unpaired surrogate; names the text by its number.
        """
        found = []
        for encoding, places in zip(self._encode_batch(texts, special=False), starts, strict=True):
            ends = np.array([end for _, end in encoding.offsets], dtype=np.int64)
            ids = np.array([*self._prefix, *encoding.ids, *self._suffix], dtype=np.int64)
            # Tokens that are parts of one character all end where it does; the search finds the first of them.
            found.append((ids, np.searchsorted(ends, np.asarray(places, dtype=np.int64), "right") + len(self._prefix)))
        return found

    def encode_pairs_with_offsets(
        self, pairs: Sequence[tuple[str, str]]
    ) -> list[tuple[Int64[np.ndarray, " _"], Int64[np.ndarray, "_ 2"]]]:
        """Encode pairs as `encode_pairs` does; return for each its ids and the tokens' offsets in the second text.

        Tokens of the first text and special tokens have the offsets (-1, -1).

        Raises:
            InputError: A text has an unpaired surrogate; names the pair by its number.
        """
        found = []
        for encoding in self._encode_batch(pairs):
            places = [
                offset if of == 1 else (-1, -1)
                for offset, of in zip(encoding.offsets, encoding.sequence_ids, strict=True)
            ]
            found.append((np.array(encoding.ids, dtype=np.int64), np.array(places, dtype=np.int64)))
        return found

    @property
    def num_special(self) -> tuple[int, int]:
        """Number of special tokens that the template puts before and after a text."""
        return len(self._prefix), len(self._suffix)

    def truncate(self, ids: Int64[np.ndarray, " _"], max_length: int) -> Int64[np.ndarray, " _"]:
        """Truncate the ids of a text to `max_length`: the end of the text is dropped, special tokens stay.

        Raises:
            InputError: The text is longer, and the tokenizer's files say to truncate at the start.
        """
        if len(ids) <= max_length:
            return ids
        self._check_truncation_side()
        end = np.array(self._suffix[-max_length:], dtype=np.int64)
        return np.concatenate([ids[: max_length - len(end)], end])

    def split(self, ids: Int64[np.ndarray, " _"], max_length: int) -> list[Int64[np.ndarray, " _"]]:
        """Split the ids of a text into as few parts of similar size as fit `max_length`, each with the special tokens.

        Raises:
            InputError: `max_length` leaves no space beside the special tokens.
        """
        start, end = self._prefix, self._suffix
        special = len(start) + len(end)
        budget = max_length - special
        if budget < 1:
            raise InputError(f"max_length: found {max_length}, expected more than the {special} special tokens")
        content = ids[len(start) : len(ids) - len(end)]
        parts = np.array_split(content, max(1, -(-len(content) // budget)))
        return [self.add_special_tokens(part) for part in parts]

    def encode_with_offsets(self, text: str, *, special: bool = True) -> list[tuple[int, tuple[int, int] | None]]:
        """Return the ids of a text, each with its character offsets; None for the special tokens of the template.

        Raises:
            InputError: The text has an unpaired surrogate.
        """
        # A batch of one: unlike `core.encode`, it releases the GIL.
        (encoding,) = self._encode_batch([text], special=special)
        added = encoding.special_tokens_mask
        places = zip(encoding.ids, encoding.offsets, added, strict=True)
        return [(token, None if is_added else (start, end)) for token, (start, end), is_added in places]

    def add_special_tokens(self, ids: Sequence[int] | Int64[np.ndarray, " _"]) -> Int64[np.ndarray, " _"]:
        """Put the special tokens around the ids of a text that has none."""
        return np.concatenate([np.asarray(part, dtype=np.int64) for part in (self._prefix, ids, self._suffix)])

    def has_special_tokens(self, ids: Sequence[int]) -> bool:
        """Return whether the ids of a text begin with [CLS] and end with [SEP]."""
        return len(ids) > 1 and ids[0] == self.cls_id and ids[-1] == self.sep_id

    def decode(self, ids: Iterable[int] | Int64[np.ndarray, " _"], *, special: bool = True) -> str:
        """Decode ids to text, with or without the special tokens among them."""
        with translate_errors(self._origin):
            return self._core.decode([int(i) for i in ids], skip_special_tokens=not special)

    def text_of(self, token: int) -> str:
        """Return the text of one id; a part of a character is U+FFFD."""
        return self.decode([token])

    def id_to_token(self, token: int) -> str:
        """Return the vocabulary entry of an id as the file spells it, or "" if there is none."""
        return self._core.id_to_token(token) or ""

    def token_to_id(self, name: str) -> int | None:
        """Return the id of a vocabulary entry as the file spells it, or None."""
        return self._core.token_to_id(name)

    def save(self, path: Path | str) -> None:
        """Write `tokenizer.json`: the file of this name, or one in the folder of this name."""
        path = Path(path)
        write_file(path if path.suffix == ".json" else path / "tokenizer.json", self._core.to_str(pretty=True))

    def save_folder(self, folder: Path | str, max_length: int) -> None:
        """Write the three files from which other libraries load this tokenizer, with the same ids, for `new_folder`.

        Raises:
            OSError: The disk is full or not writable.
        """
        folder = Path(folder)
        added = {str(token.pop("id")): token for token in json.loads(self._core.to_str())["added_tokens"]}
        roles = {"unk": self._unk_id, "cls": self.cls_id, "sep": self.sep_id, "pad": self.pad_id, "mask": self.mask_id}
        tokens = {f"{role}_token": self._core.id_to_token(i) for role, i in roles.items() if i is not None}
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_input_names": ["input_ids", "attention_mask"],
            "model_max_length": max_length,
            "padding_side": "right",
            "truncation_side": self._truncation_side,
            "clean_up_tokenization_spaces": False,
            "added_tokens_decoder": added,
            **tokens,
        }
        by_text = {token["content"]: token for token in added.values()}
        (folder / "tokenizer.json").write_text(self._core.to_str(pretty=True), encoding="utf-8")
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
        # Whole entries: a bare name would lose the `lstrip` of [MASK].
        described = {key: by_text.get(text, text) for key, text in tokens.items()}
        (folder / "special_tokens_map.json").write_text(json.dumps(described, indent=2) + "\n")

    def _encode_batch(
        self, texts: Sequence[str | tuple[str, str]], *, special: bool = True, offsets: bool = True
    ) -> list[tokenizers.Encoding]:
        """Encode texts or pairs with the Rust library, which is faster without offsets."""
        _check(texts)
        encode = self._core.encode_batch if offsets else self._core.encode_batch_fast
        with translate_errors(self._origin):
            return encode(list(texts), add_special_tokens=special)

    def _find_role(self, role: str, named: Mapping[str, str]) -> int | None:
        keys = CONFIG_KEYS.get(role, (f"{role}_token",))
        names = [named[key] for key in keys if key in named] + list(USUAL_NAMES[role])
        found = (self._core.token_to_id(name) for name in names)
        return next((i for i in found if i is not None), None)

    def _required(self, role: str, found: int | None) -> int:
        if found is None:
            names = " or ".join(USUAL_NAMES[role])
            raise InputError(f"{self._origin}: no {role} token, expected {names} or its name in tokenizer_config.json")
        return found

    def _check_truncation_side(self) -> None:
        if self._truncation_side != "right":
            raise InputError(
                f"{self._origin}: truncation_side is {self._truncation_side!r}, expected 'right': a text that is too "
                "long would lose its start"
            )


def check_not_table(texts: Any) -> None:
    """Check that texts are not a table, a dict or a set: iterating over a table gives the names of its columns.

    Raises:
        InputError: Texts are a set, or a pandas or polars DataFrame, a datasets.Dataset, a pyarrow.Table or a dict,
            whose columns the error names.
    """
    kind = type(texts).__name__
    names: Any = texts if isinstance(texts, Mapping) else None
    # Looked up on the class: an element of a pandas Series may be called `columns`.
    attribute = next((name for name in ("column_names", "columns") if hasattr(type(texts), name)), None)
    if names is None and attribute is not None:
        names = getattr(texts, attribute)
    if isinstance(names, Iterable):
        listed = [repr(name) for name in names][:_MAX_NAMES]
        raise InputError(
            f"texts: found {kind}, expected a text or several; pass one of its columns, as texts[NAME] with NAME one "
            f"of {', '.join(listed) or 'none'}"
        )
    if isinstance(texts, (set, frozenset)):
        raise InputError(f"texts: found {kind}, which has no order, expected a list of texts")


def _check(texts: Sequence[str | tuple[str, str]], first: int = 0) -> None:
    check_not_table(texts)
    for n, each in enumerate(texts, first):
        for text in (each,) if isinstance(each, str) else each:
            try:
                text.encode()
            except UnicodeEncodeError as error:
                code = ord(text[error.start])
                raise InputError(
                    f"text {n}: unpaired surrogate U+{code:04X} at character {error.start}, expected text"
                ) from None
