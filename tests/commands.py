"""Run commands, in a fork of a process that has imported torch, or in this process."""

import atexit
import functools
import io
import os
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

from fork_server import ForkServer

from modernbert.cli import main as cli
from modernbert.options import option_name

_MOST_SECONDS = 200


def modernbert(
    *words: str, given: str | Path = "", without: Sequence[str] = (), **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a command like `python -m modernbert.cli.main`; standard input is a text or a file.

    `variables` are environment variables; modules that read them at import do so once. Libraries in `without` appear
    not to be installed.
    """
    with tempfile.TemporaryDirectory() as folder:
        streams = [Path(folder, name) for name in ("in", "out", "err")]
        for stream in streams:
            stream.touch()
        if isinstance(given, Path):
            streams[0] = given
        else:
            streams[0].write_text(given)
        with open(streams[0]) as source, open(streams[1], "w") as output, open(streams[2], "w") as errors:
            numbers = [source.fileno(), output.fileno(), errors.fileno()]
            try:
                status = _server().run(words, numbers, os.environ | variables, without, _MOST_SECONDS)
            except TimeoutError:
                _server.cache_clear()
                raise
        return subprocess.CompletedProcess(words, status, streams[1].read_text(), streams[2].read_text())


def options(**values: object) -> list[str]:
    """Return the words of options; a list is one option for each entry.

    >>> options(max_len=8, train=["a", "b"])
    ['--max-len', '8', '--train', 'a', '--train', 'b']
    """
    several = {key: value if isinstance(value, list) else [value] for key, value in values.items()}
    return [word for key, found in several.items() for each in found for word in (option_name(key), str(each))]


def run_here(*words: str, given: bytes = b"") -> subprocess.CompletedProcess[str]:
    """Run a command in this process, and return what `modernbert` returns."""
    status: object = 0
    streams = [
        io.TextIOWrapper(io.BytesIO(each), encoding="utf-8", errors="surrogateescape") for each in (given, b"", b"")
    ]
    with mock.patch("sys.stdin", streams[0]), redirect_stdout(streams[1]), redirect_stderr(streams[2]):
        try:
            with cli.exit_status():
                cli.run(words)
        except SystemExit as end:
            status = end.code or 0
    assert isinstance(status, int)
    texts = []
    for stream in streams[1:]:
        stream.seek(0)
        texts.append(stream.read())
    return subprocess.CompletedProcess(words, status, *texts)


@functools.cache
def _server() -> ForkServer:
    folder = tempfile.TemporaryDirectory()
    server = ForkServer(Path(folder.name), "modernbert.planning.cost_model")
    atexit.register(folder.cleanup)
    atexit.register(server.close)
    return server
