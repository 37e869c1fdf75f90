"""Options of fine-tuning for retrieval."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Le

from modernbert.errors import InputError
from modernbert.extras import require
from modernbert.model.embedding_config import EmbeddingConfig
from modernbert.options import MISSING
from modernbert.training.finetuning_config import FinetuneOptions

__all__ = ["RetrieverConfig"]


@dataclass(kw_only=True)
class RetrieverConfig(FinetuneOptions):
    """Fine-tune a model for retrieval, from queries and the passages that answer them.

    `train` names files or data sets of rows with `query`, `positive`, `negative`, `negative_1`, ... or `negatives`, and
    `scores`, or collections (folders in BEIR's format). `dev` and `test` name collections. With `scores` the model
    learns the scores of a teacher, otherwise to tell the answer of a query from the other passages of the step. Rows
    with `query_id`, `document_ids` and `scores` refer to the texts of the collection `texts`.
    """

    FREE_TO_CHANGE: ClassVar[tuple[str, ...]] = (*FinetuneOptions.FREE_TO_CHANGE, "budget_tokens")

    task: str = MISSING
    """embed: one vector for a text; late: one for each token (late interaction)."""
    vectors: EmbeddingConfig = field(default_factory=lambda: EmbeddingConfig(query_length=512, document_length=512))
    """Pooling, prompts and lengths of queries and documents."""
    projection: Annotated[int, Ge(1)] | None = 128
    """Dimension of a token's vector, for late interaction; None keeps the hidden size."""
    stanford: bool = False
    """Also write `stanford/`, the model in the format of ColBERT's own library, for late interaction."""
    texts: str | None = None
    """Collection with the texts of rows that have ids only; none, by default."""
    negatives: Annotated[int, Ge(0)] = 0
    """Number of hard negatives to mine for each query, by BM25 or by the model `mined_by`."""
    mined_by: str | None = None
    """Model that mines the hard negatives; BM25, by default."""
    temperature: Annotated[float, Gt(0)] | None = None
    """Divisor of the scores; 0.05 for embed and 1 for late, by default."""
    normalize_scores: bool = True
    """Scale the scores of a query to the range from 0 to 1 before they are compared with a teacher's."""
    projection_lr: Annotated[float, Gt(0)] | None = None
    """Peak learning rate of the projection; `lr`, by default."""
    epochs: Annotated[int, Ge(1)] = 1
    """Passes over the training data."""
    batch: Annotated[int, Ge(1)] = 64
    """Queries of a step."""
    warmup: Annotated[float, Ge(0), Le(1)] = 0.05
    """Share of the steps over which the learning rate rises from 0; it then falls linearly to 0."""
    metric: Literal["ndcg_10", "mrr_10", "recall_100"] = "ndcg_10"
    """Score on `dev` that decides."""

    def check(self) -> None:
        """Check all values that can be checked without opening a file.

        Raises: InputError naming the field.
        """
        # These import torch, which help texts do not wait for.
        from modernbert.checkpoints.colbert_format import check_stanford
        from modernbert.tasks.task import retrieval_task

        task = retrieval_task(self.task)
        super().check()
        if not task.per_token and self.vectors.pooling not in ("mean", "cls"):
            raise InputError(f"vectors.pooling: found {self.vectors.pooling!r}, expected mean or cls")
        if task.per_token and self.vectors.truncate_dim is not None:
            raise InputError("vectors.truncate_dim: found a number, but late interaction has `projection` for that")
        for name in ("dev", "test"):
            folders = [Path(each).resolve().name for each in getattr(self, name)]
            if len(set(folders)) < len(folders):
                raise InputError(f"{name}: found two folders of one name, expected a different name for each")
        if self.stanford and not task.per_token:
            raise InputError(f"stanford: found true, but {self.task} is no late interaction")
        if self.stanford:
            check_stanford(self.vectors, self.projection)
        if self.mined_by is not None and not self.negatives:
            raise InputError("mined_by: found a model, but `negatives` is 0")
        if self.negatives and self.mined_by is None:
            require("negatives", "bm25s")
        if not self.dev and (self.patience is not None or self.metric != type(self).metric):
            raise InputError("dev: found no collection, expected some to choose and stop by (`patience`, `metric`)")
