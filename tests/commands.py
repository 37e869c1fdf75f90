"""The command line without its wait for imports: a process that has them forks for every command.

In: words, and what is to be read from standard input. Out: what `subprocess.run` would return. A command has a process,
signals and files of its own all the same; only one that starts processes itself has to be begun anew.
"""

import atexit
import functools
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

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
    """Run a verb as `python -m modernbert.cli.main` does: what it is given to read is a text or a file.

    Variables are set for the verb; modules that read the environment at import do so once. Libraries named in
    `without` are as if they were not installed.
    """
    with tempfile.TemporaryDirectory() as room:
        streams = [Path(room, name) for name in ("in", "out", "err")]
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
