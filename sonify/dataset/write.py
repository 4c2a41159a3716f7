"""`sonify publish`: a finished run as a dataset of metadata, from which anyone who has the input renders it again."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from sonify import layout
from sonify.config import Config
from sonify.dataset.about import Tally, make_record, record_json
from sonify.dataset.carried import audio_table, carry, image_table, refuse_audio, refuse_images
from sonify.dataset.committed import (
    CommittedUnit,
    Pool,
    RenderedScene,
    committed_tables,
    finished_stages,
    rendered_images,
)
from sonify.dataset.format import (
    CLIPS,
    DATA,
    RECORD,
    SHARDS,
    PublishedClip,
    PublishedPair,
    PublishedRecord,
    PublishedShard,
    clips_file,
    data_file,
    files_of,
    new_folder,
)
from sonify.dataset.licences import (
    SA1B_LICENCE,
    UNKNOWN,
    allow_only,
    check_licence,
    conditions_of,
    contradictions,
    in_order,
    redistributable,
)
from sonify.engine.plan import Plan
from sonify.engine.record import config_of_run, require_record
from sonify.errors import InputError, require
from sonify.io.places import are_apart
from sonify.io.tables import read_tables, write_rows
from sonify.pool import count_duplicates
from sonify.rows import Pair, Refused, Render
from sonify.running import open_run
from sonify.sources.userfiles import exclusion_names, read_exclusions
from sonify.stages.evidence import COLUMNS, LATER, count_evidence, is_by_text
from sonify.stages.pair import joined
from sonify.stores import Place

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishOptions:
    """What goes out.

    Attributes:
        only_licences: conditions or licences; an image goes out if all that is used in its scenes asks for no more.
        exclude: a list of images, recordings or clips that must not go out, as for `images.exclude` and
            `audio.exclude`.
        with_audio: whether the rendered sounds go out as well.
        with_images: whether the rendered images do.
        image_licence: the licence of all images.
        licence: that of the metadata, for the card.
    """

    only_licences: tuple[str, ...] = ()
    exclude: Place | None = None
    with_audio: bool = False
    with_images: bool = False
    image_licence: str = UNKNOWN
    licence: str = "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """What was written where."""

    folder: Path
    record: PublishedRecord
    files: int
    size_bytes: int

    def summary(self) -> str:
        """What went out, what did not, and what of it may be passed on as sound."""
        statistics = self.record.statistics
        scenes = sum(statistics.scenes.values())
        left_out = "".join(f", {n:,} left out ({reason})" for reason, n in statistics.left_out.items() if n)
        unknown = sum(n for conditions, n in statistics.conditions.items() if UNKNOWN in conditions)
        hint = f": {unknown:,} have an unknown licence; --image-licence says that of the images" if unknown else ""
        return f"{scenes:,} scenes{left_out}; {statistics.redistributable:,} may be passed on as sound{hint}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What goes out: nothing that is excluded, and where `allows` is given only what it allows of licences."""

    pool: Pool
    excluded: frozenset[str]
    image_licence: str
    allows: Callable[[str], bool] | None

    def why_left_out(self, scenes: Sequence[RenderedScene]) -> str | None:
        """Why an image stays here with all its scenes, if it does."""
        first = scenes[0][0]
        clips = {source.clip for pair, _ in scenes for source in pair.sources}
        named = self.excluded & exclusion_names(first.image, first.image_uri, first.image_sha256)
        self.pool.named.update(named)
        if named or any(self.pool.is_excluded(clip) for clip in clips):
            return "excluded"
        return "licence" if self.allows and not all(map(self.allows, self.licences_of(clips))) else None

    def licences_of(self, clips: Iterable[str]) -> set[str]:
        """Those of a mix of these clips, and of its image."""
        return {self.image_licence, *map(self.pool.licence_of, clips)}


