"""Commit records: what a unit took in and gave out, under which settings; written last, they are the marker.

A record lies at RUN/commits/<stage>/<digest>/<unit>.json. It is canonical JSON that ends in its own sha256, so that
a flipped byte anywhere in it is found.
"""

import dataclasses
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sonify import layout
from sonify.engine.files import FileRecord, write_atomically


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """Rows in, rows out and rejected by reason; they balance, always."""

    rows_in: int
    rows_out: int
    rejected: Mapping[str, int]

    def balances(self) -> bool:
        """Whether nothing was lost and nothing came twice."""
        return self.rows_in == self.rows_out + sum(self.rejected.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """One finished unit. `inputs` are the hashes of its listing and upstream commits; `clips` counts a pool's clips."""

    stage: str
    unit: str
    digest: str
    inputs: Mapping[str, str]
    rows: Count
    clips: Count | None
    files: tuple[FileRecord, ...]


class DamagedRecord(Exception):
    """A record that is not what was written."""


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces; NaN is refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest_of(value: Any) -> str:
    """The sha256 of a value's canonical JSON, in hexadecimal."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def seal_record(record: Mapping[str, Any]) -> bytes:
    """Canonical JSON of a record with its own sha256 in it."""
    return (canonical_json({**record, "record_sha256": digest_of(record)}) + "\n").encode()


def open_record(data: bytes) -> dict[str, Any]:
    """Read a sealed record.

    Raises:
        DamagedRecord: it is not JSON, or its sha256 is another.
    """
    try:
        record = json.loads(data)
        claimed = record.pop("record_sha256")
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise DamagedRecord("not a record") from error
    if seal_record(record) != data or claimed != digest_of(record):
        raise DamagedRecord("its own sha256 differs")
    return record


def write_commit(run_dir: Path, commit: Commit) -> None:
    """Make the unit done."""
    record = dataclasses.asdict(commit)
    record |= record.pop("rows")
    path = layout.commit(commit.stage, commit.digest, commit.unit)
    write_atomically(run_dir, path, seal_record(record))


@dataclass(frozen=True, slots=True)
class StoredCommit:
    """A commit as it lies on disk, with the sha256 of its record."""

    commit: Commit
    path: Path
    sha256: str


def read_commit(path: Path) -> StoredCommit:
    """Read one commit.

    Raises:
        DamagedRecord: the record is not what was written.
    """
    data = path.read_bytes()
    record = open_record(data)
    commit = Commit(
        stage=record["stage"],
        unit=record["unit"],
        digest=record["digest"],
        inputs=record["inputs"],
        rows=Count(rows_in=record["rows_in"], rows_out=record["rows_out"], rejected=record["rejected"]),
        clips=Count(**record["clips"]) if record["clips"] else None,
        files=tuple(FileRecord(**file) for file in record["files"]),
    )
    return StoredCommit(commit, path, hashlib.sha256(data).hexdigest())


def commit_files(run_dir: Path, stage: str, digest: str) -> Iterator[Path]:
    """The commit records of a stage under one digest, in the order of units."""
    return iter(sorted((run_dir / layout.COMMITS / stage / digest).glob("*.json")))


def withdraw(run_dir: Path, stored: StoredCommit, damaged: Collection[str]) -> None:
    """Undo a commit: the record first, so that a file without a record is at worst rubbish.

    What models were asked for stays, unless it is damaged itself.
    """
    stored.path.unlink(missing_ok=True)
    for file in stored.commit.files:
        if file.path.startswith(tuple(layout.RECORDED.values())) and file.path not in damaged:
            continue
        path = run_dir / file.path
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)


def total(counts: Iterable[Count]) -> Count:
    """Add counts up."""
    rows_in = rows_out = 0
    rejected: Counter[str] = Counter()
    for count in counts:
        rows_in += count.rows_in
        rows_out += count.rows_out
        rejected.update(count.rejected)
    return Count(rows_in=rows_in, rows_out=rows_out, rejected=dict(sorted(rejected.items())))
