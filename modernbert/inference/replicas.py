"""Many texts shared out to processes that each hold the model, on a device of their own.

In: what to do with texts, and the texts. Out: what came of them, in their order. A file of its own because every method
that takes many texts shares them out in the same way.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Generic, TypeVar

from modernbert.batch import batch_by_size
from modernbert.errors import InputError
from modernbert.inference.text_parts import PART_CHARACTERS, relocate_error
from modernbert.progress import show_texts
from modernbert.workers import WorkerPool

__all__ = ["ReplicaPool"]

Model = TypeVar("Model")
Text = TypeVar("Text", bound=str | tuple[str, str])
Result = TypeVar("Result")

# A part is not cut smaller: some batches of a few thousand tokens each keep a device at work.
_FEWEST_CHARACTERS = 50_000
# So many parts for each process where there are few texts, so that all end at about the same time.
_PARTS = 4


class ReplicaPool(Generic[Model]):
    """Processes with a model each, to which texts are shared out."""

    def __init__(self, processes: WorkerPool[Model], number: int) -> None:
        self._processes, self._number = processes, number
        self._has_ended = False

    def end(self) -> None:
        """Take no more texts: the processes are about to end."""
        self._has_ended = True

    def run(
        self, work: Callable[[Model, list[Text]], Result], texts: Sequence[Text], *, progress: bool = False
    ) -> list[Result]:
        """Return what the work makes of each part of the texts, in order; of none, what it makes of an empty part.

        Raises: InputError naming a text by its number among all, or if a process dies, or all have ended.
        """
        if self._has_ended:
            raise InputError(
                "devices: the processes ended with their `with` block; ask the model itself, or go on anew"
            )
        named = [(f"text {number}", text) for number, text in enumerate(texts)]
        share = sum(_size(each) for each in named) // (_PARTS * self._number)
        characters = min(max(share, _FEWEST_CHARACTERS), PART_CHARACTERS)
        parts = list(batch_by_size(named, characters, _size)) or [[]]
        found = []
        with show_texts(len(texts), progress) as show:
            done = 0
            for part, result in zip(parts, self._processes.map(partial(_do, work), parts), strict=True):
                found.append(result)
                done += len(part)
                show(done, 0)
        return found


def _size(each: tuple[str, str | tuple[str, str]]) -> int:
    text = each[1]
    return len(text) if isinstance(text, str) else sum(map(len, text))


def _do(work: Callable[[Model, list[Text]], Result], model: Model, part: list[tuple[str, Text]]) -> Result:
    try:
        return work(model, [text for _, text in part])
    except InputError as error:
        raise relocate_error(error, part) from None
