"""Models as they run for inference: on a CPU with weights laid out for the processor, on a GPU with short passes kept.

In: a model folder, or a model. Out: a model that computes the same and can be saved; laid out anew, it can't be
trained.
"""

from pathlib import Path

import torch

from modernbert.checkpoints.folder import load_model
from modernbert.devices import keep_freed_memory, release_threads_before_fork
from modernbert.engines.cpu.fused_encoder import FusedEncoder, can_fuse
from modernbert.engines.cpu.prepacked_linear import can_prepack, prepack_
from modernbert.engines.cuda.cuda_graphs import CudaGraphs
from modernbert.engines.plain_modules import ModuleSnapshot, is_plain_tree
from modernbert.model.encoder import Encoder
from modernbert.model.heads import Classifier, MaskedLM
from modernbert.model.interface import Model

__all__ = ["fit_for_inference", "load_for_inference"]


def load_for_inference(folder: Path, device: torch.device, dtype: torch.dtype, backend: str) -> Model:
    """Load the model of a folder as `ModernBert` runs it.

    Raises: InputError if the folder lacks a file or holds a wrong one.
    """
    return fit_for_inference(load_model(folder, dtype=dtype, backend=backend).to(device))


def fit_for_inference(model: MaskedLM | Classifier | Encoder) -> Model:
    """Return the model as it runs best where it lies; the one that is given may have lost its weights to it."""
    encoder = model.encoder
    weight = encoder.embeddings.tok_embeddings.weight
    if weight.device.type == "cuda" and encoder.backend in ("triton", "varlen"):
        encoder.replays = CudaGraphs(ModuleSnapshot(encoder))
    if weight.device.type != "cpu":
        return model
    keep_freed_memory()
    release_threads_before_fork()
    if can_fuse(encoder.config, encoder.backend) and is_plain_tree(encoder):
        fused = FusedEncoder(encoder)
        if isinstance(model, Encoder):
            return fused
        model.model = fused  # type: ignore[assignment]  # the same call; only training asks for more
    elif can_prepack(weight.dtype):
        prepack_(encoder)
    return model
