"""From one vocabulary to another.

In: two tokenizers. Out: for each entry of the new one, the entries of the old one that it is made of. A file of its own
because the model's side needs these numbers and nothing else of the text.
"""

from modernbert.tokenizer.tokenizer import Tokenizer

__all__ = ["entries_of"]


def entries_of(new: Tokenizer, old: Tokenizer) -> list[list[int]]:
    """Return for each id of `new` the ids of `old` that stand for the same.

    One id where both have the entry, or the role ([CLS], [SEP], [PAD], [MASK]); else those the old tokenizer cuts the
    entry's text into; none where that leaves nothing.

    Source: Gee et al. 2022, Fast Vocabulary Transfer.
    """
    roles = {getattr(new, name): getattr(old, name) for name in ("cls_id", "sep_id", "pad_id", "mask_id")}
    entries = []
    for token in range(new.vocab_size):
        same = roles.get(token, old.id_of(new.name_of(token)))
        entries.append([same] if same is not None else _cut(new.text_of(token), old))
    return entries


def _cut(text: str, old: Tokenizer) -> list[int]:
    # A part of a character has no text of its own.
    if not text or "\ufffd" in text:
        return []
    return [int(token) for token in old.encode([text], special=False)[0]]
