"""Before any work: settings still hold, what is redone is withdrawn, the input is listed, the models are here.

Listings lie at RUN/units/<stage>/<unit>.parquet and are frozen when first made. New input becomes new units; nothing
ever moves between units. A listing that was lost leaves its number free, and the input that is then in no unit takes
that number again.
"""

import io
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count, islice
from typing import Any

from sonify import layout
from sonify.config import Audio, Config, Images
from sonify.dataset.read import ClipsFile, verify_published
from sonify.dataset.render_from import published_folder
from sonify.engine.job import Stage
from sonify.engine.plan import check_settings, iter_done, listed_units, withdraw_stage
from sonify.engine.record import (
    RunRecord,
    describe_difference,
    is_recorded,
    read_record,
    require_record,
    same_input,
    start_record,
    with_stage,
    write_record,
)
from sonify.errors import InputError, NothingListed, WorkError, did_you_mean, require_faiss
from sonify.installed import spell, spell_redo
from sonify.io.commits import DamagedRecord, commit_files, open_committed, parse_commit, read_commits
from sonify.io.places import files_below, for_each, read_whole
from sonify.io.tables import read_rows, read_tables, write_rows
from sonify.io.write import FileRecord, remove, write_atomically
from sonify.rows import ImageRef, SoundRef
from sonify.sources.images import list_images
from sonify.sources.mistakes import check_listed, explain_swap
from sonify.sources.sounds import list_sounds, table_of
from sonify.sources.tables import table_for
from sonify.stages.moved import check_moved, moved_input
from sonify.stages.pair import check_limit, check_search
from sonify.stages.published import refs_of
from sonify.stores import Place

log = logging.getLogger(__name__)

# The stages that ask models, and keep what they say.
ASKING = ("concepts", "checks")
# Recordings in a unit: some minutes of work, and a 64 MB file of clips for recordings of 20 s.
RECORDINGS_IN_UNIT = 100


def prepare(config: Config, stages: Sequence[Stage], chosen: Sequence[Stage], redo: str | None) -> RunRecord:
    """Bring a run directory to where the chosen ones of the run's stages can work.

    Raises:
        InputError: the run was made under another configuration, or input or a model is not there.
    """
    if any(stage.name == "pair" for stage in chosen):
        require_faiss()
    check_limit(config.retrieval)
    if any(stage.name == "pair" for stage in chosen):
        check_search(config)
    run_dir = config.run_dir
    recorded = read_record(run_dir)
    record = start_record(config, recorded)
    replaced = stages_below(stages, redo) if redo is not None else frozenset()
    before = stages[: 1 + stages.index(chosen[-1])]  # the chosen stages and all before them
    keys = {stage.key for stage in chosen}
    if left := [stage.key for stage in before if stage.key in replaced - keys]:
        raise InputError(f"--redo {redo}: {', '.join(left)} would have to be done again as well: do all stages")
    for stage in stages:  # also those behind the chosen ones: run.json says one configuration for all
        if stage.key not in replaced:  # before anything is withdrawn: what stays must fit
            check_settings(run_dir, stage, record)
    moved = moved_input(config, recorded)
    begun_again = [stage for stage in stages if stage.key in replaced]
    begun_again += [stage for stage in chosen if stage.key not in replaced and _made_nothing(run_dir, stage)]
    if recorded is not None:
        check_moved(run_dir, config, recorded, moved - _listings_of(begun_again).keys())
    again = _forget_listings(run_dir, begun_again, record, moved)
    record = _withdraw(run_dir, [stage for stage in stages if stage.key in replaced], record)
    if redo in layout.RECORDED:
        remove(run_dir / layout.RECORDED[redo])
    for stage in chosen:
        if not stage.upstream:  # a listing, too, belongs to the settings that it was made under
            record = with_stage(record, stage)
    write_record(run_dir, record)
    _list_input(config, {stage.name for stage in chosen}, again)
    return _fetch_models(run_dir, stages, chosen, record)


def stages_below(stages: Sequence[Stage], name: str) -> frozenset[str]:
    """The keys of a stage and of all that depends on it.

    `answers` are those of models, which `concepts` keeps, and `tags` what `listen` heard.
    """
    known = dict.fromkeys((*(stage.name for stage in stages), *layout.RECORDED))
    if name not in known:
        raise InputError(f"--redo {name}: expected one of {', '.join(known)}{did_you_mean(name, known)}")
    below: set[str] = set()
    for stage in stages:
        first = stage.name == {"answers": "concepts", "tags": "listen"}.get(name, name)
        if first or below & {*stage.upstream, *stage.upstream_whole}:
            below.add(stage.key)
    return frozenset(below)


