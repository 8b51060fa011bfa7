"""A hub of the tests' own: the few routes that huggingface_hub asks for when it uploads and downloads a folder."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlparse

SHA = "0" * 39 + "1"
"""The only commit."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    files: dict[str, dict[str, bytes]]
    """By repository, its files by path."""
    large: dict[str, bytes]
    """What was uploaded by its SHA-256."""

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_POST(self) -> None:
        path, body = urlparse(self.path).path, self._body()
        if path == "/api/repos/create":
            self.files.setdefault(self._repo(json.loads(body)), {})
            self._json({"url": f"{self._here}/{self._repo(json.loads(body))}"})
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif "/preupload/" in path:
            told = [
                {"path": each["path"], "uploadMode": _mode(each["path"]), "shouldIgnore": False, "oid": None}
                for each in json.loads(body)["files"]
            ]
            self._json({"files": told})
        elif path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**each, "actions": {"upload": {"href": f"{self._here}/lfs/{each['oid']}"}}}
                for each in json.loads(body)["objects"]
            ]
            self._json({"transfer": "basic", "objects": objects})
        elif "/commit/" in path:
            self._commit(path.removeprefix("/api/models/").partition("/commit/")[0], body)
        else:
            self._json({"error": path}, 404)

    def do_PUT(self) -> None:
        body = self._body()
        oid = self.path.rpartition("/")[2]
        assert hashlib.sha256(body).hexdigest() == oid
        self.large[oid] = body
        self._json({})

    def do_GET(self) -> None:
        path = urlparse(self.path).path
        if path.startswith("/api/models/"):
            repo = path.removeprefix("/api/models/").partition("/revision/")[0].partition("/tree/")[0]
            if repo not in self.files:
                self._json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
            elif "/tree/" in path:
                held = self.files[repo].items()
                self._json([{"type": "file", "path": name, "size": len(each), "oid": SHA} for name, each in held])
            else:
                names = [{"rfilename": name} for name in self.files[repo]]
                self._json({"id": repo, "sha": SHA, "siblings": names, "private": False})
            return
        repo, _, rest = path[1:].partition("/resolve/")
        content = self.files.get(repo, {}).get(rest.partition("/")[2])
        if content is None:
            self._json({"error": path}, 404, {"X-Error-Code": "EntryNotFound"})
            return
        told = {"X-Repo-Commit": SHA, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
        self._answer(content, 200, told, "application/octet-stream")

    def do_HEAD(self) -> None:
        self.do_GET()

    def _commit(self, repo: str, body: bytes) -> None:
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                self.files[repo][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.files[repo][value["path"]] = self.large[value["oid"]]
        self._json({"success": True, "commitUrl": f"{self._here}/{repo}/commit/{SHA}", "commitOid": SHA})

    def _repo(self, asked: dict[str, Any]) -> str:
        return "/".join(filter(None, (asked.get("organization"), asked["name"])))

    @property
    def _here(self) -> str:
        return f"http://{self.headers['Host']}"

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._answer(json.dumps(value).encode(), status, headers or {}, "application/json")

    def _answer(self, content: bytes, status: int, headers: dict[str, str], kind: str) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Type": kind, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _mode(path: str) -> str:
    return "lfs" if path.endswith(".safetensors") else "regular"


@contextmanager
def running_hub() -> Iterator[tuple[str, dict[str, dict[str, bytes]]]]:
    """Its address, and what it holds by repository."""
    handler = type("Handler", (_Handler,), {"files": {}, "large": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", handler.files
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
