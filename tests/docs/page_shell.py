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

from fork_server import ForkServer

_MARK = "__end of block__"
_MOST_SECONDS = 240


class CommandServer:
    """A process that runs the commands of all pages, and a folder with the program `modernbert` that asks it."""

    def __init__(self, folder: Path, **variables: str) -> None:
        self.env = os.environ | {"PATH": _path(folder)} | variables
        self.env.pop("PYTHONDONTWRITEBYTECODE", None)
        self._server = ForkServer(folder, "transformers.models.bert.modeling_bert", env=self.env)
        self._server.write_program(folder / "modernbert")

    def close(self) -> None:
        """End the process and the commands that it runs."""
        self._server.close()


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
