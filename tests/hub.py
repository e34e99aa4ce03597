"""A local Hub over loopback: repositories in memory, the endpoints that publishing touches, and faults on demand.

with LocalHub() as hub:        HF_ENDPOINT, HF_TOKEN and the like are set for the tests' process and its children
    hub.fault("commit", 412)   the next request of that kind answers 412
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKEN = "hf_" + "testtokentesttokentesttoken1234567"
ID_TOKEN = "a job's proof of what it is"
NAMESPACE = "someone"
LARGE_SUFFIXES = (".safetensors", ".gguf", ".onnx", ".onnx_data", ".png")
ATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"


def git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass(frozen=True)
class Blob:
    data: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


@dataclass
class Repository:
    """Branches of commits; a commit is a whole tree."""

    private: bool
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def add(self, ref: str, tree: dict[str, Blob]) -> str:
        oid = hashlib.sha1(repr((len(self.commits), ref, sorted(tree))).encode()).hexdigest()
        self.commits[oid] = tree
        self.refs[ref] = oid
        return oid

    def oid(self, revision: str) -> str | None:
        return self.refs.get(revision) or (revision if revision in self.commits else None)


@dataclass
class Fault:
    """What the next `times` requests of a kind get instead; `after` of them pass before."""

    status: int
    body: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    times: int = 1
    after: int = 0
    cut: bool = False
    delay: float = 0.0
    action: Callable[[], None] | None = None


@dataclass
class LocalHub:
    """The server and what it has seen.

    Attributes:
        repositories: by id.
        gated: ids whose content asks for terms to be accepted.
        seen: kinds of requests in order.
        uploads: how often each LFS object's bytes came.
        received: per repository, places of the files that commits brought, with their SHA-256.
        resolved: places of files whose bytes were asked for; `sent` says how many bytes of each went out.
        pace: seconds that a block of a request's body takes.
    """

    repositories: dict[str, Repository] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    objects: dict[str, bytes] = field(default_factory=dict)
    seen: list[str] = field(default_factory=list)
    headers: list[str] = field(default_factory=list)
    uploads: Counter[str] = field(default_factory=Counter)
    received: dict[str, dict[str, str]] = field(default_factory=dict)
    resolved: set[str] = field(default_factory=set)
    sent: Counter[str] = field(default_factory=Counter)
    collections: dict[str, list[str]] = field(default_factory=dict)
    faults: dict[str, Fault] = field(default_factory=dict)
    token: str = TOKEN
    pace: float = 0.0
    lock: threading.RLock = field(default_factory=threading.RLock)

    def __enter__(self) -> LocalHub:
        hub = self

        class Handler(_Handler):
            state = hub

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def fault(self, kind: str, status: int = 500, **more: Any) -> None:
        self.faults[kind] = Fault(status, **more)

    def make(self, repo_id: str, files: Mapping[str, bytes], *, private: bool = True) -> Repository:
        """A repository of somebody."""
        made = self.repositories[repo_id] = Repository(private)
        tree = {place: Blob(data, place.endswith(LARGE_SUFFIXES)) for place, data in files.items()}
        made.add("main", {".gitattributes": Blob(ATTRIBUTES, False), **tree})
        return made

    def tree(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        repository = self.repositories[repo_id]
        return {place: blob.data for place, blob in repository.commits[repository.refs[revision]].items()}


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """A client that was killed in the middle of a request is no news."""


ROUTES: tuple[tuple[str, str, str], ...] = (
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", r"/oauth/token", "oidc"),
    ("POST", r"/api/repos/create", "create"),
    ("POST", r"/api/validate-yaml", "yaml"),
    ("POST", r"/api/collections", "collection"),
    ("POST", r"/api/collections/(?P<slug>.+)/items", "item"),
    ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)/auth-check/write", "auth"),
    ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)", "tree"),
    ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/preupload/(?P<revision>[^/]+)", "preupload"),
    ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/commit/(?P<revision>[^/]+)", "commit"),
    ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/branch/(?P<revision>[^/]+)", "branch"),
    ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)(/revision/(?P<revision>[^/]+))?", "info"),
    ("POST", r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch", "batch"),
    ("PUT", r"/upload/(?P<oid>[0-9a-f]{64})", "upload"),
    ("POST", r"/verify", "verify"),
    ("GET", r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<place>.+)", "resolve"),
    ("HEAD", r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<place>.+)", "resolve"),
)
BLOCK = 1 << 14
OPEN = ("upload", "verify", "oidc")  # addresses that are secrets enough, and what gives tokens


class _Handler(BaseHTTPRequestHandler):
    state: LocalHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Nothing is logged."""

    def do_GET(self) -> None:
        self._serve()

    do_POST = do_PUT = do_HEAD = do_GET  # noqa: N815

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        self.query = parse_qs(parts.query)
        for method, pattern, kind in ROUTES:
            if method == self.command and (match := re.fullmatch(pattern, parts.path)):
                values = {key: unquote(value) for key, value in match.groupdict().items() if value is not None}
                self._answer(kind, values)
                return
        self._send(404, {"error": f"no route {self.command} {parts.path}"})

    def _answer(self, kind: str, values: dict[str, str]) -> None:
        hub = self.state
        with hub.lock:
            hub.seen.append(kind)
            hub.headers.append(str(self.headers.get("authorization")))
            fault = self._due(kind)
        if fault and fault.cut:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        body = self._body()
        if fault and fault.delay:
            time.sleep(fault.delay)
        if fault and fault.action:
            fault.action()
        if fault and fault.status:
            self._send(fault.status, fault.body or {"error": f"fault {fault.status}"}, fault.headers)
            return
        if kind not in OPEN and self.headers.get("authorization") != f"Bearer {hub.token}":
            self._send(401, {"error": "Invalid username or password."})
            return
        with hub.lock:
            getattr(self, f"_{kind}")(body, values)

    def _due(self, kind: str) -> Fault | None:
        fault = self.state.faults.get(kind)
        if fault is None:
            return None
        if fault.after > 0:
            fault.after -= 1
            return None
        fault.times -= 1
        if fault.times <= 0:
            del self.state.faults[kind]
        return fault

    def _body(self) -> bytes:
        if "chunked" in (self.headers.get("transfer-encoding") or ""):
            data = b""
            while size := int(self.rfile.readline().strip() or b"0", 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return data
        left, data = int(self.headers.get("content-length") or 0), bytearray()
        while left and (block := self.rfile.read(min(left, BLOCK))):  # none comes from a client that was killed
            time.sleep(self.state.pace)
            left -= len(block)
            data += block
        return bytes(data)

    def _send(self, status: int, data: Any, headers: Mapping[str, str] | None = None) -> None:
        body = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        if "Content-Length" not in (headers or {}):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    # -- endpoints

    def _whoami(self, body: bytes, values: dict[str, str]) -> None:
        self._send(200, {"type": "user", "name": NAMESPACE, "orgs": [], "auth": {}})

    def _oidc(self, body: bytes, values: dict[str, str]) -> None:
        known = json.loads(body)["subject_token"] == ID_TOKEN
        data = {"access_token": self.state.token, "token_type": "bearer", "expires_in": 3600}
        self._send(200 if known else 400, data if known else {"error": "invalid_grant"})

    def _create(self, body: bytes, values: dict[str, str]) -> None:
        data = json.loads(body)
        repo_id = f"{data['organization'] or NAMESPACE}/{data['name']}"
        if repo_id in self.state.repositories:
            self._send(409, {"error": "You already created this model repo"})
            return
        private = data.get("private", data.get("visibility") == "private")
        self.state.make(repo_id, {}, private=private)
        self._send(200, {"url": f"{self.state.endpoint}/{repo_id}", "name": repo_id, "id": "1"})

    def _yaml(self, body: bytes, values: dict[str, str]) -> None:
        content = json.loads(body)["content"]
        data = yaml.safe_load(content.split("---")[1])
        wrong = [key for key in ("license", "base_model") if not isinstance(data.get(key, ""), str | list)]
        errors = [{"message": f'"{key}" must be a string'} for key in wrong]
        self._send(400 if errors else 200, {"errors": errors, "warnings": []})

    def _auth(self, body: bytes, values: dict[str, str]) -> None:
        if self._repository(values) is not None:
            self._send(200, {})

    def _repository(self, values: dict[str, str]) -> Repository | None:
        found = self.state.repositories.get(values["repo"])
        if values["repo"] in self.state.gated:
            self._send(403, {"error": "gated"}, {"X-Error-Code": "GatedRepo"})
            return None
        if found is None:
            self._send(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        return found

    def _tree_of(self, values: dict[str, str]) -> tuple[str, dict[str, Blob]] | None:
        repository = self._repository(values)
        if repository is None:
            return None
        oid = repository.oid(values.get("revision", "main"))
        if oid is None:
            self._send(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
            return None
        return oid, repository.commits[oid]

    def _info(self, body: bytes, values: dict[str, str]) -> None:
        if found := self._tree_of(values):
            siblings = [{"rfilename": place} for place in found[1]]
            data = {"id": values["repo"], "sha": found[0], "siblings": siblings, "tags": []}
            self._send(200, {**data, "private": self.state.repositories[values["repo"]].private})

    def _tree(self, body: bytes, values: dict[str, str]) -> None:
        if found := self._tree_of(values):
            self._send(200, [self._entry(place, blob) for place, blob in sorted(found[1].items())])

    def _entry(self, place: str, blob: Blob) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "path": place, "size": len(blob.data), "oid": git_sha1(blob.data)}
        if blob.lfs:
            entry["oid"] = git_sha1(blob.sha256.encode())
            entry["lfs"] = {"oid": blob.sha256, "size": len(blob.data), "pointerSize": 134}
        return entry

    def _preupload(self, body: bytes, values: dict[str, str]) -> None:
        if found := self._tree_of(values):
            files = []
            for each in json.loads(body)["files"]:
                there = found[1].get(each["path"])
                large = each["path"].endswith(LARGE_SUFFIXES) or each["size"] > 10_000_000
                oid = (there.sha256 if there.lfs else git_sha1(there.data)) if there else None
                mode = "lfs" if large else "regular"
                files.append({"path": each["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
            self._send(200, {"files": files})

    def _batch(self, body: bytes, values: dict[str, str]) -> None:
        objects = []
        for each in json.loads(body)["objects"]:
            entry = {"oid": each["oid"], "size": each["size"]}
            if each["oid"] not in self.state.objects:
                actions = {name: {"href": f"{self.state.endpoint}/{path}"} for name, path in (
                    ("upload", f"upload/{each['oid']}"), ("verify", "verify"))}  # fmt: skip
                entry["actions"] = actions
            objects.append(entry)
        self._send(200, {"transfer": "basic", "objects": objects}, {"Content-Type": "application/vnd.git-lfs+json"})

    def _upload(self, body: bytes, values: dict[str, str]) -> None:
        if hashlib.sha256(body).hexdigest() != values["oid"]:
            self._send(400, {"error": "checksum"})
            return
        self.state.uploads[values["oid"]] += 1
        self.state.objects[values["oid"]] = body
        self._send(200, {})

    def _verify(self, body: bytes, values: dict[str, str]) -> None:
        self._send(200 if json.loads(body)["oid"] in self.state.objects else 404, {})

    def _branch(self, body: bytes, values: dict[str, str]) -> None:
        if repository := self._repository(values):
            start = json.loads(body).get("startingPoint", "main")
            repository.refs[values["revision"]] = repository.oid(start) or repository.refs["main"]
            self._send(200, {})

    def _commit(self, body: bytes, values: dict[str, str]) -> None:
        repository = self._repository(values)
        if repository is None:
            return
        lines = [json.loads(line) for line in body.splitlines()]
        parent = lines[0]["value"].get("parentCommit")
        head = repository.refs[values["revision"]]
        if parent is not None and parent != head:
            self._send(412, {"error": "A commit has happened since. Please refresh and try again."})
            return
        tree, seen = dict(repository.commits[head]), self.state.received.setdefault(values["repo"], {})
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                blob = Blob(base64.b64decode(value["content"]), False)
            else:
                blob = Blob(self.state.objects[value["oid"]], True)
            tree[value["path"]] = blob
            seen[value["path"]] = blob.sha256
        request = "create_pr" in self.query
        oid = repository.add("refs/pr/1" if request else values["revision"], tree)
        data = {"commitUrl": f"{self.state.endpoint}/{values['repo']}/commit/{oid}", "commitOid": oid}
        self._send(
            200, {**data, "pullRequestUrl": f"{self.state.endpoint}/{values['repo']}/discussions/1" if request else ""}
        )

    def _collection(self, body: bytes, values: dict[str, str]) -> None:
        data = json.loads(body)
        slug = f"{data['namespace']}/{data['title'].split()[0].lower()}-0123456789abcdef01234567"
        self.state.collections.setdefault(slug, [])
        self._send(200, self._collected(slug, data["title"]))

    def _item(self, body: bytes, values: dict[str, str]) -> None:
        self.state.collections[values["slug"]].append(json.loads(body)["item"]["id"])
        self._send(200, self._collected(values["slug"], "x"))

    def _collected(self, slug: str, title: str) -> dict[str, Any]:
        moment = "2026-01-01T00:00:00.000Z"
        return {"slug": slug, "title": title, "owner": {"name": NAMESPACE}, "items": [], "lastUpdated": moment,
                "position": 0, "private": True, "theme": "blue", "upvotes": 0}  # fmt: skip

    def _resolve(self, body: bytes, values: dict[str, str]) -> None:
        found = self._tree_of(values)
        if found is None:
            return
        oid, tree = found
        blob = tree.get(values["place"])
        if blob is None:
            self._send(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
            return
        etag = blob.sha256 if blob.lfs else git_sha1(blob.data)
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": oid, "Accept-Ranges": "bytes"}
        if self.command == "GET":
            self.state.resolved.add(values["place"])
        headers["X-Linked-Size"] = str(len(blob.data))
        data, status = blob.data, 200
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range") or ""):
            end = int(match[2]) + 1 if match[2] else len(data)
            headers["Content-Range"] = f"bytes {match[1]}-{end - 1}/{len(data)}"
            data, status = data[int(match[1]) : end], 206
        if self.command == "GET":
            self.state.sent[values["place"]] += len(data)
        self._send(status, data, {**headers, "Content-Length": str(len(data))})
