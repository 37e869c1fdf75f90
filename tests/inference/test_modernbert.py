"""`ModernBert`: what users hold, from a folder made with random weights."""

import gzip
import io
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import modernbert
from hub_cache import add_to_cache
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer

from modernbert import Batch, InputError, ModelConfig, ModernBert
from modernbert.checkpoints.folder import ModelFolder
from modernbert.engines.registry import choose_engine
from modernbert.hub_download import at_revision, find_folder, name_on_hub
from modernbert.model.embedding_config import EmbeddingConfig
from modernbert.model.heads import MaskedLM
from modernbert.tasks.task import start_classifier

TEXTS = ["The capital of France is Paris.", "", "x", "def f(a):\n    return a  # naïve ✓", "word " * 150, "x"]


@pytest.fixture(scope="session")
def folder(small_bert: ModernBert, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pipeline") / "model"
    small_bert.save(path)
    return path


@pytest.fixture
def bert(folder: Path) -> ModernBert:
    return ModernBert.load(folder, device="cpu", dtype="float32", engine="torch")


def test_vectors_equal_those_of_transformers(bert: ModernBert, folder: Path) -> None:
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    for number, text in enumerate(TEXTS):
        inputs = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            hidden = model(**inputs).last_hidden_state[0]
        np.testing.assert_allclose(bert.embed(TEXTS, normalize=False)[number], hidden.mean(0), atol=1e-5)
        np.testing.assert_allclose(bert.embed(TEXTS, pooling="cls", normalize=False)[number], hidden[0], atol=1e-5)
        np.testing.assert_allclose(bert.embed_tokens(TEXTS)[number], hidden, atol=1e-5)


def test_what_was_tuned_is_saved_with_the_model(small_bert: ModernBert, tmp_path: Path) -> None:
    """Pooling, prompts, lengths and the linear layer: here and in sentence-transformers the same vectors as before."""
    torch.manual_seed(2)
    vectors = EmbeddingConfig("cls", "ask: ", "know: ", 40, 60)
    tuned = ModernBert(
        small_bert.tokenizer, small_bert.model, vectors=vectors, projection=torch.nn.Linear(64, 32, bias=False)
    )
    tuned.save(tmp_path / "tuned")
    again = ModernBert.load(tmp_path / "tuned", device="cpu", dtype="float32", engine="torch")
    assert again.vectors == vectors
    expected = tuned.embed_queries(TEXTS).vectors
    np.testing.assert_allclose(again.embed_queries(TEXTS).vectors, expected, atol=1e-6)
    theirs = SentenceTransformer(str(tmp_path / "tuned"), device="cpu")
    short = [text for text in TEXTS if len(text) < 100]
    np.testing.assert_allclose(theirs.encode_query(short), tuned.embed_queries(short).vectors, atol=1e-5)
    small_bert.save(tmp_path / "plain")
    assert not (tmp_path / "plain" / "modules.json").exists()


def test_a_text_has_the_same_vector_alone_and_in_any_batch(bert: ModernBert) -> None:
    together = bert.embed(TEXTS)
    for budget in (1, 40, 16_384):
        bert.budget_tokens = budget
        np.testing.assert_allclose(bert.embed(TEXTS), together, atol=1e-5)
    np.testing.assert_allclose(np.concatenate([bert.embed(text) for text in TEXTS]), together, atol=1e-5)
    assert together.dtype == np.float32 and together.shape == (6, 64)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)


def test_options_of_embed(bert: ModernBert) -> None:
    whole = bert.embed(TEXTS, normalize=False)
    short = bert.embed(TEXTS, truncate_dim=16)
    np.testing.assert_allclose(short, whole[:, :16] / np.linalg.norm(whole[:, :16], axis=1, keepdims=True), atol=1e-6)
    np.testing.assert_allclose(bert.embed("b", prompt="a "), bert.embed("a b"), atol=1e-6)
    assert bert.embed([]).shape == (0, 64) and bert.embed_tokens([]) == []


