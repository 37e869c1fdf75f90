"""`modernbert embed`: write one vector a text, as a numpy file or as JSON lines."""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from modernbert.errors import InputError
from modernbert.infer.pipeline import ModernBert
from modernbert.storage import check_target, write_file

__all__ = ["EmbedConfig", "run"]


@dataclass(frozen=True)
class EmbedConfig:
    """What to load, what to embed, and where to write; without `out`, JSON lines on standard output."""

    model: str
    texts: Sequence[str]
    out: Path | None = None
    pooling: str | None = None
    normalize: bool = True
    prompt: str = ""
    truncate_dim: int | None = None
    overflow: str = "error"
    device: str = "auto"
    dtype: str = "auto"
    backend: str = "auto"


def run(config: EmbedConfig) -> None:
    """Embed all texts, then write them at once.

    Raises: InputError for a text that is too long, an unknown kind of file, or a full disk.
    """
    if config.out is not None and config.out.suffix not in (".npy", ".jsonl"):
        raise InputError(f"{config.out}: expected a name that ends in .npy or .jsonl")
    check_target(config.out)
    bert = ModernBert.load(config.model, device=config.device, dtype=config.dtype, backend=config.backend)
    vectors = bert.embed(
        config.texts,
        pooling=config.pooling,
        normalize=config.normalize,
        prompt=config.prompt,
        truncate_dim=config.truncate_dim,
        overflow=config.overflow,
        progress=True,
    )
    if config.out is not None and config.out.suffix == ".npy":
        buffer = io.BytesIO()
        np.save(buffer, vectors)
        write_file(config.out, buffer.getvalue())
        return
    lines = [json.dumps([round(float(x), 7) for x in vector]) for vector in vectors]
    if config.out is None:
        print("\n".join(lines))
    else:
        write_file(config.out, "\n".join(lines) + "\n")
