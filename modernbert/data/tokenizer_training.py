"""`modernbert tokenizer`: learn a vocabulary from text, or make ModernBERT's own from OLMo's."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from modernbert.data.corpus import Tally, find_files, read_documents, show_reading, stored_bytes
from modernbert.errors import InputError
from modernbert.files import new_folder
from modernbert.tokenizer.tokenizer import Tokenizer, adapt_olmo, train_tokenizer

__all__ = ["TokenizerConfig", "run"]


@dataclass
class TokenizerConfig:
    """What to learn from and where the tokenizer's folder goes."""

    out: str
    sources: list[str] = field(default_factory=list)
    vocab_size: int = 50_368
    max_length: int = 8_192
    """Written into tokenizer_config.json for other libraries; nothing here cuts by it."""
    text_field: str = "text"
    txt_unit: str = "file"
    """What is a document in .txt, .md and .rst: file, line or paragraph."""
    invalid: str = "repair"
    """What to do with text that is not UTF-8: repair or refuse."""
    on_error: str = "fail"
    """What to do with unreadable files and rows: fail, or skip and list them."""
    adapt: str | None = None
    """OLMo's tokenizer.json: add ModernBERT's roles to it and learn nothing."""


def run(config: TokenizerConfig) -> Path:
    """Write a folder with `tokenizer.json` and the two files other libraries want beside it.

    Raises: InputError if there is nothing to learn from, too little, or `out` exists.
    """
    if bool(config.sources) == bool(config.adapt):
        raise InputError("tokenizer: expected either sources to learn from or adapt=OLMO_TOKENIZER_JSON")
    if config.max_length < 3:
        raise InputError(f"max_length: found {config.max_length}, expected at least 3: [CLS], one token and [SEP]")
    if config.sources:
        find_files(config.sources)  # what is missing is reported before a folder is made
    out = Path(config.out)
    with new_folder(out) as folder:
        tokenizer = adapt_olmo(config.adapt) if config.adapt else _train(config)
        tokenizer.save_folder(folder, config.max_length)
    print(f"{out}: {tokenizer.vocab_size:,} entries, fingerprint {tokenizer.fingerprint}")
    return out


def _train(config: TokenizerConfig) -> Tokenizer:
    tally = Tally()
    documents = read_documents(
        config.sources, tally, text_field=config.text_field, txt_unit=config.txt_unit, invalid=config.invalid,
        on_error=config.on_error,
    )  # fmt: skip
    num_bytes = stored_bytes(config.sources, text_field=config.text_field, on_error=config.on_error)
    with show_reading("counting words", tally, num_bytes) as show:

        def texts() -> Iterator[str]:
            for document in documents:
                show("")
                yield document.text

        tokenizer = train_tokenizer(texts(), config.vocab_size)
    counted = f"{tally.documents:,} documents, {tally.empty:,} empty ones left out, {tally.repaired:,} repaired"
    counted += f", {tally.passed_over:,} files of other formats or linked folders passed over"
    if tally.skipped:
        counted += f", {tally.skipped:,} broken rows or files skipped"
    print(f"learned from {tally.bytes / 1e6:,.1f} MB in {counted}", file=sys.stderr)
    tally.skips.show()
    return tokenizer
