"""Find the English text and the functions in a Python file or a package description."""

import ast
import inspect
import re
import warnings
from collections.abc import Iterator, Sequence

__all__ = [
    "definitions",
    "describe",
    "functions",
    "paragraphs",
    "parse",
    "prose_of_module",
    "reads_like_english",
    "topics",
]

FUNCTION_WORDS = frozenset(
    """a an and are as at be been but by can do does for from has have if in into is it its may must no not of on one
    only or other should so such than that the their then there these this to use used using was when where which will
    with you""".split()
)
WORD = re.compile(r"[A-Za-z]+")
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def parse(text: str) -> ast.Module | None:
    """Parse Python source; return None if this interpreter cannot."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None


def definitions(tree: ast.Module) -> list[Definition]:
    """Return every class and function; visiting only statements is ten times faster than `ast.walk`."""
    found: list[Definition] = []
    blocks: list[list[ast.stmt]] = [tree.body]
    while blocks:
        for node in blocks.pop():
            if isinstance(node, Definition):
                found.append(node)
            parts = (node, *getattr(node, "handlers", ()), *getattr(node, "cases", ()))
            blocks += [
                getattr(part, name) for part in parts for name in ("body", "orelse", "finalbody") if hasattr(part, name)
            ]
    return found


def reads_like_english(text: str) -> bool:
    """Return whether a text consists mostly of words, at least 15 % of them function words.

    >>> reads_like_english("Return the length of the longest line that is not a comment.")
    True
    >>> reads_like_english("x = [0, 1, 2]; y = x[::-1]; print(x + y)")
    False
    """
    words = WORD.findall(text)
    if len(words) < 6:
        return False
    letters = sum(map(len, words)) + text.count(" ") + text.count("\n")
    plain = sum(word.lower() in FUNCTION_WORDS for word in words)
    return letters > 0.75 * len(text) and plain > 0.15 * len(words)


def paragraphs(text: str) -> list[str]:
    """Split a text at blank lines."""
    return [part.strip("\n").rstrip() for part in re.split(r"\n[ \t]*\n", text) if part.strip()]


def prose_of_module(defined: Sequence[ast.Module | Definition], text: str) -> list[str]:
    """Return the docstrings and comment blocks that read like English, in the order of the file."""
    found = [(line, docstring) for line, docstring in _docstrings(defined)] + list(_comments(text))
    return [part for _, block in sorted(found) if reads_like_english(block) for part in paragraphs(block)]


def functions(defined: Sequence[Definition], text: str) -> list[str]:
    """Return the source of every function of four lines or more, without indents and blank lines, to detect copies."""
    lines = [line.strip() for line in text.split("\n")]
    found = []
    for node in defined:
        body = [line for line in lines[node.lineno - 1 : node.end_lineno] if line]
        if not isinstance(node, ast.ClassDef) and len(body) >= 4:
            found.append("\n".join(body))
    return found


def topics(tree: ast.Module) -> list[tuple[str, str]]:
    """Return the help topics of `pydoc_data.topics`, a dictionary of name and text."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and isinstance(value, ast.Constant):
                    found.append((str(key.value), str(value.value)))
    return found


def describe(metadata: str) -> str:
    """Return the description of a package: the text after the first blank line of its METADATA."""
    return metadata.partition("\n\n")[2]


def _docstrings(defined: Sequence[ast.Module | Definition]) -> Iterator[tuple[int, str]]:
    for node in defined:
        first = node.body[0] if node.body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            yield first.lineno, inspect.cleandoc(first.value.value)


def _comments(text: str) -> Iterator[tuple[int, str]]:
    """Yield each run of two or more lines that hold nothing but a comment."""
    block: list[str] = []
    for number, line in enumerate([*text.split("\n"), ""], 1):
        line = line.strip()
        if line.startswith("#"):
            block.append(line.lstrip("#! ").rstrip())
        elif block:
            if len(block) > 1:
                yield number - len(block), "\n".join(block)
            block = []
