"""A Hugging Face hub on this machine, with the faults that a network and a hub have."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import os
import socket
import struct
import threading
import urllib.parse
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Asked(NamedTuple):
    """A request: its method, its path, and where the range began that it asked for."""

    method: str
    path: str
    begin: int | None = None


@dataclass
class File:
    """A file of a repository, and what goes wrong when it is sent.

    Attributes:
        data: What the hub says that it is: its size and digest are stated.
        size: The size that is stated instead of its own.
        sent: The bytes that are sent instead.
        drop: After how many bytes the connection breaks, one number for each time.
        reset: It breaks with a reset and not with an end.
        whole: It is sent from the beginning, whatever range is asked for.
        stall: After how many bytes nothing more comes until ``Hub.go`` is set.
    """

    data: bytes
    size: int | None = None
    sent: bytes | None = None
    drop: list[int] = field(default_factory=list)
    reset: bool = False
    whole: bool = False
    stall: int | None = None

    @property
    def stated(self) -> int:
        return len(self.data) if self.size is None else self.size


@dataclass
class Repo:
    """A repository.

    Attributes:
        files: The files of its revision ``main``.
        revisions: Those of others.
        error: Status and code with which everything is answered.
        gate: Those with which every file is answered, while the listing is open.
    """

    files: dict[str, File] = field(default_factory=dict)
    revisions: dict[str, dict[str, File]] = field(default_factory=dict)
    error: tuple[int, str] | None = None
    gate: tuple[int, str] | None = None

    def at(self, revision: str) -> dict[str, File] | None:
        named = {"main": self.files} | self.revisions
        return named.get(revision) or next(
            (files for files in named.values() if commit(files) == revision), None
        )


def commit(files: dict[str, File]) -> str:
    """Name what a revision has, as a hub's commits do."""
    content = "".join(f"{name} {sha256(file.data)}\n" for name, file in files.items())
    return hashlib.sha1(content.encode()).hexdigest()


@dataclass
class Hub:
    """A hub: its repositories, and what it was asked."""

    url: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    go: threading.Event = field(default_factory=threading.Event)

    def add(self, repo: str, *names: str, **files: bytes | File) -> dict[str, File]:
        """Add files to a repository; those that are only named get their name as content."""
        made = self.repos.setdefault(repo, Repo()).files
        for name, content in ({name: name.encode() for name in names} | files).items():
            made[name] = content if isinstance(content, File) else File(content)
        return made

    def environment(self, home: Path) -> dict[str, str]:
        """What makes a process use this hub, and a folder of its own."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("HF_", "HUGGING")) and "proxy" not in name.lower()
        }
        return kept | {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }

    def listings(self) -> list[str]:
        """Return the listings that were asked for."""
        return [asked.path for asked in self.asked if asked.path.startswith("/api/")]

    def gets(self, name: str = "") -> list[Asked]:
        """Return the downloads that were asked for."""
        return [
            asked
            for asked in self.asked
            if asked.method == "GET" and "/resolve/" in asked.path and asked.path.endswith(name)
        ]


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        path = urllib.parse.unquote(self.path.partition("?")[0])
        span = self.headers.get("Range", "")
        begin = int(span.removeprefix("bytes=").partition("-")[0]) if span else None
        self.server.hub.asked.append(Asked(self.command, path, begin))
        with contextlib.suppress(ConnectionError):
            self._answer(path.strip("/").split("/"), begin)

    do_GET = do_HEAD  # noqa: N815  (http.server's naming)

    def _answer(self, steps: list[str], begin: int | None) -> None:
        listing = steps[:2] == ["api", "models"]
        owner, name, *rest = steps[2:] if listing else steps
        repo = self.server.hub.repos.get(f"{owner}/{name}")
        if repo is None:
            self._refuse(401, "RepoNotFound")
        elif repo.error:
            self._refuse(*repo.error)
        elif (files := repo.at(rest[1] if len(rest) > 1 else "main")) is None:
            self._refuse(404, "RevisionNotFound")
        elif rest[:1] == ["tree"]:
            self._tree(files)
        elif listing:
            self._list(f"{owner}/{name}", files)
        elif repo.gate:
            self._refuse(*repo.gate)
        elif (file := files.get("/".join(rest[2:]))) is None:
            self._refuse(404, "EntryNotFound")
        else:
            self._file(file, commit(files), begin)

    def _refuse(self, status: int, code: str) -> None:
        self._begin(status, 0, {"X-Error-Code": code} if code else {})

    def _list(self, repo: str, files: dict[str, File]) -> None:
        siblings = [
            {
                "rfilename": name,
                "size": file.stated,
                "blobId": hashlib.sha1(file.data).hexdigest(),
                "lfs": {"sha256": sha256(file.data), "size": file.stated, "pointerSize": 134},
            }
            for name, file in files.items()
        ]
        found = {"_id": "0", "id": repo, "modelId": repo, "sha": commit(files)}
        self._json(found | {"siblings": siblings})

    def _tree(self, files: dict[str, File]) -> None:
        """List a revision as ``hf download`` asks for it."""
        self._json(
            [
                {
                    "type": "file",
                    "path": name,
                    "size": file.stated,
                    "oid": hashlib.sha1(file.data).hexdigest(),
                    "lfs": {"oid": sha256(file.data), "size": file.stated, "pointerSize": 134},
                }
                for name, file in files.items()
            ]
        )

    def _json(self, content: object) -> None:
        body = json.dumps(content).encode()
        self._begin(200, len(body), {"Content-Type": "application/json"})
        if self.command == "GET":
            self.wfile.write(body)

    def _file(self, file: File, revision: str, begin: int | None) -> None:
        data = file.data if file.sent is None else file.sent
        begin = None if file.whole else begin
        if begin is not None and begin >= len(data):
            self._refuse(416, "")
            return
        headers = {
            "ETag": f'"{sha256(data)}"',
            "X-Linked-Etag": f'"{sha256(file.data)}"',
            "X-Linked-Size": str(file.stated),
            "X-Repo-Commit": revision,
            "Accept-Ranges": "bytes",
        }
        if begin is not None:
            headers["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
        rest = data[begin or 0 :]
        self._begin(200 if begin is None else 206, len(rest), headers)
        if self.command == "HEAD":
            return
        if file.drop:
            self.wfile.write(rest[: file.drop.pop(0)])
            if file.reset:
                no_farewell = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, no_farewell)
                self.connection.close()
            return
        if file.stall is not None:
            self.wfile.write(rest[: file.stall])
            rest = rest[file.stall :]
            self.server.hub.go.wait(30)
        self.wfile.write(rest)

    def _begin(self, status: int, length: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    hub: Hub

    def handle_error(self, *_: object) -> None:
        """Say nothing: connections break here on purpose."""


@contextlib.contextmanager
def serving() -> Iterator[Hub]:
    """Serve a hub without repositories."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.hub = Hub(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server.hub
    finally:
        server.hub.go.set()
        server.shutdown()
        thread.join()
        server.server_close()
