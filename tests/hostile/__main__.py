"""Load every hostile folder, write one JSON line per case to `cases.jsonl`, and print a table.

It runs in a separate process, since a case may crash it. An audit hook records the actions of this process.
"""

import argparse
import faulthandler
import json
import os
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from modernbert import ModernBert
from modernbert.checkpoints.folder import ModelFolder
from modernbert.devices import peak_memory, restart_peak
from modernbert.errors import InputError
from modernbert.model.config import ModelConfig
from modernbert.model.embedding_config import EmbeddingConfig
from modernbert.model.heads import Classifier, MaskedLM
from modernbert.model.initialization import initialize
from modernbert.tasks.task import classifier_task
from modernbert.tokenizer.bpe_training import train_tokenizer

from . import foreign, settings, tokenizers, weights
from .making import Case

CPU = torch.device("cpu")
TEXTS = ["a [MASK] of country 3", "a" * 60 + "!", "x" * 40, "The capital of country 3 is city 21."]
# Audit events that loading a folder never raises. `compile` is not among them, since torch compiles generated code.
FORBIDDEN_EVENTS = ("pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect",
              "socket.getaddrinfo", "builtins.input", "marshal.loads")  # fmt: skip
events: list[str] = []
watched: list[str] = []


def cases() -> list[Case]:
    """Return all cases."""
    return [case for part in (weights, settings, tokenizers, foreign) for case in part.cases()]


def listen(event: str, words: Sequence[Any]) -> None:
    """Record forbidden events, executed code of the folder, and writes to it."""
    if not watched:
        return
    if event in FORBIDDEN_EVENTS and not (event == "marshal.loads" and _is_importing()):
        events.append(f"{event} {words!r:.200}")
    elif event == "exec" and watched[0] in getattr(words[0], "co_filename", ""):
        events.append(f"exec {words[0].co_filename}")
    elif event == "open" and isinstance(words[0], str) and words[0].startswith(watched[0]) and words[2] & os.O_ACCMODE:
        events.append(f"write {words[0]}")


def _is_importing() -> bool:
    frame = sys._getframe()
    while frame is not None:
        if "importlib" in frame.f_code.co_filename:
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


def make_good(root: Path) -> None:
    """Write the good folders."""
    texts = [f"The capital of country {n} is city {n * 7}, in a land of {n % 11} rivers." for n in range(3000)]
    tokenizer = train_tokenizer(texts, 512)
    config = ModelConfig(
        vocab_size=512, hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=1,
        max_position_embeddings=1_000, pad_token_id=tokenizer.pad_id, cls_token_id=tokenizer.cls_id,
        sep_token_id=tokenizer.sep_id,
    )  # fmt: skip
    for name in ("plain", "late", "classifier"):
        torch.manual_seed(0)
        spec = classifier_task("classify").head_spec
        model = Classifier(config, spec, ["yes", "no"]) if name == "classifier" else MaskedLM(config)
        if name != "classifier":
            initialize(model, config, seed=0)
        vectors = (
            EmbeddingConfig(pooling="tokens", query_length=16, expand_queries=True)
            if name == "late"
            else EmbeddingConfig()
        )
        projection = torch.nn.Linear(64, 8, bias=False) if name == "late" else None
        ModelFolder.save(root / name, model.eval(), tokenizer, 1_000, vectors=vectors, projection=projection)
    sizes = dict(vocab_size=512, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2)
    bert = transformers.BertConfig(**sizes, max_position_embeddings=300, pad_token_id=tokenizer.pad_id)
    transformers.BertModel(bert).save_pretrained(root / "bert")
    tokenizer.save_folder(root / "bert", 300)


def use(folder: Path) -> list[np.ndarray]:
    """Load a folder and return all its outputs."""
    bert = ModernBert.load(folder, device="cpu", dtype="float32", engine="torch")
    found = [np.concatenate(bert.embed_tokens(TEXTS)), bert.embed(TEXTS)]
    # Vectors of a model with labels are not compared.
    compared = () if isinstance(bert.model, Classifier) else (bert.embed_queries, bert.embed_documents)
    for embed in compared:
        found.append(np.concatenate([np.atleast_2d(each) for each in embed(TEXTS).vectors]))
    if isinstance(bert.model, MaskedLM):
        found.append(np.array([guess.probability for each in bert.fill_mask(TEXTS[0]) for guess in each]))
    if isinstance(bert.model, Classifier):
        found.append(np.array([[scores["yes"], scores["no"]] for scores in bert.classify(TEXTS)]))
    return found


def try_case(case: Case, root: Path, good: list[np.ndarray]) -> dict[str, Any]:
    """Make a folder, load it, and return the result."""
    folder = root / "tried" / "model"
    shutil.rmtree(folder.parent, ignore_errors=True)
    shutil.copytree(root / case.of, folder)
    case.make(folder)
    before = restart_peak(CPU)
    start, start_cpu = time.monotonic(), time.process_time()
    events.clear()
    watched.append(str(root / "tried"))
    result: dict[str, Any] = {"kind": case.kind, "name": case.name, "says": case.says}
    try:
        found = use(folder)
        # The last bit of a GEMM depends on the alignment of its weights, and so on their file.
        equal = np.allclose if case.kind == "index" else np.array_equal
        same = len(found) == len(good) and all(equal(a, b) for a, b in zip(found, good, strict=True))
        result |= {"outcome": "loaded", "same": same}
    except InputError as error:
        result |= {"outcome": "refused", "message": str(error).replace(str(folder), "MODEL")}
    except BaseException as error:  # the test expects none of these
        result |= {"outcome": "crashed", "message": f"{type(error).__name__}: {error}"[:300]}
    watched.clear()
    return result | {
        "cpu_s": time.process_time() - start_cpu, "wall_s": time.monotonic() - start, "events": list(events),
        "peak_bytes": peak_memory(CPU) - before, "canary": Path(os.environ["CANARY"]).exists(),
        "imported": sorted(name for name in sys.modules if "evil" in name),
    }  # fmt: skip


def try_all(root: Path, only: str) -> Iterator[dict[str, Any]]:
    """Try every case whose kind or name contains a text."""
    os.environ["CANARY"] = str(root / "canary")
    make_good(root)
    good = {name: use(root / name) for name in ("plain", "late", "classifier", "bert")}
    sys.addaudithook(listen)
    for case in cases():
        if only in f"{case.kind}: {case.name}":
            yield try_case(case, root, good[case.of])


def main() -> None:
    """Try the cases, and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default="")
    words = parser.parse_args()
    faulthandler.enable()
    words.out.mkdir(parents=True, exist_ok=True)
    kinds: dict[str, list[dict[str, Any]]] = defaultdict(list)
    with (words.out / "cases.jsonl").open("w") as file:
        for result in try_all(words.out, words.only):
            file.write(json.dumps(result) + "\n")
            file.flush()
            kinds[result["kind"]].append(result)
    print("| kind | folders | refused | harmless | slowest, CPU s | most memory, MB |")
    print("| --- | --- | --- | --- | --- | --- |")
    for kind, some in kinds.items():
        refused = sum(each["outcome"] == "refused" for each in some)
        slowest, most = max(each["cpu_s"] for each in some), max(each["peak_bytes"] for each in some) / 1e6
        print(f"| {kind} | {len(some)} | {refused} | {len(some) - refused} | {slowest:.2f} | {most:.0f} |")


if __name__ == "__main__":
    main()
