"""Run commands, in a fork of a process that has imported torch, or in this process."""

import atexit
import functools
import io
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

from modernbert.cli import main as cli

_MOST_SECONDS = 200
_SERVER = """
import json, os, sys
import modernbert.planning.cost_model, modernbert.inference.modernbert, modernbert.training.training_loop
from modernbert.cli.main import main
for line in sys.stdin:
    words, streams, cwd, env, without = json.loads(line)
    if child := os.fork():
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        continue
    for number, (path, mode) in enumerate(zip(streams, (os.O_RDONLY, os.O_WRONLY, os.O_WRONLY))):
        os.dup2(os.open(path, mode), number)
    sys.stdin = open(0, encoding="utf-8")
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.modules.update(dict.fromkeys(without))
    sys.argv = ["modernbert", *words]
    main()
    sys.exit(0)
"""


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
        server = _server()
        assert server.stdin is not None and server.stdout is not None
        asked = [words, [str(stream) for stream in streams], os.getcwd(), os.environ | variables, list(without)]
        server.stdin.write(json.dumps(asked) + "\n")
        server.stdin.flush()
        if not select.select([server.stdout], [], [], _MOST_SECONDS)[0]:
            _end(server)
            raise TimeoutError(f"{words}: not done after {_MOST_SECONDS} seconds")
        status = int(server.stdout.readline())
        return subprocess.CompletedProcess(words, status, streams[1].read_text(), streams[2].read_text())


def options(*words: str) -> list[str]:
    """Return `key=value` words as options, and a list such as `train=[a, b]` as one option for each entry.

    >>> options("max_len=8", "train=[a, b]")
    ['--max-len', '8', '--train', 'a', '--train', 'b']
    """
    found = []
    for word in words:
        key, _, value = word.partition("=")
        values = value[1:-1].split(", ") if value[:1] == "[" and value[-1:] == "]" else [value]
        if value in ("true", "false"):
            found.append(f"--{'' if value == 'true' else 'no-'}{key.replace('_', '-')}")
        else:
            found += [part for each in values for part in (f"--{key.replace('_', '-')}", each)]
    return found


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
def _server() -> subprocess.Popen[str]:
    server = subprocess.Popen(
        [sys.executable, "-c", _SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    atexit.register(_end, server)
    return server


def _end(server: subprocess.Popen[str]) -> None:
    """End the process and the command that it waits for."""
    _server.cache_clear()
    if server.poll() is None:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
