"""A real S3-compatible server on loopback, which can be told to fail; and image sets as they are published."""

import io
import json
import os
import tarfile
import threading
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from s3fs import S3FileSystem
from upath import UPath
from werkzeug.serving import WSGIRequestHandler, make_server

from tests.fakes import picture


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


def sa1b_record(image: int, masks: int = 3) -> bytes:
    """The JSON of one SA-1B image, as published."""
    annotations = [
        {
            "id": 500_000_000 + mask,
            "segmentation": {"size": [32, 48], "counts": "Q1a11N2O0O1O10001N2O1N2N^a0"},
            "bbox": [3.0, 4.0, 20.0, 10.0],
            "area": 144,
            "predicted_iou": 0.93,
            "stability_score": 0.97,
            "crop_box": [0.0, 0.0, 48.0, 32.0],
            "point_coords": [[12.5, 8.25]],
        }
        for mask in range(masks)
    ]
    about = {"image_id": image, "width": 48, "height": 32, "file_name": f"sa_{image}.jpg"}
    return json.dumps({"image": about, "annotations": annotations}).encode()


def sa1b_members(images: Mapping[int, bytes] | range) -> dict[str, bytes]:
    """Members of an SA-1B archive: not sorted, each under `./`."""
    members: dict[str, bytes] = {}
    for image in sorted(images, key=lambda n: n % 7):
        members[f"./sa_{image}.jpg"] = picture(image)
        members[f"./sa_{image}.json"] = sa1b_record(image)
    return members


def tar_bytes(members: Mapping[str, bytes], mode: str = "w") -> bytes:
    """An archive in memory; `w:gz` packs it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # pyright: ignore[reportCallIssue, reportArgumentType]
        for name, data in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))
    return buffer.getvalue()
