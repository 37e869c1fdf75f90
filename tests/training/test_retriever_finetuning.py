"""Tuning for retrieval: losses beside their formulas, cached gradients beside plain ones, folders others load."""

import json
import shutil
import string
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import zstandard
from safetensors.torch import save_file
from torch import Tensor

from modernbert import ModernBert
from modernbert.batch import batch_by_size
from modernbert.checkpoints.folder import ModelFolder
from modernbert.config_files import nested, read_yaml, resolve
from modernbert.data.beir import read_texts
from modernbert.data.hard_negatives import hard_negatives
from modernbert.data.rows import Row
from modernbert.errors import InputError
from modernbert.evaluation.evaluate_retrieval import RetrievalConfig
from modernbert.evaluation.evaluate_retrieval import run as evaluate
from modernbert.evaluation.retrieval_eval import rank_by_model, rank_by_words
from modernbert.model.embedder import Embedder
from modernbert.model.embedding_config import EmbeddingConfig
from modernbert.model.heads import MaskedLM
from modernbert.tasks.retrieval_examples import RetrievalExample, examples_of_ids, examples_of_rows, step_of
from modernbert.tasks.task import retrieval_task
from modernbert.tokenizer.input_templates import EncodedText, InputTemplate, collate_texts
from modernbert.training import retriever_inputs
from modernbert.training.command_options import schema_of
from modernbert.training.distributed import Objective
from modernbert.training.losses import info_nce
from modernbert.training.optimizers import StableAdamW, parameter_groups
from modernbert.training.retrieval_losses import Comparison, RetrievalLoss, kl_distillation
from modernbert.training.retriever_finetuning import RetrieverConfig, finetune_retriever
from modernbert.training.training_loop import derive_seed, train_step

CPU = torch.device("cpu")
CONFIGS = Path(__file__).parents[2] / "modernbert" / "configs" / "finetune"


