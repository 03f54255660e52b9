"""A model hub on this machine: as much of the hub's HTTP interface as huggingface_hub's own client asks of it.

Repositories, commits, regular and LFS files, redirects to where LFS files lie, hashes in headers, errors with their
codes. Nothing leaves the machine. What a test wants to go wrong is set on :class:`Hub`.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_stand_in"


class Hub:
    """What the hub holds, and what was asked of it.

    Attributes:
        requests: method and path of every request, in order.
        commits: of each repository: files by name at each commit.
        branches: of each repository: the commit of each branch.
        objects: large files, by SHA-256.
        lfs: files whose names end so are stored as large ones.
        altered: names of files of which other bytes are sent, of the same number.
        status: answer everything with this instead.
        endpoint: its address.
        store: where large files are fetched from: another host to the client, which must not get its token.
        tokens_in_store: what it was sent as one.
    """

    def __init__(self) -> None:
        self.requests: list[tuple[str, str]] = []
        self.commits: dict[str, dict[str, dict[str, bytes]]] = {}
        self.branches: dict[str, dict[str, str]] = {}
        self.objects: dict[str, bytes] = {}
        self.lfs: tuple[str, ...] = (".safetensors", ".png")
        self.altered: set[str] = set()
        self.status = 0
        self.endpoint = ""
        self.store = ""
        self.tokens_in_store: list[str | None] = []

    def commit(self, repo: str, files: dict[str, bytes], branch: str = "main") -> str:
        """Put files into a repository; returns the commit."""
        before = self.branches.setdefault(repo, {}).get(branch, "")
        held = {**self.commits.setdefault(repo, {}).get(before, {}), **files}
        content = json.dumps([before, {name: hashlib.sha1(held[name]).hexdigest() for name in sorted(held)}])
        commit = hashlib.sha1(content.encode()).hexdigest()
        self.commits[repo][commit] = held
        self.branches[repo][branch] = commit
        return commit

    def fetched(self) -> set[str]:
        """Names of the files whose contents were asked for."""
        paths = [path for method, path in self.requests if method == "GET" and re.match(r"/store/|.*/resolve/", path)]
        return {path.rpartition("/")[2] for path in paths}


def git_blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        length = self.headers.get("Content-Length")
        self.body = self.rfile.read(int(length)) if length else self._chunks()
        hub.requests.append((self.command, path))
        if hub.status:
            return self._send(hub.status, {"error": "out of order"})
        routes = {
            r"POST /api/repos/create": self._create,
            r"POST /api/validate-yaml": self._validate,
            r"POST /api/models/([\w-]+/[\w-]+)/branch/(\w+)": self._branch,
            r"POST /api/models/([\w-]+/[\w-]+)/preupload/(\w+)": self._preupload,
            r"POST /([\w-]+/[\w-]+)\.git/info/lfs/objects/batch": self._batch,
            r"PUT /store/(\w+)": self._store,
            r"(?:GET|HEAD) /store/(\w+)/(.+)": self._stored,
            r"POST /api/models/([\w-]+/[\w-]+)/commit/(\w+)": self._commit,
            r"GET /api/models/([\w-]+/[\w-]+)(?:/revision/(.+))?": self._info,
            r"POST /api/models/([\w-]+/[\w-]+)/paths-info/(\w+)": self._paths,
            r"(?:GET|HEAD) /([\w-]+/[\w-]+)/resolve/(\w+)/(.+)": self._resolve,
        }
        for pattern, answer in routes.items():
            match = re.fullmatch(pattern, f"{self.command} {path}")
            if match:
                return answer(*match.groups())
        return self._send(404, {"error": f"no such route {self.command} {path}"})

    def _chunks(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return b""
        parts: list[bytes] = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _send(self, status: int, content: Any = None, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content or {}).encode()
        self.send_response(status)
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        for name, value in ({"Content-Type": "application/json", "Content-Length": str(len(body))} | names).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _may_write(self) -> bool:
        given = self.headers.get("Authorization")
        if given == f"Bearer {TOKEN}":
            return True
        self._send(401 if given is None else 403, {"error": "no"}, X_Error_Message="no such token")
        return False

    def _known(self, repo: str, revision: str | None) -> str | None:
        """The commit that is meant; None once an error was sent."""
        if repo not in self.hub.branches:
            self._send(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
            return None
        commit = self.hub.branches[repo].get(revision or "main", revision)
        if commit not in self.hub.commits[repo]:
            self._send(404, {"error": "Revision not found"}, X_Error_Code="RevisionNotFound")
            return None
        return commit

    # Writing

    def _create(self) -> None:
        if not self._may_write():
            return
        asked = json.loads(self.body)
        repo = f"{asked['organization']}/{asked['name']}"
        page = {"url": f"{self.hub.endpoint}/{repo}", "name": repo}
        if repo in self.hub.branches:
            return self._send(409, page | {"error": "You already created this model repo"})
        self.hub.commit(repo, {})
        self._send(200, page)

    def _validate(self) -> None:
        content = json.loads(self.body)["content"]
        good = re.match(r"---\n.*\n---\n", content, re.DOTALL)
        self._send(200 if good else 400, {"errors": [] if good else [{"message": "no metadata"}], "warnings": []})

    def _branch(self, repo: str, branch: str) -> None:
        if self._may_write():
            self.hub.branches[repo][branch] = self.hub.branches[repo]["main"]
            self._send(200)

    def _preupload(self, repo: str, branch: str) -> None:
        if not self._may_write():
            return
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(self.hub.lfs) else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(self.body)["files"]
        ]
        self._send(200, {"files": files})

    def _batch(self, repo: str) -> None:
        if not self._may_write():
            return
        upload = {"href": f"{self.hub.endpoint}/store/{{}}", "header": {}}
        objects = [
            {**wanted, "actions": {"upload": {**upload, "href": upload["href"].format(wanted["oid"])}}}
            for wanted in json.loads(self.body)["objects"]
        ]
        self._send(200, {"transfer": "basic", "objects": objects})

    def _store(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            return self._send(400, {"error": "other bytes"})
        self.hub.objects[oid] = self.body
        self._send(200)

    def _commit(self, repo: str, branch: str) -> None:
        if not self._may_write() or self._known(repo, branch) is None:
            return
        files: dict[str, bytes] = {}
        for line in map(json.loads, self.body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
        commit = self.hub.commit(repo, files, branch)
        page = f"{self.hub.endpoint}/{repo}/commit/{commit}"
        self._send(200, {"success": True, "commitOid": commit, "commitUrl": page, "hookOutput": ""})

    # Reading

    def _info(self, repo: str, revision: str | None) -> None:
        commit = self._known(repo, revision)
        if commit is not None:
            names = [{"rfilename": name} for name in self.hub.commits[repo][commit]]
            self._send(200, {"id": repo, "sha": commit, "siblings": names})

    def _paths(self, repo: str, revision: str) -> None:
        commit = self._known(repo, revision)
        if commit is None:
            return
        files, found = self.hub.commits[repo][commit], []
        for name in parse_qs(self.body.decode())["paths"]:
            if name in files:
                content = files[name]
                entry: dict[str, Any] = {"type": "file", "path": name, "size": len(content), "oid": git_blob(content)}
                if name.endswith(self.hub.lfs):
                    entry["lfs"] = {
                        "oid": hashlib.sha256(content).hexdigest(),
                        "size": len(content),
                        "pointerSize": 130,
                    }
                found.append(entry)
        self._send(200, found or b"[]")

    def _resolve(self, repo: str, revision: str, name: str) -> None:
        commit = self._known(repo, revision)
        if commit is None:
            return
        content = self.hub.commits[repo][commit].get(name)
        if content is None:
            return self._send(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        if name.endswith(self.hub.lfs):
            oid = hashlib.sha256(content).hexdigest()
            self.hub.objects[oid] = content
            where = f"{self.hub.store}/store/{oid}/{name}"
            linked = {"X_Linked_Etag": f'"{oid}"', "X_Linked_Size": str(len(content))}
            return self._send(302, Location=where, X_Repo_Commit=commit, ETag='"elsewhere"', **linked)
        self._send(200, self._sent(name, content), ETag=f'"{git_blob(content)}"', X_Repo_Commit=commit)

    def _stored(self, oid: str, name: str) -> None:
        self.hub.tokens_in_store.append(self.headers.get("Authorization"))
        self._send(200, self._sent(name, self.hub.objects[oid]))

    def _sent(self, name: str, content: bytes) -> bytes:
        return content[:-1] + bytes([content[-1] ^ 1]) if name in self.hub.altered else content


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """A hub at an address of this machine's own."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    hub.store = hub.endpoint.replace("127.0.0.1", "localhost")
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
