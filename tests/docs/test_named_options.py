"""Every option that a page names exists."""

import re
from pathlib import Path

from modernbert.cli.verbs import VERBS
from modernbert.options import option_name, options_of

ROOT = Path(__file__).parents[2]
# Options of other programs, and of the example in CONTRIBUTING.md.
OTHER_PROGRAMS = ("--nproc-per-node", "--max-restarts", "--torch-backend", "--index-url", "--group",
                  "--model-id", "--rm", "--gpus", "--rounds", "--out", "--models", "--sets", "--engines", "--documents",
                  "--phases.NAME.warmup-share")  # fmt: skip


def test_options_that_are_named_in_prose_exist() -> None:
    schemas = [VERBS[verb].load_options(task) for verb in VERBS for task in (None, "embed")]
    known = {option_name(each.key) for schema in schemas for each in options_of(schema)}
    known |= {"--config", "--print", "--help", *OTHER_PROGRAMS}
    pages = (
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("modernbert/configs/**/*.yaml"),
    )
    for page in pages:
        for name in re.findall(r"(?<![\w-])--[a-z][\w.-]*\w", page.read_text()):
            patterns = (re.escape(each).replace("NAME", "[^.]+") for each in known)
            assert any(re.fullmatch(pattern, name.replace("--no-", "--")) for pattern in patterns), (
                f"{page.name}: {name}"
            )
