"""Trials in a process of their own: one that is killed for its memory, or crashes in a library, costs no other."""

import gc
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

from sonify.doctor.findings import Finding, Outcome, one_line
from sonify.errors import InputError, TransientError, WorkError

Attempt = Callable[..., Finding]  # of what it is about, and whatever it needs
Look = Callable[[], Finding]

GRACE_SEC = 15.0  # an engine of the trial's ends in ten
# Of our own errors, which may quote the end of a log.
LONGEST_CHARS = 1000


class Apart:
    """Does one trial after the other in another process, which is replaced once a trial has failed in it."""

    def __init__(self) -> None:
        self._process: SpawnProcess | None = None
        self._wire: Connection | None = None

    def __call__(self, trial: Attempt, about: str, *arguments: Any) -> Finding:
        """Do one trial; whatever becomes of it is a finding."""
        started = time.monotonic()
        process, wire = self._running()
        try:
            wire.send((trial, about, arguments))
            finding = wire.recv()
        except (EOFError, OSError):
            process.join(GRACE_SEC)
            finding = _obituary(about, process.exitcode)
        if finding.outcome is Outcome.FAULT:
            self.close()
        return replace(finding, seconds=round(time.monotonic() - started, 2))

    def _running(self) -> tuple[SpawnProcess, Connection]:
        if self._process is None or self._wire is None:
            context = get_context("spawn")  # a fork would share the threads of the libraries that are loaded here
            self._wire, theirs = context.Pipe()
            self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
            self._process.start()
            theirs.close()
        return self._process, self._wire

    def close(self) -> None:
        """End the process, and what it has started."""
        if self._process is not None and self._wire is not None:
            self._wire.close()  # it waits there for another trial
            self._process.join(GRACE_SEC)
            self._process.terminate()
            self._process.join()
        self._process = self._wire = None


def _obituary(about: str, exit_code: int | None) -> Finding:
    if exit_code == -9:
        found = "the process that tried it was killed, as is done when memory runs out"
        todo = "take a machine with more memory, or a smaller model"
    else:
        how = f"by signal {-exit_code}" if exit_code is not None and exit_code < 0 else f"with exit code {exit_code}"
        found, todo = f"the process that tried it ended {how}: a library crashed", ""
    return Finding(about=about, outcome=Outcome.FAULT, found=found, todo=todo)


def _serve(wire: Connection) -> None:
    """Do trials until nobody asks for more."""
    os.dup2(2, 1)  # libraries print, and what the command prints may be a document
    try:
        while True:
            trial, about, arguments = wire.recv()
            wire.send(tried(about, lambda: trial(about, *arguments)))  # noqa: B023 - called at once
            _free()
    except (EOFError, OSError, KeyboardInterrupt):
        return  # nobody waits for more


def tried(about: str, look: Look) -> Finding:
    """What was found; an error is a fault with one line."""
    try:
        return look()
    except (InputError, WorkError, TransientError) as error:
        found = one_line(error, LONGEST_CHARS)
    except Exception as error:  # noqa: BLE001 - whatever a library raises is what was to be found out
        found = one_line(f"{type(error).__name__}: {error}")
    return Finding(about=about, outcome=Outcome.FAULT, found=found)


def _free() -> None:
    """Give back what the last model held."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
