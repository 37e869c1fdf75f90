"""Kill `prepare` at the calls of some functions; after a restart it must write the same shards."""

import hashlib
import json
import random
from functools import partial
from pathlib import Path

from modernbert.data import prepare

from . import course, kills
from .course import Case

NUMBERS = {
    "write_shard": (1, 4, 9),
    "shard write_file": (1, 5),
    "shard sync_file": (3, 12),
    "write_text": (1, 2, 3),
    "prepare _begin": (1,),
    "move_into_place": (1,),
    "os.fsync": (2, 20, 60),
    "os.rename": (1,),
    "rmtree": (1,),
}


def write_corpus(path: Path) -> None:
    rng = random.Random(3)
    rows = ({"text": " ".join(rng.choices(course.WORDS, k=rng.randint(5, 300)))} for _ in range(60))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def prepared(data: Path, corpus: Path, out: Path, *disturb: course.Prepare) -> course.Outcome:
    """Prepare many small shards in a forked process."""

    def act() -> None:
        prepare.SHARD_CHARS = 3_000
        for each in disturb:
            each()
        words = {"heldout": 0.2, "processes": 1, "deduplicate": True}
        prepare.run(prepare.PrepareConfig(input=[corpus], tokenizer=str(data / "tokenizer"), output=out, **words))

    out.parent.mkdir(parents=True, exist_ok=True)
    return course.in_fork(act, out.parent / "said.txt")


def content(out: Path) -> dict[str, str]:
    paths = sorted(path for path in out.rglob("*") if path.is_file())
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def prepare_cases(data: Path, scratch: Path) -> list[Case]:
    """Return kills in a shard, between shards, in the index, in the final rename, and after it."""
    scratch.mkdir(parents=True, exist_ok=True)
    corpus = scratch / "corpus.jsonl"
    write_corpus(corpus)
    outcome = prepared(data, corpus, scratch / "straight")
    assert outcome.status == 0, outcome.said
    straight = content(scratch / "straight")

    def case(first: kills.Kill) -> Case:
        def act(folder: Path) -> list[str]:
            out, wrong = folder / "out", list[str]()
            # A second kill in the rest of the work.
            for kill in (first, kills.Kill("write_shard", 2, "after")):
                outcome = prepared(data, corpus, out, partial(kills.arm, kill))
                if not outcome.was_killed and kill is first:
                    wrong.append(f"was not killed, ended with {outcome.status}: {outcome.last_line}")
            outcome = prepared(data, corpus, out)
            wrong += course.unfinished(outcome, "the last start")
            if content(out) != straight:
                wrong.append("the shards differ")
            return wrong + [f"{path.name} is left over" for path in folder.glob("*unfinished*")]

        return Case("prepare", first.point, str(first), act)

    return [
        case(kills.Kill(point, n, when)) for point, ns in NUMBERS.items() for n in ns for when in ("before", "after")
    ]
