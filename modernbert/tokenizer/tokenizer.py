"""Texts to token ids and back.

In: a `tokenizer.json` of any family, or text to learn one from. Out: a `Tokenizer` that knows which ids play which
role. Ids are the same here, in transformers and in the published checkpoints. The files beside `tokenizer.json` name
the roles, may add tokens, and say whether sentence-transformers puts text in lower case first.
"""

import gzip
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from jaxtyping import Bool, Int64
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from modernbert.errors import InputError
from modernbert.files import write_file
from modernbert.safe_files import check_file, is_there, read_json
from modernbert.tokenizer.added_tokens import add_tokens_beside
from modernbert.tokenizer.text_arguments import refuse_table
from modernbert.tokenizer.token_expansion import check_token_expansion

__all__ = ["Tokenizer", "adapt_olmo", "train_tokenizer"]

ROLES = ("unk", "cls", "sep", "pad", "mask")
# The names a role goes by in tokenizer_config.json, then in vocabularies.
CONFIG_KEYS = {"cls": ("cls_token", "bos_token"), "sep": ("sep_token", "eos_token")}
USUAL_NAMES = {
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<cls>", "<bos>", "<s>"),
    "sep": ("[SEP]", "<sep>", "<eos>", "</s>"),
    "pad": ("[PAD]", "<pad>"),
    "mask": ("[MASK]", "<mask>"),
}
NUM_UNUSED = 83
SPACE_RUNS = tuple(" " * n for n in range(24, 1, -1))
OLMO_SIZE = 50_280
# Of sentence-transformers.
_LIMITS = "sentence_bert_config.json"
# Classes of transformers that take the normalizer from tokenizer.json alone.
_GENERIC_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")

# One call of the Rust library holds offsets and strings of every token until it returns: so many characters a call.
CALL_CHARS = 2_000_000
LONG_CHARS = 100_000

# A published file has at most 140 bytes an entry, and 0.4 MB beside them.
_FIXED_BYTES, _ENTRY_BYTES = 2**21, 512

_UNUSED = re.compile(r"[\[<]unused\d+[\]>]")
_SAFE_CUT = re.compile(r"(?<=\S)[ \n](?=\S)|(?<=[A-Za-z])(?=[0-9])")