def publish(run_dir: Place, out: Path, options: PublishOptions = PublishOptions()) -> Publication:
    """Write a finished run as a dataset folder; the same run and options give the same bytes.

    Raises:
        InputError: the run is not finished, an option fits nothing, or `out` is something else.
        WorkError: something of the run is damaged, or the disk is full.
    """
    require("huggingface_hub", "matplotlib", "mlcroissant", extra="publish")
    check_licence(options.licence)
    if not are_apart(run_dir, out):  # a run clears and lists its own folders: nothing else lies in them
        raise InputError(f"--out {out}: expected a folder beside the run {run_dir}, neither in it nor around it")
    config = config_of_run(run_dir)
    with open_run(run_dir):
        stages = finished_stages(config)
        with new_folder(out) as folder:
            record = _write(folder, config, stages, options)
    sizes = [(out / name).stat().st_size for name in files_of(out)]
    return Publication(folder=out, record=record, files=len(sizes), size_bytes=sum(sizes))


def _write(folder: Path, config: Config, stages: Mapping[str, Plan], options: PublishOptions) -> PublishedRecord:
    tally = Tally()
    rules = _rules(config, stages["pool"], options)
    if options.with_images:
        refuse_images(rules.image_licence, resized=config.render.image != "original")
    shards = _write_scenes(folder, config, stages, rules, tally)
    if unnamed := sorted(rules.excluded - rules.pool.named):
        log.warning(
            "--exclude: %s of %s lines name nothing in this run, such as %r",
            f"{len(unnamed):,}",
            f"{len(rules.excluded):,}",
            unnamed[0],
        )
    if options.with_audio:
        refuse_audio(tally.obstacles, tally.scenes.total(), rules.image_licence)
    sounds = [audio_table(config.audio.sample_rate)] if options.with_audio else []
    carry(folder, config.run_dir, shards, [*sounds, *([image_table()] if options.with_images else [])])
    log.info("%s scenes go out; describing the clips that are heard in them", f"{tally.scenes.total():,}")
    _write_clips(folder, rules.pool, config.audio.sample_rate, tally)
    _write_table(folder / SHARDS, PublishedShard, sorted(shards, key=lambda shard: shard.path))
    tables = (table for _, table in read_tables(folder / DATA, COLUMNS, LATER))
    evidence = count_evidence(tables, is_by_text(config.retrieval))
    copies = count_duplicates(config.run_dir) if joined(config.audio) else None
    statistics = replace(tally.statistics(), evidence=asdict(evidence), duplicates=asdict(copies) if copies else {})
    record = make_record(config, require_record(config.run_dir), statistics)
    (folder / RECORD).write_bytes(record_json(record))
    _describe(folder, record, options.licence)
    return record


def _rules(config: Config, pool_plan: Plan, options: PublishOptions) -> Rules:
    excluded = read_exclusions(options.exclude)
    pool = Pool(committed_tables(config.run_dir, pool_plan, layout.clips), excluded)
    image_licence = options.image_licence
    if image_licence == UNKNOWN and config.images.kind == "sa1b":
        image_licence = SA1B_LICENCE
    in_use = {*pool.licences, image_licence}
    allows = allow_only(options.only_licences, in_use) if options.only_licences else None
    return Rules(pool=pool, excluded=excluded, image_licence=image_licence, allows=allows)


def _write_scenes(
    folder: Path, config: Config, stages: Mapping[str, Plan], rules: Rules, tally: Tally
) -> list[PublishedShard]:
    shards: list[PublishedShard] = []
    paired = committed_tables(config.run_dir, stages["pair"], layout.pairs)
    rendered = committed_tables(config.run_dir, stages["render"], layout.renders)
    for (_, pairs), (unit, renders) in zip(paired, rendered, strict=True):
        shards += _write_unit(folder, rules, unit, rendered_images(unit, pairs, renders), tally)
    if not shards:
        reasons = ", ".join(f"{n:,} by {reason}" for reason, n in sorted(tally.left_out.items()))
        raise InputError(
            f"{config.run_dir}: no scene is left to publish ({reasons or 'none was rendered'}); allow more by"
            f" --only-licences, or exclude less; the images' licence is {rules.image_licence!r}, which"
            " --image-licence says"
        )
    return shards


