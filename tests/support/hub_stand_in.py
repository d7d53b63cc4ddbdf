"""A Hub on this machine: what huggingface_hub asks for when it makes, fills, lists and reads a repository.

A Space is one under `spaces/OWNER/NAME`, as in its address; everything else is a model.

Written from the client's requests (huggingface_hub 1.33 and 2.4). LFS by its "basic" transfer; Xet, which the real Hub
prefers, is another protocol, so clients of this one set HF_HUB_DISABLE_XET=1.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

TOKEN = "hf_stand_in"
OWNER = "me"
LFS_SUFFIXES = (".safetensors", ".model")


@dataclass
class Repository:
    """Its files, and which of them are LFS."""

    private: bool
    sdk: str | None = None
    files: dict[str, bytes] = field(default_factory=dict)
    lfs: set[str] = field(default_factory=set)
    commits: list[str] = field(default_factory=list)
    history: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def at(self, revision: str) -> dict[str, bytes]:
        """The files of a branch, or of a commit that is not the last."""
        return self.files if revision == self.revision else self.history.get(revision, self.files)

    @property
    def revision(self) -> str:
        """What a commit's hash looks like."""
        return hashlib.sha1(f"{self.commits}".encode()).hexdigest()


@dataclass
class Hub:
    """Every repository, the LFS objects, and the requests so far.

    `fails`: beginning of a request ("PUT /objects") -> statuses that the next of these are answered with instead (0:
    the connection is closed); `role`: of the token.
    """

    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    damaged: set[str] = field(default_factory=set)
    fails: dict[str, list[int]] = field(default_factory=dict)
    role: str = "write"
    url: str = ""


