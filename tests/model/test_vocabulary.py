"""A new vocabulary: shared entries keep their rows, new entries are means of old rows."""

import torch

from modernbert.inference.modernbert import ModernBert
from modernbert.model.surgery import change_vocabulary
from modernbert.tokenizer.bpe_training import train_tokenizer
from modernbert.tokenizer.shared_entries import entries_of

NAMES = ("model.embeddings.tok_embeddings.weight", "decoder.bias")


def test_shared_entries_keep_their_rows_and_new_ones_are_means(small_bert: ModernBert):
    old = small_bert.tokenizer
    new = train_tokenizer((f"Rain falls on mountain {n} and valley {n % 13}." for n in range(3000)), 448)
    entries = entries_of(new, old)
    weights = {name: parameter.detach() for name, parameter in small_bert.model.named_parameters()}
    weights["decoder.bias"] = torch.randn(512, generator=torch.Generator().manual_seed(0))
    changed = change_vocabulary(weights, entries, 448)
    for role in ("cls_id", "sep_id", "pad_id", "mask_id"):
        assert entries[getattr(new, role)] == [getattr(old, role)]
    kept = made = 0
    for token in range(new.vocab_size):
        same = old.token_to_id(new.id_to_token(token))
        if same is not None:
            kept += 1
            assert all(torch.equal(changed[name][token], weights[name][same]) for name in NAMES)
        elif new.text_of(token).strip() and "\ufffd" not in new.text_of(token):
            made += 1
            pieces = old.encode([new.text_of(token)], special=False)[0].tolist()
            assert "".join(old.text_of(piece) for piece in pieces) == new.text_of(token)
            for name in NAMES:
                torch.testing.assert_close(changed[name][token], weights[name][pieces].mean(dim=0))
    assert kept > 300
    assert made > 5
    assert all(changed[name] is weights[name] for name in weights if name not in NAMES)


def test_rows_beyond_the_entries_are_the_mean_row():
    weights = {NAMES[0]: torch.arange(12.0).view(4, 3), NAMES[1]: torch.arange(4.0)}
    changed = change_vocabulary(weights, [[2], [0, 1], []], 5)
    assert changed[NAMES[0]].tolist() == [[6, 7, 8], [1.5, 2.5, 3.5], [4.5, 5.5, 6.5], [4.5, 5.5, 6.5], [4.5, 5.5, 6.5]]
    assert changed[NAMES[1]].tolist() == [2, 0.5, 1.5, 1.5, 1.5]
