"""Training of byte-level BPE vocabularies with ModernBERT's layout, and the conversion of OLMo's tokenizer to it."""

from collections.abc import Iterable
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from modernbert.errors import InputError
from modernbert.tokenizer.tokenizer import ROLES, USUAL_NAMES, Tokenizer, check_not_table
from modernbert.tokenizer.tokenizer_files import read_tokenizer_json

__all__ = ["adapt_olmo", "train_tokenizer"]

NUM_UNUSED = 83
SPACE_RUNS = tuple(" " * n for n in range(24, 1, -1))
OLMO_SIZE = 50_280


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE tokenizer with ModernBERT's layout.

    The vocabulary has BPE tokens, runs of 2 to 24 spaces, the five special tokens and 83 unused entries.

    Args:
        texts: The texts to learn from.
        vocab_size: The number of entries, a multiple of 64.

    Raises:
        InputError: `vocab_size` is not a multiple of 64, too small for the layout, or too large for the texts.

    Source: the published tokenizer.json; the regular expression of GPT-2, after NFC.
    """
    check_not_table(texts)
    num_bpe_tokens = vocab_size - len(SPACE_RUNS) - len(ROLES) - NUM_UNUSED
    if vocab_size % 64 or num_bpe_tokens <= 256:
        raise InputError(f"vocab_size: found {vocab_size}, expected a multiple of 64, at least 384")
    core = tokenizers.Tokenizer(models.BPE())
    core.normalizer = normalizers.NFC()
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    # Runs of spaces become added tokens, which are matched before BPE: no merges should be spent on them.
    runs = pre_tokenizers.Split(Regex(" {2,}"), "removed")
    core.pre_tokenizer = pre_tokenizers.Sequence([runs, splitter])
    trainer = trainers.BpeTrainer(
        vocab_size=num_bpe_tokens,
        min_frequency=2,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    if core.get_vocab_size() < num_bpe_tokens:
        reached = core.get_vocab_size() + vocab_size - num_bpe_tokens
        raise InputError(
            f"vocab_size: the text gives {reached} entries, expected {vocab_size}; add text or ask for fewer"
        )
    core.pre_tokenizer = splitter
    core.decoder = decoders.ByteLevel()
    core.add_tokens([AddedToken(run, normalized=True) for run in SPACE_RUNS])
    return Tokenizer(_with_roles(core))


def adapt_olmo(path: Path | str) -> Tokenizer:
    """Turn OLMo's `tokenizer.json` (dolma v1.5) into ModernBERT's, with the ids of the published tokenizer.

    Raises:
        InputError: The file is not that tokenizer.

    Source: the published tokenizer is OLMo's with special tokens and unused entries added.
    """
    core = read_tokenizer_json(Path(path))
    size = core.get_vocab_size(with_added_tokens=True)
    if size != OLMO_SIZE or core.token_to_id("<|endoftext|>") != OLMO_SIZE - 1:
        raise InputError(f"{path}: found a vocabulary of {size:,}, expected OLMo's of {OLMO_SIZE:,} (dolma v1.5)")
    return Tokenizer(_with_roles(core))


def _with_roles(core: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """Add the special tokens, the unused entries and the template of ModernBERT."""
    names = [USUAL_NAMES[role][0] for role in ROLES]
    core.add_special_tokens([AddedToken(name, lstrip=name == "[MASK]", normalized=False) for name in names])
    core.add_tokens([AddedToken(f"[unused{n}]", normalized=True) for n in range(NUM_UNUSED)])
    core.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:0 [SEP]:0",
        special_tokens=[(name, core.token_to_id(name)) for name in names],
    )
    return core