@contextmanager
def serve() -> Iterator[Hub]:
    """A running stand-in."""
    hub = Hub()

    class Handler(_Handler):
        shared = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def serve_here(patch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A running stand-in, and this process made to talk to it, with a token at hand."""
    with serve() as hub:
        patch.setattr(constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setenv("HF_TOKEN", TOKEN)
        yield hub


def _key(kind: str, name: str) -> str:
    """Of a repository: the path of its address."""
    return name if kind == "models" else f"{kind}/{name}"


class _Handler(BaseHTTPRequestHandler):
    shared: Hub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or each answer waits 40 ms for the client's receipt of its headers

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        path, body = self._begin()
        if self._failed(path):
            return
        if path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._json({"error": "Invalid username or password."}, 401)
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif match := re.fullmatch(r"/api/(models|spaces)/(.+)/preupload/main", path):
            self._preupload(json.loads(body))
        elif match := re.fullmatch(r"/(.+)\.git/info/lfs/objects/batch", path):
            self._batch(json.loads(body))
        elif match := re.fullmatch(r"/api/(models|spaces)/(.+)/commit/main", path):
            self._commit(_key(match[1], match[2]), [json.loads(line) for line in body.splitlines() if line])
        else:
            self._json({"error": f"the stand-in knows no POST {path}"}, 404)

    def do_PUT(self) -> None:
        path, body = self._begin()
        if self._failed(path):
            return
        oid = path.removeprefix("/objects/")
        assert hashlib.sha256(body).hexdigest() == oid
        self.shared.objects[oid] = body
        self._json({})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path, _ = self._begin()
        if self._failed(path):
            return
        if match := re.fullmatch(r"/((?:spaces/)?[^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(match[1], match[2], match[3])
        elif path == "/api/whoami-v2":
            is_known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
            who = {"type": "user", "name": OWNER, "auth": {"accessToken": {"role": self.shared.role}}}
            self._json(who if is_known else {"error": "Invalid username or password."}, 200 if is_known else 401)
        elif match := re.fullmatch(r"/api/(models|spaces)/([^/]+/[^/]+)/tree/([^/]+)(/.*)?", path):
            self._tree(_key(match[1], match[2]), match[3], (match[4] or "").strip("/"))
        elif match := re.fullmatch(r"/api/(models|spaces)/([^/]+/[^/]+?)(/revision/[^/]+)?", path):
            self._info(_key(match[1], match[2]))
        else:
            self._json({"error": f"the stand-in knows no GET {path}"}, 404)

    def _failed(self, path: str) -> bool:
        """Whether the request is one of those that fail, and was answered so."""
        for start, statuses in self.shared.fails.items():
            if f"{self.command} {path}".startswith(start) and statuses:
                status = statuses.pop(0)
                if status:
                    self._json({"error": "the stand-in was told to fail"}, status)
                self.close_connection = True
                return True
        return False

    def _begin(self) -> tuple[str, bytes]:
        path = unquote(urlsplit(self.path).path)
        self.shared.requests.append(f"{self.command} {path}")
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return path, body
        return path, self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        if asked["organization"] != OWNER:
            self._json({"error": f"You don't have the rights to create a model under {asked['organization']}"}, 403)
            return
        name = _key("spaces" if asked.get("type") == "space" else "models", name)
        exists = name in self.shared.repositories
        if not exists:
            private = bool(asked.get("private")) or asked.get("visibility") == "private"
            self.shared.repositories[name] = Repository(private, asked.get("sdk"))
        self._json({"url": f"{self.shared.url}/{name}", "name": name, "id": name}, 409 if exists else 200)

    def _preupload(self, asked: dict[str, Any]) -> None:
        modes = {True: "lfs", False: "regular"}
        files = [
            {
                "path": file["path"],
                "uploadMode": modes[file["path"].endswith(LFS_SUFFIXES)],
                "shouldIgnore": False,
                "oid": None,
            }
            for file in asked["files"]
        ]
        self._json({"files": files})

    def _batch(self, asked: dict[str, Any]) -> None:
        objects = [
            {
                "oid": entry["oid"],
                "size": entry["size"],
                "actions": {"upload": {"href": f"{self.shared.url}/objects/{entry['oid']}"}},
            }
            for entry in asked["objects"]
        ]
        self._json({"transfer": "basic", "objects": objects})

    def _commit(self, name: str, lines: list[dict[str, Any]]) -> None:
        repository = self.shared.repositories[name]
        for line in lines:
            key, value = line["key"], line["value"]
            if key == "header":
                repository.commits.append(value["summary"])
            elif key == "deletedFile":
                del repository.files[value["path"]]
            elif key == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            else:
                assert key == "lfsFile"
                content = self.shared.objects[value["oid"]]
                repository.files[value["path"]] = content
                repository.lfs.add(value["path"])
        oid = repository.revision
        repository.history[oid] = dict(repository.files)
        self._json({"success": True, "commitOid": oid, "commitUrl": f"{self.shared.url}/{name}/commit/{oid}"})

    def _found(self, name: str) -> Repository | None:
        repository = self.shared.repositories.get(name)
        allowed = repository is not None and (
            not repository.private or self.headers.get("Authorization") == f"Bearer {TOKEN}"
        )
        if not allowed:
            self._json({"error": "Repository not found"}, 401, {"X-Error-Code": "RepoNotFound"})
        return repository if allowed else None

    def _info(self, name: str) -> None:
        repository = self._found(name)
        if repository is not None:
            siblings = [{"rfilename": path} for path in repository.files]
            self._json({"id": name, "modelId": name, "sha": repository.revision, "siblings": siblings, "tags": []})

    def _tree(self, name: str, revision: str, inside: str) -> None:
        repository = self._found(name)
        if repository is None:
            return
        files, prefix = repository.at(revision), f"{inside}/" if inside else ""
        is_deep = "recursive=true" in urlsplit(self.path).query.lower()
        entries: dict[str, dict[str, Any]] = {}
        for path, content in files.items():
            folder, _, rest = path.removeprefix(prefix).partition("/")
            if not path.startswith(prefix):
                continue
            if rest and not is_deep:
                entries[prefix + folder] = {"type": "directory", "path": prefix + folder, "size": 0, "oid": "0" * 40}
                continue
            oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": oid}
            if path in repository.lfs:
                sha256 = "0" * 64 if path in self.shared.damaged else hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 130}
            entries[path] = entry
        if inside and not entries:
            self._json({"error": "no such folder"}, 404, {"X-Error-Code": "EntryNotFound"})
            return
        self._json(list(entries.values()))

    def _file(self, name: str, revision: str, path: str) -> None:
        repository = self._found(name)
        if repository is None:
            return
        files = repository.at(revision)
        if path not in files:
            self._json({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
            return
        content, status = files[path], 200
        if asked := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
            content, status = content[int(asked[1]) : int(asked[2]) + 1], 206
        self.send_response(status)
        self.send_header("X-Repo-Commit", repository.revision)
        self.send_header("ETag", f'"{hashlib.sha256(files[path]).hexdigest()}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def _json(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
