"""What a bench measured, kept as it comes: whoever stops it has all rows until then.

In: rows, and the reasons why there are no others. Out: a JSON file, whole after each row, and at the end a plot.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.bar_charts import draw_bars
from modernbert.files import check_target, write_file

__all__ = ["Results", "asked"]


def asked(config: Any, **chosen: Any) -> dict[str, Any]:
    """Return the options of a bench as JSON may hold them, with what was chosen for those left open."""
    options = {key: value for key, value in asdict(config).items() if key != "out"}
    return {**options, **chosen}


class Results:
    """Rows of a bench called `name`; without a folder they are kept nowhere.

    `head` is what the file says of all rows, above all `machine` and `work`, which is what was asked for.
    Raises: InputError if the folder cannot be written.
    """

    def __init__(self, folder: Path | None, name: str, **head: Any) -> None:
        self.rows: list[dict[str, Any]] = []
        self.absent: list[dict[str, Any]] = []
        self._folder, self._name, self._head = folder, name, head
        check_target(folder and folder / f"{name}.json")

    def add(self, *rows: Mapping[str, Any]) -> None:
        """Keep rows."""
        self.rows.extend(map(dict, rows))
        self._save()

    def miss(self, who: str, set_name: str | None, reason: str, **more: Any) -> None:
        """Keep why something has no row, on one set or on any."""
        self.absent.append({"who": who, "set": set_name, **more, "reason": reason})
        self._save()

    def finish(
        self, console: Console, panels: Mapping[str, Mapping[str, Sequence[float]]], units: Mapping[str, str]
    ) -> None:
        """Say what was not measured; draw what was, where it is kept and can be drawn."""
        where: dict[tuple[str, str], list[str]] = {}
        for each in self.absent:
            where.setdefault((each["who"], each["reason"]), []).extend([each["set"]] if each["set"] else [])
        for (who, reason), sets in where.items():
            on = f" on {', '.join(dict.fromkeys(sets))}" if sets else ""
            console.print(f"not measured: {who}{on}: {reason}")
        if self._folder is not None:
            drawn = draw_bars(self._folder / f"{self._name}.png", panels, units)
            plot = f", {self._name}.png" if drawn else "; a plot needs matplotlib, pip install 'modernbert[report]'"
            console.print(f"{self._folder}: {self._name}.json{plot}")

    def _save(self) -> None:
        if self._folder is not None and self.rows:
            said = {**self._head, "rows": self.rows, "absent": self.absent}
            write_file(self._folder / f"{self._name}.json", json.dumps(said, indent=2) + "\n")
