"""What the rows of a published folder may say: within these bounds lies all that `sonify publish` can write."""

import math
import re
from collections.abc import Sequence

from sonify.config.config import NAME
from sonify.io.places import is_below
from sonify.keys import escape_key
from sonify.media.loudness import SILENCE_DBFS
from sonify.media.pixels import MAX_PIXELS, MAX_SIDE_PX
from sonify.publish.rows import PublishedClip, PublishedPair
from sonify.rows import SourceClip

# A clip: the gate of BS.1770 below; above, a square wave at full scale stays under +4 LUFS.
CLIP_LUFS = (-70.0, 10.0)
# A source: `mix.lufs` is within -70 and 0, and prominence takes at most 40 dB off.
TARGET_LUFS = (-110.0, 0.0)
GAIN_DB = (TARGET_LUFS[0] - CLIP_LUFS[1], TARGET_LUFS[1] - CLIP_LUFS[0])
# A mix: 100 clips (`concepts.max_concepts`) at full scale and the highest gain, under the lowest ceiling of -60 dBFS,
# which as a whole number of steps is 0.2 dB lower.
MIX_GAIN_DB = (-(20 * math.log10(100) + GAIN_DB[1] + 60.0 + 1.0), 0.0)
PEAK_DBFS = (SILENCE_DBFS, 0.0)
COPIES = ("exact", "equivalent", "repaired")

_SHA256 = re.compile(r"[0-9a-f]{64}")


def wrong_with_image(pairs: Sequence[PublishedPair], scenes: tuple[str, ...]) -> str:
    """What keeps an image's rows from being used, or nothing."""
    first = pairs[0]
    if wrong := _wrong_with_names(first):
        return wrong
    found = tuple(pair.scene for pair in pairs)
    if found != scenes:
        return f"expected the scenes {', '.join(scenes)[:200]!r}, found {', '.join(found)[:200]!r}"
    if len({(p.image_uri, p.image_sha256, p.width, p.height, p.split) for p in pairs}) > 1:
        return "its scenes are of different images"
    if not _is_size(first.width, first.height):
        return f"{first.width} x {first.height} pixels, which no image has"
    return next(filter(None, map(_wrong_with_scene, pairs)), "")


def _wrong_with_names(pair: PublishedPair) -> str:
    if not is_below(pair.image_uri):
        return f"its image_uri {pair.image_uri[:100]!r} leads elsewhere"
    if pair.image != escape_key(pair.image_uri):
        return f"its image_uri {pair.image_uri[:100]!r} is not the one that the key is made of"
    return "" if _SHA256.fullmatch(pair.image_sha256) else "its image_sha256 is none"


def _is_size(width: int, height: int) -> bool:
    return min(width, height) > 0 and max(width, height) <= MAX_SIDE_PX and width * height <= MAX_PIXELS


def _wrong_with_scene(pair: PublishedPair) -> str:
    if not pair.sources:
        return "a scene without sources"
    if len({source.clip for source in pair.sources}) < len(pair.sources):
        return "a scene with one clip twice"
    if not _SHA256.fullmatch(pair.mix_sha256):
        return "its mix_sha256 is none"
    if not _is_within(pair.mix_gain_db, MIX_GAIN_DB) or not _is_within(pair.peak_dbfs, PEAK_DBFS):
        return f"a mix_gain_db of {pair.mix_gain_db} and a peak_dbfs of {pair.peak_dbfs}, which no mix has"
    return next(filter(None, map(_wrong_with_source, pair.sources)), "")


def _wrong_with_source(source: SourceClip) -> str:
    if not all(map(math.isfinite, (source.cosine, source.score, source.threshold))):
        return "a number that is none"
    if not _is_within(source.target_lufs, TARGET_LUFS) or not _is_within(source.gain_db, GAIN_DB):
        return f"a target_lufs of {source.target_lufs} and a gain_db of {source.gain_db}, which no mix has"
    return "" if source.copy in COPIES else f"its copy is {source.copy[:100]!r}"


def wrong_with_clip(clip: PublishedClip) -> str:
    """What keeps a clip's row from being used, or nothing."""
    if not _SHA256.fullmatch(clip.sha256):
        return "its sha256 is none"
    if not _is_within(clip.loudness_lufs, CLIP_LUFS) or not _is_within(clip.peak_dbfs, PEAK_DBFS):
        return f"a loudness_lufs of {clip.loudness_lufs} and a peak_dbfs of {clip.peak_dbfs}, which no clip has"
    if not re.fullmatch(NAME, clip.corpus) or not is_below(clip.file):
        return f"{clip.corpus[:60]!r} and {clip.file[:100]!r} are no corpus and file"
    return ""


def _is_within(value: float, bounds: tuple[float, float]) -> bool:
    """False of what is no number, too."""
    return bounds[0] <= value <= bounds[1]
