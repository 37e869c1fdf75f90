"""Maps the entries of a new vocabulary to entries of an old one, so that embeddings can be kept."""

from modernbert.tokenizer.tokenizer import Tokenizer

__all__ = ["entries_of"]


def entries_of(new: Tokenizer, old: Tokenizer) -> list[list[int]]:
    """Return for each id of `new` the ids of `old` for the same text.

    This is one id if both have the entry or the role ([CLS], [SEP], [PAD], [MASK]), else the old tokens of the entry's
    text, which may be none.

    Source: Gee et al. 2022, Fast Vocabulary Transfer.
    """
    roles = {getattr(new, name): getattr(old, name) for name in ("cls_id", "sep_id", "pad_id", "mask_id")}
    entries = []
    for token in range(new.vocab_size):
        same = roles.get(token, old.token_to_id(new.id_to_token(token)))
        entries.append([same] if same is not None else _encode(new.text_of(token), old))
    return entries


def _encode(text: str, old: Tokenizer) -> list[int]:
    # The entry may be a part of a character, which has no text.
    if not text or "\ufffd" in text:
        return []
    return [int(token) for token in old.encode([text], special=False)[0]]
