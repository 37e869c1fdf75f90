"""A shell for the commands of a page; `modernbert` in it is a fork of a process that has imported torch."""

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

_MARK = "__end of block__"
_MOST_SECONDS = 240
# Imports once, then forks for each client, which sends its streams, its folder and its words.
_SERVER = """
import json, os, signal, socket, sys
import modernbert.inference.modernbert, modernbert.training.training_loop
import transformers.models.bert.modeling_bert
from modernbert.cli.main import main
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen(16)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
while True:
    client, _ = listener.accept()
    if os.fork():
        client.close()
        continue
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    data, streams, _, _ = socket.recv_fds(client, 1 << 20, 3)
    words, cwd, env = json.loads(data)
    if child := os.fork():
        client.send(f"{child}\\n".encode())
        client.send(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\\n".encode())
        os._exit(0)
    client.close()
    listener.close()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    sys.stdin, sys.stdout, sys.stderr = (open(n, mode, encoding="utf-8", closefd=False) for n, mode in enumerate("rww"))
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = ["modernbert", *words]
    main()
    sys.exit(0)
"""
_CLIENT = """#!{python} -SE
import json, os, signal, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
socket.send_fds(server, [json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()], [0, 1, 2])
answer = server.makefile()
child = int(answer.readline())
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, _: os.kill(child, number))
status = int(answer.readline())
sys.exit(status if status >= 0 else 128 - status)
"""


class CommandServer:
    """A process that runs the commands of all pages, and a folder with the program `modernbert` that asks it."""

    def __init__(self, folder: Path, **variables: str) -> None:
        address = str(folder / "server")
        self.folder, self.env = folder, os.environ | {"PATH": _path(folder)} | variables
        self.env.pop("PYTHONDONTWRITEBYTECODE", None)
        client = folder / "modernbert"
        client.write_text(_CLIENT.format(python=sys.executable, address=address))
        client.chmod(0o755)
        self.process = subprocess.Popen([sys.executable, "-c", _SERVER, address], env=self.env, start_new_session=True)
        _wait_for(lambda: os.path.exists(address))

    def close(self) -> None:
        """End the process and the commands that it runs."""
        _end(self.process)


class PageShell:
    """A bash session in a folder, in which variables and background jobs last until it is closed."""

    def __init__(self, folder: Path, server: CommandServer) -> None:
        self.scripts, self.num_blocks = folder.parent, 0
        self.bash = subprocess.Popen(
            ["bash", "--norc"], cwd=folder, env=server.env, start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def run(self, code: str) -> str:
        """Run commands, and return their output. Raises: AssertionError if one fails."""
        assert self.bash.stdin is not None
        self.num_blocks += 1
        script = self.scripts / f"block-{self.num_blocks}.sh"
        script.write_text(f"set -eo pipefail\n{code}")
        self.bash.stdin.write(f"source {script}\nprintf '\\n{_MARK}\\n'\n".encode())
        self.bash.stdin.flush()
        return self._read()

    def wait_for_port(self, port: int) -> None:
        """Wait until a server answers."""

        def answers() -> bool:
            with socket.socket() as client:
                return client.connect_ex(("127.0.0.1", port)) == 0

        _wait_for(answers)

    def close(self) -> None:
        """End the session and its background jobs."""
        _end(self.bash)
        assert self.bash.stdin is not None and self.bash.stdout is not None
        self.bash.stdin.close()
        self.bash.stdout.close()

    def _read(self) -> str:
        assert self.bash.stdout is not None
        output, end = b"", time.monotonic() + _MOST_SECONDS
        while _MARK.encode() not in output:
            ready, _, _ = select.select([self.bash.stdout], [], [], max(0, end - time.monotonic()))
            assert ready, f"not done after {_MOST_SECONDS} seconds; printed:\n{output.decode()}"
            part = os.read(self.bash.stdout.fileno(), 1 << 16)
            assert part, f"a command failed; printed:\n{output.decode()}"
            output += part
        return output.decode().split(_MARK)[0]


def _path(folder: Path) -> str:
    return f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"


def _wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "the server did not start"
        time.sleep(0.05)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
    process.wait()
