"""A library that is not installed is reported before any work, with the extra that has it.

The model of every command does not exist, so a command that looks for it before the library reports the model.
"""

from pathlib import Path

import pytest
from commands import modernbert

from modernbert.extras import EXTRAS

TUNE = ["finetune", "no/model", "--output", "out", "--train", "train.tsv"]
PRETRAIN = ["pretrain", "--output", "out", "--tokenizer", "no/model", "--data.sources.a", "none",
            "--phases.one.tokens", "100000", "--phases.one.lr", "1"]  # fmt: skip
PREPARED = ["--tokenizer", "no/model", "--output", "out"]
SCORED = [*TUNE, "--dev", "dev.tsv"]
PACKED = ("pyarrow", "train", ["--input", "some.parquet"]), ("zstandard", "train", ["--input", "some.jsonl.zst"])
USES = {"fill-mask": [], "classify": [], "tag": [], "embed": ["--output", "out.npy"], "rerank": ["query"]}

NEEDS = [
    ("sklearn", "train", [*SCORED, "--task", "classify"]),
    ("sklearn", "train", [*TUNE, "--task", "classify", "--test", "test.tsv"]),
    ("sklearn", "train", [*SCORED, "--task", "rerank", "--columns.pair", "other"]),
    ("scipy", "train", [*SCORED, "--task", "rerank", "--columns.pair", "other"]),
    ("scipy", "train", [*SCORED, "--task", "regress"]),
    ("bm25s", "train", [*TUNE, "--task", "embed", "--negatives", "3"]),
    ("bm25s", "train", [*TUNE, "--task", "late", "--negatives", "3"]),
    ("sklearn", "train", ["sweep", *SCORED[1:], "--task", "classify", "--sweep.lr", "1e-3"]),
    ("scipy", "train", ["sweep", *SCORED[1:], "--task", "regress"]),
    ("bm25s", "train", ["sweep", *SCORED[1:], "--task", "embed", "--negatives", "3"]),
    ("sklearn", "train", ["evaluate", "glue", "no/model", "glue", "--output", "out"]),
    ("bm25s", "train", ["evaluate", "retrieval", "no/model", "folder", "--bm25", "--output", "out.json"]),
    ("mteb", "mteb", ["evaluate", "retrieval", "no/model", "folder", "mteb:beir"]),
    ("lancedb", "index", ["evaluate", "retrieval", "no/model", "folder", "--index", "out"]),
    ("pyarrow", "index", ["evaluate", "retrieval", "no/model", "folder", "--index", "out"]),
    ("lancedb", "index", ["index", "no/model", "--input", "texts", "--output", "out"]),
    ("pyarrow", "index", ["index", "no/model", "--input", "texts", "--output", "out"]),
    ("zstandard", "train", ["index", "no/model", "--input", "packed", "--output", "out"]),
    ("lancedb", "index", ["search", "texts", "query"]),
    ("onnx", "export", ["export", "no/model", "--output", "out"]),
    ("onnxruntime", "export", ["export", "no/model", "--output", "out"]),
    *((name, "serve", ["serve", "no/model", "--port", "0"])
      for name in ("fastapi", "starlette", "uvicorn", "prometheus_client", "orjson", "swagger_ui_bundle")),
    ("jinja2", "train", ["report", "texts"]),
    ("matplotlib", "train", ["report", "texts"]),
    *((name, "train", ["demo", "--output", "out"]) for name in ("bm25s", "jinja2", "matplotlib")),
    *((name, "trackers", [*PRETRAIN, "--trackers", name]) for name in ("wandb", "trackio", "tensorboard")),
    ("ray", "ray", ["prepare", "--input", "texts", *PREPARED, "--executor", "ray"]),
    ("ray", "ray", ["embed", "no/model", "--input", "texts/some.txt", "--output", "out.npy", "--executor", "ray"]),
    ("pyarrow", "train", ["prepare", "--input", "packed", *PREPARED]),
    ("zstandard", "train", ["prepare", "--input", "packed", *PREPARED, "--on-error", "skip"]),
    ("zstandard", "train", ["tokenizer", "--input", "packed", "--output", "out"]),
    ("datasets", "train", ["finetune", "foreign", "--output", "out", "--task", "classify", "--train", "owner/name"]),
    ("pyarrow", "train", ["embed", "no/model", "a text", "--output", "out.parquet"]),
    ("pyarrow", "index", ["embed", "no/model", "a text", "--output", "out.lance"]),
    ("lancedb", "index", ["embed", "no/model", "a text", "--output", "out.lance"]),
    *((library, extra, [verb, "no/model", *more, *file]) for verb, more in USES.items()
      for library, extra, file in PACKED),
    ("pyarrow", "train", [*TUNE[:1], "foreign", *TUNE[2:], "--task", "classify", "--dev", "packed/some.parquet"]),
    ("s3fs", "s3", ["tokenizer", "--input", "s3://bucket/some.jsonl", "--output", "out"]),
    ("transformers", "train", [*TUNE[:1], "foreign", *TUNE[2:], "--task", "classify"]),
    ("transformers", "train", [*TUNE[:1], "foreign", *TUNE[2:], "--task", "embed"]),
    *(("transformers", "train", [verb, "foreign", *words]) for verb, words in (
        ("embed", ["a"]), ("embed", ["--input", "texts/some.txt", "--output", "out.npy"]), ("classify", ["a"]),
        ("tag", ["a"]), ("rerank", ["query", "a"]), ("fill-mask", ["a"]), ("serve", ["--port", "0"]),
        ("index", ["--input", "texts", "--output", "out"]), ("evaluate", []))[:-1]),
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows, texts in a folder, files that need a library, and a model of another family, all but empty."""
    folder = tmp_path_factory.mktemp("place")
    for name in ("train", "dev", "test"):
        (folder / f"{name}.tsv").write_text("text\tlabel\tother\na\t1\tb\nb\t0\tc\n")
    for name in ("texts", "packed", "foreign", "glue", "glue/cola", "folder"):
        (folder / name).mkdir()
    for name in ("train", "dev"):
        (folder / "glue" / "cola" / f"{name}.tsv").write_text("sentence\tlabel\na\t1\nb\t0\n")
    (folder / "texts" / "some.txt").write_text("a text\n")
    for name in ("some.parquet", "some.jsonl.zst"):
        (folder / "packed" / name).write_bytes(b"")
    (folder / "foreign" / "config.json").write_text('{"model_type": "bert"}')
    return folder


@pytest.mark.parametrize(("library", "extra", "words"), NEEDS, ids=lambda each: "".join(str(each)[:12]))
def test_a_missing_library_is_reported_before_any_work(
    library: str, extra: str, words: list[str], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    before = sorted(place.rglob("*"))
    done = modernbert(*words, without=[library])
    package = EXTRAS[library][0]
    expected = f": {package} is not installed: pip install 'modernbert[{extra}]'"
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("modernbert: ") and done.stderr.rstrip().endswith(expected), done.stderr
    assert done.stdout == "" and sorted(place.rglob("*")) == before


def test_every_library_of_an_extra_is_asked_for() -> None:
    asked = {library for library, _, _ in NEEDS}
    # sentence-transformers loads our module, not we it.
    assert set(EXTRAS) - asked == {"sentence_transformers"}
