"""Fine-tuning from files to a model folder: learning, resuming, and the refusal of invalid training data."""

import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import options
from safetensors.torch import load_file
from transformers import AutoModelForQuestionAnswering, AutoModelForSequenceClassification, AutoTokenizer

from modernbert import ModernBert
from modernbert.errors import InputError
from modernbert.tasks.columns import Columns
from modernbert.tasks.task import start_classifier
from modernbert.training.finetuning import FinetuneConfig, finetune
from modernbert.training.finetuning_loop import LinearPlan, groups_by_depth
from modernbert.training.optimizers import StableAdamW
from modernbert.training.run_checkpoint import latest, save
from modernbert.training.run_options import CheckpointConfig, OptimizerConfig

WORDS = ["capital", "country", "city", "land", "rivers"]


def texts(number: int, seed: int) -> list[tuple[str, str, float]]:
    """A text, whether it names a city, and how many rivers it has."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(number):
        words = list(rng.choice(WORDS, int(rng.integers(2, 12))))
        found.append((" ".join(words), "yes" if "city" in words else "no", float(words.count("rivers"))))
    return found


def write_tsv(path: Path, number: int, seed: int) -> str:
    lines = [f"{text}\t{label}\t{rivers}" for text, label, rivers in texts(number, seed)]
    path.write_text("text\tlabel\trivers\n" + "\n".join(lines) + "\n")
    return str(path)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, small_bert: ModernBert) -> str:
    folder = tmp_path_factory.mktemp("start") / "model"
    small_bert.save(folder)
    return str(folder)


@pytest.fixture
def config(tmp_path: Path, model: str) -> FinetuneConfig:
    return FinetuneConfig(
        model=model, task="classify", train=[write_tsv(tmp_path / "train.tsv", 400, 0)],
        dev=[write_tsv(tmp_path / "dev.tsv", 100, 1)], test=[write_tsv(tmp_path / "test.tsv", 60, 2)],
        output=str(tmp_path / "run"), epochs=3, batch=16, lr=1e-3, dropout=0.0, device="cpu", dtype="float32",
        engine="torch",
    )  # fmt: skip


def rows(config: FinetuneConfig, kind: str) -> list[dict[str, Any]]:
    lines = (Path(config.output) / "log.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == kind]


def test_labels_are_learned_and_transformers_says_the_same(config: FinetuneConfig) -> None:
    folder = finetune(config)
    scores = json.loads((folder.parent / "scores.json").read_text())
    assert scores["test"]["accuracy"] > 0.9 and scores["dev"]["accuracy"] > 0.9
    predicted = [
        json.loads(line)["predicted"] for line in (folder.parent / "predictions.jsonl").read_text().splitlines()
    ]
    theirs = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for (text, _, _), said in zip(texts(60, 2), predicted, strict=True):
        with torch.no_grad():
            best = int(theirs(**tokenizer(text, return_tensors="pt")).logits.argmax())
        assert theirs.config.id2label[best] == said


def test_several_labels_a_row_are_learned_and_transformers_says_the_same(
    config: FinetuneConfig, tmp_path: Path
) -> None:
    files = {}
    for name, seed in (("train", 0), ("dev", 1), ("test", 2)):
        # None, one, or several of three; and as text, for files without lists.
        marked = [(text, sorted({"city", "land", "rivers"} & set(text.split()))) for text, _, _ in texts(300, seed)]
        rows: list[dict[str, Any]] = [{"text": text, "label": labels} for text, labels in marked]
        rows = [{**row, "label": ", ".join(row["label"])} if name == "dev" else row for row in rows]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        files[name] = [str(tmp_path / f"{name}.jsonl")]
    folder = finetune(replace(config, task="multilabel", epochs=4, **files))
    scores = json.loads((folder.parent / "scores.json").read_text())
    assert scores["metric"] == "micro_f1" and scores["test"]["micro_f1"] > 0.95 and scores["test"]["exact"] > 0.8
    theirs = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    assert theirs.config.problem_type == "multi_label_classification"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    lines = (folder.parent / "predictions.jsonl").read_text().splitlines()
    for (text, _, _), line in zip(texts(60, 2), lines, strict=False):
        with torch.no_grad():
            found = theirs(**tokenizer(text, return_tensors="pt")).logits[0] > 0
        assert [theirs.config.id2label[n] for n in found.nonzero().flatten().tolist()] == json.loads(line)["predicted"]


def test_a_limit_of_the_folder_holds_for_training_and_for_what_was_trained(
    config: FinetuneConfig, tmp_path: Path
) -> None:
    folder = shutil.copytree(config.model, tmp_path / "short")
    place = folder / "tokenizer_config.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | {"model_max_length": 6}))
    short = replace(config, model=str(folder), train=config.dev, test=[], epochs=1)
    with pytest.raises(InputError, match=r"dev.tsv:.*: has .* tokens, expected at most 6; `cut=True`"):
        finetune(short)
    bert = ModernBert.load(finetune(replace(short, cut=True)), device="cpu")
    assert bert.max_length == 6
    longer = ModernBert.load(finetune(replace(short, max_len=40, output=str(tmp_path / "longer"))), device="cpu")
    assert longer.max_length == 40


@pytest.mark.parametrize(
    ("label", "said"),
    [
        (["city", "sea"], "label has 'sea', which no training row has"),
        (["city", "city"], "expected a list of different labels"),
        (["city", ""], "expected a list of different labels"),
        ({"city": 1}, "expected a list of different labels"),
        (None, "expected a list of different labels"),
    ],
)
def test_labels_that_are_no_list_are_named(label: Any, said: str, config: FinetuneConfig, tmp_path: Path) -> None:
    (tmp_path / "some.jsonl").write_text('{"text": "a city", "label": ["city"]}\n{"text": "nothing", "label": []}\n')
    (tmp_path / "dev.jsonl").write_text(json.dumps({"text": "a city", "label": label}) + "\n")
    files = {"train": [str(tmp_path / "some.jsonl")], "dev": [str(tmp_path / "dev.jsonl")], "test": []}
    with pytest.raises(InputError, match=f"dev.jsonl:1: .*{said}"):
        finetune(replace(config, task="multilabel", **files))
    assert not Path(config.output).exists()


def test_numbers_are_learned(config: FinetuneConfig) -> None:
    config = replace(config, task="regress", columns=Columns(label="rivers"), epochs=6)
    finetune(config)
    scores = json.loads((Path(config.output) / "scores.json").read_text())
    assert scores["metric"] == "correlation" and scores["test"]["pearson"] > 0.9


def test_weights_that_fail_the_last_check_are_kept(config: FinetuneConfig) -> None:
    """A step far too large: the loss before it is finite, what the model computes after it is not."""
    config = replace(config, dev=[], test=[], epochs=1, batch=400, warmup=0.0, lr=1e30)
    with pytest.raises(InputError, match=r"values that are not finite; it is kept as .*/run/model\.unverified$"):
        finetune(config)
    kept = Path(config.output) / "model.unverified"
    assert load_file(kept / "model.safetensors")["classifier.weight"].shape == (2, 64)
    assert AutoTokenizer.from_pretrained(kept)("a city").input_ids
    assert not (Path(config.output) / "model").exists()


def test_an_error_after_training_loses_no_model(config: FinetuneConfig) -> None:
    def occupy(epochs: float, best: float) -> None:
        (Path(config.output) / "predictions.jsonl").mkdir(exist_ok=True)

    with pytest.raises(InputError, match="predictions.jsonl: cannot be written"):
        finetune(replace(config, epochs=2, scorings_per_epoch=2), occupy)
    assert ModernBert.load(Path(config.output) / "model", device="cpu").classify(["a city"])


def test_tags_are_learned(config: FinetuneConfig, tmp_path: Path) -> None:
    for name, seed in (("train", 0), ("dev", 1), ("test", 2)):
        lines = []
        for text, _, _ in texts(200, seed):
            lines += [f"{word}\t{'B-place' if word in ('city', 'country') else 'O'}" for word in text.split()] + [""]
        (tmp_path / f"{name}.conll").write_text("\n".join(lines) + "\n")
    split = {name: [str(tmp_path / f"{name}.conll")] for name in ("train", "dev", "test")}
    finetune(replace(config, task="tag", **split))
    scores = json.loads((Path(config.output) / "scores.json").read_text())
    assert scores["metric"] == "span_f1" and scores["test"]["span_f1"] > 0.95


@pytest.mark.parametrize(("prefix", "metric"), [("I-", "span_f1"), ("", "accuracy")])
def test_tags_that_mark_spans_are_judged_by_spans(
    prefix: str, metric: str, config: FinetuneConfig, tmp_path: Path
) -> None:
    """Where no two spans touch, data has no B-: the older form of CoNLL."""
    lines = [f"the O\n{word} {prefix}place\n" for word in ("city", "land")]
    (tmp_path / "some.conll").write_text("\n".join(lines))
    files = {name: [str(tmp_path / "some.conll")] for name in ("train", "dev")}
    finetune(replace(config, task="tag", test=[], epochs=1, **files))
    assert json.loads((Path(config.output) / "scores.json").read_text())["metric"] == metric


def test_spans_that_are_found_are_the_very_characters(config: FinetuneConfig, tmp_path: Path) -> None:
    """Emoji, combining marks, tabs and leading blanks before a name do not shift it."""
    rng = np.random.default_rng(0)
    names = ["Zoë", "Zoe\u0308", "👩\u200d🚀", "Ann-Marie"]
    for split, number in (("train", 300), ("test", 60)):
        rows = []
        for _ in range(number):
            before = (
                str(rng.choice(["  ", "\t", "🙂 ", "e\u0301, ", "“", ""])) + " ".join(rng.choice(WORDS, 3)) + " city "
            )
            name = str(rng.choice(names))
            spans = [{"start": len(before), "end": len(before) + len(name), "label": "who"}]
            rows.append({"text": f"{before}{name}\tland.", "spans": spans})
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {split: [str(tmp_path / f"{split}.jsonl")] for split in ("train", "test")}
    finetune(replace(config, task="tag", dev=[], epochs=6, **files))
    predicted = [
        json.loads(line)["predicted"] for line in (Path(config.output) / "predictions.jsonl").read_text().splitlines()
    ]
    expected = [json.loads(line) for line in (tmp_path / "test.jsonl").read_text().splitlines()]
    right = 0
    for spans, row in zip(predicted, expected, strict=True):
        assert all(row["text"][span["start"] : span["end"]] == span["text"] for span in spans)
        right += [{key: span[key] for key in ("start", "end", "label")} for span in spans] == row["spans"]
    assert right >= 57


def test_pairs_are_reranked(config: FinetuneConfig, tmp_path: Path) -> None:
    for name, seed in (("train", 0), ("dev", 1), ("test", 2)):
        lines = [
            json.dumps({"query": "city" if seed % 2 == 0 else "city", "passage": text, "label": int(label == "yes")})
            for text, label, _ in texts(300, seed)
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    split = {name: [str(tmp_path / f"{name}.jsonl")] for name in ("train", "dev", "test")}
    folder = finetune(replace(config, task="rerank", columns=Columns(text="query", pair="passage"), **split))
    scores = json.loads((folder.parent / "scores.json").read_text())
    assert scores["test"]["average_precision"] > 0.95
    predicted = [
        json.loads(line)["predicted"] for line in (folder.parent / "predictions.jsonl").read_text().splitlines()
    ]
    theirs = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        logit = theirs(**tokenizer("city", texts(300, 2)[0][0], return_tensors="pt")).logits
    assert logit.sigmoid().item() == pytest.approx(predicted[0], abs=1e-5)


def test_the_right_choice_is_learned(config: FinetuneConfig, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    for name, number in (("train", 200), ("dev", 60)):
        rows = []
        for _ in range(number):
            choices = [" ".join(rng.choice(["land", "rivers", "country"], 3)) for _ in range(int(rng.integers(2, 5)))]
            right = int(rng.integers(len(choices)))
            choices[right] += " city"
            rows.append({"text": "the capital", "choices": choices, "label": right})
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {name: [str(tmp_path / f"{name}.jsonl")] for name in ("train", "dev")}
    finetune(replace(config, task="choose", test=files["dev"], train=files["train"], dev=files["dev"]))
    scores = json.loads((Path(config.output) / "scores.json").read_text())
    assert scores["dev"]["accuracy"] > 0.9 and scores["test"] == scores["dev"]


def test_answers_are_found_in_their_passages(config: FinetuneConfig, tmp_path: Path) -> None:
    """The answer is the word after `city`; a passage without one answers nothing."""
    rng = np.random.default_rng(3)
    for name, number in (("train", 300), ("dev", 80)):
        rows = []
        for _ in range(number):
            words = list(rng.choice(["land", "rivers", "country"], int(rng.integers(3, 9))))
            answers: dict[str, list[Any]] = {"text": [], "answer_start": []}
            if rng.random() < 0.8:
                place = int(rng.integers(len(words)))
                words.insert(place, "city")
                answers = {"text": [words[place + 1]], "answer_start": [len(" ".join(words[: place + 1])) + 1]}
            rows.append({"question": "the capital", "context": " ".join(words), "answers": answers})
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {name: [str(tmp_path / f"{name}.jsonl")] for name in ("train", "dev")}
    config = replace(
        config, task="extract", columns=Columns(text="question", pair="context"), epochs=6, test=[], **files
    )
    folder = finetune(config)
    scores = json.loads((folder.parent / "scores.json").read_text())
    assert scores["metric"] == "f1" and scores["dev"]["exact"] > 0.9
    assert AutoModelForQuestionAnswering.from_pretrained(folder).config.architectures == [
        "ModernBertForQuestionAnswering"
    ]


def test_micro_batches_do_not_change_what_is_learned(config: FinetuneConfig, tmp_path: Path) -> None:
    finetune(replace(config, epochs=1))
    finetune(replace(config, epochs=1, budget_tokens=40, output=str(tmp_path / "small")))
    whole, parts = (rows(replace(config, output=output), "step") for output in (config.output, str(tmp_path / "small")))
    np.testing.assert_allclose([r["loss"] for r in whole], [r["loss"] for r in parts], atol=2e-4)


def test_a_killed_run_goes_on_and_ends_with_the_same_bits(config: FinetuneConfig, tmp_path: Path) -> None:
    config = replace(config, dropout=0.1, checkpoint=CheckpointConfig(every_s=1e-9), epochs=1)
    finetune(config)
    killed = replace(config, output=str(tmp_path / "killed"))
    names = "task output epochs batch lr dropout device dtype engine train dev test".split()
    words = options(**{name: getattr(killed, name) for name in names}, **{"checkpoint.every_s": 1e-9})
    command = [sys.executable, "-m", "modernbert", "finetune", killed.model, *words]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list((tmp_path / "killed").glob("checkpoints/step-*")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "model").exists()
    subprocess.run(command, check=True, capture_output=True)
    for name in ("model/model.safetensors", "log.jsonl", "scores.json", "predictions.jsonl"):
        assert (tmp_path / "killed" / name).read_bytes() == (Path(config.output) / name).read_bytes(), name


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_a_finished_run_does_not_hide_changed_rows(config: FinetuneConfig, split: str) -> None:
    config = replace(config, epochs=1, train=config.dev)
    finetune(config)
    finetune(config)
    changed = Path(getattr(config, split)[0]).with_name("changed.tsv")
    others = replace(config, **{split: [str(changed)]}, output=f"{config.output}-{split}")
    changed.write_bytes(Path(getattr(config, split)[0]).read_bytes())
    finetune(others)
    write_tsv(changed, 60, 5)
    with pytest.raises(InputError, match=f"^{split}: {changed} has changed since {others.output} finished; .*output"):
        finetune(others)


def test_a_column_to_ignore_that_no_row_has_is_refused(config: FinetuneConfig, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="^ignore_columns: found 'lable', which no row has, .*text, label, rivers"):
        finetune(replace(config, ignore_columns=["rivers", "lable"], output=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()
    more = tmp_path / "dev.tsv"
    lines = more.read_text().splitlines()
    more.write_text("\n".join([f"{lines[0]}\tsource", *(f"{line}\tmade up" for line in lines[1:])]) + "\n")
    finetune(replace(config, epochs=1, train=config.test, ignore_columns=["source"]))


def test_a_run_goes_on_with_the_rows_it_was_begun_with(config: FinetuneConfig, tmp_path: Path) -> None:
    """Labels that are called otherwise come in another order: the weights of one would be taken for another's."""
    train, dev = (write_tsv(tmp_path / f"{name}.tsv", 40, 0) for name in ("some", "others"))
    config = replace(
        config,
        train=[train],
        dev=[dev],
        test=[],
        epochs=2,
        scorings_per_epoch=3,
        checkpoint=CheckpointConfig(every_s=1e-9),
    )
    asked: list[float] = []

    def pull_the_plug(epochs: float, best: float) -> None:
        asked.append(epochs)
        if len(asked) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match=f"the same command continues {config.output} after step 1$"):
        finetune(config, pull_the_plug)
    begun = Path(train).read_text()
    for was, now in (("\tno\t", "\tzno\t"), ("city", "country")):
        Path(train).write_text(begun.replace(was, now))
        Path(dev).write_text(begun.replace(was, now))
        with pytest.raises(InputError, match="train: found other rows, labels or tokens than .*step-00000001 was"):
            finetune(config)
    for path in (train, dev):
        Path(path).write_text(begun)
    # As earlier versions wrote it.
    root = Path(config.output) / "checkpoints"
    found = latest(root)
    assert found is not None and found.state.pop("rows")
    save(root, found.step, {stem: found.tensors(stem) for stem in ("model", "optimizer", "best")}, found.state, keep=2)
    assert finetune(config).is_dir()


