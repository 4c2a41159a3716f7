"""`sonify verify`: does every file of a run hold what was committed? `--repair` withdraws what does not."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from sonify import layout
from sonify.engine.commits import Commit, DamagedRecord, StoredCommit, open_record, read_commit, withdraw
from sonify.engine.files import FileRecord, sha256_of
from sonify.engine.tables import count_rows
from sonify.engine.tars import index_tar
from sonify.errors import InputError
from sonify.run import open_run

HASHING_THREADS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """One thing that is wrong: the file, what is wrong with it, and the commit record that it takes down, if any."""

    path: str
    what: str
    record: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What was looked at and what is wrong."""

    commits: int
    files: int
    damage: tuple[Damage, ...]
    repaired: bool


def verify(run_dir: Path, repair: bool = False) -> Verification:
    """Re-hash every committed file and listing and check every count.

    Args:
        run_dir: the run.
        repair: withdraw damaged commits and listings, so that the next run does just those units again.

    Raises:
        InputError: the folder is not a run, or another command works in it.
    """
    if not (run_dir / layout.COMMITS).is_dir() and not (run_dir / layout.RUN).is_file():
        raise InputError(f"{run_dir}: not a run: expected {layout.RUN} and {layout.COMMITS}/ in it")
    with open_run(run_dir):
        stored, damage = _read_commits(run_dir)
        damage += _check_run_record(run_dir)
        with ThreadPoolExecutor(HASHING_THREADS) as threads:
            for found in threads.map(lambda commit: list(_check_commit(run_dir, commit)), stored):
                damage += found
        damage += _check_listings(run_dir, stored)
        if repair:
            _withdraw_damaged(run_dir, stored, damage)
    return Verification(
        commits=len(stored),
        files=sum(len(s.commit.files) for s in stored),
        damage=tuple(damage),
        repaired=repair,
    )


def _read_commits(run_dir: Path) -> tuple[list[StoredCommit], list[Damage]]:
    stored: list[StoredCommit] = []
    damage: list[Damage] = []
    for path in sorted((run_dir / layout.COMMITS).glob("*/*/*.json")):
        try:
            stored.append(read_commit(path))
        except DamagedRecord as error:
            record = path.relative_to(run_dir).as_posix()
            damage.append(Damage(path=record, what=str(error), record=record))
    return stored, damage


def _check_run_record(run_dir: Path) -> Iterator[Damage]:
    path = run_dir / layout.RUN
    try:
        open_record(path.read_bytes())
    except (OSError, DamagedRecord) as error:
        yield Damage(path=layout.RUN, what=str(error), record="")


def _check_commit(run_dir: Path, stored: StoredCommit) -> Iterator[Damage]:
    commit = stored.commit
    record = stored.path.relative_to(run_dir).as_posix()
    for file in commit.files:
        if what := _check_file(run_dir / file.path, file) or _check_count(run_dir, commit, file.path):
            yield Damage(path=file.path, what=what, record=record)
    if not commit.rows.balances() or (commit.clips and not commit.clips.balances()):
        yield Damage(path=record, what="rows in are not rows out + rejected", record=record)


def _check_file(path: Path, file: FileRecord) -> str:
    """What is wrong with a committed file's bytes, or nothing."""
    if not path.is_file():
        return "missing"
    if (size_bytes := path.stat().st_size) != file.size_bytes:
        return f"expected {file.size_bytes} bytes, found {size_bytes}"
    return "" if sha256_of(path) == file.sha256 else "another sha256"


def _check_count(run_dir: Path, commit: Commit, path: str) -> str:
    """What is wrong between a table's rows and its commit's counts, or nothing."""
    if not path.endswith(".parquet") or path.startswith(layout.ANSWERS):
        return ""  # an answer may be one that was no use
    if path.startswith(layout.FEATURES):
        return _check_index(run_dir / path)
    counts = [count for count in (commit.rows, commit.clips) if count]
    if path.startswith(layout.REJECTS):
        expected = sum(n for count in counts for n in count.rejected.values())
    else:
        expected = counts[-1].rows_out
    try:
        found = count_rows(run_dir / path)
    except (pa.ArrowInvalid, OSError) as error:
        return f"not a table: {error}"
    return "" if found == expected else f"expected {expected} rows, found {found}"


def _check_index(path: Path) -> str:
    """What is wrong between an archive of training samples and its index, or nothing."""
    try:
        expected, _ = index_tar(path.with_suffix(".tar"), path.stem)
        found = count_rows(path)
    except (pa.ArrowInvalid, OSError) as error:
        return f"not a table, or no archive beside it: {error}"
    samples = sum(member.name.endswith(".json") for member in expected)
    return "" if found == samples else f"expected {samples} rows, found {found}"


def _check_listings(run_dir: Path, stored: Sequence[StoredCommit]) -> Iterator[Damage]:
    """Compare the frozen listings with the hashes that the first stages' commits hold."""
    expected = {
        layout.listing(s.commit.stage, s.commit.unit): s.commit.inputs["listing"]
        for s in stored
        if "listing" in s.commit.inputs
    }
    for path, sha256 in sorted(expected.items()):
        if not (run_dir / path).is_file():
            yield Damage(path=path, what="missing", record="")
        elif sha256_of(run_dir / path) != sha256:
            yield Damage(path=path, what="another sha256", record="")


def _withdraw_damaged(run_dir: Path, stored: Sequence[StoredCommit], damage: Sequence[Damage]) -> None:
    """Undo what is damaged. A listing is removed alone: listed again it is the same, or the next run says so."""
    records = {d.record for d in damage if d.record}
    damaged = {d.path for d in damage}
    for commit in stored:
        if commit.path.relative_to(run_dir).as_posix() in records:
            withdraw(run_dir, commit, damaged)
    for d in damage:
        if d.path in records or not d.record:
            (run_dir / d.path).unlink(missing_ok=True)