def _made_nothing(run_dir: Place, stage: Stage) -> bool:
    """Whether nothing was made yet from a stage's listing: a first attempt under a wrong configuration binds nobody."""
    return not files_below(run_dir / layout.COMMITS / stage.name)


def _listings_of(stages: Sequence[Stage]) -> dict[str, Stage]:
    """The listings that stages follow which come first, with one that does."""
    return {stage.listing: stage for stage in stages if not stage.upstream}


def _forget_listings(
    run_dir: Place, stages: Sequence[Stage], record: RunRecord, moved: Collection[str]
) -> frozenset[str]:
    """The listings that stages which are done again follow, and which are to be read again.

    Units stay as they are, so that what models said of them is found again; other images are another listing.
    """
    owners = _listings_of(stages)
    for listing, stage in owners.items():
        before = [entry for key, entry in record.stages.items() if key.partition("/")[0] == stage.name]
        is_elsewhere = bool(before) and listing == "concepts" and listing in moved
        if is_elsewhere or not all(same_input(stage, entry) for entry in before):
            withdraw_stage(run_dir, stage.name)  # commits before the listing that they were made from
            remove(run_dir / layout.UNITS / listing)
    return frozenset(owners)


def _withdraw(run_dir: Place, stages: Sequence[Stage], record: RunRecord) -> RunRecord:
    """Remove stages, the furthest first, and forget their settings."""
    names = dict.fromkeys(stage.name for stage in reversed(stages))
    for name in names:
        withdraw_stage(run_dir, name)
    kept = {key: entry for key, entry in record.stages.items() if key.partition("/")[0] not in names}
    return replace(record, stages=kept)


def _fetch_models(run_dir: Place, stages: Sequence[Stage], chosen: Sequence[Stage], record: RunRecord) -> RunRecord:
    """Get every model that there is work for, before any work, and note which ones they are."""
    lacking: list[str] = []
    for stage in (stage for stage in chosen if stage.models):
        done = {stored.commit.unit for stored in iter_done(run_dir, stage)}
        to_do = [unit for unit in listed_units(run_dir, stage.listing) if unit not in done]
        are_known = record.models.keys() >= set(stage.models)  # not by these names where their folder was moved
        if are_known and set(to_do) <= set(stage.units_answered(run_dir, to_do)):
            continue
        if not to_do and all(record.models.keys() & {name, name.partition("@")[0]} for name in stage.models):
            continue  # done by a version that recorded pinned networks without their revision
        try:
            fetched = stage.fetch()
        except InputError as error:
            lacking.append(str(error))
            continue
        for model, identity in fetched.items():
            if record.models.get(model) not in (None, identity):
                _refuse_other_model(run_dir, stages, model, f"{record.models[model]}, and that is {identity} now")
            record = replace(record, models={**record.models, model: identity})
    if lacking:  # all at once: who has no network fetches them in one go
        raise InputError("; ".join(dict.fromkeys(lacking)))
    write_record(run_dir, record)
    return record


def _refuse_other_model(run_dir: Place, stages: Sequence[Stage], model: str, what: str) -> None:
    for stage in stages:
        if model in stage.models and commit_files(run_dir, stage.name, stage.digest):
            raise InputError(
                f"{run_dir}: {stage.key} was done with {model} as {what}; use the same files, or"
                f" `{spell_redo(stage.name)}`"
            )


def _list_input(config: Config, names: Collection[str], again: Collection[str]) -> None:
    try:
        if "pool" in names:
            new = "pool" in again and not config.published  # which has its texts from elsewhere
            freeze_sounds(config.run_dir, config.audio, again="pool" in again, must_meet=new)
        if config.published:
            freeze_published(config)
        elif "concepts" in names:
            listed = freeze_images(config.run_dir, config.images, config.seed, again="concepts" in again)
            if "concepts" in again:  # nothing is made of it yet
                check_listed(config.images, config.concepts.extractors, listed)
    except NothingListed as error:
        swap = explain_swap(config.images, config.audio)
        raise InputError(f"{error}; {swap}" if swap else str(error)) from error


