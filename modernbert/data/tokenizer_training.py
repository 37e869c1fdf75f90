"""`modernbert tokenizer`: train a vocabulary on texts, or turn OLMo's tokenizer into ModernBERT's."""

import sys
from pathlib import Path

from modernbert.data.corpus import Tally, find_files, show_documents
from modernbert.data.prepare_options import TokenizerConfig
from modernbert.errors import InputError, counted
from modernbert.files import new_folder
from modernbert.tokenizer.bpe_training import adapt_olmo, train_tokenizer
from modernbert.tokenizer.tokenizer import Tokenizer

__all__ = ["TokenizerConfig", "run"]


def run(config: TokenizerConfig) -> Path:
    """Write a folder with `tokenizer.json` and the two files that other libraries need, and return it.

    Raises:
        InputError: There is too little text to learn from, or the output folder exists.
    """
    if bool(config.input) == bool(config.adapt):
        raise InputError(
            "tokenizer: expected one of --input (text to learn from) and --adapt (the tokenizer.json of OLMo)"
        )
    if config.input:
        find_files(config.input)  # reports missing files before a folder is made
    out = config.output
    with new_folder(out) as folder:
        tokenizer = adapt_olmo(config.adapt) if config.adapt else _train(config)
        tokenizer.save_folder(folder, config.max_length)
    print(f"{out}: {counted(tokenizer.vocab_size, 'entry', 'entries')}, fingerprint {tokenizer.fingerprint}")
    return out


def _train(config: TokenizerConfig) -> Tokenizer:
    tally = Tally()
    with show_documents("counting words", config.input, tally, config) as (documents, _):
        tokenizer = train_tokenizer((document.text for document in documents), config.vocab_size)
    print(f"learned from {tally.bytes / 1e6:,.1f} MB: {tally.describe()}", file=sys.stderr)
    tally.skips.show()
    return tokenizer
