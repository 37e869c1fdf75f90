"""`modernbert report`: write one HTML page about one or more run folders."""

from pathlib import Path

from modernbert.errors import InputError
from modernbert.extras import require
from modernbert.reporting.report_options import ReportConfig
from modernbert.reporting.report_page import write_report
from modernbert.reporting.run_reader import read_run
from modernbert.reporting.run_report import build_report

__all__ = ["ReportConfig", "run"]


def run(config: ReportConfig) -> Path:
    """Write the page and print its path.

    Raises:
        InputError: A folder is not that of a run, its files are damaged, or the page cannot be written.
    """
    require("report", "jinja2", "matplotlib")
    folders = list({folder.resolve(): folder for folder in config.runs}.values())
    if not folders:
        raise InputError("runs: found none, expected at least one folder of a run")
    runs = [read_run(folder, name) for folder, name in zip(folders, _names(folders), strict=True)]
    out = config.output or (folders[0] if len(folders) == 1 else Path()) / "report.html"
    write_report(out, build_report(runs))
    print(f"report: {out}")
    return out


def _names(folders: list[Path]) -> list[str]:
    """Return the shortest ends of the paths that are all different."""
    parts = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            break
    return names