class Tokenizer:
    """Encode and decode text, and name the ids that play a role.

    `cls_id`, `sep_id`, `pad_id` and `mask_id` are those of the file's own template and names. `special_ids` are never
    masked and `ordinary_ids` are what a random replacement may be drawn from: neither special nor a spare entry.
    """

    def __init__(self, core: tokenizers.Tokenizer, named: Mapping[str, str] | None = None, origin: str = "tokenizer"):
        # What is taken from a text that is too long; others are never cut.
        self._cut_side = str((core.truncation or {}).get("direction", "right")).lower()
        core.no_truncation()
        core.no_padding()
        if getattr(core.model, "dropout", None):
            # A device of training: whoever uses a model wants the same tokens of a text each time.
            core.model.dropout = None
        self._core = core
        self._origin = origin
        with _told(origin):
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

    @staticmethod
    def load(path: Path | str, most_entries: int | None = None) -> "Tokenizer":
        """Load a `tokenizer.json`, or the one in a folder; `most_entries` is what its model's vocabulary has.

        Tokens that the files beside it add are added, as transformers does.

        Raises: InputError if it is absent, is not a tokenizer, has no token for one of the roles, or too many, or if
        the files beside it contradict it.
        """
        path = Path(path)
        file = path / "tokenizer.json" if path.is_dir() else path
        core = _read_core(file, most_entries)
        with _told(str(file), "cannot take the tokens that files beside it add"):
            if add_tokens_beside(core, file.parent, most_entries):
                check_token_expansion(core.to_str().encode(), str(file))
        _check_normalizer(core, file.parent)
        if read_json(file.parent / _LIMITS, missing_ok=True).get("do_lower_case"):
            # As sentence-transformers does, before anything that the file itself does to a text.
            own = [] if core.normalizer is None else [core.normalizer]
            core.normalizer = normalizers.Sequence([normalizers.Lowercase(), *own])
        tokenizer = Tokenizer(core, _read_names(file.parent), str(file))
        beside = read_json(file.parent / "tokenizer_config.json", missing_ok=True)
        tokenizer._cut_side = str(beside.get("truncation_side") or tokenizer._cut_side)[:60]
        if most_entries is not None and tokenizer.vocab_size > most_entries:
            raise InputError(
                f"{file}: has {tokenizer.vocab_size:,} entries, which does not fit the model's vocabulary of "
                f"{most_entries:,}"
            )
        return tokenizer

    @cached_property
    def special_ids(self) -> Int64[np.ndarray, " _"]:
        """Ids of the roles and of all tokens flagged special, in order."""
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
        """Ids that stand for text, in order: all but the special and the spare ones."""
        spare = {i for text, i in self._core.get_vocab().items() if _UNUSED.fullmatch(text)}
        return np.array([i for i in self._ids if not self.is_special[i] and i not in spare], dtype=np.int64)

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that change with any part of the tokenizer."""
        canonical = json.dumps(json.loads(self._core.to_str()), sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def encode(self, texts: Sequence[str], *, special: bool = True, first: int = 0) -> list[Int64[np.ndarray, " _"]]:
        """Encode texts on all cores, each wrapped in the template's special tokens if `special`; nothing is cut off.

        Raises: InputError naming the text that holds a lone surrogate, counted from `first`.
        """
        _check(texts, first)
        prefix, suffix = (self._prefix, self._suffix) if special else ([], [])
        parts = [[np.array(prefix, dtype=np.int64)] for _ in texts]
        for group in _groups([(n, piece) for n, text in enumerate(texts) for piece in self._pieces(text)]):
            with _told(self._origin):
                encodings = self._core.encode_batch_fast([piece for _, piece in group], add_special_tokens=False)
            for (n, _), encoding in zip(group, encodings, strict=True):
                parts[n].append(np.array(encoding.ids, dtype=np.int64))
        end = np.array(suffix, dtype=np.int64)
        return [np.concatenate([*part, end]) for part in parts]

    def encode_pairs(
        self, pairs: Sequence[tuple[str, str]], longest: int | None = None
    ) -> list[Int64[np.ndarray, " _"]]:
        """Encode pairs of texts into one row each, as the template wraps a pair: [CLS] A [SEP] B [SEP].

        A row longer than `longest` loses tokens from the end of whichever text is the longer one at the time.

        Raises: InputError naming the pair that holds a lone surrogate.
        """
        _check([first for first, _ in pairs])
        _check([second for _, second in pairs])
        with _told(self._origin):
            encodings = self._core.encode_batch_fast(list(pairs))
        rows = [np.array(encoding.ids, dtype=np.int64) for encoding in encodings]
        too_long = [] if longest is None else [n for n, row in enumerate(rows) if len(row) > longest]
        for n in too_long:
            self._check_cut()
            first, second = self.encode(pairs[n], special=False)
            between = rows[n][len(self._prefix) + len(first) : len(rows[n]) - len(second) - len(self._suffix)]
            room = max(0, int(longest or 0) - len(self._prefix) - len(between) - len(self._suffix))
            kept = min(len(first), max(room - len(second), room - room // 2))
            parts = [self._prefix, first[:kept], between, second[: room - kept], self._suffix]
            rows[n] = np.concatenate([np.asarray(part, dtype=np.int64) for part in parts])
        return rows

    def encode_words(
        self, texts: Sequence[str], starts: Sequence[Sequence[int]]
    ) -> list[tuple[Int64[np.ndarray, " _"], Int64[np.ndarray, " _"]]]:
        """Encode texts whose words begin at the given characters; return each text's ids and its words' first tokens.

        A word's first token is the one that holds its first character. Ids are wrapped in the special tokens.

        Raises: InputError naming the text that holds a lone surrogate.
        """
        _check(texts)
        found = []
        with _told(self._origin):
            encodings = self._core.encode_batch(list(texts), add_special_tokens=False)
        for encoding, places in zip(encodings, starts, strict=True):
            ends = np.array([end for _, end in encoding.offsets], dtype=np.int64)
            ids = np.array([*self._prefix, *encoding.ids, *self._suffix], dtype=np.int64)
            # Parts of one character all end where it does; the first of them comes first.
            found.append((ids, np.searchsorted(ends, np.asarray(places, dtype=np.int64), "right") + len(self._prefix)))
        return found

    def encode_located(
        self, pairs: Sequence[tuple[str, str]]
    ) -> list[tuple[Int64[np.ndarray, " _"], Int64[np.ndarray, "_ 2"]]]:
        """Encode pairs as `encode_pairs` does; return beside ids which characters of the second text each stands for.

        Tokens of the first text and special tokens stand for (-1, -1).

        Raises: InputError naming the pair that holds a lone surrogate.
        """
        _check([first for first, _ in pairs])
        _check([second for _, second in pairs])
        found = []
        with _told(self._origin):
            encodings = self._core.encode_batch(list(pairs))
        for encoding in encodings:
            places = [
                offset if of == 1 else (-1, -1)
                for offset, of in zip(encoding.offsets, encoding.sequence_ids, strict=True)
            ]
            found.append((np.array(encoding.ids, dtype=np.int64), np.array(places, dtype=np.int64)))
        return found

    @property
    def num_special(self) -> tuple[int, int]:
        """How many special tokens the template puts before a text, and how many behind it."""
        return len(self._prefix), len(self._suffix)

    def cut(self, ids: Int64[np.ndarray, " _"], longest: int) -> Int64[np.ndarray, " _"]:
        """Return ids with no more than `longest` of them: the end of the text is cut off, special tokens stay.

        Raises: InputError if the text is longer, and its start is what the folder would have cut off.
        """
        if len(ids) <= longest:
            return ids
        self._check_cut()
        end = np.array(self._suffix[-longest:], dtype=np.int64)
        return np.concatenate([ids[: longest - len(end)], end])

    def split(self, ids: Int64[np.ndarray, " _"], longest: int) -> list[Int64[np.ndarray, " _"]]:
        """Return the ids of a text in as few parts of like size as fit `longest`, each wrapped in the special tokens.

        Raises: InputError if nothing but special tokens fits.
        """
        start, end = self._prefix, self._suffix
        room = longest - len(start) - len(end)
        if room < 1:
            raise InputError(f"longest: found {longest}, expected more than the {len(start) + len(end)} special tokens")
        content = ids[len(start) : len(ids) - len(end)]
        parts = np.array_split(content, max(1, -(-len(content) // room)))
        return [self.wrap(part) for part in parts]

    def located(self, text: str, *, special: bool = True) -> list[tuple[int, tuple[int, int] | None]]:
        """Return the ids of a text, each with the characters it stands for; None for special tokens put around it.

        Raises: InputError for a text that holds a lone surrogate.
        """
        _check([text])
        with _told(self._origin):
            # As a batch of one, for it lets other threads go on meanwhile.
            (encoding,) = self._core.encode_batch([text], add_special_tokens=special)
        added = encoding.special_tokens_mask
        places = zip(encoding.ids, encoding.offsets, added, strict=True)
        return [(token, None if is_added else (start, end)) for token, (start, end), is_added in places]

    def wrap(self, ids: Sequence[int] | Int64[np.ndarray, " _"]) -> Int64[np.ndarray, " _"]:
        """Put the special tokens around the ids of a text that has none."""
        return np.concatenate([np.asarray(part, dtype=np.int64) for part in (self._prefix, ids, self._suffix)])

    def is_complete(self, ids: Sequence[int]) -> bool:
        """Say whether the ids of a text have the special tokens around them already: [CLS] first and [SEP] last."""
        return len(ids) > 1 and ids[0] == self.cls_id and ids[-1] == self.sep_id

    def decode(self, ids: Iterable[int] | Int64[np.ndarray, " _"], *, special: bool = True) -> str:
        """Turn ids back into text, with or without the special tokens among them."""
        with _told(self._origin):
            return self._core.decode([int(i) for i in ids], skip_special_tokens=not special)

    def text_of(self, token: int) -> str:
        """Return the text one id stands for; a part of a character shows as U+FFFD."""
        return self.decode([token])

    def name_of(self, token: int) -> str:
        """Return the entry of a token as the file spells it; empty where there is none."""
        return self._core.id_to_token(token) or ""

    def id_of(self, name: str) -> int | None:
        """Return the id of an entry as the file spells it, or None."""
        return self._core.token_to_id(name)

    def save(self, path: Path | str) -> None:
        """Write `tokenizer.json`: the file named, or one of that name in the folder named."""
        path = Path(path)
        write_file(path if path.suffix == ".json" else path / "tokenizer.json", self._core.to_str(pretty=True))

    def save_folder(self, folder: Path | str, max_length: int) -> None:
        """Write the three files from which other libraries load this tokenizer, with the same ids, for `new_folder`.

        Raises: OSError with the system's number if the disk is full or not writable.
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
            "truncation_side": self._cut_side,
            "clean_up_tokenization_spaces": False,
            "added_tokens_decoder": added,
            **tokens,
        }
        by_text = {token["content"]: token for token in added.values()}
        (folder / "tokenizer.json").write_text(self._core.to_str(pretty=True), encoding="utf-8")
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
        # Whole entries, because a bare name would lose what [MASK] does to the blanks on its left.
        described = {key: by_text.get(text, text) for key, text in tokens.items()}
        (folder / "special_tokens_map.json").write_text(json.dumps(described, indent=2) + "\n")

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

    def _check_cut(self) -> None:
        if self._cut_side != "right":
            raise InputError(
                f"{self._origin}: truncation_side is {self._cut_side!r}, expected 'right': a text that is too long "
                "would lose its start"
            )

    def _pieces(self, text: str) -> Iterator[str]:
        """Cut a long text where the ids cannot change, so that no call of the Rust library holds all of it."""
        start = 0
        while self._is_cuttable and len(text) - start > LONG_CHARS:
            cut = self._find_cut(text, start + LONG_CHARS)
            if cut is None:
                break
            yield text[start:cut]
            start = cut
        yield text[start:]

    def _find_cut(self, text: str, start: int) -> int | None:
        for match in _SAFE_CUT.finditer(text, start):
            cut = match.start()
            if match[0]:
                return cut
            # Between a letter and a digit, a cut must not come near an added token such as [unused7].
            near = text[max(0, cut - self._added_chars) : cut + self._added_chars]
            if near.isascii() and not any(token in near for token in self._added):
                return cut
        return None

    @cached_property
    def _added(self) -> list[str]:
        return [token.content for token in self._core.get_added_tokens_decoder().values()]

    @cached_property
    def _added_chars(self) -> int:
        return max(map(len, self._added))

    @cached_property
    def _is_cuttable(self) -> bool:
        """Whether words always end before a lone blank between visible characters, and between a letter and a digit.

        True of byte-level tokenizers with the regular expression of GPT-2: a blank can only be the first character of a
        word there, and none has both letters and digits. NFC neither joins a blank or a digit to what is before it nor
        turns a visible character into a blank. Added tokens are found before words are; those with inner blanks, or
        that take the blanks on their right, rule cutting out.
        """
        plan: dict[str, Any] = json.loads(self._core.to_str())
        splitter = plan["pre_tokenizer"] or {}
        return (
            (plan["normalizer"] or {"type": "NFC"}) == {"type": "NFC"}
            and splitter.get("type") == "ByteLevel"
            and splitter.get("use_regex", True)
            and not splitter["add_prefix_space"]
            and not any(token["rstrip"] for token in plan["added_tokens"])
            and all(t["content"].isspace() or not re.search(r"\s", t["content"]) for t in plan["added_tokens"])
        )


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Learn a byte-level BPE vocabulary with ModernBERT's layout: pieces, runs of blanks, five roles, 83 spare entries.

    Raises: InputError if `vocab_size` is not a multiple of 64, is too small for the layout, or cannot be reached.

    Source: the published tokenizer.json; the regular expression of GPT-2, NFC before it.
    """
    refuse_table(texts)
    num_pieces = vocab_size - len(SPACE_RUNS) - len(ROLES) - NUM_UNUSED
    if vocab_size % 64 or num_pieces <= 256:
        raise InputError(f"vocab_size: found {vocab_size}, expected a multiple of 64, at least 384")
    core = tokenizers.Tokenizer(models.BPE())
    core.normalizer = normalizers.NFC()
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    # Runs of blanks are tokens of their own, found before words are: no merges should be spent on them.
    runs = pre_tokenizers.Split(Regex(" {2,}"), "removed")
    core.pre_tokenizer = pre_tokenizers.Sequence([runs, splitter])
    trainer = trainers.BpeTrainer(
        vocab_size=num_pieces,
        min_frequency=2,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    if core.get_vocab_size() < num_pieces:
        reached = core.get_vocab_size() + vocab_size - num_pieces
        raise InputError(
            f"vocab_size: the text gives {reached} entries, expected {vocab_size}; add text or ask for fewer"
        )
    core.pre_tokenizer = splitter
    core.decoder = decoders.ByteLevel()
    core.add_tokens([AddedToken(run, normalized=True) for run in SPACE_RUNS])
    return Tokenizer(_with_roles(core))


def adapt_olmo(path: Path | str) -> Tokenizer:
    """Turn OLMo's `tokenizer.json` (dolma v1.5) into ModernBERT's, with the same ids as the published one.

    Raises: InputError if the file is not that tokenizer.

    Source: the authors did not train a tokenizer, they added roles and spare entries to OLMo's.
    """
    core = _read_core(Path(path))
    size = core.get_vocab_size(with_added_tokens=True)
    if size != OLMO_SIZE or core.token_to_id("<|endoftext|>") != OLMO_SIZE - 1:
        raise InputError(f"{path}: found a vocabulary of {size:,}, expected OLMo's of {OLMO_SIZE:,} (dolma v1.5)")
    return Tokenizer(_with_roles(core))


def _with_roles(core: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """Add what every ModernBERT vocabulary ends with, and the template that uses it."""
    names = [USUAL_NAMES[role][0] for role in ROLES]
    core.add_special_tokens([AddedToken(name, lstrip=name == "[MASK]", normalized=False) for name in names])
    core.add_tokens([AddedToken(f"[unused{n}]", normalized=True) for n in range(NUM_UNUSED)])
    core.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:0 [SEP]:0",
        special_tokens=[(name, core.token_to_id(name)) for name in names],
    )
    return core


def _read_core(file: Path, most_entries: int | None = None) -> tokenizers.Tokenizer:
    if not is_there(file):
        raise InputError(f"{file}: no such tokenizer file")
    check_file(file, None if most_entries is None else _FIXED_BYTES + _ENTRY_BYTES * most_entries)
    with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
        content = stream.read()
    with _told(str(file), "is not a tokenizer.json"):
        check_token_expansion(content, str(file))
        return tokenizers.Tokenizer.from_buffer(content)


def _read_names(folder: Path) -> dict[str, str]:
    """Read which token plays which role from the files beside `tokenizer.json`, if they are there."""
    names: dict[str, str] = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        for key, value in read_json(folder / file, missing_ok=True).items():
            text = value.get("content") if isinstance(value, dict) else value
            if key.endswith("_token") and isinstance(text, str):
                names[key] = text
    return names


def _check_normalizer(core: tokenizers.Tokenizer, folder: Path) -> None:
    """Check that tokenizer_config.json does not contradict the normalizer of a BERT tokenizer.

    The tokenizer classes of BERT in transformers take these settings from tokenizer_config.json, others ignore them.

    Raises: InputError naming the setting.
    """
    found = read_json(folder / "tokenizer_config.json", missing_ok=True)
    normalizer = core.normalizer
    if not isinstance(normalizer, normalizers.BertNormalizer) or found.get("tokenizer_class") in _GENERIC_CLASSES:
        return
    lowercase, strip_accents = normalizer.lowercase, normalizer.strip_accents
    own = {
        "do_lower_case": lowercase,
        "tokenize_chinese_chars": normalizer.handle_chinese_chars,
        "strip_accents": lowercase if strip_accents is None else strip_accents,
    }
    for key, expected in own.items():
        stated = found.get(key, expected)
        if key == "strip_accents" and stated is None:  # then accents are stripped where text is lowercased
            stated = lowercase
        if stated != expected:
            raise InputError(
                f"{folder / 'tokenizer_config.json'}: {key}: found {stated!r}, expected {expected!r} as in "
                "tokenizer.json; save the tokenizer with save_pretrained so that both files agree"
            )


@contextmanager
def _told(origin: str, what: str = "fails on a text") -> Iterator[None]:
    """Turn what the Rust library raises into one line; its panics are no `Exception`, and have no name to catch."""
    try:
        yield
    except InputError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise InputError(f"{origin}: {what} ({error})") from None


def _check(texts: Sequence[str], first: int = 0) -> None:
    refuse_table(texts)
    for n, text in enumerate(texts, first):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            code = ord(text[error.start])
            raise InputError(
                f"text {n}: lone surrogate U+{code:04X} at character {error.start}, expected text"
            ) from None


def _groups(pieces: Sequence[tuple[int, str]]) -> Iterator[list[tuple[int, str]]]:
    """Share pieces out to calls of a bounded number of characters."""
    group: list[tuple[int, str]] = []
    num_chars = 0
    for n, piece in pieces:
        group.append((n, piece))
        num_chars += len(piece)
        if num_chars >= CALL_CHARS:
            yield group
            group, num_chars = [], 0
    if group:
        yield group
