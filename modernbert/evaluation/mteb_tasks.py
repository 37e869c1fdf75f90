"""Evaluation on mteb's retrieval tasks (BEIR, MLDR, CodeSearchNet, StackOverflow-QA and others) by its search protocol.

A task is named as mteb or as the ModernBERT paper names it; `beir` names the fifteen BEIR tasks of the paper.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modernbert.data.beir import Collection, Rank
from modernbert.errors import InputError
from modernbert.evaluation.retrieval_eval import Retrieval
from modernbert.extras import require

__all__ = ["BEIR", "MtebSearch", "SubsetScores", "run_task", "tasks_of"]

# The paper's name of a data set -> mteb's name of the task, with the subset that the paper uses.
_PAPER = {
    "nfcorpus": "NFCorpus",
    "scifact": "SciFact",
    "trec-covid": "TRECCOVID",
    "fiqa": "FiQA2018",
    "arguana": "ArguAna",
    "climate-fever": "ClimateFEVER",
    "dbpedia-entity": "DBPedia",
    "fever": "FEVER",
    "hotpotqa": "HotpotQA",
    "msmarco": "MSMARCO",
    "nq": "NQ",
    "quora": "QuoraRetrieval",
    "scidocs": "SCIDOCS",
    "webis-touche2020": "Touche2020",
    "cqadupstack": "CQADupstackRetrieval",
    "mldr": "MultiLongDocRetrieval:en",
    "codesearchnet": "COIRCodeSearchNetRetrieval",
    "stackoverflow-qa": "StackOverflowQA",
}
BEIR = tuple(_PAPER)[:15]
"""The paper's names of the data sets of BEIR."""


@dataclass(frozen=True)
class SubsetScores:
    """The scores of one subset of a task."""

    collection: str
    split: str
    scores: Retrieval
    num_queries: int
    num_documents: int


def tasks_of(name: str) -> dict[str, Any]:
    """Return the tasks of a name, by the names to report: `beir`, a name of the paper, or a name of mteb.

    `NAME:SUBSET` selects one subset of a task that has several.

    Raises:
        InputError: mteb is not installed, has no such task, or the task is not one of retrieval.
    """
    require(f"mteb:{name}", "mteb")
    if name.lower() == "beir":
        return {known: task for each in BEIR for known, task in tasks_of(each).items()}
    import mteb

    known = name.lower() if name.lower() in _PAPER else None
    task_name, _, subset = _PAPER.get(name.lower(), name).partition(":")
    try:
        task = mteb.get_task(task_name, hf_subsets=[subset] if subset else None)
    except (KeyError, ValueError) as error:
        raise InputError(f"mteb:{name}: {str(error.args[0]).removeprefix('KeyError: ')}") from None
    if task.metadata.type not in ("Retrieval", "Reranking"):
        raise InputError(f"mteb:{name}: is a task of {task.metadata.type}, expected one of retrieval")
    # A group of tasks, such as the twelve forums of CQADupstack.
    parts: Sequence[Any] = getattr(task.metadata, "tasks", None) or ()
    if parts:
        prefix = task_name.removesuffix("Retrieval")
        start = known or prefix.lower()
        return {f"{start}-{_plain(part.metadata.name.removeprefix(prefix))}": part for part in parts}
    return {known or f"{_plain(task_name)}{f'-{subset}' if subset else ''}": task}


def _plain(name: str) -> str:
    return name.removesuffix("Retrieval").lower()


def run_task(name: str, task: Any, split: str, rank: Rank) -> list[SubsetScores]:
    """Rank the documents of a task for its queries; return mteb's scores of each subset.

    A task without the split is evaluated on its own splits (MS MARCO: `dev`).

    Raises:
        InputError: The data of the task cannot be loaded.
    """
    import mteb

    if split in task.metadata.eval_splits:
        task.filter_eval_splits([split])
    try:
        task.load_data()
    except OSError as error:
        raise InputError(f"mteb:{task.metadata.name}: cannot be loaded ({str(error).splitlines()[0]})") from None
    search = MtebSearch(rank)
    result = mteb.evaluate(search, task, cache=None, show_progress_bar=False, co2_tracker=False).task_results[0]
    found = []
    for of_split, subsets in result.scores.items():
        for scores in subsets:
            subset = scores["hf_subset"]
            known = name if subset == "default" or len(task.hf_subsets) == 1 else f"{name}-{subset}"
            ndcg, mrr, recall = (float(scores[key]) for key in ("ndcg_at_10", "mrr_at_10", "recall_at_100"))
            seen = search.seen[of_split, subset]
            retrieval = Retrieval(ndcg, mrr, recall, seen.num_truncated, seen.seconds)
            found.append(SubsetScores(known, of_split, retrieval, seen.num_queries, seen.num_documents))
    return found


@dataclass(frozen=True)
class _Seen:
    num_truncated: int
    seconds: float
    num_queries: int
    num_documents: int


class MtebSearch:
    """An implementation of mteb's `SearchProtocol` by a ranking function.

    `mteb.evaluate(MtebSearch(rank_by_model(bert)), task)` evaluates a model on any retrieval task of mteb. `seen` has
    the number of truncated texts and the seconds of each split and subset.
    """

    def __init__(self, rank: Rank, name: str = "modernbert/model") -> None:
        self.rank = rank
        self.name = name
        self.seen: dict[tuple[str, str], _Seen] = {}
        self.task = ""
        self._documents: dict[str, str] = {}

    @property
    def mteb_model_meta(self) -> Any:
        """The description of the model that mteb saves with its scores."""
        from mteb.models.model_meta import ModelMeta

        return ModelMeta.create_empty({"name": self.name})

    def index(self, corpus: Any, *, task_metadata: Any, **_: Any) -> None:
        """Store the documents of a task, titles before texts, as mteb joins them."""
        self.task = task_metadata.name
        self._documents = {row["id"]: f"{row.get('title') or ''} {row['text']}".strip() for row in corpus}

    def search(
        self,
        queries: Any,
        *,
        hf_split: str,
        hf_subset: str,
        top_k: int,
        top_ranked: Mapping[str, Sequence[str]] | None = None,
        **_: Any,
    ) -> dict[str, dict[str, float]]:
        """Return the `top_k` documents of each query and their scores; with `top_ranked`, only its documents.

        Raises:
            InputError: A query is not a text.
        """
        texts: dict[str, str] = {row["id"]: _text(row) for row in queries}
        started = time.perf_counter()
        depth = top_k if top_ranked is None else len(self._documents)
        collection = Collection(f"{self.task}-{hf_subset}-{hf_split}", self._documents, texts, {}, 0, 0)
        scores, numbers, num_truncated = self.rank(collection, depth)
        seconds = time.perf_counter() - started
        self.seen[hf_split, hf_subset] = _Seen(num_truncated, seconds, len(texts), len(self._documents))
        names = list(self._documents)
        found: dict[str, dict[str, float]] = {}
        for query, row, of_row in zip(texts, numbers.tolist(), scores.tolist(), strict=True):
            among = None if top_ranked is None else frozenset(top_ranked[query])
            ranked = {names[n]: score for n, score in zip(row, of_row, strict=True)}
            found[query] = {key: score for key, score in ranked.items() if among is None or key in among}
        return found


def _text(row: Mapping[str, Any]) -> str:
    if not isinstance(row["text"], str):
        raise InputError(f"query {row['id']}: is {type(row['text']).__name__}, expected text")
    return f"{row['text']} {row['instruction']}" if row.get("instruction") else row["text"]
