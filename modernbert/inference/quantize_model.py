"""`modernbert quantize`: write a model folder with int8 layers, if its vectors agree with those of float32."""

from pathlib import Path

import numpy as np
import torch

from modernbert.checkpoints.command_line import command_line
from modernbert.checkpoints.folder import ModelFolder
from modernbert.checkpoints.model_card import ModelCard
from modernbert.errors import InputError
from modernbert.files import check_target
from modernbert.inference.modernbert import ModernBert, load_folder, save_folder
from modernbert.inference.quantize_options import QuantizeConfig
from modernbert.inference.text_inputs import gather_rows
from modernbert.model.int8_linear import INT8

__all__ = ["QuantizeConfig", "run"]

_LEAST_MEAN, _LEAST = 0.999, 0.995
_FEWEST = 20


def run(config: QuantizeConfig) -> Path:
    """Quantize a model and return the output.

    Raises: InputError if the vectors differ too much, the model is not a ModernBERT in floating point, or a row has no
        text.
    """
    check_target(config.output, overwrite=False)
    folder = ModelFolder.open(config.model, config.revision)
    if folder.is_int8:
        raise InputError(f"{config.model}: has int8 layers already")
    if not folder.is_modernbert:
        raise InputError(f"{config.model}: is a {folder.family}, expected a ModernBERT")
    rows = gather_rows((), config.texts, text_field=config.text_field)
    texts = [row.text for row in rows if row.text and not row.text.isspace()]
    if len(texts) < _FEWEST:
        raise InputError(f"{config.texts}: found {len(texts)} texts, expected at least {_FEWEST} to compare")
    exact = load_folder(folder, device="cpu", dtype="float32")
    expected = _vectors(exact, texts)
    del exact
    quantized = load_folder(folder, device="cpu", dtype=INT8)
    cosines = (_vectors(quantized, texts) * expected).sum(axis=1)
    mean, worst = float(cosines.mean()), int(cosines.argmin())
    agreement = f"cosine to float32 on {len(texts):,} texts: mean {mean:.5f}, least {cosines[worst]:.5f}"
    if not (mean >= _LEAST_MEAN and cosines[worst] >= _LEAST):
        raise InputError(
            f"{config.model}: {agreement}, expected at least {_LEAST_MEAN} and {_LEAST}, so nothing was written; "
            "use --dtype bfloat16 or float32"
        )
    quantized.model.to(torch.bfloat16)
    card = ModelCard(
        method=f"Quantized to int8 for inference on CPUs: {agreement}.",
        command=command_line("modernbert quantize", config),
        bases=[config.model],
        relation="quantized",
    )
    save_folder(quantized, config.output, card)
    size = sum(path.stat().st_size for path in config.output.glob("*.safetensors"))
    print(f"{config.output}: {size / 1e6:,.0f} MB of weights; {agreement}")
    return config.output


def _vectors(bert: ModernBert, texts: list[str]) -> np.ndarray:
    """Return the vectors of texts, or of all their tokens for late interaction, of length 1."""
    if bert.is_late:
        found = np.concatenate(list(bert.embed_documents(texts).vectors))
    else:
        found = bert.embed(texts, overflow="truncate", progress=True)
    return found / np.linalg.norm(found, axis=1, keepdims=True)
