"""Kill one of two processes of a run; `torchrun` restarts both, and they must end with the same bits."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from modernbert.config_files import resolve, to_yaml
from modernbert.training import pretraining as pretrain
from modernbert.training.pretraining_config import PretrainConfig

from . import course, kills
from .course import Case

ROOT = Path(__file__).parents[2]
LONGEST_S = 180


def together(config: PretrainConfig, rank: int = 0, kill: kills.Kill | None = None) -> course.Outcome:
    """Run in two processes that torchrun restarts up to three times."""
    folder = Path(config.output).parent
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(to_yaml(config))
    given = json.dumps({"rank": rank, "kill": asdict(kill) if kill else None})
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--max-restarts=3"]
    command += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", "-m", f"{__package__}.ranks"]
    done = subprocess.run(
        [*command, str(folder / "config.yaml"), given], capture_output=True, text=True, cwd=ROOT, timeout=LONGEST_S
    )
    return course.Outcome(done.returncode, done.stdout + done.stderr)


def rank_cases(data: Path, scratch: Path) -> list[Case]:
    """Return kills of either process: in a step, in its part of a checkpoint, in evaluation."""
    scratch.mkdir(parents=True, exist_ok=True)
    calm = course.config_of(data, scratch / "run")
    outcome = together(calm)
    assert outcome.status == 0, outcome.said
    straight = course.end_state(scratch / "run")
    deaths = [(1, "train_step", 9, "before"), (0, "backward", 6, "after"), (1, "_write_own", 5, "after"),
              (0, "_commit", 4, "after"), (1, "score_heldout", 2, "before"), (1, "save_file", 9, "half")]  # fmt: skip

    def case(rank: int, kill: kills.Kill) -> Case:
        def act(folder: Path) -> list[str]:
            outcome = together(course.config_of(data, folder / "run"), rank, kill)
            wrong = course.unfinished(outcome, "the run")
            if "started again" not in outcome.said:
                wrong.append("no process was killed")
            return wrong + course.differences(folder / "run", straight)

        return Case("rank", f"process {rank}", f"process {rank} of 2 killed {kill}", act)

    return [case(rank, kills.Kill(point, n, when)) for rank, point, n, when in deaths]


def main() -> None:
    """Run one process, and kill it if it is the selected one and was not restarted."""
    given = json.loads(sys.argv[2])
    is_first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    if given["kill"] is not None and is_first and int(os.environ["RANK"]) == given["rank"]:
        kills.arm(kills.Kill(**given["kill"]))
    if not is_first:
        print("started again")
    pretrain.run(resolve(PretrainConfig, {}, Path(sys.argv[1])))


if __name__ == "__main__":
    main()
