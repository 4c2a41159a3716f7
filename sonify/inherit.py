"""The concepts of another run: the same images with other recordings, and no model is asked again.

What stages wrote is copied with its commits, so that the run that takes it over stands as if it had done it itself.
"""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import replace

from sonify import layout
from sonify.config import Config
from sonify.engine.record import (
    StageRecord,
    describe_difference,
    read_record,
    require_record,
    start_record,
    write_record,
)
from sonify.errors import InputError, WorkError
from sonify.io.commits import DamagedRecord, StoredCommit, parse_commit, read_commits
from sonify.io.places import files_below, for_each, read_whole
from sonify.io.write import write_atomically
from sonify.stages.table import stages_of
from sonify.stores import Place

log = logging.getLogger(__name__)

STAGES = ("concepts", "checks")
LISTINGS = f"{layout.UNITS}/concepts"


def take_concepts(config: Config, source: Place) -> None:
    """Copy the committed concepts, checks and answers of the run `source`; what is here already stays the same.

    Raises:
        InputError: `source` is no run or has no concepts, is of other images or models, or this run has concepts of
            its own.
        WorkError: a file of `source` is not what was committed.
    """
    record = require_record(source)
    theirs = {key: entry for key, entry in record.stages.items() if key.partition("/")[0] in STAGES}
    _check_settings(config, theirs, source)
    commits = _read_commits(source)  # first: what stands under a commit is whole, also where `source` is at work
    if not commits:
        raise InputError(f"--concepts-from: {source} has no concepts yet; `sonify concepts --config FILE` finds them")
    listings = [f"{LISTINGS}/{name}" for name in files_below(source / LISTINGS)]
    _check_own(config, {*listings, *(file.path for stored in commits for file in stored.commit.files)}, source)
    for name in listings:
        write_atomically(config.run_dir, name, _read(source, name))
    for _ in for_each(config.run_dir, lambda stored: _copy(config.run_dir, source, stored), commits):
        pass
    ours = start_record(config, read_record(config.run_dir))
    models = {**record.models, **ours.models}
    write_record(config.run_dir, replace(ours, stages={**ours.stages, **theirs}, models=models))
    log.info("concepts: %d commits of %s taken over", len(commits), source)


def _check_settings(config: Config, theirs: Mapping[str, StageRecord], source: Place) -> None:
    """Nothing is copied that this run would refuse to go on with."""
    for stage in stages_of(config):
        before = theirs.get(stage.key)
        if before is not None and before.digest != stage.digest:
            difference = describe_difference(stage, before)
            raise InputError(f"--concepts-from {source}: its {stage.key} are of another configuration: {difference}")


def _read_commits(source: Place) -> list[StoredCommit]:
    folders = [f"{layout.COMMITS}/{stage}" for stage in STAGES]
    places = [source / folder / name for folder in folders for name in files_below(source / folder)]
    try:
        return [parse_commit(place, data) for place, data in read_commits(places)]
    except (DamagedRecord, FileNotFoundError) as error:
        raise WorkError(f"--concepts-from: a commit of {source} is damaged or gone: {error}") from error


def _check_own(config: Config, names: set[str], source: Place) -> None:
    """A run that was begun with these concepts may go on with them; one with others may not."""
    folders = (LISTINGS, layout.ANSWERS, layout.CONCEPTS, layout.CHECKS)
    here = {f"{folder}/{name}" for folder in folders for name in files_below(config.run_dir / folder)}
    if foreign := sorted(here - names):
        raise InputError(
            f"--concepts-from: {config.run_dir} has concepts of its own, which {source} lacks ({foreign[0]}): take"
            " another run_dir"
        )


def _copy(run_dir: Place, source: Place, stored: StoredCommit) -> None:
    """Copy what a commit names, and then the commit."""
    commit = stored.commit
    for file in commit.files:
        data = _read(source, file.path)
        if hashlib.sha256(data).hexdigest() != file.sha256:
            raise WorkError(
                f"--concepts-from: {source / file.path} is not what was committed; `sonify verify {source} --repair`,"
                " then `sonify run` with its own configuration"
            )
        write_atomically(run_dir, file.path, data)
    write_atomically(run_dir, layout.commit(commit.stage, commit.digest, commit.unit), read_whole(stored.place))


def _read(source: Place, name: str) -> bytes:
    try:
        return read_whole(source / name)
    except FileNotFoundError as error:
        raise WorkError(f"--concepts-from: {source / name} is gone; is another command at work there?") from error
