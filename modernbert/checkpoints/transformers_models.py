"""Encoders of other families (BERT, RoBERTa, DeBERTa-v3, NomicBERT, ...), computed by `transformers`.

Batches are padded for the model and its outputs unpadded. Nothing in a folder is executed, and `transformers` never
reads the folder: it gets the sizes in config.json that its own config class declares, and tensors that this package has
read. So it never loads code, kernels, quantizers, adapters or other files that a config names.
"""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from modernbert.batch import Batch, SequenceLengths
from modernbert.checkpoints.safetensors_files import WEIGHTS, check_tensor, is_of_adapter, read_weights, refuse_adapters
from modernbert.errors import CheckFailed, InputError, shown
from modernbert.extras import missing
from modernbert.files import unwrap_errors
from modernbert.model.interface import MODERNBERT, HeadSpec, Model
from modernbert.safe_files import FolderFiles, is_there, read_bytes, read_json
from modernbert.tasks.task import classifier_task

__all__ = [
    "ForeignClassifier",
    "ForeignEncoder",
    "family_of",
    "load_foreign_classifier",
    "load_foreign_encoder",
    "num_positions_of",
    "vocabulary_of",
    "write_foreign",
]

_OLD_PLACE = "0_Transformer"
# Text encoders whose classes need no input but tokens.
_FAMILIES = frozenset(
    "albert bert camembert data2vec-text deberta deberta-v2 distilbert electra ernie eurobert gte jina_embeddings_v3 "
    "megatron-bert mobilebert mpnet nomic_bert rembert roberta roberta-prelayernorm xlm-roberta xlm-roberta-xl".split()
)
# Fields of transformers' configs that do not affect the shape, and fields that some classes read without declaring.
_NOT_OF_SHAPE = frozenset(
    "architectures dtype id2label is_encoder_decoder label2id model_type output_hidden_states problem_type return_dict "
    "transformers_version".split()
)
_UNDECLARED = frozenset(
    "attention_head_size cls_dropout conv_act conv_groups conv_kernel_size embedding_size head_dim norm_rel_ebd "
    "pooler_hidden_size position_buckets rope_scaling rope_theta share_att_key talking_head".split()
)
# Names of tensors in an encoder's layers; heads have no such names.
_OF_LAYERS = re.compile(r"(^|\.)(layers?|albert_layer_groups|h|blocks?)\.\d+\.")
# Buffers computed from the config, which older versions stored.
_IGNORED = re.compile(r"position_ids|rotary_emb|inv_freq|masked_bias|attn\.bias$")
# Fields that set the length of loops in transformers, so a large value could run forever.
_COUNTED = re.compile("layer|group|network|heads")
_MAX_VALUE, _MAX_COUNT, _MAX_POSITIONS = 2**24, 2**7, 2**20
_VOCABULARY = 2**18
_MAX_TOKENIZER_BYTES = 2**27
# Rows are padded to a multiple of this, since libraries prepare a GEMM for each new shape.
_STEP = 8
# Tokens of a padded batch, padding included.
_GRID_TOKENS = 8_192


@dataclass(frozen=True)
class _Grid:
    """Documents of similar length, padded to rows; `numbers` are their positions in the batch."""

    numbers: Sequence[int]
    ids: Int64[Tensor, "N S"]
    mask: Int64[Tensor, "N S"]
    real: Bool[Tensor, "N S"]


def family_of(folder: FolderFiles) -> str:
    """Return the `model_type` of config.json; `modernbert` is the family that this package computes itself.

    Raises: InputError if there is no config.json, its family is not supported, or the folder has an adapter.
    """
    refuse_adapters(folder.path)
    if not is_there(folder / "config.json") and is_there(folder / _OLD_PLACE / "config.json"):
        raise InputError(
            f"{folder}: has its model in {_OLD_PLACE}, as old versions of sentence-transformers wrote it, expected "
            'these files beside modules.json, with the path ""'
        )
    family = folder.read_json("config.json").get("model_type", MODERNBERT)
    if not isinstance(family, str) or family not in (MODERNBERT, *_FAMILIES):
        known = ", ".join((MODERNBERT, *sorted(_FAMILIES)))
        raise InputError(f"{folder / 'config.json'}: model_type: found {family!r}, expected one of {known}")
    return family


