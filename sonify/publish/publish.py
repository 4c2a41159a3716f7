"""`sonify publish`: a finished run as a dataset of metadata, from which anyone who has the input renders it again."""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sonify import layout
from sonify.config import Config
from sonify.engine.plan import Plan
from sonify.engine.record import config_of_run, require_record
from sonify.errors import InputError
from sonify.installed import require
from sonify.publish.attribution import write_attribution
from sonify.publish.audio import refuse_audio, write_audio
from sonify.publish.committed import committed_tables, finished_stages, rendered_images
from sonify.publish.folder import files_of, new_folder
from sonify.publish.licences import SA1B_LICENCE, UNKNOWN
from sonify.publish.pool import Pool
from sonify.publish.record import make_record, record_json
from sonify.publish.rows import RECORD, PublishedRecord, PublishedShard
from sonify.publish.statistics import Tally
from sonify.publish.tables import Rules, allow_only, credits_of, write_clips, write_shards, write_unit
from sonify.run import open_run
from sonify.sources.userfiles import read_exclusions
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
        image_licence: the licence of all images.
        licence: that of the metadata, for the card.
    """

    only_licences: tuple[str, ...] = ()
    exclude: Place | None = None
    with_audio: bool = False
    image_licence: str = UNKNOWN
    licence: str = "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """What was written where."""

    folder: Path
    record: PublishedRecord
    files: int
    size_bytes: int


def publish(run_dir: Place, out: Path, options: PublishOptions = PublishOptions()) -> Publication:
    """Write a finished run as a dataset folder; the same run and options give the same bytes.

    Raises:
        InputError: the run is not finished, an option fits nothing, or `out` is something else.
        WorkError: something of the run is damaged, or the disk is full.
    """
    _check_tools(options)
    _check_beside(run_dir, out)
    config = config_of_run(run_dir)
    with open_run(run_dir):
        stages = finished_stages(config)
        with new_folder(out) as folder:
            record = _write(folder, config, stages, options)
    sizes = [(out / name).stat().st_size for name in files_of(out)]
    return Publication(folder=out, record=record, files=len(sizes), size_bytes=sum(sizes))


def summary(made: Publication) -> str:
    """What went out, what did not, and what of it may be passed on as sound."""
    statistics = made.record.statistics
    scenes = sum(statistics.scenes.values())
    left_out = "".join(f", {n:,} left out ({reason})" for reason, n in statistics.left_out.items() if n)
    unknown = sum(n for conditions, n in statistics.conditions.items() if UNKNOWN in conditions)
    hint = f": {unknown:,} have an unknown licence; --image-licence says that of the images" if unknown else ""
    return f"{scenes:,} scenes{left_out}; {statistics.redistributable:,} may be passed on as sound{hint}"


def _check_tools(options: PublishOptions) -> None:
    require("huggingface_hub", "matplotlib", extra="publish")
    from sonify.publish.card import check_licence  # noqa: PLC0415 - of the extra `publish`

    check_licence(options.licence)


def _check_beside(run_dir: Place, out: Path) -> None:
    """A run clears and lists its own folders: nothing else lies in them."""
    if not isinstance(run_dir, Path):
        return
    run, published = (os.path.realpath(place) for place in (run_dir, out))
    if os.path.commonpath([run, published]) in (run, published):
        raise InputError(f"--out {out}: expected a folder beside the run {run_dir}, neither in it nor around it")


def _write(folder: Path, config: Config, stages: Mapping[str, Plan], options: PublishOptions) -> PublishedRecord:
    tally = Tally()
    rules = _rules(config, stages["pool"], options)
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
        write_audio(folder, config.run_dir, shards, config.audio.sample_rate)
    log.info("%s scenes go out; describing the clips that are heard in them", f"{tally.scenes.total():,}")
    write_clips(folder, rules.pool, config.audio.sample_rate, tally)
    write_shards(folder, shards)
    write_attribution(folder, credits_of(folder))
    statistics = tally.statistics()
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
        shards += write_unit(folder, rules, unit, rendered_images(unit, pairs, renders), tally)
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
    from sonify.publish.card import write_card  # noqa: PLC0415 - they are of the extra `publish`
    from sonify.publish.croissant import write_croissant  # noqa: PLC0415
    from sonify.publish.plots import write_plots  # noqa: PLC0415

    write_plots(folder, record.statistics)
    write_card(folder, record, licence)
    write_croissant(folder, record, licence)
