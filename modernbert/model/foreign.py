"""Encoders of other families behind the ragged calls of this package, through `transformers`.

In: a folder of BERT, RoBERTa, DeBERTa-v3, NomicBERT or another encoder. Out: modules that take batches laid end to end.
Padding lives here and nowhere else: rows are padded for the model, and what it says of padding is dropped. Nothing in a
folder is executed: code that comes with a model is never trusted.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from modernbert.errors import InputError
from modernbert.model.heads import TASKS
from modernbert.ragged import Batch, Layout
from modernbert.storage import new_folder, unwrapped

__all__ = [
    "OURS",
    "ForeignClassifier",
    "ForeignEncoder",
    "family_of",
    "load_foreign_classifier",
    "load_foreign_encoder",
    "longest_of",
    "save_foreign",
]


OURS = "modernbert"
# Rows are as long as the next multiple of this: libraries prepare products for each shape they meet, so few should be.
_STEP = 8


# Places of a grid, padding included: short documents are not padded to long ones of the same batch.
_PLACES = 8_192


@dataclass(frozen=True)
class _Grid:
    """Some documents of a batch as rows of one length: `numbers` says which."""

    numbers: Sequence[int]
    ids: Int64[Tensor, "N S"]
    mask: Int64[Tensor, "N S"]
    real: Bool[Tensor, "N S"]


def family_of(folder: Path) -> str:
    """Return the `model_type` of a folder's config; `OURS` is this package's own.

    Raises: InputError if there is no config.
    """
    return str(_config(folder).get("model_type", OURS))


def longest_of(folder: Path) -> int:
    """Return the most tokens a foreign model takes; RoBERTa's family counts places from behind that of padding."""
    found = _config(folder)
    places = int(found.get("max_position_embeddings") or found.get("n_positions") or 512)
    behind = found.get("model_type") in ("roberta", "xlm-roberta", "camembert")
    offset = int(found.get("pad_token_id") or 0) + 1 if behind else 0
    return places - offset


class ForeignEncoder(nn.Module):
    """A bare encoder: tokens of a ragged batch -> hidden states."""

    def __init__(self, inner: nn.Module, pad_id: int, sep_id: int, longest: int) -> None:
        super().__init__()
        self.inner, self.pad_id, self.sep_id, self.longest = inner, pad_id, sep_id, longest

    @property
    def width(self) -> int:
        """Width of its hidden states, D."""
        return int(self.inner.config.hidden_size)  # type: ignore[union-attr, arg-type]

    def forward(self, tokens: Int64[Tensor, " T"], layout: Layout) -> Float[Tensor, "T D"]:
        """Return the hidden state of every token."""
        grids = _grids(tokens, layout, self.pad_id, self.longest)
        rows = [self.inner(**_inputs(self.inner, grid, self.sep_id)).last_hidden_state[grid.real] for grid in grids]
        return _in_order(rows, grids, layout.lengths)


class ForeignClassifier(nn.Module):
    """An encoder with the head that its family scores documents or tokens with."""

    def __init__(
        self, inner: nn.Module, task: str, labels: Sequence[str], pad_id: int, sep_id: int, longest: int
    ) -> None:
        super().__init__()
        self.inner, self.task, self.labels = inner, task, tuple(labels)
        self.pad_id, self.sep_id, self.longest = pad_id, sep_id, longest

    def forward(self, batch: Batch) -> Float[Tensor, "M labels"]:
        """Return scores of every document or every token; where `batch.where` names some, of those alone."""
        grids = _grids(batch.tokens, batch.layout, self.pad_id, self.longest)
        scores = [self.inner(**_inputs(self.inner, grid, self.sep_id)).logits for grid in grids]
        if TASKS[self.task].of_tokens:
            scores = [each[grid.real] for each, grid in zip(scores, grids, strict=True)]
            rows = _in_order(scores, grids, batch.layout.lengths)
        else:
            rows = _in_order(scores, grids, [1] * batch.layout.num_docs)
        return rows if batch.where is None else rows.index_select(0, batch.where)


def load_foreign_encoder(folder: Path, pad_id: int, sep_id: int, dtype: torch.dtype) -> ForeignEncoder:
    """Load a bare encoder.

    Raises: InputError if transformers is not installed, or does not load the folder.
    """
    transformers = _transformers()
    inner = _told(folder, lambda: transformers.AutoModel.from_pretrained(folder, dtype=dtype, use_safetensors=True))
    return ForeignEncoder(inner.eval(), pad_id, sep_id, longest_of(folder))


