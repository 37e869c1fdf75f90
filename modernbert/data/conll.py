"""The reader of CoNLL and CoNLL-U files: a word and its annotations per line, a blank line between sentences.

Columns are separated by tabs or by runs of spaces. A column is named by its number from 1 ("1", "2", ...), and by its
name if the file is CoNLL-U or has a line `# global.columns = ID FORM ...`. Without names, `words` is the first column
and `tags` the last; with names, `words` is FORM. Comments, `-DOCSTART-` lines, multiword rows (`1-2`) and empty nodes
(`1.1`) of CoNLL-U are skipped.

Source: https://universaldependencies.org/format.html and https://universaldependencies.org/ext-format.html
"""

import re
from collections.abc import Iterator, Sequence

from modernbert.errors import InputError

__all__ = ["read_sentences"]

_CONLLU = ("ID", "FORM", "LEMMA", "UPOS", "XPOS", "FEATS", "HEAD", "DEPREL", "DEPS", "MISC")
_NAMES = re.compile(r"#\s*global\.columns\s*=(.*)")
_TAG = re.compile(r"O|[BIESLUM]-.+")
_DOCUMENT = re.compile(r"#(begin|end) document\b")
_NO_WORD = re.compile(r"[0-9]+[-.][0-9]+")

_Line = tuple[int, list[str]]


def read_sentences(lines: Sequence[str], origin: str, *, is_conllu: bool) -> Iterator[tuple[dict[str, list[str]], int]]:
    """Yield the columns of each sentence by number and name, and the line of its first word.

    Raises:
        InputError: A line has another number of columns than the others; names it.
    """
    found = [(number, line.rstrip("\r\n")) for number, line in enumerate(lines, 1)]
    names = next((match[1].split() for _, line in found if (match := _NAMES.match(line))), None)
    if is_conllu and names is None:
        names = list(_CONLLU)
    if names is not None and len(set(names)) < len(names):
        raise InputError(f"{origin}: global.columns has {' '.join(names)}, expected a different name for each")
    body = [(number, line) for number, line in found if line.strip(" \t") and not _is_special(line)]
    if not body:
        body = [(number, line) for number, line in found if line.strip(" \t") and _TAG.fullmatch(_by_blanks(line)[-1])]
    if not body:
        return
    by_tabs = _splits_by_tabs(body, origin)
    width = len(_cells(body[0][1], by_tabs))
    if names is not None and len(names) != width:
        raise InputError(f"{origin}:{body[0][0]}: found {width} columns, expected {len(names)} ({' '.join(names)})")
    last = {_cells(line, by_tabs)[-1] for _, line in body}
    has_names = names is not None and "ID" in names
    sentences: list[list[_Line]] = [[]]
    for number, line in found:
        if not line.strip(" \t") or _by_blanks(line)[0] == "-DOCSTART-":
            sentences.append([])
            continue
        cells = _cells(line, by_tabs)
        if line.startswith("#") and (
            has_names or _is_comment(line, cells, width, by_tabs, last, starts=not sentences[-1])
        ):
            continue
        if len(cells) != width:
            raise InputError(
                f"{origin}:{number}: found {len(cells)} columns, expected {width}; a comment begins with '# ' and "
                "stands before its sentence"
            )
        if not cells[0]:
            raise InputError(f"{origin}:{number}: found an empty first column, expected text")
        sentences[-1].append((number, cells))
    id_column = names.index("ID") if names is not None and "ID" in names else None
    if names is None and _counts_words(sentences):
        id_column = 0
        names = list(_CONLLU) if width == len(_CONLLU) else None
    for sentence in sentences:
        if id_column is not None:
            sentence = [(number, cells) for number, cells in sentence if not _NO_WORD.fullmatch(cells[id_column])]
        if sentence:
            yield _columns_of([cells for _, cells in sentence], names, id_column), sentence[0][0]


def _columns_of(rows: Sequence[list[str]], names: Sequence[str] | None, id_column: int | None) -> dict[str, list[str]]:
    columns = [list(column) for column in zip(*rows, strict=True)]
    values = {str(number): column for number, column in enumerate(columns, 1)}
    if names is None and id_column is None:
        return {"words": columns[0], "tags": columns[-1]} | values
    if names is None:
        return values
    by_name = dict(zip(names, columns, strict=True))
    others = [name for name in names if name not in ("ID", "FORM")]
    if "FORM" in by_name:
        values["words"] = by_name["FORM"]
        if len(others) == 1:
            values["tags"] = by_name[others[0]]
    return by_name | values


def _is_special(line: str) -> bool:
    return line.startswith("#") or _by_blanks(line)[0] == "-DOCSTART-"


def _is_comment(line: str, cells: list[str], width: int, by_tabs: bool, last: set[str], *, starts: bool) -> bool:
    """Return whether a line that begins with `#` is a comment, not a word such as `#` or `#hashtag` with its tags."""
    if _DOCUMENT.match(line):
        return True
    if len(cells) != width:
        return starts and re.match(r"#[ \t]+\S", line) is not None
    if cells[0] != "#":
        return False
    label = cells[-1]
    if label in last or label == "#" or _TAG.fullmatch(label):
        return False
    return " " in label or "://" in label if by_tabs else True


def _splits_by_tabs(body: Sequence[tuple[int, str]], origin: str) -> bool:
    """Return whether columns are separated by tabs: the separator that gives all lines the same number of columns."""
    ways = [True, False] if any("\t" in line for _, line in body) else [False]
    for by_tabs in ways:
        counts = {len(_cells(line, by_tabs)) for _, line in body}
        if len(counts) == 1 and counts != {1}:
            return by_tabs
    first, line = body[0]
    by_tabs = next((way for way in ways if len(_cells(line, way)) > 1), False)
    width = len(_cells(line, by_tabs))
    for number, other in body:
        cells = _cells(other, by_tabs)
        if len(cells) != width:
            raise InputError(f"{origin}:{number}: found {len(cells)} columns, expected {width} as in line {first}")
    raise InputError(f"{origin}:{first}: found {_by_blanks(line)[0]!r} alone, expected a word and its tag")


def _cells(line: str, by_tabs: bool) -> list[str]:
    if by_tabs:
        return [cell.strip(" ") for cell in line.rstrip(" \t").split("\t")]
    return _by_blanks(line)


def _by_blanks(line: str) -> list[str]:
    # Not `split()`: a word may be a character that Python treats as whitespace, such as U+00A0.
    return [cell for cell in line.replace(" ", "\t").split("\t") if cell]


def _counts_words(sentences: Sequence[Sequence[_Line]]) -> bool:
    """Return whether the first column counts the words of every sentence from 1."""
    counted = [
        [cells[0] for _, cells in sentence if not _NO_WORD.fullmatch(cells[0])] for sentence in sentences if sentence
    ]
    return any(len(each) > 1 for each in counted) and all(
        each == [str(number) for number in range(1, len(each) + 1)] for each in counted
    )
