"""The hub's calls that an upload makes, on loopback: it keeps what is committed, and refuses as it is told."""

import base64
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

TOKEN = "hf_loopback"


@dataclass
class Hub:
    """A repository and what happened to it; `refuse` answers paths that hold its words with its status.

    Files that end in one of `large` go by themselves into `stored`, by their sha256, as weights and tables do; after
    `closes_after` of them the server closes the connection.
    """

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    created: list[dict[str, Any]] = field(default_factory=list)
    commits: list[list[str]] = field(default_factory=list)
    private: bool = False
    requests: int = 0
    committed_to: list[str] = field(default_factory=list)
    validated: list[str] = field(default_factory=list)
    behind_a_proxy: bool = False
    refuse: dict[str, int] = field(default_factory=dict)
    large: tuple[str, ...] = ()
    stored: dict[str, bytes] = field(default_factory=dict)
    sent_large: list[str] = field(default_factory=list)
    closes_after: int | None = None

    def answer(self, path: str, body: bytes) -> tuple[int, Any]:
        refused = next((status for words, status in self.refuse.items() if words in path), None)
        if refused:
            return refused, {"error": "not today:\nnever", "errors": [{"message": "no such\nlicence"}]}
        calls = {
            "/api/repos/create": self._create,
            "/api/validate-yaml": self._validate,
            "/preupload/": self._preupload,
            "/commit/": self._commit,
            "/tree/": self._list,
            "/objects/batch": self._batch,
            "s/me/set": self._describe,
        }
        if "/commit/" in path:
            self.committed_to.append(path)
        if path.startswith("/large/"):
            return self._store(path.rpartition("/")[2], body)
        return 200, next(call for words, call in calls.items() if words in path)(body)

    def _create(self, body: bytes) -> dict[str, Any]:
        self.created.append(json.loads(body))
        kind = "" if self.created[-1].get("type", "model") == "model" else "datasets/"
        return {"url": f"{self.url}/{kind}me/set"}

    def _validate(self, body: bytes) -> dict[str, Any]:
        self.validated.append(json.loads(body)["content"])
        return {"warnings": [], "errors": []}

    def _preupload(self, body: bytes) -> dict[str, Any]:
        return {"files": [self._mode(file["path"]) for file in json.loads(body)["files"]]}

    def _list(self, _: bytes) -> list[dict[str, Any]]:
        return [{"type": "file", "path": n, "size": len(d), "oid": oid(d)} for n, d in self.files.items()]

    def _describe(self, _: bytes) -> dict[str, Any]:
        siblings = [{"rfilename": name} for name in sorted(self.files)]
        return {"id": "me/set", "sha": "0" * 40, "private": self.private, "siblings": siblings}

    def _mode(self, path: str) -> dict[str, Any]:
        mode, name = ("lfs", sha256) if path.endswith(self.large) else ("regular", oid)
        known = {"oid": name(self.files[path])} if path in self.files else {}
        return {"path": path, "uploadMode": mode, "shouldIgnore": False, **known}

    def _batch(self, body: bytes) -> dict[str, Any]:
        """What git's protocol for large files says of each: where to send it, or nothing where it is there."""
        asked = json.loads(body)["objects"]
        actions = [{"upload": {"href": f"{self.url}/large/{one['oid']}"}} for one in asked]
        objects = [
            one if one["oid"] in self.stored else {**one, "actions": action}
            for one, action in zip(asked, actions, strict=True)
        ]
        return {"transfer": "basic", "objects": objects}

    def _store(self, name: str, body: bytes) -> tuple[int, Any]:
        if self.closes_after == len(self.sent_large):
            return 0, None
        self.sent_large.append(name)
        self.stored[name] = body
        return 200, {}

    def _commit(self, body: bytes) -> dict[str, Any]:
        changed: list[str] = []
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                self.files[value["path"]] = base64.b64decode(value["content"])
                changed.append(value["path"])
            elif line["key"] == "lfsFile":
                self.files[value["path"]] = self.stored[value["oid"]]
                changed.append(value["path"])
            elif line["key"] == "deletedFile":
                del self.files[value["path"]]
                changed.append(f"-{value['path']}")
        self.commits.append(sorted(changed))
        return {"commitUrl": f"{self.url}/me/set/commit/1", "commitOid": "1" * 40}


def oid(data: bytes) -> str:
    """What git names a file by."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def sha256(data: bytes) -> str:
    """What a large file is named by."""
    return hashlib.sha256(data).hexdigest()


@contextmanager
def logged_in(monkeypatch: pytest.MonkeyPatch, home: Path) -> Iterator[Hub]:
    """A hub that we are logged in at; the library reads HF_ENDPOINT and HF_HOME when it is imported."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "no-token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with serving() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        yield hub


@contextmanager
def plainly(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Large files go by git's protocol, as where hf-xet is not installed; xet's is not to be had on loopback."""
    with monkeypatch.context() as patch:
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(time, "sleep", lambda _: None)  # between the library's five further tries: 23 seconds
        yield


@contextmanager
def serving() -> Iterator[Hub]:
    """Run a hub; it wants the token, and says 401 otherwise."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            hub.requests += 1
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            # where a large file goes is told to who may write, and wants no token
            allowed = self.path.startswith("/large/") or self.headers.get("Authorization") == f"Bearer {TOKEN}"
            status, said = hub.answer(self.path, body) if allowed else (401, {"error": "bad token"})
            if not status:
                self.close_connection = True
                return
            data = b"<html>" if hub.behind_a_proxy else json.dumps(said).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    for method in ("GET", "POST", "PUT"):
        setattr(Handler, f"do_{method}", Handler.answer)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