def freeze_sounds(run_dir: Place, audio: Audio, again: bool = False, must_meet: bool = True) -> None:
    """Give every recording that is in no unit yet a place in a new one; `again` also reads the known ones anew."""
    refs = list_sounds(audio, must_meet)
    if again:
        refs = iter(_refresh(run_dir, "pool", SoundRef, {(ref.corpus, ref.file): ref for ref in refs}))
    columns = ("corpus", "file", "recording", "text", "licence", "attribution")
    known = {tuple(row[:2]): hash(row[2:]) for row in _frozen(run_dir, "pool", columns)}
    changed: list[SoundRef] = []
    _add_units(run_dir, "pool", SoundRef, _blocks(_unknown(refs, known, changed), RECORDINGS_IN_UNIT))
    if changed:
        source = next(source for source in audio.sources if source.name == changed[0].corpus)
        _say_edited(table_of(source), "recording", changed, "pool")


def freeze_images(run_dir: Place, images: Images, seed: int, again: bool = False) -> list[ImageRef]:
    """Give every image (or archive) that is in no unit yet a place in a new one; `again` also reads the known anew.

    A sample's bound is frozen with the first listing: images that come later join where they fall below it.

    Returns:
        All that is there now.
    """
    below: int | None = None
    known: dict[str, int] = {}
    for uri, bound, caption in _frozen(run_dir, "concepts", ("uri", "below", "caption")):
        below = bound if below is None else below
        known[uri] = hash(caption)
    units = list(list_images(images, seed, below=below, must_meet=again or not known))
    listed = [ref for unit in units for ref in unit]
    changed: list[ImageRef] = []
    if known:
        refs = _refresh(run_dir, "concepts", ImageRef, {ref.uri: ref for ref in listed}) if again else listed
        units = _blocks(_unknown(refs, known, changed), getattr(images, "shard_size", 1))
    _add_units(run_dir, "concepts", ImageRef, units)
    if changed:
        _say_edited(table_for(images.path, changed[0].uri), "image", changed, "concepts")
    return listed


def _unknown(refs: Iterable[Any], known: Mapping[Any, int], changed: list[Any]) -> Iterator[Any]:
    """The rows that are in no unit yet; those that are, and of which something else is said now, go to `changed`."""
    for ref in refs:
        before = known.get(_identity(ref))
        if before is None:
            yield ref
        elif before != hash(_said_of(ref)):
            changed.append(ref)


def _said_of(ref: ImageRef | SoundRef) -> Any:
    """What tables say of a listed file."""
    return ref.caption if isinstance(ref, ImageRef) else (ref.recording, ref.text, ref.licence, ref.attribution)


def _say_edited(table: Place, noun: str, changed: Sequence[ImageRef | SoundRef], stage: str) -> None:
    log.warning(
        "%s: it says other things now of %s listed already (first: %r); what was listed stays, and `%s` takes the new"
        " over",
        table,
        f"1 {noun} that is" if len(changed) == 1 else f"{len(changed):,} {noun}s that are",
        changed[0].uri if isinstance(changed[0], ImageRef) else changed[0].file,
        spell_redo(stage),
    )


def freeze_published(config: Config) -> None:
    """List the images and the files of clips of a published folder, unit by unit, as the folder is now."""
    folder = published_folder(config)
    verify_published(folder, config)
    images = {unit: refs_of(config, folder, unit) for unit in folder.data}
    clips = {unit: [ClipsFile(file=name, sha256=folder.files[name])] for unit, name in folder.clips.items()}
    listings = (("concepts", ImageRef, images), ("copies", ClipsFile, clips))
    for stage, row_type, units in listings:
        listed = listed_units(config.run_dir, stage)
        for unit in set(listed) - units.keys():
            remove(config.run_dir / layout.listing(stage, unit))
        for unit, rows in units.items():
            known = read_rows(config.run_dir / layout.listing(stage, unit), row_type) if unit in listed else ()
            if list(known) != rows:
                _write_listing(config.run_dir, stage, unit, row_type, rows)


def _refresh(run_dir: Place, stage: str, row_type: type, found: dict[Any, Any]) -> list[Any]:
    """Write every listing again as its input is now, without what is gone, and return what is in none.

    Rows stay in their units: what was recorded of them there is found again.
    """
    for unit in listed_units(run_dir, stage):
        path = run_dir / layout.listing(stage, unit)
        frozen = list(read_rows(path, row_type))
        rows = [found.pop(key) for key in map(_identity, frozen) if key in found]
        if not rows:
            remove(path)
        elif rows != frozen:
            _write_listing(run_dir, stage, unit, row_type, rows)
    return list(found.values())


def _identity(ref: ImageRef | SoundRef) -> Any:
    return ref.uri if isinstance(ref, ImageRef) else (ref.corpus, ref.file)