def num_positions_of(folder: FolderFiles) -> int:
    """Return the number of positions of a model of another family; RoBERTa's positions start behind the padding id.

    Raises: InputError naming a key with an impossible value.
    """
    found = folder.read_json("config.json")
    named = "max_position_embeddings" if found.get("max_position_embeddings") is not None else "n_positions"
    places = _whole(folder, found, named, 512)
    behind = found.get("model_type") in ("roberta", "xlm-roberta", "camembert")
    offset = _whole(folder, found, "pad_token_id", 0, least=0) + 1 if behind else 0
    if places <= offset:
        raise InputError(f"{folder / 'config.json'}: max_position_embeddings: found {places}, expected more")
    return places - offset


def vocabulary_of(folder: FolderFiles) -> int:
    """Return the size of the vocabulary of a model of another family.

    Raises: InputError for an impossible number.
    """
    return _whole(folder, folder.read_json("config.json"), "vocab_size", _VOCABULARY, most=_MAX_VALUE)


class ForeignModel(Model):
    """A model of transformers that computes padded batches inside, with the interface of `Model`."""

    def __init__(self, inner: nn.Module, pad_id: int, sep_id: int, max_length: int) -> None:
        super().__init__()
        self.inner, self.pad_id, self.sep_id = inner, pad_id, sep_id
        self.family = str(self._facts.model_type)
        self.base_model_prefix = str(inner.base_model_prefix)
        self._max_length = max_length

    @property
    def _facts(self) -> Any:
        """The config of transformers."""
        return self.inner.config

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states, D."""
        return int(self._facts.hidden_size)

    @property
    def num_layers(self) -> int:
        """Number of layers."""
        return int(self._facts.num_hidden_layers)

    @property
    def vocab_size(self) -> int:
        """Number of token ids that the model has embeddings for, V."""
        return int(self._facts.vocab_size)

    @property
    def max_length(self) -> int:
        """The most tokens of a document."""
        return self._max_length


class ForeignEncoder(ForeignModel):
    """An encoder without a head."""

    def encode(self, batch: Batch, rows: Int64[Tensor, " M"] | None = None) -> Float[Tensor, "M D"]:
        """Return the hidden states of every token of a batch, or of the tokens `rows`."""
        return self(batch.tokens, batch.layout, rows)

    def forward(
        self, tokens: Int64[Tensor, " T"], layout: SequenceLengths, where: Int64[Tensor, " M"] | None = None
    ) -> Float[Tensor, "M D"]:
        """Return the hidden states of every token, or of the tokens `where`."""
        grids = _grids(tokens, layout, self.pad_id, self.max_length)
        rows = [self.inner(**_inputs(self.inner, grid, self.sep_id)).last_hidden_state[grid.real] for grid in grids]
        hidden = _in_order(rows, grids, layout.lengths)
        return hidden if where is None else hidden.index_select(0, where)


class ForeignClassifier(ForeignModel):
    """An encoder with the head that its family scores documents or tokens with."""

    task: str

    def __init__(
        self, inner: nn.Module, spec: HeadSpec, labels: Sequence[str], pad_id: int, sep_id: int, max_length: int
    ) -> None:
        super().__init__(inner, pad_id, sep_id, max_length)
        self.set_head(spec, labels)

    @property
    def encoder(self) -> ForeignEncoder:
        """The encoder, which shares the weights."""
        body = getattr(self.inner, self.base_model_prefix)
        return ForeignEncoder(body, self.pad_id, self.sep_id, self.max_length)

    def encode(self, batch: Batch, rows: Int64[Tensor, " M"] | None = None) -> Float[Tensor, "M D"]:
        """Return the hidden states of every token of a batch, or of the tokens `rows`."""
        return self.encoder.encode(batch, rows)

    def logits(self, batch: Batch) -> Float[Tensor, "M labels"]:
        """Return `forward`."""
        return self(batch)

    def forward(self, batch: Batch) -> Float[Tensor, "M labels"]:
        """Return the scores of every document or every token, or of those in `batch.label_positions`."""
        grids = _grids(batch.tokens, batch.layout, self.pad_id, self.max_length)
        scores = [self.inner(**_inputs(self.inner, grid, self.sep_id)).logits for grid in grids]
        if self.scores_tokens:
            scores = [each[grid.real] for each, grid in zip(scores, grids, strict=True)]
            rows = _in_order(scores, grids, batch.layout.lengths)
        else:
            rows = _in_order(scores, grids, [1] * batch.layout.num_docs)
        return rows if batch.label_positions is None else rows.index_select(0, batch.label_positions)


def load_foreign_encoder(folder: FolderFiles, pad_id: int, sep_id: int, dtype: torch.dtype) -> ForeignEncoder:
    """Load an encoder without a head.

    Raises: InputError if transformers is not installed or does not load the folder.
    """
    inner = _load(folder, "AutoModel", dtype, {})
    return ForeignEncoder(inner.eval(), pad_id, sep_id, num_positions_of(folder))


def load_foreign_classifier(
    folder: FolderFiles, task: str, labels: Sequence[str], seed: int, pad_id: int, sep_id: int
) -> ForeignClassifier:
    """Load an encoder with the head of its family, in float32; missing weights of the head are drawn from the seed.

    Raises: InputError if transformers is not installed or does not load the folder.
    """
    known = classifier_task(task)
    if not known.other_families:
        raise InputError(f"task: found {task!r}, which only ModernBERT models support")
    named = dict(enumerate(labels))
    head = {
        "id2label": named, "label2id": {label: n for n, label in named.items()}, "num_labels": len(labels),
        "problem_type": known.problem_type,
    }  # fmt: skip
    torch.manual_seed(seed)
    inner = _load(folder, f"AutoModelFor{known.head}", torch.float32, head)
    return ForeignClassifier(inner, known.head_spec, labels, pad_id, sep_id, num_positions_of(folder))


def write_foreign(folder: Path, model: Model, source: Path) -> None:
    """Write a model and the tokenizer files of the folder `source` into a temporary folder, see `files.new_folder`.

    Raises: OSError if the disk is full. CheckFailed if the tokenizer files are gone.
    """
    assert isinstance(model, ForeignModel), "models of this package are written by write_model"
    with unwrap_errors():
        model.inner.save_pretrained(folder)  # type: ignore[operator]
    try:
        _copy_tokenizer(source, folder)
    except InputError as error:
        raise CheckFailed(f"{error}; the model was written without its tokenizer") from error


def _grids(tokens: Tensor, layout: SequenceLengths, pad_id: int, max_length: int) -> list[_Grid]:
    """Pad documents of similar length together, the longest first."""
    order = sorted(range(layout.num_docs), key=lambda number: -layout.lengths[number])
    documents = tokens.split(list(layout.lengths))
    grids = []
    while order:
        size = layout.lengths[order[0]]
        size = max(size, min(-(-size // _STEP) * _STEP, max_length))
        most = max(1, _GRID_TOKENS // size)
        numbers, order = order[:most], order[most:]
        lengths = torch.tensor([layout.lengths[number] for number in numbers], device=tokens.device)
        real = torch.arange(size, device=tokens.device) < lengths[:, None]
        ids = torch.full(real.shape, pad_id, dtype=torch.int64, device=tokens.device)
        ids[real] = torch.cat([documents[number] for number in numbers])
        grids.append(_Grid(numbers, ids, real.long(), real))
    return grids


def _in_order(rows: Sequence[Tensor], grids: Sequence[_Grid], sizes: Sequence[int]) -> Tensor:
    """Return the rows of all grids in the order of the documents; a document has `sizes` rows."""
    numbers = [number for grid in grids for number in grid.numbers]
    parts = torch.cat(list(rows)).split([sizes[number] for number in numbers])
    return torch.cat([part for _, part in sorted(zip(numbers, parts, strict=True), key=lambda pair: pair[0])])


def _inputs(inner: nn.Module, grid: _Grid, sep_id: int) -> dict[str, Tensor]:
    """Return the inputs of a model of transformers; the second text of a pair has token type 1, if there are types."""
    inputs = {"input_ids": grid.ids, "attention_mask": grid.mask}
    if int(getattr(inner.config, "type_vocab_size", 0) or 0) > 1:
        ends = (grid.ids == sep_id).long()
        # Tokens behind the first separator belong to the second text.
        inputs["token_type_ids"] = ((ends.cumsum(1) - ends) > 0).long() * grid.mask
    return inputs


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise missing("models of other families", "transformers") from None
    # Its messages about each load are not for users of this package.
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


def _load(folder: FolderFiles, kind: str, dtype: torch.dtype, head: Mapping[str, Any]) -> nn.Module:
    """Build a model of a class of transformers with the weights of a folder; weights of the head may be missing."""
    transformers = _transformers()
    weights = read_weights(folder.path)
    for name, tensor in weights.items():
        if "position_ids" not in name:  # older libraries stored these numbers
            check_tensor(folder.path, name, tensor)
    try:
        config = _config(transformers, folder, len(weights), head)
        with torch.device("meta"):
            planned = getattr(transformers, kind).from_config(config)
        num_planned, num_stored = (
            sum(each.numel() for each in some) for some in (planned.parameters(), weights.values())
        )
        if num_planned > 2 * num_stored + _MAX_VALUE:
            raise InputError(
                f"{folder}: config.json describes {num_planned:,} numbers, the weights have {num_stored:,}"
            )
        inner, report = type(planned).from_pretrained(
            None, config=config, state_dict=weights, dtype=dtype, output_loading_info=True,
            ignore_mismatched_sizes=True,
        )  # fmt: skip
    except InputError:
        raise
    except Exception as error:  # the library raises a dozen types
        raise InputError(f"{folder}: transformers cannot load it ({' '.join(str(error).split())[:200]})") from None
    for name in sorted(report["unexpected_keys"]):
        if is_of_adapter(name) or (_OF_LAYERS.search(name) and not _IGNORED.search(name)):
            raise InputError(
                f"{folder}: the weights have {name}, which config.json's {family_of(folder)} does not have"
            )
    of_body = f"{inner.base_model_prefix}." if head else ""
    lacks = [*report["missing_keys"], *(each[0] for each in report["mismatched_keys"])]
    lacks = sorted(name for name in lacks if name.startswith(of_body) and "pooler." not in name)
    if lacks:
        raise InputError(f"{folder}: the weights have no {lacks[0]} of the shape that config.json describes")
    return inner


def _config(transformers: Any, folder: FolderFiles, num_tensors: int, head: Mapping[str, Any]) -> Any:
    """Return the config of the family's class, with only those fields of config.json that set the model's shape."""
    found = folder.read_json("config.json")
    family = family_of(folder)
    kind = type(transformers.AutoConfig.for_model(family))
    known = {each.name for each in dataclasses.fields(kind)} | set(kind.attribute_map) | _UNDECLARED
    kept = {key: value for key, value in found.items() if key in known - _NOT_OF_SHAPE}
    for key, expected in (("quantization_config", None), ("per_layer_config", None), ("transformers_weights", WEIGHTS)):
        if found.get(key) not in (None, expected):
            named = shown(repr(found[key]), 80)
            raise InputError(f"{folder / 'config.json'}: {key}: found {named}, expected {expected or 'no such key'}")
    for key, value in kept.items():
        most = max(_MAX_COUNT, num_tensors) if _COUNTED.search(key) else _MAX_VALUE
        if type(value) is int and abs(value) > (_MAX_POSITIONS if "position" in key else most):
            raise InputError(f"{folder / 'config.json'}: {key}: found {value}, which no such model has")
    return transformers.AutoConfig.for_model(family, **kept, **head)


def _copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the files of a tokenizer: JSON objects only, even if a file is a link."""
    (target / "tokenizer.json").write_bytes(read_bytes(source / "tokenizer.json", _MAX_TOKENIZER_BYTES))
    for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        if is_there(source / name):
            # `auto_map` names code.
            found = {key: value for key, value in read_json(source / name).items() if key != "auto_map"}
            (target / name).write_text(json.dumps(found, indent=2) + "\n")


def _whole(
    folder: FolderFiles, found: Mapping[str, Any], key: str, usual: int, *, least: int = 1, most: int = _MAX_POSITIONS
) -> int:
    value = usual if found.get(key) is None else found[key]
    if type(value) is not int or not least <= value <= most:
        raise InputError(f"{folder / 'config.json'}: {key}: found {value!r}, expected {least} to {most:,}")
    return value
