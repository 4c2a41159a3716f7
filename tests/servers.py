"""Real servers on loopback: an S3-compatible store that can be told to fail, a hub of models, and one of data."""

import json
import os
import shutil
import threading
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

import pytest
from huggingface_hub import HfFileSystem, constants
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from s3fs import S3FileSystem
from upath import UPath
from werkzeug.serving import WSGIRequestHandler, make_server


class Store:
    """The server. `serves_objects` is how many reads of objects it still answers; then it says 503."""

    def __init__(self) -> None:
        self._app = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self, threaded=True, request_handler=_Quiet)
        self._lock = threading.Lock()
        self.serves_objects = 10**9
        self.objects_read = 0
        self.objects_written = 0
        self.before_write: Callable[[Any], object] = lambda _environ: None  # what says yes refuses the write
        self.after_write: Callable[[Any], object] = lambda _environ: None
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.port}"

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        if environ["REQUEST_METHOD"] == "GET" and environ["PATH_INFO"].count("/") > 1:
            with self._lock:
                self.objects_read += 1
                busy = self.objects_read > self.serves_objects
            if busy:
                start_response("503 Service Unavailable", [("Content-Type", "application/xml")])
                return [b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"]
        if environ["REQUEST_METHOD"] == "PUT" and environ["PATH_INFO"].count("/") > 1:
            return self._write(environ, start_response)
        return self._app(environ, start_response)

    def _write(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        with self._lock:
            self.objects_written += 1
        if self.before_write(environ):
            start_response("503 Service Unavailable", [("Content-Type", "application/xml")])
            return [b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"]
        answer = self._app(environ, start_response)
        self.after_write(environ)
        return answer

    def put(self, bucket: str, files: Mapping[str, bytes]) -> UPath:
        root = UPath(f"s3://{bucket}")
        root.fs.mkdir(bucket, exist_ok=True)
        for name, data in files.items():
            root.fs.pipe_file(f"{bucket}/{name}", data)
        root.fs.invalidate_cache()
        return root

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Quiet(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:
        pass


@contextmanager
def running_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """Start a store that `s3://` leads to, with clients that give up soon."""
    store = Store()
    settings = {
        "AWS_ACCESS_KEY_ID": "id-of-nobody",
        "AWS_SECRET_ACCESS_KEY": "secret-of-nobody",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": store.url,
        "AWS_MAX_ATTEMPTS": "1",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        if name in os.environ:
            monkeypatch.delenv(name)
    monkeypatch.setattr("sonify.stores.WAITS_SEC", (0.01,))
    monkeypatch.setattr(S3FileSystem, "retries", 1)
    S3FileSystem.clear_instance_cache()
    # what earlier servers of this process hold is theirs
    urllib.request.urlopen(urllib.request.Request(f"{store.url}/moto-api/reset", method="POST")).close()
    try:
        yield store
    finally:
        store.stop()
        S3FileSystem.clear_instance_cache()


MODEL, COMMIT = "some-people/tiny-model", "0123456789abcdef0123456789abcdef01234567"  # all that the hub of models has


class ModelHub(ThreadingHTTPServer):
    """What `snapshot_download` asks of a hub, for one model at one commit; it remembers what was asked for.

    Where it is `away`, a connection ends without an answer; where it is `gated`, it says so and lets nobody in. What it
    `twists` is any answer in JSON, and `commit` is what it says beside a file.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _HubRequest)
        self.folder = folder
        self.asked: list[str] = []
        self.away = False
        self.gated: Literal[False, "manual"] = False  # nobody is let in then
        self.twists: Callable[[Any], Any] = lambda answer: answer
        self.commit = COMMIT


class _HubRequest(BaseHTTPRequestHandler):
    server: ModelHub  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.asked.append(path)
        if self.server.away:
            self.close_connection = True
            return
        files = [
            {"type": "file", "path": str(file.relative_to(self.server.folder)), "size": file.stat().st_size, "oid": "0"}
            for file in sorted(self.server.folder.rglob("*"))
            if file.is_file()
        ]
        sized = "blobs" in self.path  # as only who asks for the files' sizes gets them
        siblings = [{"rfilename": file["path"], **({"size": file["size"]} if sized else {})} for file in files]
        about = {"id": MODEL, "sha": COMMIT, "gated": self.server.gated, "siblings": siblings}
        if path == f"/api/models/{MODEL}/auth-check" and self.server.gated:
            self._send(403, b"{}", {"X-Error-Code": "GatedRepo"})
        elif path in (f"/api/models/{MODEL}/revision/{name}" for name in ("main", COMMIT)):
            self._send(200, json.dumps(self.server.twists(about)).encode())
        elif path == f"/api/models/{MODEL}/tree/{COMMIT}":
            self._send(200, json.dumps(self.server.twists(files)).encode())
        elif path == f"/api/models/{MODEL}":
            self._send(200, json.dumps(self.server.twists(about)).encode())
        elif path.startswith(f"/api/models/{MODEL}/revision/"):
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif path.startswith((f"/{MODEL}/resolve/{COMMIT}/", f"/{MODEL}/resolve/main/")):
            self._send(200, (self.server.folder / path.split("/", 5)[5]).read_bytes())
        else:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        etag = {"ETag": f'"{hash(body):x}"', "X-Repo-Commit": self.server.commit, "Content-Length": str(len(body))}
        for name, value in (etag | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""


def away_from_hub(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """Give the hub's library an empty cache, and no hub to be reached."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")


@contextmanager
def running_hub(monkeypatch: pytest.MonkeyPatch, cache: Path, folder: Path) -> Iterator[ModelHub]:
    """Start a hub that has the folder as `MODEL`, with an empty cache."""
    away_from_hub(monkeypatch, cache)
    hub = ModelHub(folder)
    endpoint = f"http://127.0.0.1:{hub.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


def put_into_cache(cache: Path, folder: Path, name: str = MODEL) -> Path:
    """Lay a folder into the hub's cache as a model, as its tools do; return the snapshot."""
    model = cache / f"models--{name.replace('/', '--')}"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text(COMMIT)
    return Path(shutil.copytree(folder, model / "snapshots" / COMMIT))


class _DatasetRequest(BaseHTTPRequestHandler):
    """What `hf://datasets/...` asks of a hub: what a repository is, lists of its files, and files or parts of them."""

    folder: Path

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0])
        if "/tree/" in path:
            below = path.partition("/tree/main")[2].strip("/")
            self._send(200, json.dumps([self._entry(file) for file in sorted((self.folder / below).rglob("*"))]))
        elif "/resolve/main/" in path:
            data = (self.folder / path.partition("/resolve/main/")[2]).read_bytes()
            start, _, last = (self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")
            part = data[int(start) : int(last) + 1 if last else len(data)]
            self._send(206 if "Range" in self.headers else 200, part)
        elif path == "/api/datasets/me/set":
            self._send(200, json.dumps({"id": "me/set", "sha": COMMIT}))
        else:
            self._send(404, "{}")

    def _entry(self, file: Path) -> dict[str, Any]:
        size = {"type": "file", "size": file.stat().st_size} if file.is_file() else {"type": "directory"}
        return {"path": file.relative_to(self.folder).as_posix(), "oid": "0" * 40, **size}

    def _send(self, status: int, body: str | bytes) -> None:
        data = body.encode() if isinstance(body, str) else body
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""


@contextmanager
def running_dataset_hub(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[None]:
    """Start a hub that has the folder as `hf://datasets/me/set`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_DatasetRequest,), {"folder": folder}))
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr("sonify.stores.WAITS_SEC", (0.01,))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    HfFileSystem.clear_instance_cache()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        HfFileSystem.clear_instance_cache()
