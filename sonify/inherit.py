"""The concepts of another run: the same images with other recordings, and no model is asked again.

What stages wrote is copied with its commits, so that the run that takes it over stands as if it had done it itself.
"""

import logging
from collections.abc import Mapping
from dataclasses import replace

from sonify import layout
from sonify.config import Config, Place
from sonify.engine.files import write_atomically
from sonify.engine.record import (
    StageRecord,
    describe_difference,
    read_record,
    require_record,
    start_record,
    write_record,
)
from sonify.engine.store import files_below, for_each, read_whole
from sonify.errors import InputError
from sonify.stages.table import stages_of

log = logging.getLogger(__name__)

STAGES = ("concepts", "checks")
# The commits last: what stands under one is whole.
FOLDERS = (
    f"{layout.UNITS}/concepts",
    layout.ANSWERS,
    layout.CONCEPTS,
    layout.CHECKS,
    *(f"{layout.REJECTS}/{stage}" for stage in STAGES),
    *(f"{layout.COMMITS}/{stage}" for stage in STAGES),
)


def take_concepts(config: Config, source: Place) -> None:
    """Copy concepts, checks and answers of the run `source` into this one; what is there already stays.

    Raises:
        InputError: `source` is no run or has no concepts, or this run has others of its own.
    """
    record = require_record(source)
    theirs = {key: entry for key, entry in record.stages.items() if key.partition("/")[0] in STAGES}
    if not theirs:
        raise InputError(f"--concepts-from: {source} has no concepts yet; `sonify concepts --config FILE` finds them")
    _check_settings(config, theirs, source)
    names = [f"{folder}/{name}" for folder in FOLDERS for name in files_below(source / folder)]
    _check_own(config, names, source)
    for folder in FOLDERS:
        below = [name for name in names if name.startswith(f"{folder}/")]
        for _ in for_each(config.run_dir, lambda name: _copy(config.run_dir, source, name), below):
            pass
    ours = start_record(config, read_record(config.run_dir))
    models = {**record.models, **ours.models}
    write_record(config.run_dir, replace(ours, stages={**ours.stages, **theirs}, models=models))
    log.info("concepts: %d files of %s taken over", len(names), source)


def _check_settings(config: Config, theirs: Mapping[str, StageRecord], source: Place) -> None:
    """Nothing is copied that this run would refuse to go on with."""
    for stage in stages_of(config):
        before = theirs.get(stage.key)
        if before is not None and before.digest != stage.digest:
            difference = describe_difference(stage, before)
            raise InputError(f"--concepts-from {source}: its {stage.key} are of another configuration: {difference}")


def _copy(run_dir: Place, source: Place, name: str) -> None:
    write_atomically(run_dir, name, read_whole(source / name))


def _check_own(config: Config, names: list[str], source: Place) -> None:
    """A run that was begun with these concepts may go on with them; one with others may not."""
    here = [f"{folder}/{name}" for folder in FOLDERS for name in files_below(config.run_dir / folder)]
    if foreign := sorted(set(here) - set(names)):
        raise InputError(
            f"--concepts-from: {config.run_dir} has concepts of its own, which {source} lacks ({foreign[0]}): take"
            " another run_dir"
        )