def _describe(folder: Path, record: PublishedRecord, licence: str) -> None:
    """Write what people and catalogues read, made from what is there now."""
    from sonify.dataset.card import write_attribution, write_card, write_plots  # noqa: PLC0415 - extra
    from sonify.dataset.croissant import write_croissant  # noqa: PLC0415

    write_attribution(folder, _credits_of(folder))
    write_plots(folder, record.statistics)
    write_card(folder, record, licence)
    write_croissant(folder, record, licence)


def _write_unit(
    folder: Path, rules: Rules, rendered: CommittedUnit, images: Iterable[tuple[RenderedScene, ...]], tally: Tally
) -> list[PublishedShard]:
    """Write those of a unit's images that go out, and return the archives that they are in."""
    samples: Counter[str] = Counter()
    kept: dict[str, list[PublishedPair]] = {}
    images_kept: Counter[str] = Counter()
    for scenes in images:
        split = scenes[0][0].split
        samples[split] += 1
        if reason := rules.why_left_out(scenes):
            tally.left_out[reason] += len(scenes)
            continue
        pairs = [_published(rules, *scene) for scene in scenes]
        images_kept[split] += 1
        kept.setdefault(split, []).extend(pairs)
        tally.add_image(pairs)
        for pair in pairs:
            rules.pool.hear(source.clip for source in pair.sources)
    for split, pairs in kept.items():
        _write_table(folder / data_file(split, rendered.name), PublishedPair, pairs)
    return [_shard(rendered, split, samples[split], images_kept[split]) for split in sorted(kept)]


def _published(rules: Rules, pair: Pair, render: Render) -> PublishedPair:
    licences = rules.licences_of(source.clip for source in pair.sources)
    found = frozenset[str]().union(*map(conditions_of, licences))
    pair = replace(pair, refused=_refused(rules.pool, pair))
    return PublishedPair(
        **{field.name: getattr(pair, field.name) for field in fields(pair)},
        mix_gain_db=render.mix_gain_db,
        peak_dbfs=render.peak_dbfs,
        mix_sha256=render.mix_sha256,
        image_licence=rules.image_licence,
        conditions=in_order(found),
        contradictions=contradictions(found),
        redistributable=redistributable(found),
    )


def _refused(pool: Pool, pair: Pair) -> tuple[Refused, ...]:
    """What was named and is not heard; a near miss that is excluded is not named."""
    return tuple(
        refused if pool.may_be_named(refused.clip) else replace(refused, clip="", cosine=0.0, heard="")
        for refused in pair.refused
    )


def _shard(rendered: CommittedUnit, split: str, samples: int, kept: int) -> PublishedShard:
    file = rendered.files[layout.shard(split, rendered.name)]
    return PublishedShard(
        path=file.path,
        split=split,
        unit=rendered.name,
        size_bytes=file.size_bytes,
        sha256=file.sha256,
        samples=samples,
        complete=kept == samples,
    )


def _write_clips(folder: Path, pool: Pool, sample_rate_hz: int, tally: Tally) -> None:
    """Write the clips that are heard."""
    for unit, clips in pool.heard(sample_rate_hz):
        _write_table(folder / clips_file(unit), PublishedClip, clips)
        for clip in clips:
            tally.add_clip(clip, pool.uses(clip.clip))


def _credits_of(folder: Path) -> Iterator[tuple[str, str, str, str, str, str]]:
    """What `ATTRIBUTION.md` is made from, of every clip that was written."""
    columns = ("corpus", "recording", "file", "text", "licence", "attribution")
    for _, table in read_tables(folder / CLIPS, columns):
        yield from zip(*(table[name].to_pylist() for name in columns), strict=True)


def _write_table(path: Path, row_type: type, rows: Sequence[Any]) -> None:
    """Write a table of a new folder, which nobody sees before it is whole."""
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as file:
        write_rows(file, row_type, rows)
