"""Write a report as one HTML file that holds its charts and styles and loads nothing from a network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from modernbert.extras import missing
from modernbert.files import write_file

__all__ = [
    "Bar",
    "Cell",
    "Chart",
    "Code",
    "Figure",
    "Key",
    "Report",
    "Section",
    "Table",
    "format_duration",
    "format_share",
    "write_report",
]


@dataclass(frozen=True)
class Figure:
    """A number in the headline: `held-out accuracy`, `41.2 %`, `0.1 % before training`."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Bar:
    """A table cell with a bar: a name before it, the share of the column that it fills (0 to 1), and its value."""

    share: float
    value: str
    name: str = ""
    is_marked: bool = False
    """Whether the bar stands out, as a right answer does; the name then ends with a check mark."""


@dataclass(frozen=True)
class Code:
    """A table cell with source text; `marked` is highlighted between `text` and `after`.

    With a `summary` the text is folded below it.
    """

    text: str
    marked: str = ""
    after: str = ""
    summary: str = ""


Cell = str | Bar | Code | Sequence[Bar]


@dataclass(frozen=True)
class Table:
    """Rows of cells under column names; columns of numbers are aligned right, unless `is_text`."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    is_text: bool = False

    @property
    def is_rich(self) -> bool:
        """Return whether some cells are more than a word or a number; on a phone each row is then a block."""
        return any(not isinstance(cell, str) for row in self.rows for cell in row)

    def has_numbers(self, column: int) -> bool:
        """Return whether a column holds only numbers and dashes."""
        cells = [row[column] for row in self.rows if row[column] != "–"]
        return bool(self.rows) and not self.is_text and all(_is_number(cell) for cell in cells)


@dataclass(frozen=True)
class Chart:
    """A drawing for a screen and one for a phone, both SVG, with a note below."""

    wide: str
    narrow: str
    note: str = ""


@dataclass(frozen=True)
class Section:
    """A heading with text, charts, tables and code to copy below."""

    title: str
    text: str = ""
    charts: Sequence[Chart] = ()
    tables: Sequence[Table] = ()
    code: str = ""


@dataclass(frozen=True)
class Key:
    """The name of a line in all charts, with its color, a CSS variable of the page, and its dashes."""

    name: str
    color: str
    dash: str = "none"


@dataclass(frozen=True)
class Report:
    """The content of a page; empty parts are left out.

    `keys` explain the lines of the charts. `facts` are lists of names and values, each under a heading.
    """

    title: str
    subtitle: Sequence[str] = ()
    headline: Sequence[Figure] = ()
    keys: Sequence[Key] = ()
    sections: Sequence[Section] = ()
    facts: Mapping[str, Sequence[tuple[str, str]]] = field(default_factory=dict)


def write_report(path: Path, report: Report) -> None:
    """Write a report as one HTML file, atomically; every text in it is escaped.

    Raises:
        InputError: jinja2 is not installed, or the file cannot be written.
    """
    try:
        import jinja2
    except ImportError:
        raise missing("report", "jinja2") from None
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.tests.update(bar=lambda cell: isinstance(cell, Bar), code=lambda cell: isinstance(cell, Code))
    template = resources.files("modernbert.reporting").joinpath("report.html.j2").read_text(encoding="utf-8")
    write_file(path, environment.from_string(template).render(report=report))


def format_share(share: float) -> str:
    """Format a share with two digits or more: 41 %, 3.2 %, 0.04 %.

    >>> [format_share(share) for share in (0.412, 0.0317, 0.0004, 0.0)]
    ['41 %', '3.2 %', '0.04 %', '0 %']
    """
    value = 100 * share
    for digits, least in ((0, 9.95), (1, 0.95), (2, 0.005)):
        if value >= least:
            return f"{value:.{digits}f} %"
    return "0 %"


def format_duration(seconds: float) -> str:
    """Format a duration.

    >>> [format_duration(seconds) for seconds in (0.42, 9.96, 75.0, 3700.0)]
    ['0.4 s', '10 s', '1 min 15 s', '1 h 01 min']
    """
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _is_number(cell: Cell) -> bool:
    return isinstance(cell, str) and bool(cell) and cell[0] in "0123456789+-.−" and any(map(str.isdigit, cell))
