"""A stand-in for the HTTP API of the Hugging Face Hub: repositories in memory, with branches and commits."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

OWNER, WRITER, READER = "me", "hf_writer", "hf_reader"


@dataclass
class Repository:
    private: bool
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {}})
    commits: list[tuple[str, str, list[str]]] = field(default_factory=list)
    """Branch, message and operations of each commit."""

    def files(self, revision: str) -> dict[str, bytes]:
        """Return the files of a branch, or of a newest commit."""
        return next(files for name, files in self.branches.items() if revision in (name, commit_of(files)))


def commit_of(files: dict[str, bytes]) -> str:
    """Return the name of a commit, which depends on its files alone."""
    return hashlib.sha1(json.dumps(sorted((name, data.hex()) for name, data in files.items())).encode()).hexdigest()


@dataclass
class Hub:
    """The server's address and content."""

    endpoint: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)
    """Content of large files by SHA-256."""
    breaks_at: str = ""
    """Part of the path of requests that are answered with an error of the server."""

    def answer(self, method: str, path: str, body: bytes, token: str | None) -> tuple[int, Any]:
        """Return the status and the JSON content of an answer; bytes are the content of a file."""
        if self.breaks_at and self.breaks_at in path:
            return 500, {"error": "out of order"}
        parts = [unquote(part) for part in path.strip("/").split("/")]
        if method in ("POST", "PUT") and path != "/api/validate-yaml" and parts[0] != "lfs":
            if token is None or not token.startswith("hf_"):
                return 401, {"error": "Invalid username or password."}
            if token != WRITER:
                return 403, {"error": "You don't have the rights to create a model under this namespace"}
        match [method, *parts]:
            case ["POST", "api", "validate-yaml"]:
                return 200, {"errors": [], "warnings": []}
            case ["POST", "api", "repos", "create"]:
                asked = json.loads(body)
                if asked["organization"] != OWNER:
                    return 403, {"error": "You don't have the rights to create a model under this namespace"}
                name = f"{asked['organization']}/{asked['name']}"
                if name in self.repositories:
                    return 409, {"error": "You already created this model repo", "url": f"{self.endpoint}/{name}"}
                is_private = asked.get("visibility") == "private" or asked.get("private") is True
                self.repositories[name] = Repository(is_private)
                return 200, {"url": f"{self.endpoint}/{name}", "name": name}
            case ["PUT", "lfs", digest]:
                self.stored[digest] = body
                return 200, {}
            case ["POST", owner, name, "info", "lfs", "objects", "batch"] if (
                f"{owner}/{name}"[:-4] in self.repositories
            ):
                asked = json.loads(body)["objects"]
                uploads = [
                    each | {"actions": {"upload": {"href": f"{self.endpoint}/lfs/{each['oid']}"}}} for each in asked
                ]
                return 200, {"transfer": "basic", "objects": uploads}
            case [_, "api", "models", owner, name, *rest] if f"{owner}/{name}" in self.repositories:
                return self._of_repository(method, f"{owner}/{name}", rest, body)
            case ["GET" | "HEAD", owner, name, "resolve", revision, *place] if f"{owner}/{name}" in self.repositories:
                files = self.repositories[f"{owner}/{name}"].files(revision)
                return (200, files["/".join(place)]) if "/".join(place) in files else (404, {})
        return 404, {"error": "Repository not found"}

    def _of_repository(self, method: str, name: str, rest: list[str], body: bytes) -> tuple[int, Any]:
        repository = self.repositories[name]
        match [method, *rest]:
            case ["GET"] | ["GET", "revision", _]:
                revision = rest[1] if rest else "main"
                files = [{"rfilename": file} for file in repository.files(revision)]
                return 200, {"id": name, "modelId": name, "private": repository.private, "siblings": files,
                             "sha": commit_of(repository.files(revision)), "tags": [], "downloads": 0}  # fmt: skip
            case ["GET", "tree", revision, *_]:
                files = repository.files(revision)
                return 200, [{"type": "file", "path": file, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                             for file, data in files.items()]  # fmt: skip
            case ["POST", "branch", branch]:
                if branch in repository.branches:
                    return 409, {"error": "Reference already exists"}
                repository.branches[branch] = dict(repository.branches["main"])
                return 200, {}
            case ["POST", "preupload", _]:
                files = [{"path": each["path"], "shouldIgnore": False, "oid": None,
                          "uploadMode": "lfs" if each["path"].endswith((".safetensors", ".onnx")) else "regular"}
                         for each in json.loads(body)["files"]]  # fmt: skip
                return 200, {"files": files}
            case ["POST", "commit", branch]:
                return self._commit(name, branch, [json.loads(line) for line in body.splitlines()])
        return 404, {"error": "unknown request"}

    def _commit(self, name: str, branch: str, lines: list[dict[str, Any]]) -> tuple[int, Any]:
        repository = self.repositories[name]
        files = dict(repository.branches[branch])
        message, done = "", []
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                message = value["summary"]
                continue
            done.append(f"{line['key']} {value['path']}")
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.stored[value["oid"]]
            else:
                del files[value["path"]]
        repository.branches[branch] = files
        repository.commits.append((branch, message, done))
        return 200, {"commitUrl": f"{self.endpoint}/{name}/commit/1", "commitOid": commit_of(files), "success": True}


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """Serve an empty Hub on a free port."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
            status, content = hub.answer(self.command, urlsplit(self.path).path, body, token)
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            if isinstance(content, bytes):
                self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
                self.send_header("X-Repo-Commit", unquote(self.path.split("/")[4]))
            else:
                self.send_header("Content-Type", "application/json")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_HEAD = do_POST = do_PUT = _answer

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
