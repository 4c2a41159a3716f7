"""Before any work: settings still hold, what is redone is withdrawn, the input is listed, the models are here."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

from sonify import layout
from sonify.config import Config
from sonify.engine.job import Stage
from sonify.engine.plan import check_settings, iter_done, listed_units, withdraw_stage
from sonify.engine.record import (
    RunRecord,
    read_record,
    same_input,
    start_record,
    with_stage,
    write_record,
)
from sonify.errors import InputError
from sonify.io.commits import commit_files
from sonify.io.places import files_below
from sonify.io.write import remove
from sonify.listing import freeze_images, freeze_published, freeze_sounds
from sonify.stages.table import stages_of


def prepare(config: Config, chosen: Sequence[Stage], redo: str | None) -> RunRecord:
    """Bring a run directory to where the chosen stages can work.

    Raises:
        InputError: the run was made under another configuration, or input or a model is not there.
    """
    record = start_record(config, read_record(config.run_dir))
    replaced = _stages_below(config, redo) if redo is not None else frozenset()
    keys = {stage.key for stage in chosen}
    if before := [stage.key for stage in _up_to_last(config, chosen) if stage.key in replaced - keys]:
        raise InputError(f"--redo {redo}: {', '.join(before)} would have to be done again as well: do all stages")
    for stage in _up_to_last(config, chosen):
        if stage.key not in replaced:  # before anything is withdrawn: what stays must fit
            check_settings(config.run_dir, stage, record)
    again = _forget_listings(config, replaced, record) | _forget_unused_listings(config, chosen, record)
    record = _withdraw(config, replaced, record)
    if redo in layout.RECORDED:
        remove(config.run_dir / layout.RECORDED[redo])
    for stage in chosen:
        if not stage.upstream:  # a listing, too, belongs to the settings that it was made under
            record = with_stage(record, stage)
    write_record(config.run_dir, record)
    _freeze(config, chosen, again)
    return _fetch_models(config, chosen, record)


def _up_to_last(config: Config, chosen: Sequence[Stage]) -> Iterator[Stage]:
    """The chosen stages and all before them."""
    keys = {stage.key for stage in chosen}
    for stage in stages_of(config):
        yield stage
        keys.discard(stage.key)
        if not keys:
            return


def _freeze(config: Config, chosen: Sequence[Stage], again: Collection[str]) -> None:
    names = {stage.name for stage in chosen}
    if "pool" in names:
        freeze_sounds(config, again="pool" in again)
    if config.published:
        freeze_published(config)
    elif "concepts" in names:
        freeze_images(config, again="concepts" in again)


def _forget_listings(config: Config, replaced: Collection[str], record: RunRecord) -> frozenset[str]:
    """The listings of which a stage is redone and which are to be read again.

    Units stay as they are, so that what models said of them is found again; other images are another listing.
    """
    owners = {stage.listing: stage for stage in stages_of(config) if stage.key in replaced and not stage.upstream}
    for listing, stage in owners.items():
        before = [entry for key, entry in record.stages.items() if key.partition("/")[0] == stage.name]
        if not all(same_input(stage, entry) for entry in before):
            withdraw_stage(config.run_dir, stage.name)  # commits before the listing that they were made from
            remove(config.run_dir / layout.UNITS / listing)
    return frozenset(owners)


def _forget_unused_listings(config: Config, chosen: Sequence[Stage], record: RunRecord) -> frozenset[str]:
    """The listings from which nothing was made yet: a first attempt under a wrong configuration binds nobody."""
    names = {stage.name for stage in chosen if not stage.upstream}
    unused = frozenset(name for name in names if not files_below(config.run_dir / layout.COMMITS / name))
    return _forget_listings(config, {stage.key for stage in chosen if stage.name in unused}, record)


def _fetch_models(config: Config, chosen: Sequence[Stage], record: RunRecord) -> RunRecord:
    """Get every model that there is work for, before any work, and note which ones they are.

    Raises:
        InputError: a model cannot be had, or is another one than the work that is there was done with.
    """
    lacking: list[str] = []
    for stage in (stage for stage in chosen if stage.models):
        done = {stored.commit.unit for stored in iter_done(config.run_dir, stage)}
        to_do = [unit for unit in listed_units(config.run_dir, stage.listing) if unit not in done]
        if set(to_do) <= set(stage.units_answered(config.run_dir, to_do)):
            continue
        try:
            fetched = stage.fetch()
        except InputError as error:
            lacking.append(str(error))
            continue
        for model, identity in fetched.items():
            _check_same_model(config, model, record.models.get(model), identity)
            record = replace(record, models={**record.models, model: identity})
    if lacking:  # all at once: who has no network fetches them in one go
        raise InputError("; ".join(dict.fromkeys(lacking)))
    write_record(config.run_dir, record)
    return record


def _check_same_model(config: Config, model: str, before: str | None, identity: str) -> None:
    if before in (None, identity):
        return
    for stage in stages_of(config):
        if model in stage.models and commit_files(config.run_dir, stage.name, stage.digest):
            raise InputError(
                f"{config.run_dir}: {stage.key} was done with {model} as {before}, and that is {identity} now; use the"
                f" same files, or `--redo {stage.name}`"
            )


def _stages_below(config: Config, name: str) -> frozenset[str]:
    """The keys of a stage and of all that depends on it; `answers` are those of models, which `concepts` alone keeps.

    Raises:
        InputError: there is no such stage.
    """
    stages = stages_of(config)
    if name not in {*(stage.name for stage in stages), *layout.RECORDED}:
        known = ", ".join(dict.fromkeys((*(stage.name for stage in stages), *layout.RECORDED)))
        raise InputError(f"--redo {name}: expected one of {known}")
    below: set[str] = set()
    for stage in stages:
        first = stage.name == ("concepts" if name == "answers" else name)
        if first or below & {*stage.upstream, *stage.upstream_whole}:
            below.add(stage.key)
    return frozenset(below)


def _withdraw(config: Config, keys: Collection[str], record: RunRecord) -> RunRecord:
    """Remove stages, the furthest first, and forget their settings."""
    names = dict.fromkeys(stage.name for stage in reversed(stages_of(config)) if stage.key in keys)
    for name in names:
        withdraw_stage(config.run_dir, name)
    kept = {key: entry for key, entry in record.stages.items() if key.partition("/")[0] not in names}
    return replace(record, stages=kept)