def texts(number: int, seed: int, late: bool) -> list[EncodedText]:
    rng = np.random.default_rng(seed)
    found = []
    for length in rng.integers(2, 40, number):
        where = np.sort(rng.choice(length, max(1, int(length) // 2), replace=False)) if late else None
        found.append(EncodedText(rng.integers(4, 512, length), where))
    return found


def embedder(small_model: MaskedLM, late: bool) -> Embedder:
    projection = torch.nn.Linear(128, 32, bias=False) if late else None
    small_model.model.set_dropout(0.1)
    return Embedder(small_model.model, "tokens" if late else "mean", projection)


def comparison(items: list[EncodedText], late: bool, with_teacher: bool) -> Comparison:
    rng = np.random.default_rng(5)
    lengths = [each.num_rows if late else 1 for each in items]
    known = torch.zeros(6, 18, dtype=torch.bool)
    known[0, 3] = known[2, 9] = True
    if not with_teacher:
        return Comparison(6, lengths, known)
    candidates = [[n, 6 + 2 * n, 7 + 2 * n] for n in range(6)]
    return Comparison(6, lengths, None, candidates, [rng.normal(size=3).astype(np.float32) for _ in range(6)])


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("with_teacher", [False, True])
def test_cached_gradients_equal_plain_ones(late: bool, with_teacher: bool, small_model: MaskedLM) -> None:
    """Without dropout, micro-batches of any size give one loss and one gradient; with it, one mask for both passes."""
    model = embedder(small_model, late)
    model.model.set_dropout(0.0)
    items = texts(24, 3, late)
    found = []
    for budget in (10_000, 100, 1):
        loss = RetrievalLoss(0.05)
        parts = [collate_texts(group) for group in batch_by_size(items, budget, lambda each: len(each.tokens))]
        batches = list(
            loss.micro_batches(
                Objective(model, loss),
                parts,
                comparison(items, late, with_teacher),
                step_seed=1,
                device=CPU,
                dtype=torch.float32,
            )
        )
        assert len(batches) == {10_000: 1, 1: 24}.get(budget, len(batches))
        optimizer = StableAdamW(parameter_groups(model, 0.0), lr=1e-9)
        result = train_step(Objective(model, loss), batches, optimizer, 0.0, seed=1, device=CPU, dtype=torch.float32)
        found.append((result, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}))
    (plain, gradients), *others = found
    assert plain.num_rows == 6 and plain.grad_norm > 0
    for result, cached in others:
        assert (result.num_rows, result.num_tokens) == (plain.num_rows, plain.num_tokens)
        assert result.loss == pytest.approx(plain.loss, abs=1e-5)
        for name, gradient in gradients.items():
            torch.testing.assert_close(cached[name], gradient, atol=1e-5, rtol=1e-4)


def test_dropout_is_the_same_when_a_micro_batch_comes_again(small_model: MaskedLM) -> None:
    """What the loss asked of the vectors is asked of the very vectors it saw."""
    model = embedder(small_model, False)
    items = texts(24, 3, False)
    loss = RetrievalLoss(0.05)
    parts = [collate_texts(group) for group in batch_by_size(items, 100, lambda each: len(each.tokens))]
    seen: list[Tensor] = []
    compare = loss.compare
    loss.compare = lambda vectors, what: (seen.append(vectors), compare(vectors, what))[1]  # type: ignore[method-assign]
    batches = list(
        loss.micro_batches(
            Objective(model, loss), parts, comparison(items, False, False), step_seed=1, device=CPU, dtype=torch.float32
        )
    )
    again = []
    for number, batch in enumerate(batches):
        torch.manual_seed(derive_seed(1, number))
        again.append(model(batch).detach())
    torch.testing.assert_close(torch.cat(again), seen[0].detach(), atol=0, rtol=0)


def test_telling_apart_is_the_ranking_loss_of_sentence_transformers(small_model: MaskedLM) -> None:
    """MultipleNegativesRankingLoss by its documentation: cross entropy of cosine times scale, the positive in place."""
    model = embedder(small_model, False).eval()
    items = texts(24, 3, False)
    vectors = model(collate_texts(items)).detach()
    total, count = RetrievalLoss(0.05).compare(vectors, Comparison(6, [1] * 24))
    cosine = F.cosine_similarity(vectors[:6, None], vectors[None, 6:], dim=-1)
    expected = F.cross_entropy(cosine * 20.0, torch.arange(6))
    assert float(total / count) == pytest.approx(float(expected), abs=1e-5)


def test_late_scores_and_distillation_are_those_of_pylate(small_model: MaskedLM) -> None:
    """By PyLate's formulas on padded tensors: sums of maxima, stretched to 0..1, KL to the teacher's log-softmax."""
    model = embedder(small_model, True).eval()
    items = texts(24, 3, True)
    vectors = model(collate_texts(items)).detach()
    what = comparison(items, True, True)
    assert what.candidates is not None and what.teacher is not None
    rows = list(vectors.split(list(what.lengths)))
    scores = torch.tensor(
        [[(q @ rows[6 + n].T).amax(dim=1).sum() for n in own] for q, own in zip(rows, what.candidates, strict=False)]
    )
    low, high = scores.amin(1, keepdim=True), scores.amax(1, keepdim=True)
    stretched = (scores - low) / (high - low + 1e-8)
    teacher = torch.from_numpy(np.stack(what.teacher))
    expected = F.kl_div(stretched.log_softmax(-1), teacher.log_softmax(-1), reduction="batchmean", log_target=True)
    total, count = RetrievalLoss(1.0).compare(vectors, what)
    assert float(total / count) == pytest.approx(float(expected), abs=1e-5)


def test_an_answer_of_another_question_that_fits_is_no_negative() -> None:
    examples = [
        RetrievalExample("q", "a", ["x"], positives=frozenset({"a", "b"})),
        RetrievalExample("r", "b", positives=frozenset({"b"})),
        RetrievalExample("s", "a", positives=frozenset({"a"})),
    ]
    passages, candidates, known = step_of(examples)
    assert passages == ["a", "b", "a", "x"] and candidates == [[0, 3], [1], [2]]
    assert known == [(0, 1), (0, 2), (2, 0)]
    scores = torch.tensor([[1.0, 9.0, 9.0, 0.0], [0.0, 2.0, 1.0, 1.0], [9.0, 1.0, 3.0, 2.0]])
    fits = torch.zeros(3, 4, dtype=torch.bool)
    for example, passage in known:
        fits[example, passage] = True
    total, count = info_nce(scores, fits)
    by_hand = [scores[0, [0, 3]], scores[1, [1, 0, 2, 3]], scores[2, [2, 1, 3]]]
    assert count == 3
    assert float(total) == pytest.approx(sum(float(row.logsumexp(0) - row[0]) for row in by_hand), rel=1e-6)


def test_a_query_asked_twice_keeps_the_answers_of_both(config: RetrieverConfig, tmp_path: Path) -> None:
    """Under two ids of one collection, and in another source: what is judged to fit is nobody's negative."""
    folder = tmp_path / "twice"
    (folder / "qrels").mkdir(parents=True)
    documents = {"d0": "w1 w2 w3", "d1": "w1 w2 w4", "d2": "w1 w2 w5", "d3": "w1 w6", "d4": "w7"}
    queries = {"q0": "w1 w2", "q1": "w1 w2"}
    for name, texts in (("corpus", documents), ("queries", queries)):
        lines = [json.dumps({"_id": key, "text": text}) for key, text in texts.items()]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\nq0\td0\t1\nq1\td1\t1\n")
    (tmp_path / "more.jsonl").write_text(json.dumps({"query": "w1 w2", "positive": documents["d2"]}) + "\n")
    train = [str(folder), str(tmp_path / "more.jsonl")]
    examples = retriever_inputs._examples(replace(config, train=train, negatives=1), None, torch.device("cpu"))
    assert [each.positive for each in examples] == [documents[key] for key in ("d0", "d1", "d2")]
    assert [each.others for each in examples] == [[documents["d3"]]] * 2 + [[]]
    passages, _, known = step_of(examples)
    assert sorted(known) == [(q, p) for q in range(3) for p in range(3) if q != p], "none of the three is a negative"
    both = [frozenset([documents["d0"]]), frozenset([documents["d1"]])]
    mined = hard_negatives(list(queries.values()), both, list(documents.values()), 2, rank_by_words)
    assert mined == [[documents["d2"], documents["d3"]]] * 2


def test_a_teacher_that_agrees_costs_nothing() -> None:
    scores = torch.tensor([[0.0, 0.25, 1.0]])
    total, _ = kl_distillation(scores, [[0, 1, 2]], [np.array([0.0, 0.25, 1.0], np.float32)], normalize=True)
    assert float(total) == pytest.approx(0.0, abs=1e-6)


def test_forms_mark_fill_up_and_skip(small_bert: ModernBert) -> None:
    tokenizer = small_bert.tokenizer
    form = InputTemplate(12, "[unused0]", expand=True)
    ((laid,), num_truncated) = form.encode(tokenizer, ["city"])
    ids = laid.tokens.tolist()
    assert len(ids) == 12 and num_truncated == 0
    assert ids[:2] == [tokenizer.cls_id, tokenizer.token_to_id("[unused0]")]
    end = ids.index(tokenizer.sep_id)
    assert ids[end + 1 :] == [tokenizer.mask_id] * (11 - end)
    comma = tokenizer.token_to_id(",")
    assert comma is not None
    ((laid,), num_truncated) = InputTemplate(9, skip=frozenset({comma})).encode(tokenizer, ["city, " * 9])
    assert num_truncated == 1 and laid.label_positions is not None
    assert len(laid.tokens) == 9 and comma in laid.tokens and comma not in laid.tokens[laid.label_positions]


@pytest.fixture
def config(tmp_path: Path, small_bert: ModernBert, write_collection: Callable[..., Path]) -> RetrieverConfig:
    small_bert.save(tmp_path / "start")
    folder = str(write_collection(tmp_path / "made-up", num_documents=60, num_queries=40))
    return RetrieverConfig(
        model=str(tmp_path / "start"), task="embed", train=[folder], dev=[folder], test=[folder], dev_split="train",
        output=str(tmp_path / "run"), epochs=8, batch=16, lr=3e-3, negatives=1, device="cpu", dtype="float32",
        engine="torch", dropout=0.0, vectors=EmbeddingConfig(query_length=40, document_length=60),
    )  # fmt: skip


@pytest.mark.parametrize("task", ["embed", "late"])
def test_answers_are_learned_and_the_folder_ranks_as_the_run_did(task: str, config: RetrieverConfig) -> None:
    from modernbert.data.beir import read_collection
    from modernbert.evaluation.retrieval_eval import rank_by_model, score_collection

    config = replace(config, task=task, projection=24 if task == "late" else None)
    collection = read_collection(Path(config.test[0]))
    before = score_collection(collection, rank_by_model(ModernBert.load(config.model, device="cpu", dtype="float32")))
    folder = finetune_retriever(config)
    bert = ModernBert.load(folder, device="cpu", dtype="float32", engine="torch")
    assert bert.is_late == (task == "late") and bert.vectors.document_length == 60
    after = score_collection(collection, rank_by_model(bert))
    scores = json.loads((folder.parent / "scores.json").read_text())
    assert after.ndcg_10 == pytest.approx(scores["test"]["made-up"]["ndcg_10"], abs=1e-6)
    assert after.ndcg_10 > max(0.95, before.ndcg_10 + 0.05)


def test_sentence_transformers_embeds_the_folder_alike(config: RetrieverConfig) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    vectors = replace(config.vectors, query_prompt="city: ", document_prompt="land: ")
    folder = finetune_retriever(replace(config, epochs=1, vectors=vectors))
    theirs = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    ours = ModernBert.load(folder, device="cpu", dtype="float32", engine="torch")
    asked = ["the capital of country 3", "rivers", "a city " * 40]
    np.testing.assert_allclose(theirs.encode_query(asked[:2]), ours.embed_queries(asked[:2]).vectors, atol=1e-5)
    np.testing.assert_allclose(theirs.encode_document(asked), ours.embed_documents(asked).vectors, atol=1e-5)


def test_a_limit_of_the_folder_holds_where_no_length_is_given(config: RetrieverConfig, tmp_path: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    place = Path(config.model) / "tokenizer_config.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | {"model_max_length": 20}))
    folder = finetune_retriever(replace(config, epochs=1, vectors=EmbeddingConfig(query_length=30)))
    ours = ModernBert.load(folder, device="cpu", dtype="float32", engine="torch")
    theirs = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    assert ours.max_length == theirs.max_seq_length == 20
    assert (ours.query_template.max_length, ours.document_template.max_length) == (30, 20)
    long = ["a city " * 40]
    np.testing.assert_allclose(theirs.encode_document(long), ours.embed_documents(long).vectors, atol=1e-5)


def test_sentence_transformers_embeds_tokens_of_the_folder_alike(config: RetrieverConfig) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    if not hasattr(sentence_transformers, "MultiVectorEncoder"):
        pytest.skip("this version has no MultiVectorEncoder")
    vectors = EmbeddingConfig(
        query_prompt="[unused0]", document_prompt="[unused1]", query_length=16, document_length=30,
        expand_queries=True, skip=[",", "."],
    )  # fmt: skip
    folder = finetune_retriever(replace(config, task="late", projection=24, epochs=1, vectors=vectors))
    theirs = sentence_transformers.MultiVectorEncoder(str(folder), device="cpu")
    ours = ModernBert.load(folder, device="cpu", dtype="float32", engine="torch")
    asked = ["the capital, of country 3.", "rivers"]
    for mine, other in (
        (ours.embed_queries(asked).vectors, theirs.encode_query(asked)),
        (ours.embed_documents(asked).vectors, theirs.encode_document(asked)),
    ):
        for a, b in zip(mine, other, strict=True):
            np.testing.assert_allclose(a, np.asarray(b), atol=1e-5)


def test_stanfords_library_would_make_the_same_vectors(config: RetrieverConfig) -> None:
    """What its `HF_ColBERT` and its tokenizers do, written down from their source."""
    transformers = pytest.importorskip("transformers")
    vectors = EmbeddingConfig(
        query_prompt="[unused0] ", document_prompt="[unused1] ", query_length=16, document_length=30,
        expand_queries=True, skip=list(string.punctuation),
    )  # fmt: skip
    config = replace(config, task="late", projection=24, epochs=1, vectors=vectors, stanford=True)
    folder = finetune_retriever(config).parent / "stanford"
    settings = json.loads((folder / "artifact.metadata").read_text())

    class HFColBert(transformers.ModernBertPreTrainedModel):  # type: ignore[misc]
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.linear = torch.nn.Linear(config.hidden_size, settings["dim"], bias=False)
            self.model = transformers.ModernBertModel(config)
            self.post_init()

    theirs, loading = HFColBert.from_pretrained(folder, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    theirs.eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ours = ModernBert.load(config.output + "/model", device="cpu", dtype="float32", engine="torch")
    asked = ["the capital, of country 3.", "rivers"]

    def encode(text: str, mark: str, length: int) -> tuple[list[int], Tensor]:
        ids = tokenizer(". " + text, truncation=True, max_length=length)["input_ids"]
        ids[1] = tokenizer.convert_tokens_to_ids(mark)
        if mark == settings["query_token_id"]:
            ids += [tokenizer.mask_token_id] * (length - len(ids))
        with torch.no_grad():
            hidden = theirs.model(torch.tensor([ids])).last_hidden_state[0]
        return ids, F.normalize(theirs.linear(hidden), dim=-1)

    skipped = {tokenizer.encode(symbol, add_special_tokens=False)[0] for symbol in string.punctuation}
    for text, query, document in zip(
        asked, ours.embed_queries(asked).vectors, ours.embed_documents(asked).vectors, strict=True
    ):
        _, theirs_query = encode(text, settings["query_token_id"], settings["query_maxlen"])
        np.testing.assert_allclose(query, theirs_query.detach().numpy(), atol=1e-5)
        ids, theirs_document = encode(text, settings["doc_token_id"], settings["doc_maxlen"])
        kept = [number for number, token in enumerate(ids) if token not in skipped]
        np.testing.assert_allclose(document, theirs_document[kept].detach().numpy(), atol=1e-5)


@pytest.mark.parametrize("name", ["train", "test"])
def test_a_finished_run_does_not_hide_changed_data(config: RetrieverConfig, tmp_path: Path, name: str) -> None:
    copy = shutil.copytree(getattr(config, name)[0], tmp_path / "copy")
    config = replace(config, epochs=1, **{name: [str(copy)]})
    finetune_retriever(config)
    finetune_retriever(config)
    (path,) = copy.glob("queries.jsonl")
    path.write_text(path.read_text().replace("w1", "w2"))
    with pytest.raises(InputError, match=f"^{name}: {copy} has changed since {config.output} finished"):
        finetune_retriever(config)


def test_a_column_to_ignore_that_no_row_has_is_refused(config: RetrieverConfig, tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text('{"query": "w1", "positive": "w1 w2", "score": 1}\n' * 9)
    config = replace(config, train=[*config.train, str(tmp_path / "pairs.jsonl")])
    with pytest.raises(InputError, match="^ignore_columns: found 'scores', which no row has, .*query, positive, score"):
        finetune_retriever(replace(config, ignore_columns=["scores"]))
    with pytest.raises(InputError, match="^ignore_columns: found 'score', which no row has$"):
        finetune_retriever(replace(config, train=config.dev, ignore_columns=["score"]))
    assert not (tmp_path / "run").exists()


def test_a_folder_keeps_what_it_was_tuned_with(config: RetrieverConfig) -> None:
    folder = finetune_retriever(replace(config, epochs=1, vectors=EmbeddingConfig(query_length=9, document_length=33)))
    assert (
        ModelFolder(folder).embedding_config.query_length == 9
        and ModelFolder(folder).embedding_config.document_length == 33
    )
    scores = json.loads((folder.parent / "scores.json").read_text())
    (row,) = evaluate(RetrievalConfig(str(folder), config.test, device="cpu", dtype="float32"))
    assert row["ndcg_10"] == pytest.approx(scores["test"]["made-up"]["ndcg_10"], abs=1e-6)
    assert row["num_truncated"] == scores["test"]["made-up"]["num_truncated"]
    for name, change, said in (
        ("config_sentence_transformers.json", {"query_length": "9"}, "query_length is '9', expected a number"),
        ("sentence_bert_config.json", {"max_seq_length": 1.5}, "max_seq_length is 1.5, expected a number"),
        ("config_sentence_transformers.json", {"prompts": [1]}, "prompts is list, expected names"),
    ):
        text = (folder / name).read_text()
        (folder / name).write_text(json.dumps(json.loads(text) | change))
        with pytest.raises(InputError, match=f"{name}: {said}"):
            ModernBert.load(folder, device="cpu")
        (folder / name).write_text(text)


def test_a_projection_that_does_not_fit_is_refused_before_anything_is_begun(config: RetrieverConfig) -> None:
    folder = finetune_retriever(replace(config, task="late", projection=24, epochs=1))
    save_file({"linear.weight": torch.zeros(24, 99)}, folder / "1_Dense" / "model.safetensors")
    with pytest.raises(InputError, match=r"linear.weight is \[24, 99\], expected \[any, 64\]"):
        ModernBert.load(folder, device="cpu")
    again = replace(config, model=str(folder), task="late", projection=24, output=config.output + "-again")
    with pytest.raises(InputError, match="linear.weight is"):
        finetune_retriever(again)
    assert not Path(again.output).exists()


def test_an_index_serves_other_queries_and_json_is_written_as_scores_come(
    config: RetrieverConfig, tmp_path: Path, write_collection: Callable[..., Path]
) -> None:
    asked = RetrievalConfig(
        config.model,
        config.test,
        device="cpu",
        dtype="float32",
        index=tmp_path / "kept",
        output=tmp_path / "r.json",
        overwrite=True,
    )
    evaluate(asked)
    with pytest.raises(InputError, match="was made with other dtype"):
        evaluate(replace(asked, dtype="bfloat16"))
    evaluate(replace(asked, query_length=5, query_prompt="find "))
    with pytest.raises(InputError, match="other settings"):
        evaluate(replace(asked, document_prompt="text "))
    broken = write_collection(tmp_path / "broken")
    (tmp_path / "kept" / "broken").write_text("")
    with pytest.raises(InputError, match="broken: cannot be used as an index"):
        evaluate(replace(asked, collections=[*config.test, str(broken)]))
    assert [row["collection"] for row in json.loads((tmp_path / "r.json").read_text())["rows"]] == ["made-up"]
    other = write_collection(tmp_path / "elsewhere" / "made-up", seed=4)
    with pytest.raises(InputError, match="found two folders of one name"):
        evaluate(replace(asked, collections=[*config.test, str(other)]))


def test_packed_queries_are_a_collection_too(config: RetrieverConfig) -> None:
    folder = Path(config.train[0])
    (folder / "queries.jsonl.zst").write_bytes(zstandard.compress((folder / "queries.jsonl").read_bytes()))
    (folder / "queries.jsonl").unlink()
    assert finetune_retriever(replace(config, epochs=1)).is_dir()


def test_a_teacher_is_learned_from_rows(config: RetrieverConfig, tmp_path: Path) -> None:
    rows = [
        {
            "query": f"city {n % 5}",
            "positive": f"land {n}",
            "negatives": [f"rivers {n}", "a country"],
            "scores": [3, 1, 0],
        }
        for n in range(40)
    ]
    (tmp_path / "triples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = replace(
        config, train=[str(tmp_path / "triples.jsonl")], negatives=0, dev=[], dev_split="dev", task="late",
        projection=None,
    )  # fmt: skip
    with pytest.raises(InputError, match="temperature: found 0.5, but scores that are compared with a teacher's"):
        finetune_retriever(replace(config, temperature=0.5))
    finetune_retriever(config)
    log = [json.loads(line) for line in (Path(config.output) / "log.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in log if row["kind"] == "step"]
    assert losses[-1] < 0.5 * losses[0]


def test_a_teachers_ids_mean_the_texts_of_a_folder(config: RetrieverConfig, tmp_path: Path) -> None:
    documents, queries = read_texts(Path(config.train[0]))
    row = {"query_id": "q3", "document_ids": ["d3", "d1", "d2"], "scores": [3.0, 1.0, 0.0]}
    (example,) = examples_of_ids([Row(row, "f:1")], queries, documents, retrieval_task("embed"))
    assert example.query == queries["q3"] and [example.positive, *example.others] == [
        documents[key] for key in row["document_ids"]
    ]
    for change, said in (
        ({"document_ids": ["d3", "x"], "scores": [1, 2]}, "f:1: found the id 'x', which the documents have not"),
        ({"query_id": 7}, "f:1: found the id '7', which the queries have not"),
        ({"document_ids": "d3"}, "f:1: document_ids is 'd3', expected a list"),
        ({"scores": [1, 2]}, "f:1: found 2 scores, expected 3"),
    ):
        with pytest.raises(InputError, match=said):
            examples_of_ids([Row({**row, **change}, "f:1")], queries, documents, retrieval_task("embed"))
    with pytest.raises(InputError, match="f:1: no column 'scores'"):
        examples_of_ids(
            [Row({"query_id": "q3", "document_ids": ["d3", "d1"]}, "f:1")], queries, documents, retrieval_task("embed")
        )
    (tmp_path / "teacher.jsonl").write_text(json.dumps(row) + "\n")
    finetune_retriever(
        replace(
            config, train=[str(tmp_path / "teacher.jsonl")], texts=config.train[0], negatives=0, epochs=1,
            task="late", projection=None,
        )
    )  # fmt: skip


def test_a_model_mines_what_it_finds_nearest(config: RetrieverConfig) -> None:
    bert = ModernBert.load(config.model, device="cpu", dtype="float32", engine="torch")
    documents, queries = (list(each.values()) for each in read_texts(Path(config.train[0])))
    vectors = bert.embed_documents(documents).vectors
    for text, mined in zip(
        queries, hard_negatives(queries, [frozenset()] * len(queries), documents, 2, rank_by_model(bert)), strict=True
    ):
        nearest = np.argsort(-(vectors @ bert.embed_queries([text]).vectors[0]), kind="stable")[:2]
        assert mined == [documents[n] for n in nearest]
    finetune_retriever(replace(config, mined_by=config.model, epochs=1))
    with pytest.raises(InputError, match="mined_by: found a model, but `negatives` is 0"):
        finetune_retriever(replace(config, mined_by=config.model, negatives=0))


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_published_recipe_resolves_and_trains(path: Path, config: RetrieverConfig) -> None:
    given = {key: getattr(config, key) for key in ("model", "output", "device", "train")}
    shorter = {"vectors.query_length": 64, "vectors.document_length": 64, "batch": 16}
    schema = schema_of(read_yaml(path)["task"])
    assert schema is RetrieverConfig
    resolved = resolve(schema, given, path)
    assert resolved.lr in (8e-5, 1e-4) and resolved.warmup == 0.05
    assert finetune_retriever(resolve(schema, nested(given | shorter), path)).is_dir()


@pytest.mark.parametrize(
    "row, said",
    [
        ({"query": "a"}, "f:1: no column 'positive'"),
        ({"query": " ", "positive": "b"}, "f:1: query is empty"),
        ({"query": "a", "positive": "b", "negatives": "c"}, "f:1: negatives is 'c', expected a list"),
        ({"query": "a", "positive": "b", "negatives": ["c"], "scores": [1]}, "f:1: found 1 scores, expected 2"),
        ({"query": "a", "positive": "b", "negatives": ["c"], "scores": [1, float("nan")]}, "f:1: found 2 scores"),
        ({"query": "a", "positive": "b", "scores": [1]}, "f:1: has scores of one passage"),
    ],
)
def test_rows_that_ask_nothing_are_named(row: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        examples_of_rows([Row(row, "f:1")], retrieval_task("embed"))


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"task": "find"}, "task: found 'find', expected choose, classify, embed, extract, late"),
        ({"temperature": -1.0}, "temperature: found -1.0"),
        ({"warmup": 3.0}, "warmup: found 3.0"),
        ({"vectors": EmbeddingConfig(query_length=-5)}, "vectors.query_length: found -5"),
        ({"vectors": EmbeddingConfig(truncate_dim=0)}, "vectors.truncate_dim: found 0, expected at least 1"),
        (
            {"task": "late", "vectors": EmbeddingConfig(truncate_dim=8)},
            "vectors.truncate_dim: found a number, but late",
        ),
        ({"vectors": EmbeddingConfig(document_length=9999)}, "vectors.document_length: found 9,999, but"),
        ({"metric": "accuracy"}, "metric: found 'accuracy'"),
        ({"dev": [], "dev_split": "dev", "patience": 1}, "dev: found no collection"),
        ({"dev": [], "dev_split": "dev", "metric": "mrr_10"}, "dev: found no collection"),
        ({"stanford": True}, "stanford: found true, but embed is no late interaction"),
        ({"task": "late", "stanford": True, "projection": None}, "projection: found None"),
        ({"task": "late", "stanford": True}, "vectors.expand_queries: found false"),
        (
            {"task": "late", "stanford": True, "vectors": EmbeddingConfig(expand_queries=True, query_prompt="[Q]")},
            r"vectors.query_prompt: found '\[Q\]', expected one token and a space",
        ),
        ({"vectors": EmbeddingConfig(pooling="max")}, "vectors.pooling: found 'max'"),
        ({"train": ["nowhere"]}, "nowhere: no such file"),
        ({"train": []}, "train: found none, expected files of rows or folders"),
        ({"test": ["a/sci", "b/sci"]}, "test: found two folders of one name"),
        ({"output": "x" * 300}, "cannot be written .File name too long"),
        ({"dev_split": "dev"}, "dev.tsv: no such file"),
    ],
)
def test_what_cannot_be_learned_from_is_refused_and_nothing_is_written(
    changes: dict[str, Any], said: str, config: RetrieverConfig
) -> None:
    for name, value in changes.items():  # not in the constructor, whose types tests check
        setattr(config, name, value)
    with pytest.raises(InputError, match=said):
        finetune_retriever(config)
    assert "output" in changes or not Path(config.output).exists()


@pytest.mark.parametrize("negatives", [0, 2])
def test_relevant_documents_without_a_text_are_nothing_to_learn_from(negatives: int, config: RetrieverConfig) -> None:
    path = Path(config.train[0]) / "qrels" / "train.tsv"
    path.write_text("query-id\tcorpus-id\tscore\nq0\tempty\t1\n")
    with pytest.raises(InputError, match="made-up: no relevant document of the split 'train' has a text"):
        finetune_retriever(replace(config, negatives=negatives))
    assert not Path(config.output).exists()


def test_what_is_learned_from_and_scored_by_is_said(
    config: RetrieverConfig, capsys: pytest.CaptureFixture[str], write_collection: Callable[..., Path], tmp_path: Path
) -> None:
    """One `qrels.tsv` for all is nobody's split: a model is not tested unknown to anyone on what it was taught."""
    flat, other = write_collection(tmp_path / "flat"), write_collection(tmp_path / "other")
    for folder in (flat, other):
        (folder / "qrels" / "test.tsv").rename(folder / "qrels.tsv")
        shutil.rmtree(folder / "qrels")
    config = replace(config, train=[str(flat)], dev=[], dev_split="dev", test=[], epochs=1)
    for changes, said in (
        ({"test": [str(flat)]}, "test_split: found 'test' and `train_split=train`, but .*qrels.tsv is one"),
        ({"dev": [str(flat)], "dev_split": "dev"}, "dev_split: found 'dev' and `train_split=train`, but"),
        ({"train_split": "mine"}, "flat/qrels.tsv: has one set of judgments, expected the split 'mine'"),
        (
            {"test": [str(other)], "test_split": "heldout"},
            "other/qrels.tsv: has one set of judgments, expected the split",
        ),
    ):
        with pytest.raises(InputError, match=said):
            finetune_retriever(replace(config, **changes))
        assert not Path(config.output).exists()
    capsys.readouterr()
    finetune_retriever(replace(config, dev=[str(other)], dev_split="dev"))
    assert "learned from" not in capsys.readouterr().out
    finetune_retriever(replace(config, output=config.output + "-again", train_split="test", test=[str(flat)]))
    assert "test: " + str(flat / "qrels.tsv") + " is also trained on" in capsys.readouterr().out


def test_a_late_folder_that_hides_tokens_from_one_another_is_refused(config: RetrieverConfig) -> None:
    folder = finetune_retriever(
        replace(config, task="late", epochs=1, vectors=EmbeddingConfig(query_length=16, expand_queries=True))
    )
    path = folder / "config_sentence_transformers.json"
    path.write_text(
        path.read_text().replace('"attend_to_expansion_tokens": true', '"attend_to_expansion_tokens": false')
    )
    assert isinstance(ModelFolder(folder).load_model(), torch.nn.Module)
    with pytest.raises(InputError, match="attend_to_expansion_tokens is false"):
        ModernBert.load(folder)


def test_queries_and_documents_are_cut_at_their_own_lengths(config: RetrieverConfig) -> None:
    shorter = replace(config.vectors, query_length=5, document_length=9)
    inputs = retriever_inputs.open_inputs(replace(config, vectors=shorter), CPU)
    assert max(len(each.tokens) for each in inputs.queries.values()) == 5
    assert max(len(each.tokens) for each in inputs.passages.values()) == 9
