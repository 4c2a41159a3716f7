import os
import subprocess
import sys

import pytest

from sonify.errors import DiskFull
from sonify.io.commits import (
    Commit,
    Count,
    DamagedRecord,
    open_record,
    read_commit,
    seal_record,
    total,
    withdraw,
    write_commit,
)
from sonify.io.write import Transaction, clear_temporary, sha256_of, write_atomically


def commit(files=()):
    rows = Count(rows_in=3, rows_out=2, rejected={"unreadable": 1})
    return Commit(stage="pair", unit="000000", digest="d", inputs={"a": "b"}, rows=rows, clips=None, files=files)


def test_a_commit_comes_back_as_it_was_written(tmp_path):
    with Transaction(tmp_path) as transaction:
        transaction.create("pairs/000000.parquet").write(b"data")
        written = commit(transaction.publish())
    write_commit(tmp_path, written)
    stored = read_commit(tmp_path / "commits/pair/d/000000.json")
    assert stored.commit == written
    assert stored.sha256 == sha256_of(stored.place)
    assert (tmp_path / "pairs/000000.parquet").read_bytes() == b"data"


def test_every_flipped_byte_of_a_record_is_found(tmp_path):
    write_commit(tmp_path, commit())
    path = tmp_path / "commits/pair/d/000000.json"
    data = path.read_bytes()
    for n in range(len(data)):
        with pytest.raises(DamagedRecord):
            open_record(data[:n] + bytes([data[n] ^ 1]) + data[n + 1 :])
    for n in range(len(data)):
        with pytest.raises(DamagedRecord):
            open_record(data[:n])


def test_sealed_records_are_the_same_whatever_the_order():
    assert seal_record({"a": 1, "b": 2}) == seal_record({"b": 2, "a": 1})


def test_an_abandoned_transaction_leaves_nothing(tmp_path):
    with Transaction(tmp_path) as transaction:
        transaction.create("pairs/x.parquet").write(b"half")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_what_a_killed_process_left_is_cleared(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from sonify.io.write import Transaction\n"
        "t = Transaction(Path(sys.argv[1])).__enter__(); t.create('a').write(b'x' * 100); os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert killed.returncode == -9
    assert list(tmp_path.rglob("*"))
    clear_temporary(tmp_path)
    assert list(tmp_path.rglob("*")) == []


def test_withdrawing_removes_record_and_files(tmp_path):
    with Transaction(tmp_path) as transaction:
        transaction.create("pairs/000000.parquet").write(b"data")
        write_commit(tmp_path, commit(transaction.publish()))
    withdraw(tmp_path, read_commit(tmp_path / "commits/pair/d/000000.json"), damaged=[])
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_full_disk_says_what_to_do(tmp_path, monkeypatch):
    def full(_descriptor):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFull, match="free some space"):
        write_atomically(tmp_path, "units/a", b"data")


def test_counts_add_up():
    one = Count(rows_in=3, rows_out=2, rejected={"a": 1})
    two = Count(rows_in=2, rows_out=0, rejected={"a": 1, "b": 1})
    both = total([one, two])
    assert both == Count(rows_in=5, rows_out=2, rejected={"a": 2, "b": 1})
    assert both.balances()
    assert not Count(rows_in=1, rows_out=0, rejected={}).balances()
