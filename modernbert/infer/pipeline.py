"""The object users hold: texts in, vectors and filled masks out.

In: a model folder or the name of a model on the hub. Out: `ModernBert`, which joins a tokenizer and a model, and keeps
nothing between calls. Vectors come back as numpy arrays in float32, in the order of the texts.
"""

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from modernbert.device import choose_device, choose_precision
from modernbert.errors import InputError
from modernbert.infer.batching import batches
from modernbert.infer.loading import load_for_inference
from modernbert.model.attention import choose_backend
from modernbert.model.config import ModelConfig
from modernbert.model.encoder import Encoder
from modernbert.model.fused import FusedEncoder
from modernbert.model.heads import MaskedLM, Model, encoder_of, pool
from modernbert.model.hub import find_folder, load_config, save_folder
from modernbert.ragged import Batch
from modernbert.text.tokenizer import Tokenizer

__all__ = ["Guess", "ModernBert"]

# Texts are tokenised so many at a time, so that a stream of millions is never held as ids.
_TEXTS_AT_A_TIME = 4_096


@dataclass(frozen=True)
class Guess:
    """One token proposed for a mask, with the model's probability for it."""

    text: str
    token: int
    probability: float


class ModernBert:
    """A tokenizer and a model that belong together."""

    def __init__(self, tokenizer: Tokenizer, model: Model, budget_tokens: int = 16_384) -> None:
        """Join the two; `budget_tokens` bounds a batch, and with it the memory of a call."""
        self.tokenizer = tokenizer
        self.model = model
        self.budget_tokens = budget_tokens
        if tokenizer.vocab_size > self.config.vocab_size:
            raise InputError(
                f"the tokenizer has {tokenizer.vocab_size:,} entries, "
                f"which does not fit the model's vocabulary of {self.config.vocab_size:,}"
            )

    @staticmethod
    def load(
        name: str | Path,
        *,
        device: str = "auto",
        dtype: str = "auto",
        backend: str = "auto",
        revision: str | None = None,
    ) -> "ModernBert":
        """Load a model folder, or a model of the hub by name.

        `auto` takes a CUDA device where there is one, bfloat16 where the hardware multiplies it, and the fastest
        attention that runs there, and says on standard error what it chose.

        Raises: InputError if the folder lacks a file or holds a wrong one, or if what is asked for is not to be had.
        """
        place = choose_device(device)
        precision = choose_precision(dtype, place)
        folder = find_folder(name, revision)
        chosen = choose_backend(backend, place, precision, load_config(folder))
        tokenizer = Tokenizer.load(folder)
        model = load_for_inference(folder, place, precision, chosen)
        if "auto" in (device, dtype, backend):
            print(f"{name}: device {place}, dtype {str(precision)[6:]}, attention {chosen}", file=sys.stderr)
        return ModernBert(tokenizer, model)

    @property
    def config(self) -> ModelConfig:
        """The shape of the model."""
        return self.encoder.config

    @property
    def encoder(self) -> Encoder | FusedEncoder:
        """The model without its head."""
        return encoder_of(self.model)

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.encoder.embeddings.tok_embeddings.weight.device

    def embed(
        self,
        texts: str | Iterable[str],
        *,
        pooling: str = "mean",
        normalize: bool = True,
        prompt: str = "",
        truncate_dim: int | None = None,
        truncate: bool = False,
    ) -> np.ndarray:
        """Return one vector a text, float32 [N, D].

        `pooling` is `mean` over all tokens of the text or its first token `cls`; `prompt` is put before each text;
        `truncate_dim` keeps the first components, before normalising. A text longer than the model was trained for is
        an error unless `truncate`, which cuts it.

        Raises: InputError for a text that is too long or not text, or for an unknown pooling.
        """
        width = self.config.hidden_size
        if pooling not in ("mean", "cls"):
            raise InputError(f"pooling: found {pooling!r}, expected mean or cls")
        if truncate_dim is not None and not 1 <= truncate_dim <= width:
            raise InputError(f"truncate_dim: found {truncate_dim}, expected 1 to {width}")
        found = [np.zeros((0, truncate_dim or width), dtype=np.float32)]
        for batch, hidden in self._hidden_states(texts, prompt, truncate):
            vectors = pool(hidden.float(), batch.layout, pooling)[:, :truncate_dim]
            vectors = torch.nn.functional.normalize(vectors, dim=-1) if normalize else vectors
            found.append(vectors.cpu().numpy())
        return np.concatenate(found)

    def embed_tokens(self, texts: str | Iterable[str], *, prompt: str = "", truncate: bool = False) -> list[np.ndarray]:
        """Return the hidden states of every text, each float32 [its tokens, D], special tokens included.

        Raises: InputError for a text that is too long or not text.
        """
        found: list[np.ndarray] = []
        for batch, hidden in self._hidden_states(texts, prompt, truncate):
            found.extend(part.numpy() for part in hidden.float().cpu().split(list(batch.layout.lengths)))
        return found

    def fill_mask(self, texts: str | Iterable[str], top_k: int = 5) -> list[list[Guess]] | list[list[list[Guess]]]:
        """Propose the `top_k` likeliest tokens for each mask of a text, in the order of the masks.

        One text gives one list a mask, a sequence of texts a list of those.

        Raises: InputError for a text without a mask or too long, or a model folder without the masked-LM head.
        """
        if not isinstance(self.model, MaskedLM):
            raise InputError("this model folder has no masked-LM head (head.dense, head.norm, decoder.bias)")
        if not 1 <= top_k <= self.tokenizer.vocab_size:
            raise InputError(f"top_k: found {top_k}, expected 1 to {self.tokenizer.vocab_size}")
        found: list[list[list[Guess]]] = []
        for batch, hidden in self._hidden_states(texts, "", False):
            rows = (batch.tokens == self.tokenizer.mask_id).nonzero().flatten()
            num_masks = torch.bincount(batch.layout.doc_ids()[rows], minlength=batch.layout.num_docs).tolist()
            if 0 in num_masks:
                mask = self.tokenizer.text_of(self.tokenizer.mask_id)
                raise InputError(f"text {len(found) + num_masks.index(0)}: has no {mask}, expected at least one")
            guesses = iter(self._guesses(hidden.index_select(0, rows), top_k))
            found.extend([next(guesses) for _ in range(number)] for number in num_masks)
        return found[0] if isinstance(texts, str) else found

    def save(self, folder: str | Path) -> None:
        """Write a folder that this package, `transformers` and other readers load unedited.

        Weights are written in the precision they are held in: load with `dtype="float32"` to keep every bit of a
        float32 folder where `auto` would take bfloat16.

        Raises: InputError if the folder exists already, or the disk is full.
        """
        longest = self.config.max_position_embeddings
        save_folder(Path(folder), self.model, lambda partial: self.tokenizer.save_folder(partial, longest))

    def _guesses(self, rows: Tensor, top_k: int) -> Iterator[list[Guess]]:
        assert isinstance(self.model, MaskedLM)
        # A few rows at a time: logits are as wide as the vocabulary.
        for some in rows.split(256):
            with torch.inference_mode():
                # Entries past the tokenizer's last only round the vocabulary up; they stand for no text.
                logits = self.model.decode(some).float()[:, : self.tokenizer.vocab_size]
                best = logits.softmax(dim=-1).topk(top_k, dim=-1)
            for tokens, shares in zip(best.indices.tolist(), best.values.tolist(), strict=True):
                yield [Guess(self.tokenizer.text_of(t), t, p) for t, p in zip(tokens, shares, strict=True)]

    def _hidden_states(self, texts: str | Iterable[str], prompt: str, truncate: bool) -> Iterator[tuple[Batch, Tensor]]:
        try:
            listed = [texts] if isinstance(texts, str) else list(texts)
        except TypeError:
            raise InputError(f"texts: found {type(texts).__name__}, expected a text or several") from None
        documents = self._encode(listed, prompt, truncate)
        for batch in batches(documents, self.budget_tokens):
            moved = batch.to(self.device)
            with torch.inference_mode():
                yield moved, self.encoder(moved.tokens, moved.layout)

    def _encode(self, texts: Sequence[str], prompt: str, truncate: bool) -> Iterator[np.ndarray]:
        longest = self.config.max_position_embeddings
        for start in range(0, len(texts), _TEXTS_AT_A_TIME):
            some = texts[start : start + _TEXTS_AT_A_TIME]
            for offset, text in enumerate(some):
                if not isinstance(text, str):
                    raise InputError(f"text {start + offset}: found {type(text).__name__}, expected str")
            for offset, ids in enumerate(self.tokenizer.encode([prompt + text for text in some], first=start)):
                if len(ids) > longest and not truncate:
                    raise InputError(
                        f"text {start + offset}: has {len(ids):,} tokens, expected at most {longest:,} unless truncated"
                    )
                yield self.tokenizer.cut(ids, longest)
