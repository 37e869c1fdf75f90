"""Code blocks of a page, and the comparison of what a block prints with what the page shows."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^(?P=indent)```$", re.DOTALL | re.MULTILINE
)
_NOT_RUN = re.compile(r"<!-- not run: .+? -->\s*$")
_NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")
# These change the machine, or need more than the package.
_OTHER_PROGRAMS = (
    "apt",
    "brew",
    "docker",
    "export",
    "git",
    "make",
    "pip",
    "pre-commit",
    "python -m venv",
    "source",
    "uv",
    "xcode-select",
)


@dataclass
class Block:
    """A block of commands or of Python, and the output that the page shows below it."""

    language: str
    code: str
    line: int
    expected: str = ""


def blocks_of(page: Path) -> list[Block]:
    """Return the blocks of a page that run: `sh` and `python`, except those below a comment `not run: REASON`."""
    text, found = page.read_text(), list[Block]()
    previous: tuple[int, Block | None] = (0, None)
    for fence in _FENCE.finditer(text):
        code = re.sub(f"^{fence['indent']}", "", fence["code"], flags=re.MULTILINE)
        between = text[previous[0] : fence.start()]
        block = None
        if fence["language"] == "text" and previous[1] and not between.strip():
            previous[1].expected = code
        elif (
            fence["language"] in ("sh", "python")
            and not _NOT_RUN.search(between)
            and not _changes_machine(code, fence["language"])
        ):
            block = Block(fence["language"], code, text.count("\n", 0, fence.start()) + 1)
            found.append(block)
        previous = fence.end(), block
    return found


def _changes_machine(code: str, language: str) -> bool:
    lines = [line for line in code.splitlines() if line.strip() and not line.startswith(("#", " "))]
    found = {line.startswith(_OTHER_PROGRAMS) for line in lines} if language == "sh" else {False}
    assert len(found) == 1, f"split commands that install from others:\n{code}"
    return found.pop()


def check_output(expected: str, printed: str, place: str) -> None:
    """Check that the lines of a page are printed in this order, perhaps with others between them.

    `...` is any text. Whole numbers are equal; others agree within 5 %.
    """
    remaining: Iterator[str] = iter(printed.splitlines())
    for line in filter(str.strip, expected.splitlines()):
        assert any(_agree(line, other) for other in remaining), f"{place}: not printed: {line}\n\nprinted:\n{printed}"


def _agree(expected: str, printed: str) -> bool:
    parts = [_pattern(" ".join(part.split())) for part in expected.split("...")]
    found = re.fullmatch(r"\s*.*?\s*".join(parts), " ".join(printed.split()))
    if found is None:
        return False
    numbers = [number for part in expected.split("...") for number in _NUMBER.findall(part)]
    return all(_close(*pair) for pair in zip(numbers, found.groups(), strict=True))


def _pattern(part: str) -> str:
    return f"({_NUMBER.pattern})".join(map(re.escape, _NUMBER.split(part)))


def _close(expected: str, printed: str) -> bool:
    if not set(".e") & set(expected):
        return expected == printed
    return math.isclose(*(float(each.replace(",", "")) for each in (expected, printed)), rel_tol=0.05, abs_tol=0.006)
