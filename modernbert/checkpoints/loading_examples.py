"""Python code that loads and calls a model folder, for its card: in this package, and in libraries that load it."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modernbert.checkpoints.model_card import ModelFacts

__all__ = ["FOLDER", "examples_of"]

FOLDER = "path/to/model"
"""Placeholder of the folder, which `modernbert push` replaces by the name on the Hub."""

_OURS = """from modernbert import ModernBert

bert = ModernBert.load("path/to/model")
"""
_PIPELINE = """from transformers import pipeline

model = pipeline("{pipeline}", model="path/to/model")
"""
_AUTO = """from transformers import {classes}

model = {auto}.from_pretrained("path/to/model")
"""
_TOKENIZER = """tokenizer = AutoTokenizer.from_pretrained("path/to/model")
"""
_DOCUMENTS = '["Paris is in France.", "Bread is made of flour."]'
_PYLATE = f"""from pylate import models

model = models.ColBERT(model_name_or_path="path/to/model")
queries = model.encode(["Where is Paris?"], is_query=True)
documents = model.encode({_DOCUMENTS}, is_query=False)
"""
_ONNX = """import numpy as np
from onnxruntime import InferenceSession
from tokenizers import Tokenizer

folder = "path/to/model"
tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
session = InferenceSession(f"{folder}/onnx/model.onnx")
found = tokenizer.encode("Paris is in France.")
inputs = {"input_ids": np.array([found.ids]), "attention_mask": np.array([found.attention_mask])}
outputs = session.run(None, inputs)
"""


def examples_of(facts: "ModelFacts") -> dict[str, str]:
    """Return code by the name of the library; the libraries that do not load the folder are left out."""
    if facts.is_onnx:
        return {"ONNX Runtime": _ONNX.rstrip()}
    found = {"modernbert": _ours(facts), "transformers": _transformers(facts)}
    if facts.is_int8:
        return {"modernbert": found["modernbert"].rstrip()}
    if facts.mask is None:
        found = {"transformers": _auto(facts)}
    elif facts.is_late:
        found |= {"sentence-transformers": _encoder("MultiVectorEncoder"), "PyLate": _PYLATE}
        del found["transformers"]  # it would make token vectors without the projection
    elif facts.pipeline == "sentence-similarity":
        similarity = "print(model.similarity(queries, documents))"
        found["sentence-transformers"] = _encoder("SentenceTransformer") + similarity
    elif facts.pipeline == "text-ranking":
        found["sentence-transformers"] = (
            'from sentence_transformers import CrossEncoder\n\nmodel = CrossEncoder("path/to/model")\n'
            f'print(model.rank("Where is Paris?", {_DOCUMENTS}))'
        )
    return {library: code.rstrip() for library, code in found.items() if code}


def _ours(facts: "ModelFacts") -> str:
    """Return a call of this package; nothing for tasks whose answers it does not compute."""
    calls = {
        "fill-mask": f'bert.fill_mask("The capital of France is {facts.mask}.")',
        "feature-extraction": 'bert.embed("Paris is in France.").shape',
        "sentence-similarity": f'bert.similarity(["Where is Paris?"], {_DOCUMENTS})',
        "text-ranking": f'bert.rerank("Where is Paris?", {_DOCUMENTS})',
        "text-classification": f"bert.classify({_text(facts)})",
        "token-classification": 'bert.tag("Paris is in France.")',
    }
    call = calls.get(facts.pipeline)
    return f"{_OURS}print({call})" if call else ""


def _text(facts: "ModelFacts") -> str:
    return '("Paris is in France.", "Where is Paris?")' if facts.reads_pairs else '"Paris is in France."'


def _transformers(facts: "ModelFacts") -> str:
    calls = {
        "fill-mask": f'model("The capital of France is {facts.mask}.")',
        "text-classification": 'model({"text": "Paris is in France.", "text_pair": "Where is Paris?"})'
        if facts.reads_pairs
        else 'model("Paris is in France.")',
        "token-classification": 'model("Paris is in France.")',
    }
    call = calls.get(facts.pipeline)
    return f"{_PIPELINE.format(pipeline=facts.pipeline)}print({call})" if call else _auto(facts)


def _auto(facts: "ModelFacts") -> str:
    auto = f"AutoModelFor{facts.head}" if facts.head else "AutoModel"
    if facts.mask is None:
        return _AUTO.format(classes=auto, auto=auto)
    return _AUTO.format(classes=f"{auto}, AutoTokenizer", auto=auto) + _TOKENIZER


def _encoder(name: str) -> str:
    return (
        f'from sentence_transformers import {name}\n\nmodel = {name}("path/to/model")\n'
        f'queries = model.encode_query(["Where is Paris?"])\ndocuments = model.encode_document({_DOCUMENTS})\n'
    )
