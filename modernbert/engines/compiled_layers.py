"""Compiled layers, where there is a compiler.

In: a model. Out: the same model, its layers compiled, or left as they were with a reason. A file of its own because a
compiler is the one part of a machine that often does not work, and a run must not hang on it.
"""

import torch

from modernbert.batch import Batch
from modernbert.engines.attention import FUSED
from modernbert.model.encoder import Layer
from modernbert.model.heads import MaskedLM
from modernbert.model.rope import rotate_heads

__all__ = ["compile_layers"]


def compile_layers(model: MaskedLM, dtype: torch.dtype) -> str | None:
    """Compile what stands around attention in every layer, and rotation; return why all stays as it is, if it does.

    All layers share two compiled functions, made for any number of tokens. Attention itself is left out, since its
    kernels are compiled already. A first pass forward and backward on a few tokens shows whether it works.

    Source: paper, section 2.1.2 (compilation without attention, 10 % of throughput).
    """
    if model.model.backend in FUSED:
        return f"what backend {model.model.backend} runs is compiled already"
    layers = [layer for layer in model.model.layers if isinstance(layer, Layer)]
    before = torch.compile(Layer.before, dynamic=True)
    after = torch.compile(Layer.after, dynamic=True)
    model.model.rotate = torch.compile(rotate_heads, dynamic=True)
    for layer in layers:
        layer.before = before.__get__(layer)  # type: ignore[method-assign]
        layer.after = after.__get__(layer)  # type: ignore[method-assign]
    device = model.decoder.weight.device
    try:
        batch = Batch.from_documents([[0] * 9]).to(device)
        # Twice: the compiler makes one version for a step's first micro-batch, another for when there are gradients.
        for _ in range(2):
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
                model(batch).sum().backward()
        return None
    except Exception as error:  # what a missing or broken compiler raises is a long list; each means the same here
        for layer in layers:
            del layer.before, layer.after
        model.model.rotate = rotate_heads
        return " ".join(str(error).split())[:200]
    finally:
        model.zero_grad(set_to_none=True)
