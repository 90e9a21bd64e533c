"""A Hugging Face endpoint on loopback, as small as the real client lets it be: repos, commits, LFS, trees, files.

There is no open server of the hub to run, so this one speaks what `huggingface_hub` sends when a repo is made, a commit
is sent with LFS for weights, and files are listed and fetched. State is plain: `repos[id].commits` is a list of
{path: bytes}; tests change it as a stranger with write access would.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import signal
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class Repo:
    private: bool
    commits: list[dict[str, bytes]] = field(default_factory=lambda: [{".gitattributes": b"*.safetensors filter=lfs\n"}])
    branches: dict[str, int] = field(default_factory=lambda: {"main": 0})

    def number(self, revision: str) -> int | None:
        if revision in self.branches:
            return self.branches[revision]
        return next((i for i in range(len(self.commits)) if oid(i) == revision), None)


def oid(number: int) -> str:
    return hashlib.sha1(f"commit {number}".encode()).hexdigest()


def is_lfs(path: str) -> bool:
    return path.endswith(".safetensors")


class Hub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.tokens: set[str] = set()
        self.loses: str | None = None  # a file that every commit forgets
        self.kills: int | None = None  # a process that is killed when its first large file has come
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_args: Any) -> None:
        pass

    def answer(self, body: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def missing(self, code: str) -> None:
        self.answer({"error": code}, 404, {"X-Error-Code": code})

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def route(self) -> str:
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(f"{self.command} {path}")
        self.server.tokens.add(self.headers.get("Authorization") or "")
        return path

    def do_POST(self) -> None:
        path, content = self.route(), self.body()
        if path == "/api/repos/create":
            given = json.loads(content)
            name = f"{given['organization']}/{given['name']}" if given.get("organization") else f"me/{given['name']}"
            if name in self.server.repos:
                return self.answer({"error": "exists", "url": f"{self.server.url}/{name}"}, 409)
            self.server.repos[name] = Repo(bool(given.get("private") or given.get("visibility") == "private"))
            return self.answer({"url": f"{self.server.url}/{name}", "id": name})
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if found := re.fullmatch(r"/(.+)\.git/info/lfs/objects/batch", path):
            objects = [
                {**o, "actions": {"upload": {"href": f"{self.server.url}/lfs/{o['oid']}"}}}
                for o in json.loads(content)["objects"]
            ]
            return self.answer({"transfer": "basic", "objects": objects})
        found = re.fullmatch(r"/api/(?:models|datasets)/([^/]+/[^/]+)/(preupload|commit|branch)/(.+)", path)
        if not found or found[1] not in self.server.repos:
            return self.missing("RepoNotFound")
        repo, verb, revision = self.server.repos[found[1]], found[2], found[3]
        if verb == "branch":
            if revision in repo.branches:
                return self.answer({"error": "exists"}, 409)
            repo.branches[revision] = repo.branches["main"]
            return self.answer({})
        if verb == "preupload":
            files = [
                {"path": f["path"], "uploadMode": "lfs" if is_lfs(f["path"]) else "regular", "shouldIgnore": False}
                for f in json.loads(content)["files"]
            ]
            return self.answer({"files": files})
        return self.commit(found[1], repo, revision, [json.loads(line) for line in content.splitlines()])

    def commit(self, name: str, repo: Repo, revision: str, lines: list[dict[str, Any]]) -> None:
        tree = dict(repo.commits[repo.branches[revision]])
        for line in lines:
            value = line["value"]
            if line["key"] == "header" and value.get("parentCommit") not in (None, oid(repo.branches[revision])):
                return self.answer({"error": "the branch has moved"}, 412)
            if line["key"] == "file":
                tree[value["path"]] = base64.b64decode(value["content"])
            if line["key"] == "lfsFile":
                tree[value["path"]] = self.server.objects[value["oid"]]
            if line["key"] == "deletedFile":
                tree.pop(value["path"])
        tree.pop(self.server.loses or "", None)
        repo.commits.append(tree)
        repo.branches[revision] = len(repo.commits) - 1
        self.answer({"commitUrl": f"{self.server.url}/{name}/commit/{oid(len(repo.commits) - 1)}",
                     "commitOid": oid(len(repo.commits) - 1), "success": True})  # fmt: skip

    def do_PUT(self) -> None:
        path, content = self.route(), self.body()
        if self.server.kills is not None:
            os.kill(self.server.kills, signal.SIGKILL)
        self.server.objects[path.rsplit("/", 1)[-1]] = content
        self.answer({})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.route()
        found = re.fullmatch(r"/api/(?:models|datasets)/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path)
        file = re.fullmatch(r"/(?:datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        name = (found or file or [None, None])[1]
        repo = self.server.repos.get(str(name))
        if repo is None:
            return self.missing("RepoNotFound")
        revision = (found[3] if found else file[2]) or "main"  # type: ignore[index]
        number = repo.number(revision)
        if number is None:
            return self.missing("RevisionNotFound")
        tree = repo.commits[number]
        if file:
            return self.file(tree, file[3], number)
        if found and found[2] == "tree":
            return self.answer([entry(path, content) for path, content in tree.items()])
        self.answer({"id": name, "sha": oid(number), "siblings": [{"rfilename": p} for p in tree]})

    def file(self, tree: dict[str, bytes], path: str, number: int) -> None:
        if path not in tree:
            return self.missing("EntryNotFound")
        content = tree[path]
        tag = hashlib.sha256(content).hexdigest() if is_lfs(path) else blob(content)
        self.answer(content, headers={"X-Repo-Commit": oid(number), "ETag": f'"{tag}"'})


def blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def entry(path: str, content: bytes) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": blob(content)}
    if is_lfs(path):
        digest = hashlib.sha256(content).hexdigest()
        found["lfs"] = {"oid": digest, "sha256": digest, "size": len(content), "pointerSize": 134}
    return found