def test_a_text_that_is_too_long_is_named_or_cut_as_asked(bert: ModernBert) -> None:
    long = "word " * 2_000
    with pytest.raises(InputError, match=r"text 1: has [\d,]+ tokens, expected at most 1,000; pass `overf"):
        bert.embed(["short", long])
    (cut,) = bert.embed_tokens([long], overflow="truncate")
    ids = bert.tokenizer.encode([long])[0]
    assert len(cut) == 1_000
    kept = np.append(ids[:999], bert.tokenizer.sep_id)
    batch = Batch.from_documents([kept])
    with torch.no_grad():
        np.testing.assert_allclose(cut, bert.encoder(batch.tokens, batch.layout), atol=1e-5)


def test_fill_mask_gives_the_likeliest_tokens_of_each_mask(bert: ModernBert) -> None:
    text = "The [MASK] of France is [MASK]."
    first, second = bert.fill_mask(text, top_k=3)
    batch = Batch.from_documents(bert.tokenizer.encode([text]))
    assert isinstance(bert.model, MaskedLM)
    with torch.no_grad():
        shares = bert.model(batch).softmax(-1)[(batch.tokens == bert.tokenizer.mask_id).nonzero().flatten()]
    for guesses, expected in zip((first, second), shares, strict=True):
        best = expected.topk(3)
        assert [guess.token for guess in guesses] == best.indices.tolist()
        np.testing.assert_allclose([guess.probability for guess in guesses], best.values, atol=1e-6)
    assert bert.fill_mask([text, text], top_k=3)[1][0][0].token == first[0].token
    with pytest.raises(InputError, match=r"text 1: has no \[MASK\]"):
        bert.fill_mask([text, "none"])


def test_texts_that_are_none(bert: ModernBert) -> None:
    with pytest.raises(InputError, match="pooling: found 'max', expected mean or cls"):
        bert.embed("a", pooling="max")
    with pytest.raises(InputError, match="truncate_dim: found 65, expected 1 to 64"):
        bert.embed("a", truncate_dim=65)


