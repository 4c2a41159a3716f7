"""Places on this machine or in a store (`s3://`, `gs://`, `hf://`): how they are written, and requests to a store.

Every request goes through `ask`, so that retries and the meaning of an error stand in one place.
"""

import io
import random
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from upath import UPath

from sonify.errors import InputError, TransientError
from sonify.installed import how_to_install

Result = TypeVar("Result")

STORES = ("s3", "gs", "hf", "memory")
WRITABLE_STORES = ("s3", "gs")
Place = Path | UPath  # a file or folder on this machine, or a remote one (`s3://`, `gs://`, `hf://`)


def to_place(value: Any) -> Place:
    """Local places are made absolute, so that a run goes on from any directory."""
    if not isinstance(value, str | Path | UPath) or not str(value):
        raise ValueError("expected a path or a URL")
    text = str(value).removeprefix("file://")
    scheme = text.partition("://")[0] if "://" in text else ""
    if scheme and scheme not in STORES:
        raise ValueError(f"expected a path or one of {', '.join(f'{name}://' for name in STORES)}")
    if scheme:
        _check_url(text)
        return UPath(text)
    return expand_user(text).absolute()


def to_run_dir(value: Any) -> Place:
    """Where a run writes: a path as it is given, or a folder of a store that knows how to create only if absent."""
    if not isinstance(value, str | Path | UPath) or not str(value):
        raise ValueError("expected a path or a URL")
    text = str(value).removeprefix("file://")
    if "://" not in text:
        return expand_user(text)
    if text.partition("://")[0] not in WRITABLE_STORES:
        raise ValueError(f"expected a path or one of {', '.join(f'{name}://' for name in WRITABLE_STORES)}")
    _check_url(text)
    # other processes write there at the same time: what was listed a moment ago may be wrong
    return UPath(text.rstrip("/"), use_listings_cache=False)


