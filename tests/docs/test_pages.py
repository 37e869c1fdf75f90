"""Pages of the documentation: their commands and programs run in order and print what the page shows."""

import contextlib
import io
import socket
from pathlib import Path

import pytest

from docs.page_blocks import blocks_of, check_output
from docs.page_shell import CommandServer, PageShell

ROOT = Path(__file__).parents[2]
PAGES = [page for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))] if blocks_of(page)]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_blocks_of_a_page_run_and_print_what_it_shows(
    page: Path, hub: Path, server: CommandServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shell = PageShell(folder, server)
    names: dict[str, object] = {"__name__": "__main__"}
    try:
        for block in blocks_of(page):
            code = block.code.replace("8080", str(port))
            printed = run_python(code, names) if block.language == "python" else shell.run(code)
            if "modernbert serve" in code:
                shell.wait_for_port(port)
            place = f"{page.relative_to(ROOT)}:{block.line}"
            check_output(block.expected.replace("8080", str(port)), printed, place)
    finally:
        shell.close()


def run_python(code: str, names: dict[str, object]) -> str:
    """Run Python code in a namespace, and return what it prints."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(code, "page", "exec"), names)
    return printed.getvalue()