def load_foreign_classifier(
    folder: Path, task: str, labels: Sequence[str], seed: int, pad_id: int, sep_id: int
) -> ForeignClassifier:
    """Load an encoder with its family's head in float32; what the folder lacks of the head is drawn from the seed.

    Raises: InputError if transformers is not installed, or does not load the folder.
    """
    if task in ("choose", "extract"):
        raise InputError(f"task: found {task!r}, which is for models of this package alone")
    transformers = _transformers()
    kinds = {False: transformers.AutoModelForSequenceClassification, True: transformers.AutoModelForTokenClassification}
    named = dict(enumerate(labels))
    torch.manual_seed(seed)
    inner = _told(
        folder,
        lambda: kinds[TASKS[task].of_tokens].from_pretrained(
            folder, num_labels=len(labels), id2label=named, label2id={label: n for n, label in named.items()},
            problem_type=TASKS[task].problem_type, ignore_mismatched_sizes=True, dtype=torch.float32,
            use_safetensors=True,
        ),
    )  # fmt: skip
    return ForeignClassifier(inner, task, labels, pad_id, sep_id, longest_of(folder))


def save_foreign(
    folder: Path,
    model: ForeignClassifier | ForeignEncoder,
    tokenizer_of: Path,
    write_beside: Callable[[Path], None] | None = None,
) -> None:
    """Write a folder that transformers loads, with the tokenizer's files of the folder it came from."""
    with new_folder(folder, replace=True) as partial:
        with unwrapped():
            model.inner.save_pretrained(partial)  # type: ignore[operator]
        for path in tokenizer_of.iterdir():
            if path.name.startswith(("tokenizer", "vocab", "merges", "special_tokens", "spm", "sentencepiece")):
                (partial / path.name).write_bytes(path.read_bytes())
        if write_beside is not None:
            write_beside(partial)


def _grids(tokens: Tensor, layout: Layout, pad_id: int, longest: int) -> list[_Grid]:
    """Return documents of like length together, the longest first."""
    order = sorted(range(layout.num_docs), key=lambda number: -layout.lengths[number])
    documents = tokens.split(list(layout.lengths))
    grids = []
    while order:
        size = layout.lengths[order[0]]
        size = max(size, min(-(-size // _STEP) * _STEP, longest))
        most = max(1, _PLACES // size)
        numbers, order = order[:most], order[most:]
        lengths = torch.tensor([layout.lengths[number] for number in numbers], device=tokens.device)
        real = torch.arange(size, device=tokens.device) < lengths[:, None]
        ids = torch.full(real.shape, pad_id, dtype=torch.int64, device=tokens.device)
        ids[real] = torch.cat([documents[number] for number in numbers])
        grids.append(_Grid(numbers, ids, real.long(), real))
    return grids


def _in_order(rows: Sequence[Tensor], grids: Sequence[_Grid], sizes: Sequence[int]) -> Tensor:
    """Put rows of the documents of grids, so many of each, into the order of the documents."""
    numbers = [number for grid in grids for number in grid.numbers]
    parts = torch.cat(list(rows)).split([sizes[number] for number in numbers])
    return torch.cat([part for _, part in sorted(zip(numbers, parts, strict=True), key=lambda pair: pair[0])])


def _inputs(inner: nn.Module, grid: _Grid, sep_id: int) -> dict[str, Tensor]:
    """Return what a model of transformers takes; the second text of a pair has another type, where there are types."""
    inputs = {"input_ids": grid.ids, "attention_mask": grid.mask}
    if int(getattr(inner.config, "type_vocab_size", 0) or 0) > 1:
        ends = (grid.ids == sep_id).long()
        # A token is of the second text if a separator stands before it.
        inputs["token_type_ids"] = ((ends.cumsum(1) - ends) > 0).long() * grid.mask
    return inputs


def _config(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{folder / 'config.json'}: no such file, expected a published model folder") from None
    except (ValueError, RecursionError, OSError) as error:
        raise InputError(f"{folder / 'config.json'}: is not readable JSON ({error})") from None
    return found if isinstance(found, dict) else {}


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise InputError("models of other families need transformers: pip install 'modernbert[eval]'") from None
    # What it says of each load is not for whoever uses this package.
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


def _told(folder: Path, load: Any) -> nn.Module:
    try:
        return load()
    except Exception as error:  # the library raises a dozen types; each is one reason for one line
        raise InputError(f"{folder}: transformers does not load it ({' '.join(str(error).split())[:200]})") from None
