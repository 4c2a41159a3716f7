"""`sonify verify`: does every file of a run hold what was committed? `--repair` withdraws what does not."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from sonify import layout
from sonify.engine.record import open_run_record
from sonify.errors import InputError, WorkError
from sonify.io.commits import (
    Commit,
    DamagedRecord,
    damage_of,
    parse_commit,
    read_commit,
    read_commits,
    withdraw,
)
from sonify.io.places import files_below, folders_in, read_ahead, read_own, size_of
from sonify.io.tables import count_rows
from sonify.io.tars import index_tar
from sonify.io.write import remove, sha256_of
from sonify.rows import Reason
from sonify.running import open_run
from sonify.stores import Place

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


def verify(run_dir: Place, repair: bool = False) -> Verification:
    """Re-hash every committed file and listing and check every count; of a commit that is right, little is held.

    Args:
        run_dir: the run.
        repair: withdraw damaged commits and listings, so that the next run does just those units again.

    Raises:
        InputError: the folder is not a run, or another command works in it.
    """
    if size_of(run_dir / layout.RUN) is None and not folders_in(run_dir / layout.COMMITS):
        raise InputError(f"{run_dir}: not a run: expected {layout.RUN} and {layout.COMMITS}/ in it")
    with open_run(run_dir):
        damage = list(_check_run_record(run_dir))
        commits = files = 0
        listings: dict[str, str] = {}
        records = run_dir / layout.COMMITS
        places = (records / name for name in files_below(records) if name.endswith(".json"))
        for commit, found in read_ahead(
            lambda item: _check_record(run_dir, *item), read_commits(places), HASHING_THREADS
        ):
            commits += 1
            damage += found
            if commit is None:
                continue
            files += len(commit.files)
            if listing := commit.inputs.get("listing"):
                listings[layout.listing(commit.stage, commit.unit)] = listing
        damage += _check_listings(run_dir, listings)
        if repair:
            _withdraw_damaged(run_dir, damage)
    return Verification(commits=commits, files=files, damage=tuple(damage), repaired=repair)


def _check_record(run_dir: Place, place: Place, data: bytes) -> tuple[Commit | None, list[Damage]]:
    """A commit, where it can be read, and what is wrong with it."""
    record = f"{layout.COMMITS}/{'/'.join(place.parts[-3:])}"
    try:
        commit = parse_commit(place, data).commit
    except DamagedRecord as error:
        return None, [Damage(path=record, what=str(error), record=record)]
    return commit, list(_check_commit(run_dir, commit, record))


def _check_run_record(run_dir: Place) -> Iterator[Damage]:
    path = run_dir / layout.RUN
    try:
        open_run_record(read_own(path))
    except (OSError, WorkError, DamagedRecord) as error:
        yield Damage(path=layout.RUN, what=str(error), record="")


def _check_commit(run_dir: Place, commit: Commit, record: str) -> Iterator[Damage]:
    for file in commit.files:
        if what := damage_of(run_dir / file.path, file) or _check_count(run_dir, commit, file.path):
            yield Damage(path=file.path, what=what, record=record)
    if not commit.rows.balances() or (commit.clips and not commit.clips.balances()):
        yield Damage(path=record, what="rows in are not rows out + rejected", record=record)


def _check_count(run_dir: Place, commit: Commit, path: str) -> str:
    """What is wrong between a table's rows and its commit's counts, or nothing."""
    if not path.endswith(".parquet") or path.startswith(layout.ANSWERS):
        return ""  # an answer may be one that was no use
    if path.startswith(layout.FEATURES):
        return _check_index(run_dir / path)
    counts = [count for count in (commit.rows, commit.clips) if count]
    if path.startswith(layout.REJECTS):
        expected = sum(n for count in counts for n in count.rejected.values())
    elif path.startswith(layout.TAGS):  # what was heard stays, also of clips that were let go for it
        expected = commit.rows.rows_out + commit.rows.rejected.get(Reason.SPEECH, 0)
    else:
        expected = counts[-1].rows_out
    try:
        found = count_rows(run_dir / path)
    except (pa.ArrowInvalid, OSError) as error:
        return f"not a table: {error}"
    return "" if found == expected else f"expected {expected} rows, found {found}"


def _check_index(path: Place) -> str:
    """What is wrong between an archive of training samples and its index, or nothing."""
    try:
        expected, _ = index_tar(path.with_suffix(".tar"), path.stem)
        found = count_rows(path)
    except (pa.ArrowInvalid, OSError) as error:
        return f"not a table, or no archive beside it: {error}"
    samples = sum(member.name.endswith(".json") for member in expected)
    return "" if found == samples else f"expected {samples} rows, found {found}"


def _check_listings(run_dir: Place, expected: Mapping[str, str]) -> Iterator[Damage]:
    """Compare the frozen listings with the hashes that the first stages' commits hold."""
    for path, sha256 in sorted(expected.items()):
        if size_of(run_dir / path) is None:
            yield Damage(path=path, what="missing", record="")
        elif sha256_of(run_dir / path) != sha256:
            yield Damage(path=path, what="another sha256", record="")
    for name in files_below(run_dir / layout.UNITS):
        path = f"{layout.UNITS}/{name}"
        if path.endswith(".parquet") and path not in expected and not _is_table(run_dir / path):
            yield Damage(path=path, what="not a table", record="")


def _is_table(path: Place) -> bool:
    try:
        return count_rows(path) >= 0
    except (pa.ArrowException, OSError):
        return False


def _withdraw_damaged(run_dir: Place, damage: Sequence[Damage]) -> None:
    """Undo what is damaged. A listing is removed alone: listed again it is the same, or the next run says so."""
    damaged = {d.path for d in damage}
    for record in dict.fromkeys(d.record for d in damage if d.record and d.record not in damaged):
        withdraw(run_dir, read_commit(run_dir / record), damaged)
    for d in damage:
        if d.path == d.record or not d.record:
            remove(run_dir / d.path)
