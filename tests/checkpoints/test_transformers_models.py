"""Models of other families behind the ragged interface: outputs of a text do not depend on its neighbors."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from modernbert import ModernBert
from modernbert.batch import Batch
from modernbert.checkpoints.folder import ModelFolder
from modernbert.checkpoints.transformers_models import (
    FAMILIES as ALL_FAMILIES,
)
from modernbert.checkpoints.transformers_models import (
    family_of,
    load_foreign_classifier,
    load_foreign_encoder,
    load_foreign_model,
    num_positions_of,
)
from modernbert.errors import InputError
from modernbert.model.embedder import Embedder
from modernbert.safe_files import FolderFiles
from modernbert.training.finetuning import FinetuneConfig, finetune
from modernbert.training.finetuning_loop import groups_by_depth

SIZES: dict[str, Any] = dict(
    vocab_size=512, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2, pad_token_id=3,
    hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
)  # fmt: skip
FAMILIES: dict[str, Any] = {
    "bert": transformers.BertConfig(**SIZES, max_position_embeddings=64),
    "roberta": transformers.RobertaConfig(**SIZES, max_position_embeddings=68, type_vocab_size=1),
    "deberta-v2": transformers.DebertaV2Config(**SIZES, max_position_embeddings=64, relative_attention=True,
                                               position_buckets=16, pos_att_type=["p2c", "c2p"]),
}  # fmt: skip
LENGTHS = (3, 40, 1, 17)


@pytest.fixture(params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path: Path, small_bert: ModernBert) -> Path:
    torch.manual_seed(1)
    model = transformers.AutoModel.from_config(FAMILIES[request.param])
    model.save_pretrained(tmp_path / "theirs")
    small_bert.tokenizer.save_folder(tmp_path / "theirs", 64)
    return tmp_path / "theirs"


def documents() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(10, 500, length) for length in LENGTHS]


def test_hidden_states_are_those_of_each_text_alone(folder: Path) -> None:
    ours = load_foreign_encoder(FolderFiles(folder), 3, 2, torch.float32)
    theirs = transformers.AutoModel.from_pretrained(folder).eval()
    batch = Batch.from_documents(documents())
    with torch.no_grad():
        found = ours(batch.tokens, batch.layout).split(list(LENGTHS))
        for rows, document in zip(found, documents(), strict=True):
            alone = theirs(input_ids=torch.from_numpy(document)[None]).last_hidden_state[0]
            torch.testing.assert_close(rows, alone, atol=1e-5, rtol=0)
    assert num_positions_of(FolderFiles(folder)) == 64


def test_scores_of_documents_and_of_words(folder: Path) -> None:
    batch = Batch.from_documents(documents())
    whole = load_foreign_classifier(FolderFiles(folder), "classify", ["a", "b", "c"], 0, 3, 2).eval()
    words = load_foreign_classifier(FolderFiles(folder), "tag", ["O", "B-x"], 0, 3, 2).eval()
    where = torch.tensor([0, 5, 43, 60])
    with torch.no_grad():
        assert whole(batch).shape == (4, 3) and words(batch).shape == (61, 2)
        torch.testing.assert_close(words(replace(batch, label_positions=where)), words(batch)[where])
        alone = whole(Batch.from_documents(documents()[2:3]))
        torch.testing.assert_close(whole(batch)[2:3], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", sorted(ALL_FAMILIES))
def test_scores_of_every_family_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    sizes: dict[str, Any] = SIZES | {"max_position_embeddings": 68, "id2label": {0: "O", 1: "B-x", 2: "I-x"}}
    if family == "distilbert":
        sizes |= {"dim": 64, "hidden_dim": 96, "n_layers": 2, "n_heads": 2}
    if family in ("albert", "mobilebert"):
        sizes |= {"embedding_size": 32, "intra_bottleneck_size": 32}
    for kind, task in (("SequenceClassification", "classify"), ("TokenClassification", "tag")):
        torch.manual_seed(1)
        config = transformers.AutoConfig.for_model(family, **sizes)
        theirs = getattr(transformers, f"AutoModelFor{kind}").from_config(config).eval()
        theirs.save_pretrained(tmp_path / task)
        ours = load_foreign_model(FolderFiles(tmp_path / task), 3, 2, torch.float32)
        rounded = load_foreign_model(FolderFiles(tmp_path / task), 3, 2, torch.bfloat16)
        assert (ours.task, ours.labels, rounded.dtype) == (task, ("O", "B-x", "I-x"), torch.bfloat16)
        batch = Batch.from_documents(documents())
        with torch.no_grad():
            scores = [theirs(input_ids=torch.from_numpy(each)[None]).logits for each in documents()]
            expected = torch.cat(scores) if task == "classify" else torch.cat(scores, dim=1)[0]
            torch.testing.assert_close(ours(batch), expected, atol=1e-5, rtol=0)
            torch.testing.assert_close(rounded(batch), expected, atol=0.02, rtol=0)


def test_a_head_without_one_of_its_tensors_is_refused_and_without_all_of_them_not_loaded(folder: Path) -> None:
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    model.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    of_head = {name for name in weights if not name.startswith(f"{model.base_model_prefix}.")}
    for dropped in ({"classifier.bias", "classifier.out_proj.bias"} & of_head, of_head):
        save_file({name: each for name, each in weights.items() if name not in dropped}, folder / "model.safetensors")
        if dropped == of_head:
            assert ModernBert.load(folder, device="cpu", dtype="float32").embed("a city").shape == (1, 64)
            continue
        with pytest.raises(InputError, match="the weights have no classifier.*bias of the shape"):
            ModernBert.load(folder, device="cpu")


def test_many_texts_come_back_in_their_order_though_short_ones_go_apart_from_long_ones(folder: Path) -> None:
    rng = np.random.default_rng(1)
    lengths = rng.permutation([*[60] * 150, *[2] * 40, *[31] * 30]).tolist()
    batch = Batch.from_documents([rng.integers(10, 500, length) for length in lengths])
    ours = load_foreign_encoder(FolderFiles(folder), 3, 2, torch.float32)
    whole = load_foreign_classifier(FolderFiles(folder), "classify", ["a", "b", "c"], 0, 3, 2).eval()
    words = load_foreign_classifier(FolderFiles(folder), "tag", ["O", "B-x"], 0, 3, 2).eval()
    with torch.no_grad():
        hidden = ours(batch.tokens, batch.layout).split(lengths)
        scores, tags = whole(batch), words(batch).split(lengths)
        for number in (0, 77, 218, 219):
            alone = Batch.from_documents([batch.tokens.split(lengths)[number].numpy()])
            torch.testing.assert_close(hidden[number], ours(alone.tokens, alone.layout), atol=1e-5, rtol=0)
            torch.testing.assert_close(scores[number : number + 1], whole(alone), atol=1e-5, rtol=0)
            torch.testing.assert_close(tags[number], words(alone), atol=1e-5, rtol=0)


def test_a_text_may_be_as_long_as_the_model_takes_whatever_rows_are_rounded_to(tmp_path: Path) -> None:
    config = transformers.BertConfig(**SIZES, max_position_embeddings=61)
    transformers.BertModel(config).save_pretrained(tmp_path / "bert")
    ours = load_foreign_encoder(FolderFiles(tmp_path / "bert"), 3, 2, torch.float32)
    theirs = transformers.AutoModel.from_pretrained(tmp_path / "bert").eval()
    ids = torch.arange(10, 71)
    batch = Batch.from_documents([ids.numpy()])
    with torch.no_grad():
        expected = theirs(input_ids=ids[None]).last_hidden_state[0]
        torch.testing.assert_close(ours(batch.tokens, batch.layout), expected, atol=1e-5, rtol=0)


def test_the_second_text_of_a_pair_has_the_second_type(tmp_path: Path) -> None:
    model = transformers.BertModel(FAMILIES["bert"])
    model.save_pretrained(tmp_path / "bert")
    ours = load_foreign_encoder(FolderFiles(tmp_path / "bert"), 3, 2, torch.float32)
    ids = torch.tensor([1, 7, 8, 2, 9, 9, 2])
    batch = Batch.from_documents([ids.numpy()])
    types = torch.tensor([[0, 0, 0, 0, 1, 1, 1]])
    with torch.no_grad():
        expected = model.eval()(input_ids=ids[None], token_type_ids=types).last_hidden_state[0]
        torch.testing.assert_close(ours(batch.tokens, batch.layout), expected, atol=1e-5, rtol=0)


def test_a_foreign_model_is_tuned_and_loads_in_its_own_library(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    for split in ("train", "dev"):
        texts = [" ".join(rng.choice(["capital", "city", "land"], 5)) for _ in range(120)]
        lines = ["text\tlabel"] + [f"{text}\t{'yes' if 'city' in text else 'no'}" for text in texts]
        (tmp_path / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    config = FinetuneConfig(
        model=str(folder), task="classify", train=[str(tmp_path / "train.tsv")], dev=[str(tmp_path / "dev.tsv")],
        output=str(tmp_path / "run"), epochs=4, batch=8, lr=2e-3, device="cpu", dtype="float32",
    )  # fmt: skip
    model = finetune(config)
    line = "classify: 2 labels, device cpu, dtype float32, engine transformers\n"
    assert line in capsys.readouterr().out
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert scores["dev"]["accuracy"] > 0.85
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(model)
    assert loaded.config.id2label == {0: "no", 1: "yes"}
    assert transformers.AutoTokenizer.from_pretrained(model)("city").input_ids
    bert = ModernBert.load(model, device="cpu", dtype="float32")
    texts = ["a city in the land", "the capital", "land land"]
    together = bert.classify(texts)
    theirs = transformers.pipeline("text-classification", str(model), top_k=None)(texts)
    for text, found, rows in zip(texts, together, theirs, strict=True):
        assert found == pytest.approx({row["label"]: row["score"] for row in rows}, abs=1e-5)
        assert bert.classify(text) == pytest.approx(found, abs=1e-5)
    assert max(together[0], key=together[0].__getitem__) == "yes"
    assert "bert.classify(" in (model / "README.md").read_text()
    with pytest.raises(InputError, match="layer_decay: found 0.9, but .* is a"):
        finetune(replace(config, layer_decay=0.9, output=str(tmp_path / "other")))
    with pytest.raises(InputError, match="max_len: found 65, but .* takes at most 64"):
        finetune(replace(config, max_len=65, output=str(tmp_path / "other")))


def test_every_parameter_of_a_foreign_model_is_in_one_group_and_new_layers_have_their_rate(folder: Path) -> None:
    encoder = load_foreign_encoder(FolderFiles(folder), 3, 2, torch.float32)
    embedder = Embedder(encoder, "mean", torch.nn.Linear(encoder.hidden_size, 4, bias=False))
    classifier = load_foreign_classifier(FolderFiles(folder), "classify", ["a", "b"], 0, 3, 2)
    for model, new in ((embedder, "projection.weight"), (classifier, None)):
        groups = groups_by_depth(model, lr=1e-3, head_lr=1e-2 if new else 1e-3, layer_decay=1.0, weight_decay=0.1)
        scales = [(id(parameter), group["lr_scale"]) for group in groups for parameter in group["params"]]
        assert len(scales) == len(dict(scales)) == len(list(model.parameters()))
        for name, parameter in model.named_parameters():
            assert dict(scales)[id(parameter)] == (pytest.approx(10) if name == new else 1), name


def test_what_is_saved_beside_a_foreign_model_is_its_tokenizer_and_nothing_that_a_link_leads_to(
    folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("a key\n")
    for name in ("vocab.txt", "tokenizer.secret.json"):
        (folder / name).symlink_to(tmp_path / "secret")
    words = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(
        json.dumps(words | {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}})
    )
    ModelFolder.save(tmp_path / "saved", load_foreign_encoder(FolderFiles(folder), 3, 2, torch.float32), source=folder)
    saved = [path.read_text() for path in (tmp_path / "saved").iterdir() if path.suffix != ".safetensors"]
    assert not any("a key" in text or "evil" in text for text in saved)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")("a city").input_ids
    (folder / "tokenizer_config.json").unlink()
    (folder / "tokenizer_config.json").symlink_to(tmp_path / "secret")
    with pytest.raises(InputError, match="tokenizer_config.json: is not readable JSON"):
        ModelFolder.save(
            tmp_path / "again", load_foreign_encoder(FolderFiles(folder), 3, 2, torch.float32), source=folder
        )
    assert not (tmp_path / "again").exists()


def test_a_part_that_is_missing_from_the_encoder_is_never_made_up(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    name = next(each for each in weights if "layer.1" in each)
    save_file({each: tensor for each, tensor in weights.items() if each != name}, folder / "model.safetensors")
    for load in (
        lambda: load_foreign_encoder(FolderFiles(folder), 3, 2, torch.float32),
        lambda: load_foreign_classifier(FolderFiles(folder), "classify", ["a", "b"], 0, 3, 2),
    ):
        with pytest.raises(InputError, match="the weights have no .*layer.1"):
            load()


def test_the_object_embeds_with_a_foreign_model(folder: Path) -> None:
    bert = ModernBert.load(folder, device="cpu", dtype="float32")
    texts = ["The capital of country 3", "a city", "x"]
    together = bert.embed(texts)
    for number, text in enumerate(texts):
        np.testing.assert_allclose(bert.embed(text)[0], together[number], atol=1e-5)
    found = bert.embed_documents(["a city " * 100])
    assert found.num_truncated == 1 and isinstance(found.vectors, np.ndarray)
    with pytest.raises(InputError, match="saved by the library it came from"):
        bert.save(folder.parent / "copy")


def test_a_folder_that_wants_code_of_its_own_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({
        "model_type": "strange", "auto_map": {"AutoModel": "modeling.Strange", "AutoConfig": "modeling.StrangeConfig"},
    }))  # fmt: skip
    (tmp_path / "modeling.py").write_text("raise SystemExit('code of a folder was run')")
    with pytest.raises(InputError, match="model_type: found 'strange', expected one of modernbert, albert, bert"):
        family_of(FolderFiles(tmp_path))
    with pytest.raises(InputError, match="model_type: found 'strange'"):
        ModernBert.load(tmp_path)
