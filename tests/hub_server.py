"""A stand-in for the Hugging Face hub: the part of its HTTP interface that uploads and downloads of models use."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_of_the_stand_in"


class Hub(ThreadingHTTPServer):
    """Repositories in memory: {name: {branch: commit}}, and the files of every commit."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.branches: dict[str, dict[str, str]] = {}
        self.commits: dict[str, dict[str, bytes]] = {}
        self.large: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.refused: dict[str, tuple[int, dict[str, str]]] = {}
        """Status and headers of the page that answers in place of a repository."""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def commit(self, repository: str, branch: str, files: dict[str, bytes]) -> str:
        """Put files on a branch; return the commit."""
        content = {name: hashlib.sha1(data).hexdigest() for name, data in files.items()}
        number = hashlib.sha1(json.dumps([repository, len(self.commits), content]).encode()).hexdigest()
        self.commits[number] = files
        self.branches.setdefault(repository, {})[branch] = number
        return number


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        parts = self.path.partition("?")[0].strip("/").split("/")
        name = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        if name in self.server.refused:
            status, headers = self.server.refused[name]
            return self._answer(b"<html>a page</html>", headers, status)
        branches = self.server.branches.get(name)
        if branches is None:
            return self._refuse(404, "RepoNotFound")
        revision = parts[5] if len(parts) > 5 and parts[0] == "api" else parts[3] if parts[0] != "api" else "main"
        number = revision if revision in self.server.commits else branches.get(revision)
        if number is None:
            return self._refuse(404, "RevisionNotFound")
        files = self.server.commits[number]
        if parts[0] != "api":
            file = "/".join(parts[4:])
            if file not in files:
                return self._refuse(404, "EntryNotFound")
            etag = hashlib.sha256(files[file]).hexdigest()
            return self._answer(files[file], {"X-Repo-Commit": number, "ETag": f'"{etag}"'})
        if parts[4] == "tree":
            kinds = [
                {"type": "file", "path": p, "size": len(d), "oid": hashlib.sha1(d).hexdigest()}
                for p, d in files.items()
            ]
            return self._answer(kinds)
        return self._answer({"id": name, "sha": number, "siblings": [{"rfilename": p} for p in files]})

    def do_PUT(self) -> None:
        self.server.large[self.path.rpartition("/")[2]] = self._body()
        self._answer({})

    def do_POST(self) -> None:
        self.server.asked.append(self.path)
        body = self._body()
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            return self._refuse(401, "")
        parts = self.path.partition("?")[0].strip("/").split("/")
        if parts[:3] == ["api", "repos", "create"]:
            given = json.loads(body)
            name = "/".join(filter(None, (given.get("organization"), given["name"])))
            if name not in self.server.branches:
                self.server.commit(name, "main", {".gitattributes": b""})
            return self._answer({"url": f"{self.server.address}/{name}", "name": name})
        if parts[:2] == ["api", "validate-yaml"]:
            return self._answer({"errors": [], "warnings": []})
        if parts[-1] == "batch":
            upload = [
                {**o, "actions": {"upload": {"href": f"{self.server.address}/large/{o['oid']}"}}}
                for o in json.loads(body)["objects"]
            ]
            return self._answer({"transfer": "basic", "objects": upload})
        name, action = "/".join(parts[2:4]), parts[4]
        if action == "branch":
            self.server.branches[name][parts[5]] = self.server.branches[name]["main"]
            return self._answer({})
        if action == "preupload":
            modes = [
                {
                    "path": f["path"],
                    "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for f in json.loads(body)["files"]
            ]
            return self._answer({"files": modes})
        assert action == "commit", self.path
        files = dict(self.server.commits[self.server.branches[name][parts[5]]])
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.large[value["oid"]]
        number = self.server.commit(name, parts[5], files)
        return self._answer({"commitUrl": f"{self.server.address}/{name}/commit/{number}", "commitOid": number})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, content: Any, headers: dict[str, str] | None = None, status: int = 200) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header(
            "Content-Type", "application/octet-stream" if isinstance(content, bytes) else "application/json"
        )
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _refuse(self, status: int, code: str) -> None:
        self._answer({"error": code}, {"X-Error-Code": code, "X-Error-Message": code or "no"}, status)


@contextmanager
def running_hub() -> Iterator[Hub]:
    """Serve an empty hub on a port of this machine."""
    with Hub() as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        try:
            yield hub
        finally:
            hub.shutdown()