def test_patience_ends_a_run_that_gains_nothing_and_the_best_weights_are_kept(config: FinetuneConfig) -> None:
    config = replace(config, epochs=40, patience=2, lr=3e-3)
    finetune(config)
    scored = rows(config, "dev")
    best = max(scored, key=lambda row: row["accuracy"])
    assert len(scored) == scored.index(best) + 3 < 40
    scores = json.loads((Path(config.output) / "scores.json").read_text())
    assert scores["best_step"] == best["step"]


def test_class_weights_raise_the_rare_label(config: FinetuneConfig, tmp_path: Path) -> None:
    losses = {}
    for weights in ("none", "balanced"):
        lines = ["text\tlabel"] + [f"land land\t{'rare' if n % 10 == 0 else 'usual'}" for n in range(200)]
        (tmp_path / "skewed.tsv").write_text("\n".join(lines) + "\n")
        skewed = [str(tmp_path / "skewed.tsv")]
        run = replace(config, train=skewed, dev=[], test=skewed, class_weights=weights, output=str(tmp_path / weights))
        finetune(run)
        losses[weights] = float(np.mean([row["loss"] for row in rows(run, "step")[-13:]]))
    assert losses["none"] == pytest.approx(0.325, abs=0.05), "the entropy of one in ten"
    assert losses["balanced"] == pytest.approx(np.log(2), abs=0.05), "balanced, a coin"


