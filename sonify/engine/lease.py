"""One command at a time in a run directory: a file lock on a disk; in a store, an object that its holder keeps fresh.

A store has no locks that a dead holder loses. So the holder writes the object again every few seconds, and whoever
finds it unchanged for long enough takes it over. No clock but the reader's own is asked.
"""

import fcntl
import json
import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import cast

from upath import UPath

from sonify.errors import InputError, TransientError
from sonify.io.places import read_whole
from sonify.io.write import create_if_absent, put_bytes, remove
from sonify.stores import Place

log = logging.getLogger(__name__)

BEAT_SEC = 10.0
STALE_SEC = 45.0  # several beats, so that a busy store does not look like a dead holder
LOOK_SEC = 3.0


def hold(lock: Place) -> AbstractContextManager[None]:
    """Hold a run directory's lock while the context lasts; one that is lost to another command interrupts this process.

    Raises:
        InputError: the folder cannot be made, another command holds the lock, or the store refuses us.
        TransientError: the store cannot be reached.
    """
    return _hold_file(lock) if isinstance(lock, Path) else _hold_object(lock)


@contextmanager
def _hold_file(path: Path) -> Iterator[None]:
    """Hold a lock that the system gives up when the process ends, however it ends."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.open("w")
    except OSError as error:
        raise InputError(f"run_dir: {path.parent} cannot be written: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(f"run_dir: another command is at work in {path.parent}; wait for it to end") from error
        yield


@contextmanager
def _hold_object(place: UPath) -> Iterator[None]:
    """Hold an object of a store, kept fresh by a thread."""
    holder = {"holder": uuid.uuid4().hex, "host": socket.gethostname(), "pid": os.getpid()}
    if not create_if_absent(place, _beat(holder, 0)):
        _take_over(place, holder)
    ended = threading.Event()
    keeper = threading.Thread(target=_keep, args=(place, holder, ended), daemon=True)
    keeper.start()
    try:
        yield
    finally:
        ended.set()
        keeper.join()
        _release(place, holder)


def _release(place: UPath, holder: dict[str, str | int]) -> None:
    try:
        if _holder(place) == holder["holder"]:
            remove(place)
    except (InputError, TransientError) as error:  # how the command ended matters more than a lock that will grow old
        log.warning("%s: the lock could not be given back: %s", place.parent, error)


def _beat(holder: dict[str, str | int], number: int) -> bytes:
    return json.dumps({**holder, "beat": number}).encode()


def _read(place: UPath) -> bytes:
    try:
        return read_whole(place)
    except FileNotFoundError:
        return b""


def _holder(place: UPath) -> str:
    try:
        return json.loads(_read(place))["holder"]
    except (ValueError, KeyError, TypeError):
        return ""


def _take_over(place: UPath, holder: dict[str, str | int]) -> None:
    """Watch the object; if it stays as it is, its holder is dead."""
    found = _read(place)
    log.info("%s: held by another command; looking whether it is alive, for up to %g s", place.parent, STALE_SEC)
    until = time.monotonic() + STALE_SEC
    while found and time.monotonic() < until:
        time.sleep(LOOK_SEC)
        now = _read(place)
        if now and now != found:
            raise InputError(f"run_dir: another command is at work in {place.parent} ({_describe(now)}); wait for it")
        found = now
    put_bytes(place, _beat(holder, 0))
    time.sleep(LOOK_SEC)  # of several that take over at once, the last to write has it
    if _holder(place) != holder["holder"]:
        raise InputError(f"run_dir: another command has just begun to work in {place.parent}; wait for it to end")


def _describe(data: bytes) -> str:
    try:
        held = json.loads(data)
        return f"process {held['pid']} on {held['host']}"
    except (ValueError, KeyError, TypeError):
        return "not ours"


def _keep(place: UPath, holder: dict[str, str | int], ended: threading.Event) -> None:
    number = 0
    beaten = time.monotonic()
    while not ended.wait(BEAT_SEC):
        number += 1
        try:
            if _holder(place) != holder["holder"]:
                _stop(place, "another command took this run over")
                return
            put_bytes(place, _beat(holder, number))
            beaten = time.monotonic()
        except (InputError, TransientError) as error:  # a store may refuse for a moment what it took before
            log.warning("%s", error)
            if time.monotonic() - beaten > STALE_SEC:
                _stop(place, "the lock could not be kept fresh, and others may take this run over")
                return


def _stop(place: UPath, why: str) -> None:
    log.error("%s: %s; stopping", place.parent, why)
    # a real signal wakes the main thread from whatever it waits for
    signal.pthread_kill(cast(int, threading.main_thread().ident), signal.SIGINT)