def _frozen(run_dir: Place, stage: str, columns: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """Some columns of every listing, row by row."""
    for _, table in read_tables(run_dir / layout.UNITS / stage, columns):
        yield from zip(*(table[column].to_pylist() for column in columns), strict=True)


def _add_units(run_dir: Place, stage: str, row_type: type, units: Iterable[Sequence[Any]]) -> None:
    taken = set(listed_units(run_dir, stage))
    free = (name for name in (f"{n:06d}" for n in count()) if name not in taken)
    named = ((next(free), rows) for rows in units)
    for _ in for_each(run_dir, lambda unit: _write_listing(run_dir, stage, unit[0], row_type, unit[1]), named):
        pass


def _write_listing(run_dir: Place, stage: str, unit: str, row_type: type, rows: Sequence[Any]) -> None:
    buffer = io.BytesIO()
    write_rows(buffer, row_type, rows)
    write_atomically(run_dir, layout.listing(stage, unit), buffer.getvalue())


def _blocks(rows: Iterable[Any], size: int) -> Iterator[tuple[Any, ...]]:
    iterator = iter(rows)
    while block := tuple(islice(iterator, size)):
        yield block


def take_answers(config: Config, stages: Sequence[Stage], source: Place) -> None:
    """Take over the listing of images and what models said of them in the run `source`, so that nobody is asked again.

    What is here already stays the same; the stages of this run then read the answers as if it had asked itself.

    Raises:
        InputError: `source` is no run or has no concepts, is of other images or models, or this run has answers of
            its own.
        WorkError: a file of `source` is not what was committed.
    """
    record = require_record(source)
    _check_same_settings(stages, record, source)
    check_moved(source, config, record, moved_input(config, record) & {"concepts"})
    files = _committed_answers(source)
    listings = [f"{layout.UNITS}/concepts/{name}" for name in files_below(source / layout.UNITS / "concepts")]
    _check_nothing_else(config.run_dir, {*listings, *(file.path for file in files)}, source)
    for name in listings:
        write_atomically(config.run_dir, name, read_whole(source / name))
    for _ in for_each(config.run_dir, lambda file: _copy(config.run_dir, source, file), files):
        pass
    ours = start_record(config, read_record(config.run_dir))
    write_record(config.run_dir, replace(ours, models={**record.models, **ours.models}))
    log.info("concepts: %d units and %d files of answers taken over from %s", len(listings), len(files), source)


def _check_same_settings(stages: Sequence[Stage], record: RunRecord, source: Place) -> None:
    """Nothing is copied that this run would ask about anew."""
    asked = {stage.key for stage in stages if stage.name == "concepts"}
    known = {key for key in record.stages if key.startswith("concepts/")}
    if known and not asked & known:
        raise InputError(
            f"--concepts-from {source}: it has {', '.join(sorted(known))}, and this run asks {', '.join(sorted(asked))}"
        )
    for stage in stages:
        before = record.stages.get(stage.key) if stage.name in ASKING else None
        if before is not None and not is_recorded(stage, record):
            difference = describe_difference(stage, before)
            raise InputError(f"--concepts-from {source}: its {stage.key} are of another configuration: {difference}")


def _committed_answers(source: Place) -> list[FileRecord]:
    """The answers that commits vouch for; those of models that named concepts and of those that checked them."""
    folders = [source / layout.COMMITS / stage for stage in ASKING]
    places = [folder / name for folder in folders for name in files_below(folder)]
    if not places:
        raise InputError(
            f"--concepts-from: {source} has no concepts yet; `{spell('concepts', '--config', 'F')}` finds them"
        )
    try:
        commits = [parse_commit(place, data).commit for place, data in read_commits(places)]
    except (DamagedRecord, FileNotFoundError) as error:
        raise WorkError(f"--concepts-from: a commit of {source} is damaged or gone: {error}") from error
    return [file for commit in commits for file in commit.files if file.path.startswith(f"{layout.ANSWERS}/")]


def _check_nothing_else(run_dir: Place, names: Collection[str], source: Place) -> None:
    """A run that was begun with these answers may go on with them; one with others may not."""
    folders = (f"{layout.UNITS}/concepts", layout.ANSWERS)
    here = {f"{folder}/{name}" for folder in folders for name in files_below(run_dir / folder)}
    if foreign := sorted(here - set(names)):
        raise InputError(
            f"--concepts-from: {run_dir} has concepts of its own, which {source} lacks ({foreign[0]}): take another"
            " run_dir"
        )


def _copy(run_dir: Place, source: Place, file: FileRecord) -> None:
    try:
        with open_committed(source, file) as answers:
            write_atomically(run_dir, file.path, answers.read())
    except FileNotFoundError as error:
        raise WorkError(f"--concepts-from: {source / file.path} is gone; is another command at work there?") from error
