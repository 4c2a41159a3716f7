"""What a run will ask for: images, clips, questions to models, disk and time, from a look at some of the input."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from math import ceil
from statistics import mean

from sonify.config import Audio, Config, Features, Images
from sonify.dataset.render_from import published_folder
from sonify.engine.plan import Plan
from sonify.engine.record import StageRecord, read_record
from sonify.errors import InputError
from sonify.media.audio import UnreadableSound, read_header
from sonify.prepare import RECORDINGS_IN_UNIT
from sonify.rows import ImageRef, SoundRef, SourceImage
from sonify.sources.images import images_in, list_images, read_images
from sonify.sources.sounds import list_sounds, open_sound

# Looked at: enough for a mean to some tenths, few enough to answer at once.
IMAGES_SEEN = 32
RECORDINGS_SEEN = 64
ARCHIVES_SEEN = 3
# FLAC against 16-bit PCM: 0.3 to 0.6 of it for the recordings seen.
FLAC_SHARE = 0.5
EMBEDDING_BYTES = 4 * 1024
# Of Stable Diffusion's autoencoders, and of AST-base: a column of 12 patches each 100 ms.
LATENT_CHANNELS, LATENT_FACTOR = 4, 8
EAR_WIDTH = 768
# Of each ear: vectors of one time where `frequency` is all, and times in a second.
EAR_ROWS, EAR_COLUMNS_IN_SECOND = {"ast": 12, "beats": 8}, {"ast": 10, "beats": 6.25}
RECORD_BYTES = 8 * 1024  # a sample's JSON, and its tar headers


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Numbers to plan by; images and clips are counted where that is quick, else drawn out from a part.

    `units` are those of each listing, `rows` those of each stage and `rows_left` of them those still to do, if no image
    is lost on the way; `model_calls` are still to come of each stage with a model; `seconds` of each stage, None where
    this run has not measured its rate yet.
    """

    images: int
    recordings: int
    clips: int
    units: Mapping[str, int]
    rows: Mapping[str, int]
    rows_left: Mapping[str, int]
    model_calls: Mapping[str, int]
    pool_bytes: int
    shard_bytes: int
    feature_bytes: int
    seconds: Mapping[str, float | None]


def estimate(config: Config, plans: Sequence[Plan]) -> Estimate:
    """Look at some of the input."""
    units = list(list_images(config.images, config.seed))
    refs = list(list_sounds(config.audio))
    images = _count_images(config.images, units)
    clips = round(len(refs) * _clips_in_recording(config.audio, refs))
    clip_bytes = 2 * round(config.audio.clip_seconds * config.audio.sample_rate)
    image_bytes = _bytes_of_image(config.images, config.seed, units)
    scenes = len(config.scenes)
    features = _feature_bytes(config.features, config.audio.clip_seconds, scenes) if config.features else 0
    # of the other stages, which a model does, one for each image; a check has at most as many
    rows_of = {"pool": len(refs), "embeddings": clips, "duplicates": clips, "listen": clips} | dict.fromkeys(
        ("pair", "render", "features"), images * scenes
    )
    rows = {plan.stage.key: rows_of.get(plan.stage.name, images) for plan in plans}
    listed = {"pool": ceil(len(refs) / RECORDINGS_IN_UNIT), **_units_of_images(config, len(units))}
    left = {plan.stage.key: _rows_left(plan, rows[plan.stage.key], listed.get(plan.stage.listing, 0)) for plan in plans}
    asking = [plan.stage.key for plan in plans if plan.stage.models and plan.stage.name != "pair"]
    record = read_record(config.run_dir)
    timed = record.stages if record else {}
    return Estimate(
        images=images,
        recordings=len(refs),
        clips=clips,
        units=listed,
        rows=rows,
        rows_left=left,
        model_calls={key: left[key] for key in asking},
        pool_bytes=clips * (clip_bytes + EMBEDDING_BYTES),
        shard_bytes=round(images * (image_bytes + scenes * clip_bytes * FLAC_SHARE)),
        feature_bytes=images * features,
        seconds={key: _seconds_for(rows_left, timed.get(key)) for key, rows_left in left.items()},
    )


def _rows_left(plan: Plan, rows: int, units: int) -> int:
    """Those still to do: none where every unit is done, however many rows were lost on the way."""
    return 0 if plan.complete and len(plan.done) >= units else max(rows - plan.rows.rows_in, 0)


def _units_of_images(config: Config, units: int) -> dict[str, int]:
    """How many units the other listings have; those of a published folder are the folder's."""
    if config.published is None:
        return {"concepts": units}
    folder = published_folder(config)
    return {"concepts": len(folder.data), "copies": len(folder.clips)}


def _count_images(images: Images, units: Sequence[Sequence[ImageRef]]) -> int:
    if images.kind == "folder":
        return sum(len(unit) for unit in units)
    looked_at = units[:: max(1, len(units) // ARCHIVES_SEEN)][:ARCHIVES_SEEN]
    counts = [sum(1 for ref in unit for _ in images_in(images, ref)) for unit in looked_at]
    there = round(mean(counts) * len(units))
    return there if images.sample is None else min(images.sample, there)


def _bytes_of_image(images: Images, seed: int, units: Sequence[Sequence[ImageRef]]) -> float:
    """The mean of those seen."""
    rows = (row for unit in units for row in read_images(images, unit, seed))
    sizes = [len(row.data) for row in islice((row for row in rows if isinstance(row, SourceImage)), IMAGES_SEEN)]
    return mean(sizes) if sizes else 0.0


def _clips_in_recording(audio: Audio, refs: Sequence[SoundRef]) -> float:
    counts: list[float] = []
    for ref in refs[:: max(1, len(refs) // RECORDINGS_SEEN)][:RECORDINGS_SEEN]:
        try:
            header = read_header(open_sound(audio.sources, ref.corpus, ref.file))
        except UnreadableSound:
            counts.append(0.0)
        else:
            counts.append(max(1.0, round(header.frames / header.sample_rate_hz / audio.clip_seconds)))
    if not any(counts):
        raise InputError("audio.sources: none of the recordings looked at can be read")
    return mean(counts)


def _feature_bytes(settings: Features, clip_seconds: float, scenes: int) -> int:
    """Of one image, with a VAE and an ear of the published shapes."""
    latents = LATENT_CHANNELS * (settings.size // LATENT_FACTOR) ** 2 * (1 + settings.flip) * (1 + settings.std)
    rows = EAR_ROWS[settings.ear.kind] if settings.frequency == "all" else 1
    vectors = scenes * rows * round(clip_seconds * EAR_COLUMNS_IN_SECOND[settings.ear.kind])
    return 2 * (latents + vectors * EAR_WIDTH * max(1, len(settings.layers))) + RECORD_BYTES


def _seconds_for(rows: int, known: StageRecord | None) -> float | None:
    """The time for rows that are left to a stage, at the rate that this run has had so far."""
    return known.seconds / known.rows * rows if known and known.rows > 0 and known.seconds > 0 else None