def expand_user(text: str) -> Path:
    """A path with `~` and `~name` replaced, as a shell does."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        name = text.partition("/")[0][:80]
        raise ValueError(f"expected a path, and {name!r} is nobody's home here (./{name} is a file)") from error


def to_folder(value: str) -> Path:
    """A place on this machine, which is all that some things can be written to."""
    if not value or "://" in value:
        raise ValueError("expected a folder on this machine")
    return Path(value)


def _check_url(url: str) -> None:
    """A bucket is named, and no password: what stands in a configuration is written into the run and shown."""
    bucket = url.partition("://")[2].partition("/")[0]
    if not bucket:
        raise ValueError("expected a bucket behind ://")
    if "@" in bucket:
        raise ValueError("expected a URL without user or password; credentials come from the environment")


# Before each further try; the clients of the stores try again themselves first. Varied by half, up and down.
WAITS_SEC = (0.5, 2.0, 8.0)
# One request: large enough that its 20 to 100 ms of latency do not count, small enough to be held several times.
BLOCK_BYTES = 8 << 20
# What the clients raise that is no OSError. They are optional: an error can only come from one that is loaded.
_CLIENT_ERRORS = (
    ("aiohttp.client_exceptions", "ClientError"),
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("gcsfs.retry", "HttpError"),
    ("google.auth.exceptions", "GoogleAuthError"),
    ("google.api_core.exceptions", "GoogleAPIError"),
    ("httpx", "HTTPError"),
    ("huggingface_hub.errors", "HfHubHTTPError"),
    ("httpx2", "HTTPError"),
)
_NO_CREDENTIALS = re.compile("Credential|Token|Profile|RefreshError|ParamValidation")
_BUSY = frozenset({408, 409, 425, 429})
_OUT_OF_RANGE = 416


def ask(place: UPath, request: Callable[[], Result]) -> Result:
    """Do one request, again where the trouble is on the way.

    Raises:
        FileNotFoundError: the store says that it is not there.
        FileExistsError: it was to be created only if absent, and is there.
        InputError: a package is missing, or the store refuses us.
        TransientError: the store cannot be reached, or is busy, after all tries.
    """
    for wait_sec in (*WAITS_SEC, None):
        try:
            return request()
        except (FileNotFoundError, FileExistsError):
            raise
        except ImportError as error:
            raise InputError(
                f"{place}: reading it needs a package that is not installed ({_brief(error)}):"
                f" run {how_to_install('remote')}"
            ) from error
        except _store_errors() as error:
            _raise_final(place, error)
            if wait_sec is None:
                raise TransientError(f"{place}: cannot be reached: {_brief(error)}") from error
            time.sleep(wait_sec * random.uniform(0.5, 1.5))  # noqa: S311 - jitter, no secret
    raise AssertionError("unreachable: the last try returns or raises")


def kind_of(place: Path | UPath) -> Literal["file", "folder"] | None:
    """What lies there, on this machine or in a store; None is nothing.

    Raises:
        InputError: a package or a permission is missing.
        TransientError: the store cannot be reached.
        ValueError: it is no place at all.
    """
    if isinstance(place, Path):
        return ("file" if place.is_file() else "folder") if place.exists() else None
    try:
        info = ask(place, lambda: place.fs.info(place.path))
    except FileNotFoundError:
        return None
    return "file" if info["type"] == "file" else "folder"


def list_sizes(folder: UPath) -> dict[str, int]:
    """Every file below a folder, relative to it as the store spells it, with its size in bytes."""
    try:
        found = cast(dict[str, Any], ask(folder, lambda: folder.fs.find(folder.path, detail=True)))
    except FileNotFoundError:
        return {}
    below = f"{str(folder.fs._strip_protocol(folder.path)).rstrip('/')}/"
    return {path.removeprefix(below): info["size"] for path, info in found.items() if path.startswith(below)}


def read_remote_whole(place: UPath) -> bytes:
    """All bytes of a file, in one request."""
    return cast(bytes, ask(place, lambda: place.fs.cat_file(place.path)))


def size_of_remote(place: UPath) -> int:
    """The size of a file in bytes."""
    return int(ask(place, lambda: place.fs.info(place.path))["size"])


def read_remote(place: UPath, start: int, stop: int) -> bytes:
    """The bytes of a file from `start` up to `stop`, fewer where it ends before."""
    try:
        return cast(bytes, ask(place, lambda: place.fs.cat_file(place.path, start=start, end=stop)))
    except _OutOfRange:
        return b""  # an empty file, or the very end of one


class RemoteFile(io.RawIOBase):
    """A remote file as a raw stream; each read is one request. Put a `BufferedReader` before it."""

    def __init__(self, place: UPath) -> None:
        super().__init__()
        self._place = place
        self._size = size_of_remote(place)
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Move, without a request."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError(f"negative position {base + offset}")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        """Fill the buffer, as far as the file goes."""
        stop = min(self._position + len(buffer), self._size)
        if self._position >= stop:
            return 0
        data = read_remote(self._place, self._position, stop)
        if not data:
            raise TransientError(f"{self._place}: {self._size} bytes were announced, it ends at {self._position}")
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


class _OutOfRange(Exception):
    """The store has no byte in the range that was asked for."""


def _store_errors() -> tuple[type[BaseException], ...]:
    loaded = (getattr(sys.modules[module], name) for module, name in _CLIENT_ERRORS if module in sys.modules)
    return (OSError, *loaded)


def _raise_final(place: UPath, error: BaseException) -> None:
    """Raise what another try would not change; return where it might."""
    status = next((s for s in map(_status, _causes(error)) if s is not None), None)
    if status == _OUT_OF_RANGE:
        raise _OutOfRange from error
    if status == 404:
        raise FileNotFoundError(f"{place}: {_brief(error)}") from error
    refused = status is not None and 300 <= status < 500 and status not in _BUSY
    unnamed = _NO_CREDENTIALS.search(type(error).__name__) and not getattr(error, "retryable", False)
    if refused or unnamed or isinstance(error, PermissionError):
        raise InputError(
            f"{place}: the store refuses: {_brief(error)}; check the name, and the credentials in the environment"
        ) from error


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _status(error: BaseException) -> int | None:
    """The HTTP status, where each client keeps it."""
    found: Any = None
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    elif response is not None:  # httpx, requests
        found = getattr(response, "status_code", None)
    else:  # aiohttp, gcsfs
        found = getattr(error, "status", None) or getattr(error, "code", None)
    return int(found) if str(found).isdigit() else None


def _brief(error: BaseException) -> str:
    """The first words of an error, without what stands behind `?` in a URL: it may be a signature."""
    text = re.sub(r"[?]\S+", "?...", " ".join(str(error).split()))
    return f"{type(error).__name__}: {text[:200]}"
