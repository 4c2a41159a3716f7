import errno
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from sonify.errors import DiskFull
from sonify.io.shared import MANIFEST, share_arrays

ROWS = np.arange(600, dtype=np.float32).reshape(100, 6)


def write_rows(folder):
    np.save(folder / "rows.npy", ROWS)
    np.save(folder / "groups.npy", np.arange(100))
    (folder.parent / f"made-{time.time_ns()}").touch()
    return {"longest": 1.25}


def times_made(folder):
    return len(list(folder.glob("made-*")))


def names(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("made-"))


def test_arrays_are_made_once_and_mapped(tmp_path):
    first, second = (share_arrays(tmp_path, "rows", "a1", write_rows) for _ in range(2))
    assert times_made(tmp_path) == 1
    for found in (first, second):
        assert isinstance(found.arrays["rows"], np.memmap)
        assert (found.arrays["rows"] == ROWS).all()
        assert found.arrays["groups"].tolist() == list(range(100))
        assert dict(found.numbers) == {"longest": 1.25}
    assert names(tmp_path) == ["rows-a1", "rows.lock"]


def test_what_was_made_of_something_else_goes(tmp_path):
    old = share_arrays(tmp_path, "rows", "a1", write_rows)
    share_arrays(tmp_path, "halves", "a1", write_rows)
    share_arrays(tmp_path, "rows", "b2", write_rows)
    assert names(tmp_path) == ["halves-a1", "halves.lock", "rows-b2", "rows.lock"]
    assert (old.arrays["rows"] == ROWS).all()  # who has it mapped keeps it


def damage(entry, how):
    rows = entry / "rows.npy"
    if how == "truncated":
        os.truncate(rows, 900)
    elif how == "flipped":
        data = bytearray(rows.read_bytes())
        data[700] ^= 1
        rows.write_bytes(data)
    elif how == "missing":
        rows.unlink()
    elif how == "empty manifest":
        (entry / MANIFEST).write_bytes(b"")
    elif how == "no manifest":
        (entry / MANIFEST).unlink()
    elif how == "another number":
        (entry / MANIFEST).write_text((entry / MANIFEST).read_text().replace("0x1.4", "0x1.5"))
    elif how in ("a link", "a file"):
        entry.rename(entry.with_name("moved"))
        entry.symlink_to(entry.with_name("moved-too")) if how == "a link" else entry.touch()
    else:
        (entry / MANIFEST).write_text(how)


@pytest.mark.parametrize(
    "how",
    [
        "truncated",
        "flipped",
        "missing",
        "empty manifest",
        "no manifest",
        "another number",
        "a link",
        "a file",
        "[]",
        '{"files": {}, "numbers": {}}',
        "[" * 9999,
    ],
)
def test_a_damaged_entry_is_made_again(tmp_path, how):
    share_arrays(tmp_path, "rows", "a1", write_rows)
    damage(tmp_path / "rows-a1", how)
    found = share_arrays(tmp_path, "rows", "a1", write_rows)
    assert times_made(tmp_path) == 2
    assert (found.arrays["rows"] == ROWS).all()
    assert [name for name in names(tmp_path) if name != "moved"] == ["rows-a1", "rows.lock"]


def test_what_a_link_in_the_place_of_the_lock_leads_to_stays(tmp_path):
    kept = tmp_path / "kept.txt"
    kept.write_text("mine")
    (tmp_path / "rows.lock").symlink_to(kept)
    with pytest.raises(OSError, match="symbolic links"):
        share_arrays(tmp_path, "rows", "a1", write_rows)
    assert kept.read_text() == "mine"


def make_slowly(folder):
    np.save(folder / "rows.npy", ROWS)
    time.sleep(0.5)
    return write_rows(folder)


def ask(folder, answers):
    found = share_arrays(folder, "rows", "a1", make_slowly)
    answers.put(float(found.arrays["rows"].sum()))


def start(folder, answers):
    process = multiprocessing.get_context("fork").Process(target=ask, args=(folder, answers))
    process.start()
    return process


def test_processes_that_come_at_once_make_it_once(tmp_path):
    answers = multiprocessing.get_context("fork").Queue()
    processes = [start(tmp_path, answers) for _ in range(3)]
    assert [answers.get(timeout=20) for _ in processes] == [float(ROWS.sum())] * 3
    for process in processes:
        process.join()
    assert times_made(tmp_path) == 1
    assert names(tmp_path) == ["rows-a1", "rows.lock"]


def test_what_a_killed_process_left_is_no_entry_and_goes(tmp_path):
    answers = multiprocessing.get_context("fork").Queue()
    process = start(tmp_path, answers)
    while not list(tmp_path.glob("*.part/rows.npy")):
        time.sleep(0.01)
    assert process.pid
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert [name for name in names(tmp_path) if name.endswith(".part")]
    found = share_arrays(tmp_path, "rows", "a1", write_rows)
    assert (found.arrays["rows"] == ROWS).all()
    assert names(tmp_path) == ["rows-a1", "rows.lock"]


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path):
    def fill(folder: Path) -> dict[str, float]:
        (folder / "rows.npy").write_bytes(bytes(100))
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(DiskFull, match="no space left on the disk"):
        share_arrays(tmp_path, "rows", "a1", fill)
    assert names(tmp_path) == ["rows.lock"]


def test_where_a_disk_has_no_locks_the_rename_decides(tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)

    def beaten(folder: Path) -> dict[str, float]:
        share_arrays(tmp_path, "rows", "a1", write_rows)  # somebody else, meanwhile
        return write_rows(folder)

    share_arrays(tmp_path, "rows", "old", write_rows)
    found = share_arrays(tmp_path, "rows", "a1", beaten)
    assert (found.arrays["rows"] == ROWS).all()
    assert names(tmp_path) == ["rows-a1", "rows-old", "rows.lock"]