def test_rates_fall_with_depth(small_bert: ModernBert) -> None:
    model = start_classifier(small_bert.model, "classify", ["a", "b"], seed=0)
    groups = groups_by_depth(model, lr=1e-3, head_lr=1e-2, layer_decay=0.5, weight_decay=0.1)
    by_parameter = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    scales = {name: by_parameter.pop(id(parameter)) for name, parameter in model.named_parameters()}
    assert not by_parameter
    assert scales["classifier.weight"] == 10 and scales["head.dense.weight"] == 1
    assert scales["model.layers.3.mlp.Wo.weight"] == 0.5 and scales["model.layers.0.mlp.Wo.weight"] == 0.5**4
    assert scales["model.embeddings.tok_embeddings.weight"] == 0.5**5
    optimizer = StableAdamW(groups, lr=1e-3)
    assert sorted({group["max_lr"] for group in optimizer.param_groups})[-1] == pytest.approx(1e-2)


def test_the_plan_is_that_of_transformers() -> None:
    from transformers import get_linear_schedule_with_warmup

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    theirs = get_linear_schedule_with_warmup(optimizer, 7, 70)
    ours = LinearPlan(70, 0.5, 0.1, lambda step: 1)
    for step in range(70):
        assert ours.plan(step).lr == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize(
    "changes, said",
    [
        (
            {"task": "guess"},
            "task: found 'guess', expected choose, classify, embed, extract, late, multilabel, regress, rerank, tag",
        ),
        ({"epochs": 0}, "epochs: found 0"),
        ({"lr": -1.0}, "lr: found -1.0"),
        ({"seed": -1}, "seed: found -1"),
        ({"optim": OptimizerConfig(beta2=1.0)}, "optim.beta2: found 1.0"),
        ({"weight_decay": float("nan")}, "weight_decay: found nan"),
        ({"dropout": 2.0}, "dropout: found 2.0"),
        ({"task": "rerank", "columns": Columns(label="rivers")}, "columns.pair: found none"),
        (
            {"task": "rerank", "columns": Columns(pair="label", label="rivers")},
            "a pair is .*, expected 0 to 1",
        ),
        ({"layer_decay": 1.5}, "layer_decay: found 1.5"),
        ({"class_weights": "some"}, "class_weights: found 'some'"),
        ({"task": "regress", "class_weights": "balanced"}, "class_weights: found 'balanced', but regress"),
        ({"dev": [], "patience": 1}, "dev: found no rows"),
        ({"metric": "bleu"}, "metric: found 'bleu', expected accuracy, matthews, macro_f1"),
        ({"columns": Columns(label="mood")}, "train.tsv:2: no column 'mood', found 'text', 'label', 'rivers'"),
        ({"task": "regress"}, "train.tsv:2: label is .*, expected a finite number"),
        ({"max_len": 8}, "train.tsv:.*: has .* tokens, expected at most 8; `cut=True`"),
        ({"train": ["nowhere.tsv"]}, "nowhere.tsv: no such file"),
        ({"model": "nowhere/at/all"}, "nowhere/at/all: no such folder"),
    ],
)
def test_what_cannot_be_learned_from_is_refused_and_nothing_is_written(
    changes: dict[str, Any], said: str, config: FinetuneConfig
) -> None:
    for name, value in changes.items():  # not in the constructor, whose types tests check
        setattr(config, name, value)
    with pytest.raises(InputError, match=said):
        finetune(config)
    assert not Path(config.output).exists()


def test_a_finished_run_is_left_alone_and_another_config_is_refused(
    config: FinetuneConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(config, epochs=1)
    folder = finetune(config)
    before = load_file(folder / "model.safetensors")["classifier.weight"]
    finetune(config)
    assert "this run is finished" in capsys.readouterr().out
    assert torch.equal(load_file(folder / "model.safetensors")["classifier.weight"], before)
    with pytest.raises(InputError, match="this run was started with `lr=0.001`, found `lr=0.01`"):
        finetune(replace(config, lr=0.01))


def test_the_head_has_its_own_learning_rate(config: FinetuneConfig, tmp_path: Path) -> None:
    config = replace(config, dev=[], test=[], epochs=1, weight_decay=0.0)
    heads = []
    for number, (head_lr, batch) in enumerate(((1e-12, 200), (1e-12, 400), (None, 200))):
        folder = finetune(replace(config, head_lr=head_lr, batch=batch, output=str(tmp_path / str(number))))
        heads.append(load_file(folder / "model.safetensors")["classifier.weight"])
    torch.testing.assert_close(heads[0], heads[1], atol=1e-8, rtol=0)
    assert not torch.allclose(heads[0], heads[2], atol=1e-5)
