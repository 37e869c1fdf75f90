"""The small data sets of the documentation."""

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

from modernbert.files import new_folder

__all__ = ["ExampleDataConfig", "run"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExampleDataConfig:
    """Write the small data sets that the documentation uses: messages to a shop, with labels, and its help pages."""

    output: Path = Path("data")
    """New folder for the files."""


def run(config: ExampleDataConfig) -> Path:
    """Copy the data sets into a new folder, list them, and return the folder; a folder that has them is left as it is.

    Raises: InputError if the folder exists and lacks a file or has another content.
    """
    source = Path(__file__).with_name("example_files")
    if not _has_all(config.output, source):
        with new_folder(config.output) as folder:
            shutil.copytree(source, folder, dirs_exist_ok=True)
    for name, content in _CONTENT.items():
        logger.info("%s: %s", config.output / name, content)
    return config.output


def _has_all(folder: Path, source: Path) -> bool:
    files = (path for path in source.rglob("*") if path.is_file())
    copies = ((path, folder / path.relative_to(source)) for path in files)
    return all(copy.is_file() and copy.read_bytes() == path.read_bytes() for path, copy in copies)


_CONTENT = {
    "tickets-train.tsv": "160 messages to a shop and their topic (account, billing, delivery, technical)",
    "tickets-dev.tsv": "40 more",
    "orders-train.conll": "32 sentences with products, places and dates",
    "orders-dev.conll": "8 more",
    "articles/": "18 help pages",
    "questions-train.jsonl": "18 questions, each with the text of the page that answers it",
    "faq/": "the help pages and 18 other questions, in the format of BEIR",
}
