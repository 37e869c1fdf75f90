"""Make pairs of a query and a passage, as in CodeSearchNet: the first paragraph of a docstring, and its function.

The passage is the source of the function without the docstring.
"""

import ast
import hashlib
import inspect
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from modernbert.demo.collect import Record
from modernbert.demo.extract import definitions, parse

__all__ = ["Pair", "pairs"]

MIN_WORDS, MAX_WORDS = 3, 60
MIN_LINES, MAX_LINES = 3, 200
ROLE = re.compile(r":[\w:]+:`~?\.?([^`<]+?)(?:\s*<[^>]*>)?`")  # :class:`~a.b` -> a.b
TEST_FOLDERS = {"test", "tests", "testing", "idle_test"}
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Pair:
    """A query in English and the function that it describes."""

    query: str
    passage: str
    package: str
    name: str


def pairs(records: Iterable[Record], *, cap_per_package: int = 200) -> list[Pair]:
    """Return the pairs of the Python files among `records`, at most `cap_per_package` of a package.

    No query and no passage occurs twice. Left out are tests, special methods, functions with fewer than 3 lines
    without the docstring, and docstrings whose first paragraph is not 3 to 60 words of plain English.
    """
    by_package: defaultdict[str, list[Pair]] = defaultdict(list)
    queries: set[str] = set()
    passages: set[str] = set()
    for record in records:
        if not record.origin.endswith(".py") or TEST_FOLDERS & set(record.origin.split("/")):
            continue
        for pair in _pairs_of(record):
            body = "".join(pair.passage.split())
            if pair.query.lower() not in queries and body not in passages:
                queries.add(pair.query.lower())
                passages.add(body)
                by_package[pair.package].append(pair)
    return [pair for package in sorted(by_package) for pair in _spread(by_package[package], cap_per_package)]


def _pairs_of(record: Record) -> Iterator[Pair]:
    tree = parse(record.text)
    lines = record.text.split("\n")
    for node in definitions(tree) if tree else ():
        if isinstance(node, ast.ClassDef) or node.name.startswith(("__", "test")):
            continue
        query = _query(ast.get_docstring(node, clean=False) or "")
        passage = _passage(node, lines)
        if query and passage:
            yield Pair(query, passage, record.package, node.name)


def _query(docstring: str) -> str | None:
    """Return the first paragraph on one line, without markup; None if it is not plain English."""
    first = re.split(r"\n\s*\n", inspect.cleandoc(docstring))[0]
    query = " ".join(ROLE.sub(r"\1", first).replace("`", "").split())
    words = query.split()
    if not MIN_WORDS <= len(words) <= MAX_WORDS or not query.isascii() or ">>>" in query:
        return None
    if query.startswith((":", "@", ".", "-")) or "://" in query:
        return None
    plain = sum(word.strip(".,:;()'\"").isalpha() for word in words)
    return query if plain >= 0.7 * len(words) else None


def _passage(node: Function, lines: list[str]) -> str | None:
    """Return the source from `def` on, without the docstring; None if little is left, or they are on one line."""
    docstring, *body = node.body
    if not body or docstring.end_lineno is None or node.end_lineno is None:
        return None
    before = lines[docstring.lineno - 1][: docstring.col_offset]
    if before.strip() or body[0].lineno <= docstring.end_lineno:
        return None
    left = [line for line in lines[docstring.end_lineno : node.end_lineno] if line.strip()]
    statements = [line for line in left if not line.strip().startswith("#")]
    if not MIN_LINES <= len(statements) <= MAX_LINES:
        return None
    indent = " " * node.col_offset
    return "\n".join(line.removeprefix(indent) for line in lines[node.lineno - 1 : docstring.lineno - 1] + left)


def _spread(found: list[Pair], cap: int) -> list[Pair]:
    """Return `cap` pairs chosen by the hash of the passage, in their order, so that all files contribute."""
    chosen = set(sorted(range(len(found)), key=lambda number: _sha(found[number].passage))[:cap])
    return [pair for number, pair in enumerate(found) if number in chosen]


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
