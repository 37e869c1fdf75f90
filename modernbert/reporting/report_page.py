"""Write the page that shows what a run did: one HTML file that needs nothing beside it.

In: a `Report`, a tree of plain values. Out: a file to be opened in a browser, mailed or kept; it holds its charts and
styles and asks no network for anything.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from modernbert.extras import missing
from modernbert.files import write_file
from modernbert.reporting.run_charts import read_rows, speed_chart, training_chart
from modernbert.reporting.run_reader import mean_heldout, sort_rows

__all__ = [
    "Chart",
    "Figure",
    "FilledMask",
    "Guess",
    "Key",
    "Question",
    "Report",
    "Retrieval",
    "Section",
    "Table",
    "write_duration",
    "write_percent",
    "write_report",
]


@dataclass(frozen=True)
class Figure:
    """Hold one number to be seen first: `held-out accuracy`, `41.2 %`, `0.1 % before training`."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Table:
    """Hold rows of text under column names; columns of numbers are set flush right, unless all `is_words`."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    is_words: bool = False

    def has_numbers(self, column: int) -> bool:
        """Say whether a column holds numbers, and dashes where there is none."""
        cells = [row[column] for row in self.rows if row[column] != "–"]
        return bool(cells) and not self.is_words and all(_is_number(cell) for cell in cells)


@dataclass(frozen=True)
class Chart:
    """Hold a drawing for a page and one for a phone, both SVG, and what is to be seen in it."""

    wide: str
    narrow: str
    note: str = ""


@dataclass(frozen=True)
class Section:
    """Hold charts and tables under a heading."""

    title: str
    charts: Sequence[Chart] = ()
    tables: Sequence[Table] = ()


@dataclass(frozen=True)
class Key:
    """Hold the name that a line has in all charts, with its colour, one of the page's own, and its strokes."""

    name: str
    colour: str
    dash: str = "none"


@dataclass(frozen=True)
class Guess:
    """Hold a word the model proposes for a mask, and its probability."""

    word: str
    probability: float


@dataclass(frozen=True)
class FilledMask:
    """Hold a line around a masked word, the word itself, and the guesses, best first."""

    before: str
    word: str
    after: str
    guesses: Sequence[Guess]
    origin: str = ""

    @property
    def verdict(self) -> str:
        """Say whether the first guess is right, another one, or none; white space around a word does not count."""
        words = [guess.word.strip() for guess in self.guesses]
        if self.word.strip() not in words:
            return "missed"
        return "right" if words[0] == self.word.strip() else f"right at guess {words.index(self.word.strip()) + 1}"


@dataclass(frozen=True)
class Retrieval:
    """Hold the scores of one way to rank, between 0 and 1."""

    system: str
    ndcg: float
    mrr: float
    note: str = ""


@dataclass(frozen=True)
class Question:
    """Hold a query, the function it belongs to, that function's rank by each system, and the model's first hit."""

    query: str
    answer: str
    ranks: Mapping[str, int]
    hit: str
    hit_passage: str
    is_right: bool


@dataclass(frozen=True)
class Report:
    """Hold everything the page shows; what is left empty is left out.

    `run` is a folder with `log.jsonl` and `timing.jsonl`. `keys` say which line of the charts in `sections` is whose.
    `usage` is code to copy. `files` and `facts` are pairs of a name and what to say of it; `timings` pairs of a step
    and its seconds.
    """

    title: str
    subtitle: Sequence[str] = ()
    headline: Sequence[Figure] = ()
    keys: Sequence[Key] = ()
    sections: Sequence[Section] = ()
    run: Path | None = None
    phases: Table | None = None
    masks: Sequence[FilledMask] = ()
    masks_note: str = ""
    retrieval: Sequence[Retrieval] = ()
    retrieval_note: str = ""
    questions: Sequence[Question] = ()
    tables: Sequence[Table] = ()
    usage: str = ""
    files: Sequence[tuple[str, str]] = ()
    timings: Sequence[tuple[str, float]] = ()
    facts: Mapping[str, Sequence[tuple[str, str]]] = field(default_factory=dict)


def write_report(path: Path, report: Report) -> None:
    """Write a report as one HTML file, whole or not at all; every text in it is escaped.

    Raises: InputError if jinja2 or matplotlib is not installed, a log cannot be read, or the file cannot be written.
    """
    try:
        import jinja2
    except ImportError:
        raise missing("report", "jinja2") from None
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(percent=write_percent, duration=write_duration)
    template = resources.files("modernbert.reporting").joinpath("report.html.j2").read_text(encoding="utf-8")
    write_file(path, environment.from_string(template).render(report=report, charts=_charts(report.run)))


def _charts(run: Path | None) -> list[Chart]:
    if run is None:
        return []
    steps, heldout, *_ = sort_rows(read_rows(run / "log.jsonl"))
    log = [*steps, *({**row, "loss": loss} for row, loss in mean_heldout(heldout))]
    timing = [row for row in read_rows(run / "timing.jsonl") if "step" in row]
    return [
        Chart(
            training_chart(log),
            training_chart(log, narrow=True),
            "Thin lines are single steps, thick lines a running mean. "
            "Dots are the loss on held-out text, which is never trained on.",
        ),
        Chart(
            speed_chart(log, timing),
            speed_chart(log, timing, narrow=True),
            "Every batch is filled with whole documents and pieces up to a token budget; nothing is padding.",
        ),
    ]


def write_percent(share: float) -> str:
    """Write a share with two figures or more: 41 %, 3.2 %, 0.04 %.

    >>> [write_percent(share) for share in (0.412, 0.0317, 0.0004, 0.0)]
    ['41 %', '3.2 %', '0.04 %', '0 %']
    """
    value = 100 * share
    for digits, least in ((0, 9.95), (1, 0.95), (2, 0.005)):
        if value >= least:
            return f"{value:.{digits}f} %"
    return "0 %"


def write_duration(seconds: float) -> str:
    """Write a time as people say it.

    >>> [write_duration(seconds) for seconds in (0.42, 9.96, 75.0, 3700.0)]
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


def _is_number(text: Any) -> bool:
    return bool(text) and str(text)[0] in "0123456789+-.−" and any(map(str.isdigit, str(text)))
