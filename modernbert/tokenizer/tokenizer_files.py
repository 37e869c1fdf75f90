"""Bounded reads of `tokenizer.json` and of the settings in the files beside it."""

import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import tokenizers
from tokenizers import normalizers

from modernbert.errors import InputError
from modernbert.safe_files import check_file, is_there, read_json
from modernbert.tokenizer.token_expansion import check_token_expansion

__all__ = ["check_normalizer", "read_special_token_names", "read_tokenizer_json", "translate_errors"]

# A published file has at most 140 bytes per entry, and 0.4 MB besides.
_FIXED_BYTES, _ENTRY_BYTES = 2**21, 512
# Classes of transformers that take the normalizer from tokenizer.json alone.
_GENERIC_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")


@contextmanager
def translate_errors(origin: str, problem: str = "fails on a text") -> Iterator[None]:
    """Turn errors of the Rust library into one-line InputErrors.

    Its panics do not derive from `Exception`, and their class cannot be imported.
    """
    try:
        yield
    except InputError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise InputError(f"{origin}: {problem} ({error})") from None


def read_tokenizer_json(file: Path, max_vocab_size: int | None = None) -> tokenizers.Tokenizer:
    """Read a `tokenizer.json`, plain or .gz; its size is bounded by `max_vocab_size`, the vocabulary of its model.

    Raises:
        InputError: The file does not exist, is too large, or is not a tokenizer.
    """
    if not is_there(file):
        raise InputError(f"{file}: no such tokenizer file")
    check_file(file, None if max_vocab_size is None else _FIXED_BYTES + _ENTRY_BYTES * max_vocab_size)
    with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
        content = stream.read()
    with translate_errors(str(file), "is not a tokenizer.json"):
        check_token_expansion(content, str(file))
        return tokenizers.Tokenizer.from_buffer(content)


def read_special_token_names(folder: Path) -> dict[str, str]:
    """Read the names of the special tokens (`cls_token`, ...) from the files beside `tokenizer.json`, if they exist."""
    names: dict[str, str] = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        for key, value in read_json(folder / file, missing_ok=True).items():
            text = value.get("content") if isinstance(value, dict) else value
            if key.endswith("_token") and isinstance(text, str):
                names[key] = text
    return names


def check_normalizer(core: tokenizers.Tokenizer, folder: Path) -> None:
    """Check that `tokenizer_config.json` does not contradict the normalizer of a BERT tokenizer.

    The tokenizer classes of BERT in transformers take these settings from `tokenizer_config.json`, others ignore them.

    Raises:
        InputError: A setting differs; names it.
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
        if key == "strip_accents" and stated is None:  # null means: as `do_lower_case`
            stated = lowercase
        if stated != expected:
            raise InputError(
                f"{folder / 'tokenizer_config.json'}: {key}: found {stated!r}, expected {expected!r} as in "
                "tokenizer.json; save the tokenizer with save_pretrained so that both files agree"
            )
