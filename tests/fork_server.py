"""A process that imports torch once, and forks for each command of `modernbert` that it is asked to run."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

# Imports once, then forks for each client, which sends its streams, its words, its folder and its environment, and the
# libraries that appear not to be installed. The answer is the process of the command, then its exit status.
_SERVER = """
import importlib, json, os, signal, socket, sys
from modernbert.cli.main import main
for name in sys.argv[2:]:
    importlib.import_module(name)
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
    while not data.endswith(b"\\n"):
        data += client.recv(1 << 20)
    words, cwd, env, without = json.loads(data)
    if child := os.fork():
        client.send(f"{child}\\n".encode())
        client.send(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\\n".encode())
        os._exit(0)
    client.close()
    listener.close()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    sys.stdin, sys.stdout = (open(number, mode, encoding="utf-8", closefd=False) for number, mode in enumerate("rw"))
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.modules.update(dict.fromkeys(without))
    sys.argv = ["modernbert", *words]
    main()
    sys.exit(0)
"""
_CLIENT = """#!{python} -SE
import json, os, signal, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
asked = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ), []]).encode() + b"\\n"
server.sendall(asked[socket.send_fds(server, [asked], [0, 1, 2]) :])
answer = server.makefile()
child = int(answer.readline())
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, _: os.kill(child, number))
status = int(answer.readline())
sys.exit(status if status >= 0 else 128 - status)
"""
_MODULES = ("modernbert.inference.modernbert", "modernbert.training.training_loop")


class ForkServer:
    """The process, with its socket in a folder."""

    def __init__(self, folder: Path, *modules: str, env: Mapping[str, str] | None = None) -> None:
        """Start the process, and wait for it. `modules` are imported too."""
        self._address = str(folder / "server")
        command = [sys.executable, "-c", _SERVER, self._address, *_MODULES, *modules]
        self._process = subprocess.Popen(command, env=env, start_new_session=True)
        end = time.monotonic() + 60
        while not os.path.exists(self._address):
            assert self._process.poll() is None and time.monotonic() < end, "the server did not start"
            time.sleep(0.05)

    def write_program(self, path: Path) -> None:
        """Write a program that takes words, and runs them as a command with its own streams."""
        path.write_text(_CLIENT.format(python=sys.executable, address=self._address))
        path.chmod(0o755)

    def run(
        self, words: Sequence[str], streams: Sequence[int], env: Mapping[str, str], without: Sequence[str], seconds: int
    ) -> int:
        """Run a command in the current folder, and return its exit status. Raises: TimeoutError, and ends all."""
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(self._address)
            asked = json.dumps([list(words), os.getcwd(), dict(env), list(without)]).encode() + b"\n"
            client.sendall(asked[socket.send_fds(client, [asked], streams) :])
            with client.makefile() as answer:
                answer.readline()
                if not select.select([client], [], [], seconds)[0]:
                    self.close(signal.SIGKILL)
                    raise TimeoutError(f"{words}: not done after {seconds} seconds")
                return int(answer.readline())

    def close(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End the process and the commands that it runs."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, number)
        self._process.wait()
