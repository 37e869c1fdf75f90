"""`modernbert doctor`: what it prints is what the package finds, without secrets."""

import pytest
from commands import modernbert

from modernbert.engines.registry import engines
from modernbert.extras import EXTRAS


def test_it_names_engines_extras_and_folders() -> None:
    done = modernbert("doctor", HF_HUB_OFFLINE="1", HTTPS_PROXY="http://name:secret@proxy:1", PATH="/nowhere")
    assert done.returncode == 0, done.stderr
    for title in ("versions", "machine", "engines", "extras", "folders", "environment"):
        assert f"{title}:\n" in done.stdout
    for engine in engines():
        assert f"  {engine.name}: " in done.stdout
    assert "  torch: available\n" in done.stdout
    assert {extra for _, extra in EXTRAS.values()} <= {line.strip().split(":")[0] for line in done.stdout.splitlines()}
    assert "compiler: none; install g++" in done.stdout
    assert "HF_HUB_OFFLINE=1" in done.stdout and "HTTPS_PROXY=(set)" in done.stdout
    assert "secret" not in done.stdout + done.stderr


@pytest.mark.parametrize("library", ["fastapi", "lancedb"])
def test_it_names_the_libraries_that_are_not_installed(library: str) -> None:
    package, extra = EXTRAS[library]
    assert f"  {extra}: not installed: {package}" in modernbert("doctor", without=[library]).stdout
