"""`modernbert tokenizer`: trains a vocabulary on texts, or turns OLMo's tokenizer into ModernBERT's."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from modernbert.data.corpus import Tally, find_files, read_documents, show_reading, stored_bytes
from modernbert.errors import InputError
from modernbert.files import new_folder
from modernbert.tokenizer.bpe_training import adapt_olmo, train_tokenizer
from modernbert.tokenizer.tokenizer import Tokenizer

__all__ = ["TokenizerConfig", "run"]


@dataclass
class TokenizerConfig:
    """What to learn from and where to write."""

    out: str
    """The folder to write."""
    sources: list[str] = field(default_factory=list)
    """Files, folders, URLs (s3://, gs://, hf://, ...) or names of data sets on the Hugging Face Hub."""
    vocab_size: int = 50_368
    """Number of entries, a multiple of 64."""
    max_length: int = 8_192
    """The model_max_length in tokenizer_config.json, for other libraries."""
    text_field: str = "text"
    """Field with the text, in files with rows."""
    txt_unit: str = "file"
    """What a document is in .txt, .md and .rst: file, line or paragraph."""
    invalid: str = "repair"
    """What to do with text that is not UTF-8: repair or refuse."""
    on_error: str = "fail"
    """What to do with unreadable files and rows: fail, or skip and list them."""
    adapt: str | None = None
    """OLMo's tokenizer.json, to which ModernBERT's special tokens are added; nothing is trained."""


def run(config: TokenizerConfig) -> Path:
    """Write a folder with `tokenizer.json` and the two files that other libraries need beside it.

    Raises:
        InputError: There is too little text to learn from, or `out` exists.
    """
    if bool(config.sources) == bool(config.adapt):
        raise InputError("tokenizer: expected either sources to learn from or adapt=OLMO_TOKENIZER_JSON")
    if config.max_length < 3:
        raise InputError(f"max_length: found {config.max_length}, expected at least 3: [CLS], one token and [SEP]")
    if config.sources:
        find_files(config.sources)  # reports what is missing before a folder is made
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
    print(f"learned from {tally.bytes / 1e6:,.1f} MB: {tally.describe()}", file=sys.stderr)
    tally.skips.show()
    return tokenizer
