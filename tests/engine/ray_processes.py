"""The processes of a Ray that this process started."""

import os
from pathlib import Path


def parent_of(pid: str) -> str:
    return Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[1]


def ray_workers() -> list[int]:
    """Pids of the workers of the Ray that this process started: children of its raylet."""
    pids = []
    for entry in Path("/proc").iterdir():
        try:
            if not entry.name.isdigit() or not (entry / "cmdline").read_bytes().startswith(b"ray::Worker"):
                continue
            if parent_of(parent_of(entry.name)) == str(os.getpid()):
                pids.append(int(entry.name))
        except OSError:
            continue  # it ended meanwhile
    return pids


def children_of(pid: int) -> list[int]:
    """Pids of the processes that a process started."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and parent_of(entry.name) == str(pid):
                found.append(int(entry.name))
        except OSError:
            continue  # it ended meanwhile
    return found