def test_a_tokenizer_that_does_not_fit_and_a_folder_without_the_head(bert: ModernBert, tmp_path: Path) -> None:
    config = ModelConfig(
        **(bert.config.as_dict() | {"vocab_size": 448, "pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2})
    )
    with pytest.raises(InputError, match="tokenizer has 512 entries, which does not fit the model's vocabulary of 448"):
        ModernBert(bert.tokenizer, MaskedLM(config))
    ModelFolder.save(tmp_path / "encoder", bert.encoder, bert.tokenizer, 1_000)
    headless = ModernBert.load(tmp_path / "encoder", device="cpu", dtype="float32", engine="torch")
    np.testing.assert_allclose(headless.embed(TEXTS), bert.embed(TEXTS), atol=1e-6)
    with pytest.raises(InputError, match="encoder: has no masked-LM head, it is an encoder without a head; load a pre"):
        headless.fill_mask("a [MASK]")
    ModelFolder.save(
        tmp_path / "labels", start_classifier(bert.encoder, "classify", ["no", "yes"], 0), bert.tokenizer, 99
    )
    done = modernbert("fill-mask", str(tmp_path / "labels"), "a [MASK]")
    assert "labels: has no masked-LM head, it is fine-tuned for classify; load a pretrained model" in done.stderr


def test_a_name_instead_of_a_tokenizer_and_a_model_is_answered_with_the_call_that_takes_it() -> None:
    program = "from modernbert import ModernBert; ModernBert('owner/name')"  # without the type checks of the tests
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "model: found none, expected one; ModernBert.load('owner/name') loads a folder" in done.stderr


def test_bfloat16_stays_near_float32(bert: ModernBert, folder: Path) -> None:
    half = ModernBert.load(folder, device="cpu", dtype="bfloat16", engine="torch")
    cosines = (half.embed(TEXTS) * bert.embed(TEXTS)).sum(axis=1)
    assert cosines.min() > 0.999


def test_command_line_embeds_and_fills(bert: ModernBert, folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    done = modernbert(
        "embed", str(folder), "--input", str(file), "--dtype", "float32", "--output", str(tmp_path / "v.npy")
    )
    assert done.returncode == 0, done.stderr
    best = choose_engine("auto", torch.device("cpu"), torch.float32, bert.config)
    assert f"engine {best.name}" in done.stderr
    np.testing.assert_allclose(np.load(io.BytesIO((tmp_path / "v.npy").read_bytes())), bert.embed(TEXTS), atol=1e-5)
    done = modernbert("fill-mask", str(folder), "--json", "--dtype", "float32", given="The [MASK] of France.\n")
    (line,) = done.stdout.splitlines()
    assert json.loads(line)["masks"][0][0]["token"] == bert.fill_mask("The [MASK] of France.")[0][0].token  # type: ignore[union-attr]


def test_a_line_ends_at_a_line_feed_and_nowhere_else(bert: ModernBert, folder: Path, tmp_path: Path) -> None:
    texts = ["a\x0cb", "c\u2028d", "e\x85"]
    (tmp_path / "t.txt").write_bytes("\r\n".join(texts).encode())
    with gzip.open(tmp_path / "t.jsonl.gz", "wt") as file:
        file.writelines(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    for name in ("t.txt", "t.jsonl.gz"):
        done = modernbert(
            "embed", str(folder), "--input", str(tmp_path / name), "--device", "cpu", "--dtype", "float32"
        )
        assert done.returncode == 0, done.stderr
        found = np.array([json.loads(line) for line in done.stdout.splitlines()])
        np.testing.assert_allclose(found, bert.embed(texts), atol=1e-5)


def test_any_iterable_of_texts_and_nothing_else(bert: ModernBert) -> None:
    np.testing.assert_allclose(bert.embed(text for text in TEXTS), bert.embed(TEXTS), atol=1e-6)
    np.testing.assert_allclose(bert.embed(np.array(TEXTS)), bert.embed(TEXTS), atol=1e-6)


def test_a_text_is_one_text_however_it_is_asked_for(bert: ModernBert) -> None:
    for ask in (bert.embed_queries, bert.embed_documents):
        (one,) = ask("a text").vectors
        np.testing.assert_allclose(one, bert.embed("a text")[0], atol=1e-5)
        several = ask(text for text in TEXTS[:3]).vectors
        np.testing.assert_allclose(several, bert.embed(TEXTS[:3]), atol=1e-5)


WRONG = {
    "bert.embed_queries(None)": "texts: found NoneType, expected a text or several",
    "bert.embed_documents(5)": "texts: found int, expected a text or several",
    "bert.embed_documents([None])": "text 0: found NoneType, expected str",
    "bert.embed_queries(b'ab')": "texts: found bytes, expected a text or several",
    "bert.embed({'a': 'b'})": "texts: found dict, expected a text or several",
    "bert.embed([('a', 'b')])": "text 0: found tuple, expected str",
    "bert.embed([{'text': 'a'}])": "text 0: found dict, expected str",
    "bert.embed(pyarrow.table({'a': ['x']}))": "texts: found Table, expected a text or several; pass one of its "
    "columns, as texts[NAME] with NAME one of 'a'",
    "bert.tag(pyarrow.record_batch({'a': ['x']}))": "texts: found RecordBatch, expected a text or several",
    "bert.tokenizer.encode({'a': ['x']})": "texts: found dict, expected a text or several",
    "bert.embed(numpy.array('a'))": "texts: found ndarray, expected a text or several",
    "bert.embed(numpy.array([['a']]))": "text 0: found ndarray, expected str",
    "bert.embed(['a'] * 139 + [3])": "text 139: found int, expected str",
    "bert.similarity([5], ['a'])": "text 0: found int, expected str",
    "bert.rerank(None, ['a'])": "query: found NoneType, expected str",
    "bert.rerank(['a'], ['a'])": "query: found list, expected str",
    "bert.tag([('a', 'b')])": "text 0: found tuple, expected str",
    "bert.classify(None)": "texts: found NoneType, expected a text or several",
    "bert.classify(5)": "texts: found int, expected a text or several",
    "bert.embed('a', prompt=5)": "prompt: found int, expected str",
    "bert.embed('a', truncate_dim=1.5)": "truncate_dim: found 1.5, expected 1 to 64",
    "bert.embed('a', truncate_dim=True)": "truncate_dim: found True, expected 1 to 64",
    "bert.rerank('a', ['a'], top_k=1.5)": "top_k: found 1.5, expected at least 1",
    "bert.fill_mask('[MASK]', 1.5)": "top_k: found 1.5, expected 1 to 512",
    "bert.fill_mask('[MASK]' + 'a ' * 2000)": "expected at most 1,000; a text with masks is not cut",
    "ModernBert.load(None)": "model: found None, expected a folder or the name of a model on the hub",
    "ModernBert.load('')": "model: found '', expected a folder or the name of a model on the hub",
    "ModernBert.load('x' * 5000)": "x ... (5,000 characters): no such folder, and not a name on the hub",
    "ModernBert.load(folder, device=None)": "device: found None, expected auto, cpu, cuda or cuda:N",
    "ModernBert.load(folder, dtype='foo')": "dtype: found 'foo', expected auto, float32, bfloat16 or int8",
}


def test_what_is_no_text_or_number_is_one_line(folder: Path) -> None:
    """In a new process, where no types are checked."""
    script = (
        "import numpy, pyarrow, sys; from modernbert import InputError, ModernBert; folder = sys.argv[1]\n"
        "bert = ModernBert.load(folder, device='cpu')\n"
        "for call in sys.argv[2:]:\n"
        "    try: print(eval(call))\n"
        "    except Exception as error: print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(folder), *WRONG], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for said, (call, expected) in zip(done.stdout.splitlines(), WRONG.items(), strict=True):
        assert said.startswith("InputError ") and expected in said, call


def catches(process: int, number: int) -> bool:
    """Say whether a process has come so far as to handle a signal itself."""
    (mask,) = re.findall(r"SigCgt:\s*(\w+)", Path(f"/proc/{process}/status").read_text())
    return bool(int(mask, 16) >> (number - 1) & 1)


def ticks(process: int) -> int:
    """Return the processor time a process has used."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_a_reader_that_leaves_and_a_request_to_end(folder: Path) -> None:
    command = f"yes word | head -2000 | {sys.executable} -m modernbert embed {folder} 2>&1 | head -1"
    done = subprocess.run(["bash", "-c", f"{command}; echo ${{PIPESTATUS[2]}}"], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "0" and "Traceback" not in done.stdout + done.stderr
    command = (
        f"{sys.executable} -m modernbert fill-mask {folder} --top-k 512 $(yes [MASK] | head -30) 2>/dev/null | true"
    )
    done = subprocess.run(["bash", "-c", f"{command}; echo ${{PIPESTATUS[0]}}"], capture_output=True, text=True)
    assert done.stdout == "0\n" and "Traceback" not in done.stderr
    for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        waiting = subprocess.Popen(
            [sys.executable, "-m", "modernbert", "embed", str(folder)],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        while not catches(waiting.pid, signal.SIGTERM):
            time.sleep(0.05)
        # Python may lose an interrupt in the middle of an import, so wait until there is nothing left to compute.
        worked = -1
        while worked != (worked := ticks(waiting.pid)):
            time.sleep(1)
        waiting.send_signal(number)
        _, errors = waiting.communicate(timeout=60)
        assert waiting.returncode == status, errors
        assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["embed", "/absent", "a"], "/absent: no such folder"),
        (["embed", "", "a"], "MODEL: found '', expected a folder"),
        (["embed", "x" * 5_000, "a"], "x ... (5,000 characters): no such folder"),
        (["embed", "{folder}", "a", "--dtype", "foo"], "dtype: found 'foo'"),
        (
            ["embed", "{folder}", "a", "--output", "v.txt"],
            "v.txt: expected a name that ends in .npy, .jsonl, .parquet or .lance",
        ),
        (["embed", "{folder}", "--input", "/absent.txt"], "/absent.txt: cannot be read"),
        (["fill-mask", "{folder}", "no mask here"], "has no [MASK]"),
        (["embed", "{folder}", "a", "--device", "cuda:7"], "device: found 'cuda:7'"),
        (["embed", "{folder}", "a", "--engine", "flash"], "flash needs a CUDA device"),
        (["pretrain", "--config", "/absent.yaml"], "/absent.yaml: no such config file"),
    ],
)
def test_what_a_user_can_mend_is_one_line_and_status_2(words: list[str], message: str, folder: Path) -> None:
    done = modernbert(*[word.format(folder=folder) for word in words])
    assert done.returncode == 2, done.stderr
    assert message in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_model_of_the_hub_is_found_in_its_cache_and_its_commit_is_said(
    tmp_path: Path, small_bert: ModernBert, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The folders the hub's client leaves behind, of a model that was downloaded before."""
    caplog.set_level("INFO")
    folder = add_to_cache(tmp_path, "owner/name", small_bert.save)
    commit = folder.name
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert find_folder("owner/name", offline=True) == folder
    assert find_folder("owner/name", offline=True).name == commit
    assert caplog.messages == [f"owner/name: main is commit {commit}"]
    caplog.clear()
    assert find_folder("owner/name", commit, offline=True).name == commit
    assert not caplog.messages
    bert = ModernBert.load("owner/name", revision=commit, offline=True, device="cpu", dtype="float32")
    np.testing.assert_allclose(bert.embed("a"), small_bert.embed("a"), atol=1e-5)
    with pytest.raises(
        InputError,
        match=r"owner/other: no such folder, no earlier download, and the Hub cannot be reached \(offline=True\)",
    ):
        find_folder("owner/other", offline=True)
    older = "89abcdef0123456789abcdef0123456789abcdef"
    (folder.parent / older).mkdir()
    (folder.parents[1] / "refs" / "v1").write_text(older)
    assert find_folder("owner/name@v1", offline=True) == find_folder("owner/name", "v1", offline=True)
    assert find_folder("owner/name@v1", offline=True).name == older
    assert caplog.messages == [f"owner/name: v1 is commit {older}"]
    assert name_on_hub("owner/name@v1") == "owner/name" and at_revision("owner/name", "v1") == "owner/name@v1"
    with pytest.raises(InputError, match="owner/name@v2: no such folder, no earlier download"):
        find_folder("owner/name", "v2", offline=True)
    with pytest.raises(InputError, match="revision: found 'v1', but .* is a folder"):
        find_folder(folder, "v1")
    monkeypatch.chdir(tmp_path)
    for name, revision, message in (
        ("models--owner--name/refs@v1", None, "revision: found 'v1', but models--owner--name/refs is a folder"),
        ("owner/name@v1", "v2", "revision: found 'v2', but owner/name@v1 has one"),
        ("owner/name", "../main", "revision: found '../main', expected a commit, tag or branch"),
        ("owner/name@", None, "revision: found '', expected a commit, tag or branch"),
    ):
        with pytest.raises(InputError, match=message):
            find_folder(name, revision, offline=True)
        with pytest.raises(InputError, match="revision: found"):
            at_revision(name.partition("@")[0] if revision is None else name, revision or "")


def test_the_public_names_of_a_model_are_its_documented_ones(small_bert: ModernBert) -> None:
    calls = "load save on embed embed_queries embed_documents embed_tokens similarity rerank classify tag fill_mask"
    facts = "config device dtype width vector_width is_late reads_pairs answers prompts default_prompt"
    parts = "tokenizer model encoder vectors projection origin query_template document_template"
    limits = "count_tokens max_length budget_tokens"
    found = {name for name in dir(small_bert) if not name.startswith("_")}
    assert found == set(f"{calls} {facts} {parts} {limits}".split())


def test_a_model_and_its_tokenizer_print_as_one_line(small_bert: ModernBert) -> None:
    shape = "fill-mask, 4 layers, width 64, max_length 1,000"
    assert repr(small_bert) == f"ModernBert(in memory: {shape}, float32 on cpu, engine torch)"
    assert repr(small_bert.tokenizer) == "Tokenizer(tokenizer: 512 entries)"
