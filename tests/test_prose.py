"""Comments, docstrings, messages and pages use the field's terms: no phrase of paraphrases.txt."""

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PHRASES = [
    re.compile(line, re.IGNORECASE)
    for line in (ROOT / "tests" / "paraphrases.txt").read_text(encoding="utf-8").splitlines()
    if not line.startswith("#")
]
# The text inside f-strings has its own kind of token since Python 3.12.
TEXT_TOKENS = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}


def prose_of(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line numbers and lines of the comments and strings of source code, and of all lines of a page."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type in TEXT_TOKENS:
                yield from enumerate(token.string.splitlines(), token.start[0])
    elif path.suffix in (".cpp", ".h", ".js"):
        yield from (
            (number, line[line.index("//") :]) for number, line in enumerate(text.splitlines(), 1) if "//" in line
        )
    else:
        yield from enumerate(text.splitlines(), 1)


def test_prose_has_no_paraphrases() -> None:
    suffixes = {".py", ".cpp", ".h", ".js", ".html", ".md", ".yaml", ".toml"}
    folders = [ROOT / name for name in ("modernbert", "benchmarks", "docs", "examples", "tests")]
    paths = [path for folder in folders for path in folder.rglob("*") if path.suffix in suffixes]
    paths += [path for path in ROOT.iterdir() if path.suffix in suffixes]
    found = [
        f"{path.relative_to(ROOT)}:{number}: {match[0]!r} in {line.strip()[:100]}"
        for path in paths
        for number, line in prose_of(path)
        for phrase in PHRASES
        if (match := phrase.search(line))
    ]
    assert not found, "\n".join(found)
