"""What a run will ask for: images, clips, questions to models, disk and time, from a look at some of the input."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from math import ceil
from statistics import mean

from sonify.config import Config
from sonify.engine.plan import Plan
from sonify.engine.record import read_record
from sonify.errors import InputError
from sonify.media.audio import UnreadableSound, read_header
from sonify.prepare import RECORDINGS_IN_UNIT
from sonify.published.settings import published_folder
from sonify.rows import ImageRef, SoundRef, SourceImage
from sonify.sources.images import count_images, list_images, read_images
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
AST_ROWS, AST_COLUMNS_IN_SECOND, AST_WIDTH = 12, 10, 768
RECORD_BYTES = 8 * 1024  # a sample's JSON, and its tar headers


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Numbers to plan by; images and clips are counted where that is quick, else drawn out from a part.

    `units` are those of each listing, `model_calls` those still to come
    of each stage with a model; `seconds` of each stage, None where this run
    has not measured its rate yet.
    """

    images: int
    recordings: int
    clips: int
    units: Mapping[str, int]
    model_calls: Mapping[str, int]
    pool_bytes: int
    shard_bytes: int
    feature_bytes: int
    seconds: Mapping[str, float | None]


def estimate(config: Config, plans: Sequence[Plan]) -> Estimate:
    """Look at some of the input.

    Raises:
        InputError: there is no input.
    """
    units = list(list_images(config.images, config.seed))
    refs = list(list_sounds(config.audio))
    images, image_bytes = _images(config, units)
    clips = round(len(refs) * _clips_in_recording(config, refs))
    clip_bytes = 2 * round(config.audio.clip_seconds * config.audio.sample_rate)
    scenes = len(config.scenes)
    by_scene = dict.fromkeys(("pair", "render", "features"), images * scenes)
    return Estimate(
        images=images,
        recordings=len(refs),
        clips=clips,
        units={"pool": ceil(len(refs) / RECORDINGS_IN_UNIT), **_units_of_images(config, len(units))},
        model_calls=dict(_model_calls(plans, {"embeddings": clips, "features": images * scenes}, images)),
        pool_bytes=clips * (clip_bytes + EMBEDDING_BYTES),
        shard_bytes=round(images * (image_bytes + scenes * clip_bytes * FLAC_SHARE)),
        feature_bytes=images * _feature_bytes(config),
        seconds=_seconds(config, plans, {"pool": len(refs), "embeddings": clips} | by_scene, images),
    )


def _units_of_images(config: Config, units: int) -> dict[str, int]:
    """How many units the other listings have; those of a published folder are the folder's."""
    if config.published is None:
        return {"concepts": units}
    folder = published_folder(config)
    return {"concepts": len(folder.data), "copies": len(folder.clips)}


def _images(config: Config, units: Sequence[Sequence[ImageRef]]) -> tuple[int, float]:
    """How many images there are, and the mean bytes of those seen."""
    seen = list(islice(_seen_images(config, units), IMAGES_SEEN))
    size_bytes = mean(len(image.data) for image in seen) if seen else 0.0
    if config.images.kind == "folder":
        return sum(len(unit) for unit in units), size_bytes
    if config.images.sample is not None:
        return config.images.sample, size_bytes
    looked_at = units[:: max(1, len(units) // ARCHIVES_SEEN)][:ARCHIVES_SEEN]
    return round(mean(count_images(config.images, unit) for unit in looked_at) * len(units)), size_bytes


def _seen_images(config: Config, units: Sequence[Sequence[ImageRef]]) -> Iterator[SourceImage]:
    for unit in units:
        yield from (row for row in read_images(config.images, unit, config.seed) if isinstance(row, SourceImage))


def _clips_in_recording(config: Config, refs: Sequence[SoundRef]) -> float:
    counts: list[float] = []
    for ref in refs[:: max(1, len(refs) // RECORDINGS_SEEN)][:RECORDINGS_SEEN]:
        try:
            header = read_header(open_sound(config.audio.sources, ref.corpus, ref.file))
        except UnreadableSound:
            counts.append(0.0)
        else:
            counts.append(max(1.0, round(header.frames / header.sample_rate_hz / config.audio.clip_seconds)))
    if not any(counts):
        raise InputError("audio.sources: none of the recordings looked at can be read")
    return mean(counts)


def _feature_bytes(config: Config) -> int:
    """Of one image, with a VAE and an AST of the published shapes."""
    settings = config.features
    if settings is None:
        return 0
    latents = LATENT_CHANNELS * (settings.size // LATENT_FACTOR) ** 2 * (1 + settings.flip) * (1 + settings.std)
    rows = AST_ROWS if settings.frequency == "all" else 1
    vectors = len(config.scenes) * rows * round(config.audio.clip_seconds * AST_COLUMNS_IN_SECOND)
    return 2 * (latents + vectors * AST_WIDTH) + RECORD_BYTES


def _model_calls(plans: Sequence[Plan], rows: Mapping[str, int], images: int) -> Iterator[tuple[str, int]]:
    """One for each image that an extractor or a check has not done (a check has at most as many), clip and scene."""
    for plan in plans:
        if plan.stage.models and plan.stage.name != "pair":
            yield plan.stage.key, max(rows.get(plan.stage.name, images) - plan.rows.rows_in, 0)


def _seconds(config: Config, plans: Sequence[Plan], rows: Mapping[str, int], images: int) -> dict[str, float | None]:
    """The time that is left to each stage at the rate that this run has had so far."""
    record = read_record(config.run_dir)
    left: dict[str, float | None] = {}
    for plan in plans:
        known = record.stages.get(plan.stage.key) if record else None
        rows_left = rows.get(plan.stage.name, images) - plan.rows.rows_in
        measured = known is not None and known.rows > 0 and known.seconds > 0
        left[plan.stage.key] = known.seconds / known.rows * max(rows_left, 0) if known and measured else None
    return left
