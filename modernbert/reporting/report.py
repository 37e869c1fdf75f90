"""`modernbert report`: the folders of runs -> one page that shows them side by side."""

from dataclasses import dataclass
from pathlib import Path

from modernbert.errors import InputError
from modernbert.extras import require
from modernbert.reporting.compare import compare
from modernbert.reporting.report_page import write_report
from modernbert.reporting.run_reader import read_run

__all__ = ["ReportConfig", "run"]


@dataclass
class ReportConfig:
    """Of `runs`, finished or not, one page `out`: by default in the run's folder, or here if there are several."""

    runs: list[Path]
    out: Path | None = None


def run(config: ReportConfig) -> Path:
    """Write the page and say where it is.

    Raises: InputError if a folder is no run's or its files are damaged, or the page cannot be written.
    """
    require("report", "jinja2", "matplotlib")
    folders = list({folder.resolve(): folder for folder in config.runs}.values())
    if not folders:
        raise InputError("report: found no run, expected at least one folder")
    names = _names(folders)
    runs = [read_run(folder, name) for folder, name in zip(folders, names, strict=True)]
    out = config.out or (folders[0] if len(folders) == 1 else Path()) / "report.html"
    write_report(out, compare(runs))
    print(f"report: {out}")
    return out


def _names(folders: list[Path]) -> list[str]:
    """Return as much of the end of each path as tells them apart."""
    parts = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            break
    return names
