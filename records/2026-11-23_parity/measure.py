"""Print how far the model is from the published implementation, and how memory grows with length.

Usage: python measure.py
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from transformers import ModernBertConfig, ModernBertForMaskedLM

from modernbert.batch import Batch, SequenceLengths
from modernbert.checkpoints.hf_config import config_to_json
from modernbert.engines.registry import find_engine
from modernbert.model.config import ModelConfig
from modernbert.model.encoder import Encoder
from modernbert.model.heads import MaskedLM


def pair(config: ModelConfig) -> tuple[MaskedLM, ModernBertForMaskedLM]:
    torch.manual_seed(0)
    theirs = ModernBertForMaskedLM(ModernBertConfig(**config_to_json(config, "ModernBertForMaskedLM", "float32")))
    ours = MaskedLM(config)
    ours.load_state_dict(theirs.state_dict())
    return ours.eval(), theirs.eval()


def parity(name: str, lengths: list[int], gradients: bool) -> None:
    config = ModelConfig.preset(name, attention_output_dropout=0.0)
    ours, theirs = pair(config)
    rng = np.random.default_rng(0)
    # Below the special tokens: transformers gives the padding token's row no gradient, we do.
    texts = [rng.integers(4, config.cls_token_id, length) for length in lengths]
    batch = Batch.from_documents(texts)
    with torch.set_grad_enabled(gradients):
        hidden = ours.model(batch.tokens, batch.layout)
        logits = ours.decode(hidden)
    worst = [0.0, 0.0]
    total = sum(lengths)
    if gradients:
        (F.cross_entropy(logits, batch.tokens, reduction="sum") / total).backward()
    for text, h, x in zip(texts, hidden.split(lengths), logits.split(lengths), strict=True):
        ids = torch.from_numpy(text)[None]
        with torch.set_grad_enabled(gradients):
            expected = theirs.model(input_ids=ids).last_hidden_state[0]
            scores = theirs.decoder(theirs.head(expected))
        if gradients:
            (F.cross_entropy(scores, ids[0], reduction="sum") / total).backward()
        worst[0] = max(worst[0], (h - expected).abs().max().item())
        worst[1] = max(worst[1], (x - scores).abs().max().item())
    line = f"{name:6s} {len(lengths):3d} documents, {total:6,} tokens: hidden {worst[0]:.1e}, logits {worst[1]:.1e}"
    if gradients:
        named = dict(theirs.named_parameters())
        errors = [((p.grad - named[n].grad).norm() / named[n].grad.norm()).item() for n, p in ours.named_parameters()]
        line += f", gradients {max(errors):.1e} relative"
    print(line, flush=True)


def backends() -> None:
    for dtype in (torch.float64, torch.float32):
        worst = 0.0
        for lengths in ([1], [64], [128, 64], [129, 1, 127], [3, 200, 2, 90], [640], [70] * 5):
            for window in (None, (64, 64)):
                found = []
                for engine in ("torch", "reference"):
                    torch.manual_seed(0)
                    q, k, v, g = torch.randn(4, sum(lengths), 4, 64, dtype=dtype)
                    inputs = [x.clone().requires_grad_() for x in (q, k, v)]
                    mixed = find_engine(engine).attention(*inputs, SequenceLengths.from_lengths(lengths), window)
                    mixed.backward(g)
                    found.append([mixed.detach(), *(x.grad for x in inputs)])
                worst = max(worst, *((a - b).abs().max().item() for a, b in zip(*found, strict=True)))
        print(f"banded against dense, forward and backward, {dtype}: {worst:.1e}")


def memory(length: int) -> None:
    config = ModelConfig()
    with torch.inference_mode():
        model = Encoder(config).eval()
        batch = Batch.from_documents([np.arange(length) % config.vocab_size])
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = peak_kib()
        model(batch.tokens, batch.layout)
    print(
        f"base, one document of {length:6,} tokens: {(peak_kib() - before) / 1024:7,.0f} MiB above the weights",
        flush=True,
    )


def peak_kib() -> int:
    (line,) = (row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith("VmHWM"))
    return int(line.split()[1])


if __name__ == "__main__":
    if len(sys.argv) > 1:
        memory(int(sys.argv[1]))
        sys.exit()
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {torch.get_num_threads()} threads")
    for name in ("base", "large"):
        with torch.device("meta"):
            count = sum(p.numel() for p in MaskedLM(ModelConfig.preset(name)).parameters())
        print(f"{name}: {count:,} parameters")
    backends()
    for length in (2_048, 4_096, 8_192):
        subprocess.run([sys.executable, __file__, str(length)], check=True)
    parity("tiny", [1 + (n * 37) % 130 for n in range(64)], gradients=True)
    parity("tiny", [8_192, 3, 700], gradients=True)
    parity("base", [70, 1, 200, 513], gradients=True)
    parity("large", [70, 1, 200], gradients=False)
