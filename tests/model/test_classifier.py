"""Classifiers against the published classes in `transformers`: weights, scores, losses, gradients, folders."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForMultipleChoice,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    ModernBertForTokenClassification,
)

from modernbert.batch import Batch
from modernbert.checkpoints.folder import ModelFolder
from modernbert.errors import InputError
from modernbert.model.config import ModelConfig
from modernbert.model.heads import Classifier, MaskedLM
from modernbert.tasks.examples import Example, batch_of
from modernbert.tasks.head_losses import bce_loss, cross_entropy_loss, mse_loss, multiple_choice_loss
from modernbert.tasks.task import start_classifier

LENGTHS = (3, 140, 17, 1)


def examples(task: str) -> list[Example]:
    rng = np.random.default_rng(0)
    found = []
    for length in LENGTHS:
        tokens = rng.integers(4, 512, length)
        if task == "tag":
            where = np.sort(rng.choice(length, max(1, length // 3), replace=False))
            found.append(Example(tokens, rng.integers(0, 3, len(where)), where))
        else:
            label = {
                "classify": lambda: rng.integers(0, 3, 1),
                "multilabel": lambda: rng.integers(0, 2, (1, 3)).astype(np.float32),
                "regress": lambda: rng.normal(size=1).astype(np.float32),
            }[task]()
            found.append(Example(tokens, label))
    return found


def padded(task: str, items: list[Example]) -> dict[str, Tensor]:
    """Return the same examples in the format of transformers."""
    ids = torch.full((len(items), max(LENGTHS)), 3)
    mask = torch.zeros_like(ids)
    labels: Tensor = torch.full(ids.shape, -100)
    for number, item in enumerate(items):
        ids[number, : len(item.tokens)] = torch.from_numpy(item.tokens)
        mask[number, : len(item.tokens)] = 1
        if item.label_positions is not None:
            labels[number, item.label_positions] = torch.from_numpy(item.labels)
    if task != "tag":
        labels = torch.from_numpy(np.concatenate([item.labels for item in items]))
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def started(small_model: MaskedLM, task: str) -> Classifier:
    return start_classifier(small_model, task, ["score"] if task == "regress" else ["a", "b", "c"], seed=1).eval()


PUBLISHED: dict[str, Any] = {
    "classify": AutoModelForSequenceClassification,
    "multilabel": AutoModelForSequenceClassification,
    "regress": AutoModelForSequenceClassification,
    "tag": AutoModelForTokenClassification,
}


@pytest.mark.parametrize("task", PUBLISHED)
def test_losses_and_gradients_equal_those_of_transformers_on_the_folder_we_write(
    task: str, tmp_path: Path, small_model: MaskedLM
) -> None:
    ours = started(small_model, task)
    ModelFolder.save(tmp_path / "model", ours)
    theirs = PUBLISHED[task].from_pretrained(tmp_path / "model", attn_implementation="eager").eval()
    items = examples(task)
    expected = theirs(**padded(task, items))
    batch = batch_of(items)
    loss = {"regress": mse_loss, "multilabel": bce_loss}.get(task, cross_entropy_loss())
    total, count = loss(ours, batch)
    assert abs(float(total.detach() / count) - float(expected.loss.detach())) < 1e-5
    (total / count).backward()
    expected.loss.backward()
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None, name
        torch.testing.assert_close(
            parameter.grad, gradients[name], atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n} {m}"
        )
    if task != "tag":
        torch.testing.assert_close(ours(batch), expected.logits, atol=1e-5, rtol=0)


def test_losses_of_choices_equal_those_of_transformers(tmp_path: Path, small_model: MaskedLM) -> None:
    """Three questions of four choices each, padded for transformers and concatenated."""
    ours = start_classifier(small_model, "choose", ["score"], seed=1).eval()
    ModelFolder.save(tmp_path / "model", ours)
    theirs = AutoModelForMultipleChoice.from_pretrained(tmp_path / "model", attn_implementation="eager").eval()
    rng = np.random.default_rng(0)
    items, ids, mask = [], torch.full((3, 4, 80), 3), torch.zeros((3, 4, 80), dtype=torch.int64)
    right = torch.tensor([2, 0, 3])
    for question in range(3):
        documents = [rng.integers(4, 512, int(length)) for length in rng.integers(3, 80, 4)]
        labels = np.array([[question + 10, int(place == right[question])] for place in range(4)])
        items.append(Example(np.concatenate(documents), labels, lengths=tuple(map(len, documents))))
        for place, document in enumerate(documents):
            ids[question, place, : len(document)] = torch.from_numpy(document)
            mask[question, place, : len(document)] = 1
    expected = theirs(input_ids=ids, attention_mask=mask, labels=right)
    total, count = multiple_choice_loss(ours, batch_of(items))
    assert count == 3
    assert float(total.detach() / count) == pytest.approx(float(expected.loss.detach()), abs=1e-5)
    again = ModelFolder(tmp_path / "model").load_model()
    assert isinstance(again, Classifier) and again.task == "choose"


@pytest.mark.parametrize("kind", [ModernBertForSequenceClassification, ModernBertForTokenClassification])
@pytest.mark.parametrize("pooling", ["cls", "mean", None])
def test_folders_of_transformers_load_and_come_back_byte_for_byte(
    kind: Any, pooling: str | None, tmp_path: Path
) -> None:
    shape = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=2, vocab_size=512,
                 pad_token_id=3, bos_token_id=1, cls_token_id=1, eos_token_id=2, sep_token_id=2)  # fmt: skip
    names = {0: "no", 1: "maybe", 2: "yes"}
    config = ModernBertConfig(
        **shape, **({"classifier_pooling": pooling} if pooling else {}), id2label=names,
        label2id={v: k for k, v in names.items()},
    )  # fmt: skip
    theirs = kind(config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    if kind is ModernBertForTokenClassification and pooling == "mean":  # which tells nothing of tokens
        path = tmp_path / "theirs" / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "problem_type": "single_label_classification"}))
    if pooling is None:  # what nobody says is the library's default
        path = tmp_path / "theirs" / "config.json"
        said = json.loads(path.read_text())
        del said["classifier_pooling"]
        path.write_text(json.dumps(said))
    ours = ModelFolder(tmp_path / "theirs").load_model()
    assert isinstance(ours, Classifier) and ours.labels == ("no", "maybe", "yes")
    tokens = torch.arange(150).remainder(512)
    with torch.no_grad():
        found = ours(Batch.from_documents([tokens.numpy()]))
        torch.testing.assert_close(found, theirs(tokens[None]).logits.flatten(0, -2), atol=1e-5, rtol=0)
    ModelFolder.save(tmp_path / "ours", ours)
    files = [tmp_path / name / "model.safetensors" for name in ("theirs", "ours")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_class_weight_counts_an_error_as_often(small_model: MaskedLM) -> None:
    """The weighted mean equals the mean of repeated rows."""
    model = started(small_model, "classify")
    items = examples("classify")
    repeated = [item for item in items for _ in range([1, 2, 3][int(item.labels[0])])]
    total, count = cross_entropy_loss(torch.tensor([1.0, 2.0, 3.0]))(model, batch_of(items))
    plain, number = cross_entropy_loss()(model, batch_of(repeated))
    assert float(total.detach()) == pytest.approx(float(plain.detach()), rel=1e-5) and float(count) == number


def test_the_classifier_is_new_unless_labels_and_task_are_the_same(
    small_model: MaskedLM, small_config: ModelConfig
) -> None:
    first = started(small_model, "classify")
    again = start_classifier(first, "classify", ["a", "b", "c"], seed=2)
    other = start_classifier(first, "classify", ["a", "b", "d"], seed=2)
    assert torch.equal(again.classifier.weight, first.classifier.weight)
    assert not torch.equal(other.classifier.weight, first.classifier.weight)
    assert torch.equal(other.head.dense.weight, small_model.head.dense.weight)
    assert 0.5 < float(other.classifier.weight.detach().std() * small_config.hidden_size**0.5) < 1.1


def test_a_folder_whose_labels_do_not_fit_its_weights_is_refused(tmp_path: Path, small_model: MaskedLM) -> None:
    ModelFolder.save(tmp_path / "model", started(small_model, "classify"))
    path = tmp_path / "model" / "config.json"
    path.write_text(path.read_text().replace('"2": "c"', '"3": "c"'))
    with pytest.raises(InputError, match="config.json: id2label"):
        ModelFolder(tmp_path / "model").load_model()
    path.write_text(json.dumps({**json.loads(path.read_text()), "id2label": {"0": "a", "1": "b", "2": "a"}}))
    with pytest.raises(InputError, match="config.json: id2label has 'a' twice, expected different labels"):
        ModelFolder(tmp_path / "model").load_model()
    path.write_text(json.dumps({**json.loads(path.read_text()), "id2label": [1]}))
    with pytest.raises(InputError, match="config.json: id2label"):
        ModelFolder(tmp_path / "model").load_model()


@pytest.mark.parametrize("name", ["classifier.bias", "head.dense.weight", "head.norm.weight"])
def test_a_folder_of_labels_that_lacks_a_part_of_its_head_is_refused(
    name: str, tmp_path: Path, small_model: MaskedLM
) -> None:
    ModelFolder.save(tmp_path / "model", started(small_model, "classify"))
    path = tmp_path / "model" / "model.safetensors"
    save_file({key: tensor for key, tensor in load_file(path).items() if key != name}, path)
    with pytest.raises(InputError, match=f"model: the weights have no {name}, expected it beside classifier.weight"):
        ModelFolder(tmp_path / "model").load_model()
