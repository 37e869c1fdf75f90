"""The results of a benchmark: a JSON file that is complete after each row, and an HTML page with charts at the end."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from modernbert.errors import InputError
from modernbert.files import check_target, write_file
from modernbert.reporting.charts import BarPanel, draw_bars
from modernbert.reporting.report_page import Chart, Report, Section, write_report

__all__ = ["Results", "used_options"]


def used_options(config: Any, **chosen: Any) -> dict[str, Any]:
    """Return the options of a benchmark for JSON, with the values chosen for those without one."""
    options = {key: value for key, value in asdict(config).items() if key != "out"}
    return {**options, **chosen}


class Results:
    """Rows of the benchmark `name`; without a folder they are not written.

    `head` describes all rows in the file: `machine`, `work` (the options), ...
    Raises: InputError if the folder cannot be written.
    """

    def __init__(self, folder: Path | None, name: str, **head: Any) -> None:
        self.rows: list[dict[str, Any]] = []
        self.absent: list[dict[str, Any]] = []
        self._folder, self._name, self._head = folder, name, head
        check_target(folder and folder / f"{name}.json")

    def add(self, *rows: Mapping[str, Any]) -> None:
        """Add rows."""
        self.rows.extend(map(dict, rows))
        self._save()

    def miss(self, who: str, set_name: str | None, reason: str, **more: Any) -> None:
        """Add the reason why a system has no row on one set, or on any."""
        self.absent.append({"who": who, "set": set_name, **more, "reason": reason})
        self._save()

    def finish(
        self, console: Console, panels: Mapping[str, Mapping[str, Sequence[float]]], units: Mapping[str, str]
    ) -> None:
        """Print the missing measurements, and write the page, if its libraries are installed.

        Args:
            console: Where to print.
            panels: Values by panel and system.
            units: The unit of each panel.
        """
        sets_of: dict[tuple[str, str], list[str]] = {}
        for each in self.absent:
            sets_of.setdefault((each["who"], each["reason"]), []).extend([each["set"]] if each["set"] else [])
        for (who, reason), sets in sets_of.items():
            on = f" on {', '.join(dict.fromkeys(sets))}" if sets else ""
            console.print(f"not measured: {who}{on}: {reason}")
        if self._folder is not None:
            try:
                self._write_page(self._folder / f"{self._name}.html", panels, units)
                page = f", {self._name}.html"
            except InputError as error:
                page = f"; no page: {error}"
            console.print(f"{self._folder}: {self._name}.json{page}")

    def _write_page(
        self, path: Path, panels: Mapping[str, Mapping[str, Sequence[float]]], units: Mapping[str, str]
    ) -> None:
        bars = [
            BarPanel(title, units[title], values, frozenset(name for name in values if _is_ours(name)))
            for title, values in panels.items()
        ]
        wide, narrow = (draw_bars(bars, self._name, narrow=is_narrow) for is_narrow in (False, True))
        note = "Means of all rounds, with standard deviations. Systems of this package are highlighted."
        facts = {"Options": [(key, str(value)) for key, value in self._head.get("work", {}).items()]}
        sections = [Section("Results", charts=[Chart(wide, narrow, note)])]
        write_report(path, Report(self._name, [str(self._head.get("machine", ""))], sections=sections, facts=facts))

    def _save(self) -> None:
        if self._folder is not None and self.rows:
            content = {**self._head, "rows": self.rows, "absent": self.absent}
            write_file(self._folder / f"{self._name}.json", json.dumps(content, indent=2) + "\n")


def _is_ours(name: str) -> bool:
    return name.startswith("modernbert") and not name.endswith("-transformers")
