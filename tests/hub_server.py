"""A server on the loopback that speaks the hub's protocol, with the faults that networks have."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34


@dataclass
class Repository:
    files: dict[str, bytes]
    commit: str = COMMIT
    gated: bool = False
    token: str | None = None  # without it, the repository is hidden, or its files if gated
    small: frozenset[str] = frozenset()  # in git itself, not as large files
    lies: dict[str, str] = field(default_factory=dict)  # checksums of files that are told


@dataclass
class HubServer:
    """``repositories`` by name, ``plain`` files by path. A fault is asked for every transfer, and
    may change how it goes."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    plain: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    cut: list[int] = field(default_factory=list)  # bytes after which the next transfers break
    statuses: list[int] = field(default_factory=list)  # of the next transfers, instead of them
    spoil: Callable[[bytes], bytes] = lambda data: data
    ranges: bool = True
    lengths: bool = True
    etag: bool = True
    weak: bool = False  # its ETags say that bytes may differ
    gate: threading.Event | None = None  # half of a transfer is sent when it opens
    url: str = ""

    def transfers(self) -> list[dict[str, str]]:
        """The headers of those that asked for a file's bytes."""
        return [headers for method, path, headers in self.requests
                if method == "GET" and path.startswith(("/cdn/", "/plain/"))]  # fmt: skip


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@contextmanager
def serve() -> Iterator[HubServer]:
    hub = HubServer()

    class Handler(_Handler):
        server_state = hub

    server = _Server(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: Any) -> None:
        """A client that went away is part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    server_state: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._route()

    def do_GET(self) -> None:
        self._route()

    def _route(self) -> None:
        hub = self.server_state
        path = unquote(urlsplit(self.path).path)
        hub.requests.append((self.command, path, {k.lower(): v for k, v in self.headers.items()}))
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self._info(match[1], match[2])
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve(*match.groups())
        elif path.startswith("/cdn/"):
            digests = {sha256(d): d for r in hub.repositories.values() for d in r.files.values()}
            self._file(digests.get(path.removeprefix("/cdn/")))
        elif path.startswith("/plain/"):
            self._file(hub.plain.get(path.removeprefix("/plain/")))
        elif path.startswith("/moved/"):
            self._answer(302, b"", {"Location": path.replace("/moved/", "/plain/")})
        else:
            self._answer(404)

    def _repository(self, name: str, revision: str | None, *, file: bool) -> Repository | None:
        repository = self.server_state.repositories.get(name)
        authorised = repository is not None and (
            repository.token is None
            or self.headers.get("authorization") == f"Bearer {repository.token}"
        )
        if repository is None or not (authorised or repository.gated):
            self._answer(401, headers={"X-Error-Code": "RepoNotFound"})
        elif file and not authorised:
            self._answer(403, headers={"X-Error-Code": "GatedRepo"})
        elif revision not in (None, "main", "v1", repository.commit):
            self._answer(404, headers={"X-Error-Code": "RevisionNotFound"})
        else:
            return repository
        return None

    def _info(self, name: str, revision: str | None) -> None:
        if repository := self._repository(name, revision, file=False):
            siblings = []
            for file, data in repository.files.items():
                entry: dict[str, Any] = {"rfilename": file, "size": len(data)}
                entry["blobId"] = repository.lies.get(file, git_sha1(data))
                if file not in repository.small:
                    checksum = repository.lies.get(file, sha256(data))
                    entry["lfs"] = {"sha256": checksum, "size": len(data), "pointerSize": 1}
                siblings.append(entry)
            about = {"id": name, "sha": repository.commit, "siblings": siblings}
            about |= {"gated": "manual" if repository.gated else False, "private": False}
            self._answer(200, json.dumps(about).encode(), {"Content-Type": "application/json"})

    def _resolve(self, name: str, revision: str, file: str) -> None:
        if repository := self._repository(name, revision, file=True):
            data = repository.files.get(file)
            if data is None:
                self._answer(404, headers={"X-Error-Code": "EntryNotFound"})
                return
            headers = {"X-Repo-Commit": repository.commit}
            if file in repository.small:
                self._answer(200, data, headers | {"ETag": f'"{git_sha1(data)}"'})
                return
            headers |= {"X-Linked-Etag": f'"{sha256(data)}"', "X-Linked-Size": str(len(data))}
            # Another host, as far as a client can tell: tokens are not for it.
            there = self.server_state.url.replace("127.0.0.1", "localhost")
            self._answer(302, b"", headers | {"Location": f"{there}/cdn/{sha256(data)}"})

    def _file(self, data: bytes | None) -> None:
        hub = self.server_state
        if data is None:
            self._answer(404)
            return
        if self.command == "GET" and hub.statuses:
            self._answer(hub.statuses.pop(0))
            return
        etag = f'{"W/" if hub.weak else ""}"{sha256(data)}"'
        headers = {"ETag": etag} if hub.etag else {}
        data = hub.spoil(data)
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("range", ""))
        unchanged = self.headers.get("if-range", etag) == etag
        if match and hub.ranges and unchanged:
            start = int(match[1])
            if start >= len(data):
                self._answer(416)
                return
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            self._answer(206, data[start:], headers, cut=True)
        else:
            self._answer(200, data, headers, cut=True)

    def _answer(
        self,
        status: int,
        body: bytes = b"{}",
        headers: dict[str, str] | None = None,
        *,
        cut: bool = False,
    ) -> None:
        hub = self.server_state
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if hub.lengths or not cut:
            self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.close_connection = True
        self.end_headers()
        if self.command != "HEAD":
            if cut and hub.cut:
                body = body[: hub.cut.pop(0)]
            if cut and hub.gate is not None:
                self.wfile.write(body[: len(body) // 2])
                body = body[len(body) // 2 :]
                hub.gate.wait(30)
            self.wfile.write(body)
