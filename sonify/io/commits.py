"""Commit records: what a unit took in and gave out, under which settings; written last, they are the marker.

A record lies at RUN/commits/<stage>/<digest>/<unit>.json. It is canonical JSON that ends in its own sha256, so that
a flipped byte anywhere in it is found.
"""

import dataclasses
import hashlib
import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from sonify import layout
from sonify.errors import WorkError
from sonify.installed import spell, spell_again
from sonify.io.places import open_local, read_each, read_whole, size_of, stems
from sonify.io.write import FileRecord, create_if_absent, digest_open, remove, sha256_of, write_atomically
from sonify.stores import Place

_DIGEST = re.compile(r"[0-9a-f]{1,64}")


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


def is_digest(value: object) -> bool:
    """Whether a value that somebody recorded may be what `digest_of` gives, or the beginning of it."""
    return isinstance(value, str) and bool(_DIGEST.fullmatch(value))


def seal_record(record: Mapping[str, Any]) -> bytes:
    """Canonical JSON of a record with its own sha256 in it."""
    return (canonical_json({**record, "record_sha256": digest_of(record)}) + "\n").encode()


def open_record(data: bytes) -> dict[str, Any]:
    """Read a sealed record."""
    try:
        record = json.loads(data)
        claimed = record.pop("record_sha256")
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise DamagedRecord("not a record") from error
    if seal_record(record) != data or claimed != digest_of(record):
        raise DamagedRecord("its own sha256 differs")
    return record


def write_commit(run_dir: Place, commit: Commit) -> None:
    """Make the unit done. In a store the record is created only if absent: the first of two workers counts."""
    path = layout.commit(commit.stage, commit.digest, commit.unit)
    if isinstance(run_dir, Path):
        write_atomically(run_dir, path, record_of(commit))
    elif not create_if_absent(run_dir / path, record_of(commit)):
        raise WorkError(
            f"{run_dir / path}: another worker committed this unit with another result; `{spell('verify', run_dir)}`"
            " says which files are right"
        )


def find_commit(run_dir: Place, stage: str, digest: str, unit: str) -> Commit | None:
    """The commit of a unit in a store, where a worker that was given up may come after the one in its place."""
    if isinstance(run_dir, Path):
        return None
    try:
        return read_commit(run_dir / layout.commit(stage, digest, unit)).commit
    except FileNotFoundError:
        return None


def record_of(commit: Commit) -> bytes:
    """The commit's record, as it is written."""
    record = dataclasses.asdict(commit)
    record |= record.pop("rows")
    return seal_record(record)


@dataclass(frozen=True, slots=True)
class StoredCommit:
    """A commit as it lies in the run, with the sha256 of its record."""

    commit: Commit
    place: Place
    sha256: str


@dataclass(frozen=True, slots=True)
class Done:
    """What the driver keeps of a commit: a run of a billion images has a hundred thousand of them in each stage."""

    sha256: str  # of the commit's record
    rows_out: int
    clips_out: int | None


def done_of(commit: Commit, sha256: str) -> Done:
    """Keep little of a commit."""
    return Done(sha256, commit.rows.rows_out, commit.clips.rows_out if commit.clips else None)


def read_commit(place: Place) -> StoredCommit:
    """Read one commit.

    Raises:
        DamagedRecord: the record is not what was written.
    """
    return parse_commit(place, read_whole(place))


def parse_commit(place: Place, data: bytes) -> StoredCommit:
    """Do what `read_commit` does with bytes that were read."""
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
    return StoredCommit(commit, place, hashlib.sha256(data).hexdigest())


def commit_files(run_dir: Place, stage: str, digest: str) -> list[Place]:
    """The commit records of a stage under one digest, in the order of units."""
    folder = run_dir / layout.COMMITS / stage / digest
    return [folder / f"{unit}.json" for unit in stems(folder, ".json")]


def read_commits(places: Iterable[Place]) -> Iterator[tuple[Place, bytes]]:
    """The bytes of many commit records, in order."""
    listed = list(places)
    return zip(listed, read_each(listed), strict=True)


def damage_of(path: Place, file: FileRecord) -> str:
    """What is wrong with a committed file, or nothing."""
    size_bytes = size_of(path)
    if size_bytes is None:
        return "missing"
    if size_bytes != file.size_bytes:
        return f"expected {file.size_bytes} bytes, found {size_bytes}"
    return "" if sha256_of(path) == file.sha256 else "another sha256"


@contextmanager
def open_committed(run_dir: Place, file: FileRecord) -> Iterator[BinaryIO]:
    """Open a committed file for reading here and there, once its bytes have proved to be those that were committed.

    Raises:
        FileNotFoundError: it is gone.
        WorkError: it is damaged.
    """
    path = run_dir / file.path
    with open_local(path) as opened:
        if digest_open(opened) != file.sha256:
            raise WorkError(
                f"{path}: damaged (another sha256 than was committed); `{spell('verify', run_dir, '--repair')}`, then"
                f" `{spell_again()}`, makes it again"
            )
        opened.seek(0)
        yield opened


def withdraw(run_dir: Place, stored: StoredCommit, damaged: Collection[str]) -> None:
    """Undo a commit: the record first, so that a file without a record is at worst rubbish.

    What models were asked for stays, unless it is damaged itself.
    """
    remove(stored.place)
    for file in stored.commit.files:
        if file.path.startswith(tuple(layout.RECORDED.values())) and file.path not in damaged:
            continue
        remove(run_dir / file.path)


def total(counts: Iterable[Count]) -> Count:
    """Add counts up."""
    rows_in = rows_out = 0
    rejected: Counter[str] = Counter()
    for count in counts:
        rows_in += count.rows_in
        rows_out += count.rows_out
        rejected.update(count.rejected)
    return Count(rows_in=rows_in, rows_out=rows_out, rejected=dict(sorted(rejected.items())))


def add_clips(clips: Count | None, more: Count | None) -> Count | None:
    """Add counts of clips up, which only a pool has."""
    found = [count for count in (clips, more) if count]
    return total(found) if found else None
