"""`python -m tests.faults`: inject every known fault into runs, and write a table of the results."""

import os

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}  # before torch: runs are forks

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from . import course, damage, kills, mistakes, prepares, ranks, steps

PARTS = ("kill", "prepare", "rank", "storage", "step", "mistake")
WHAT = {
    "kill": "A run is killed with SIGKILL and restarted, a third of them twice: it must end with the same bits.",
    "prepare": "`prepare` is killed with SIGKILL twice and restarted: it must write the same shards, byte for byte.",
    "rank": "One process of two is killed: torchrun restarts both, and they end with the same bits.",
    "storage": "A disk fails: the error names it, and the run resumes from an earlier whole checkpoint.",
    "step": "A loss or gradient that is not finite or an outlier: the guard skips the step or rolls back.",
    "mistake": "A deliberate mistake in the product: at least one case must fail.",
}


def main() -> int:
    """Run the selected parts; return 1 if a case failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--out", type=Path, help="folder for table.md and cases.jsonl")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--per-point", type=int, default=7, help="kills at each point")
    parser.add_argument("--only", default="", help="only cases whose name contains this")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, default=1)
    words = parser.parse_args()
    started, rows = time.monotonic(), list[dict[str, Any]]()
    with tempfile.TemporaryDirectory(prefix="faults-data-") as name:
        scratch = Path(name)
        scratch.chmod(0o755)
        data = scratch / "data"
        data.mkdir()
        made = course.in_fork(lambda: course.make_data(data), scratch / "said.txt")
        assert made.status == 0, made.said
        for part in words.parts.split(","):
            cases = [case for case in _cases(part, data, scratch, words) if words.only in f"{case.point} {case.name}"]
            print(f"{part}: {len(cases)} cases", flush=True)
            for row in course.run_cases(cases, words.workers):
                rows.append(row)
                if row["wrong"]:
                    print(f"  {row['point']}: {row['name']}: {'; '.join(row['wrong'])}", flush=True)
    table = _table(rows, time.monotonic() - started)
    print(table)
    if words.out is not None:
        words.out.mkdir(parents=True, exist_ok=True)
        (words.out / "table.md").write_text(table + "\n")
        (words.out / "cases.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return int(any(row["wrong"] for row in rows))


def _cases(part: str, data: Path, scratch: Path, words: argparse.Namespace) -> list[course.Case]:
    if part == "kill":
        order = mistakes.sync_order(data)
        return [order, *kills.kill_cases(data, scratch / "kills", words.seed, words.per_point)]
    if part == "prepare":
        return prepares.prepare_cases(data, scratch / "prepares")
    if part == "rank":
        return ranks.rank_cases(data, scratch / "ranks")
    if part == "storage":
        return damage.storage_cases(data, scratch)
    if part == "step":
        return steps.step_cases(data, scratch)
    straight = course.straight_run(kills.config_every(1, data, scratch / "mistakes"))
    (scratch / "mistake-keys").mkdir()
    keys = steps.keys_of_run(course.guarded_config(data, scratch / "mistake-keys" / "run"), scratch / "mistake-keys")
    context = mistakes.Context(data, scratch, straight, keys)
    return [_noticed(mistake, context) for mistake in mistakes.mistakes()]


def _noticed(mistake: mistakes.Mistake, context: mistakes.Context) -> course.Case:
    """Return a case that fails unless another case notices the mistake."""

    def act(folder: Path) -> list[str]:
        for number, case in enumerate(mistake.cases(context)):
            (folder / str(number)).mkdir()
            (row,) = course.run_cases([case], 1)
            if row["wrong"]:
                course.note(folder, seen_by=f"{case.point}: {case.name}", as_=row["wrong"][0])
                return []
        return ["no case noticed it"]

    return course.Case("mistake", mistake.name, mistake.name, act)


def _table(rows: Iterable[dict[str, Any]], seconds: float) -> str:
    rows = list(rows)
    lines = []
    for part in PARTS:
        of_part = [row for row in rows if row["part"] == part]
        if not of_part:
            continue
        right = sum(not row["wrong"] for row in of_part)
        lines += [f"## {part}: {right} of {len(of_part)} passed", "", WHAT[part], ""]
        if part == "mistake":
            lines += ["| mistake | noticed by | as |", "| --- | --- | --- |"]
            lines += [
                f"| {row['name']} | {row.get('seen_by', '**nothing**')} | {row.get('as_', '')} |" for row in of_part
            ]
        else:
            count, good = (
                Counter(row["point"] for row in of_part),
                Counter(row["point"] for row in of_part if not row["wrong"]),
            )
            kills_too = f" ({sum(row.get('kills', 0) for row in of_part)} kills)" if part == "kill" else ""
            lines += [f"| point | cases{kills_too} | passed |", "| --- | --- | --- |"]
            lines += [f"| {point} | {number} | {good[point]} |" for point, number in count.items()]
        lines.append("")
    return "\n".join([*lines, f"{len(rows)} cases in {seconds:,.0f} s."])


if __name__ == "__main__":
    sys.exit(main())
