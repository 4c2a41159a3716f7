"""How the sounds of a scene stand to each other: which are its ambience, how far below the rest, and when each begins.

All of it is written into the sources of a pair, so that rendering needs no rule of this module.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np

from sonify.captions.ontology import names_ambience
from sonify.config import Config, Events, Mix
from sonify.keys import uniform
from sonify.media.events import (
    TIME_DIGITS,
    ActivePart,
    cut_active,
    draw_onsets,
    find_active,
    measure_part,
)
from sonify.media.mixing import TARGET_LUFS, gain_to_target_db
from sonify.pool import ClipSamples
from sonify.retrieval.candidates import SplitPool
from sonify.rows import Concept, SourceClip

# Of a large pool's clips, as many measured ones are remembered; one takes a millisecond.
REMEMBERED = 100_000
# Encoders delay by less, and noise that one of them lets through begins at any time.
MOST_DELAY_SEC = 0.4

Key = tuple[int, str, str]  # seed, image and scene


class SceneRules:
    """Sets the sources of a scene against each other, by `mix.snr_db` and `mix.events`; without both, not at all."""

    def __init__(self, config: Config, pool: Mapping[str, SplitPool]) -> None:
        self._mix = config.mix
        self._scene_sec = config.audio.clip_seconds
        self._sample_rate_hz = config.audio.sample_rate
        self._acts = config.mix.snr_db is not None or config.mix.events is not None
        self._samples = ClipSamples(config.run_dir) if config.mix.events else None
        loudness = ((part.clips, part.loudness_lufs.tolist()) for part in pool.values()) if self._acts else ()
        self._loudness = {clip: lufs for clips, values in loudness for clip, lufs in zip(clips, values, strict=True)}
        self._measure = lru_cache(REMEMBERED)(self._measure_clip)

    def __call__(self, concepts: Sequence[Concept], sources: Sequence[SourceClip], key: Key) -> tuple[SourceClip, ...]:
        """Set sources, each drawn for the concept beside it, against each other."""
        if not self._acts:
            return tuple(sources)
        ambient = [is_ambience(concept) for concept in concepts]
        loudness = [self._loudness[source.clip] for source in sources]
        heard = list(sources)
        if self._mix.events:
            for n, source in enumerate(sources):
                if not ambient[n]:
                    heard[n], loudness[n] = self._place(self._mix.events, source, loudness[n], key)
        return set_ratio(heard, loudness, ambient, self._mix, key)

    def _place(self, events: Events, source: SourceClip, loudness_lufs: float, key: Key) -> tuple[SourceClip, float]:
        """The source as it is heard, and how loud its clip is there: an event has a beginning, others stay whole."""
        part, part_lufs = self._measure(source.clip)
        if not is_event(part, events, self._scene_sec) or not math.isfinite(part_lufs):
            return source, loudness_lufs
        of_source = (*key, source.concept)
        low, high = events.count
        count = low + int((high - low + 1) * uniform("count", *of_source))
        onsets_sec = draw_onsets(
            [uniform("onset", n, *of_source) for n in range(count)],
            part.length_sec,
            events.gap_sec,
            events.onset_sec or (0.0, self._scene_sec),
            self._scene_sec,
        )
        placed = replace(
            source,
            gain_db=gain_to_target_db(part_lufs, source.target_lufs, self._mix.max_gain_db),
            onsets_sec=onsets_sec,
            active_start_sec=part.start_sec,
            active_sec=part.length_sec,
        )
        return placed, part_lufs

    def _measure_clip(self, clip: str) -> tuple[ActivePart, float]:
        assert self._samples is not None
        samples = self._samples[clip]
        part = find_active(samples, self._sample_rate_hz)
        cut = cut_active(samples, part.start_sec, part.length_sec, self._sample_rate_hz)
        return part, measure_part(cut, self._sample_rate_hz)


def is_ambience(concept: Concept) -> bool:
    """Whether a concept surrounds: what the model said of it counts, and where it said nothing, what kind it is."""
    if concept.prominence:
        return concept.prominence != "foreground"
    return names_ambience(concept.concept)


def is_event(part: ActivePart, events: Events, scene_sec: float) -> bool:
    """Whether a clip holds a short sound, of which there is room for a second one."""
    longest = min(events.max_active_sec, scene_sec / 2)
    return 0 < part.length_sec <= longest and part.crest_db >= events.min_crest_db


def heard_again(
    source: SourceClip, samples: np.ndarray, loudness_lufs: float, sample_rate_hz: int
) -> tuple[SourceClip, float]:
    """An event whose clip is another one than was cut: as it is heard now, and how loud its clip is there.

    Another encoding may begin later, and another recording lasts as long as it does: beginnings that have no room left
    are dropped, and where the clip has no event in it, it is heard whole.

    Args:
        source: the event, with the other clip's name.
        samples: of that clip.
        loudness_lufs: of the whole of it.
        sample_rate_hz: of the samples.
    """
    found = find_active(samples, sample_rate_hz)
    scene_sec = len(samples) / sample_rate_hz
    as_before = source.copy == "equivalent"
    length_sec = min(source.active_sec, scene_sec) if as_before else found.length_sec
    start_sec = min(found.start_sec, round(scene_sec - length_sec, TIME_DIGITS))
    if as_before and abs(start_sec - source.active_start_sec) > MOST_DELAY_SEC:
        start_sec = source.active_start_sec
    part_lufs = measure_part(cut_active(samples, start_sec, length_sec, sample_rate_hz), sample_rate_hz)
    if not math.isfinite(part_lufs) or (not as_before and length_sec > scene_sec / 2):
        return replace(source, onsets_sec=(), active_start_sec=0.0, active_sec=0.0), loudness_lufs
    onsets_sec = source.onsets_sec if as_before else _with_room(source.onsets_sec, length_sec, scene_sec)
    placed = replace(source, onsets_sec=onsets_sec, active_start_sec=start_sec, active_sec=length_sec)
    return placed, part_lufs


def _with_room(onsets_sec: Sequence[float], length_sec: float, scene_sec: float) -> tuple[float, ...]:
    """Those after which a part of a length fits before the next and before the end; at least one."""
    latest_sec = math.floor((scene_sec - length_sec) * 10**TIME_DIGITS) / 10**TIME_DIGITS
    kept = [min(onsets_sec[0], latest_sec)]
    for onset_sec in onsets_sec[1:]:
        if kept[-1] + length_sec <= onset_sec <= latest_sec:
            kept.append(onset_sec)
    return tuple(kept)


def set_ratio(
    sources: Sequence[SourceClip], loudness_lufs: Sequence[float], ambient: Sequence[bool], mix: Mix, key: Key
) -> tuple[SourceClip, ...]:
    """Bring a scene's ambience, as a whole, as far below its foreground as is drawn from `mix.snr_db`.

    Levels add up as powers. The foreground's are those that it reaches, which `max_gain_db` may keep below its targets;
    the ambient sources keep the ratios that they had. A scene of one kind stays as it is.

    Args:
        sources: with the gains of their targets.
        loudness_lufs: of what is heard of each clip.
        ambient: which of them are the ambience.
        mix: `snr_db` and `max_gain_db`.
        key: for the draw.
    """
    if mix.snr_db is None or all(ambient) or not any(ambient):
        return tuple(sources)
    low, high = mix.snr_db
    snr_db = round(low + (high - low) * uniform("snr", *key), 4)
    rows = list(zip(sources, loudness_lufs, ambient, strict=True))
    foreground = power_sum_db([lufs + source.gain_db for source, lufs, surrounds in rows if not surrounds])
    ambience = power_sum_db([source.target_lufs for source, _, surrounds in rows if surrounds])
    shift_db = foreground - snr_db - ambience
    settled: list[SourceClip] = []
    for source, lufs, surrounds in rows:
        if surrounds:
            target_lufs = round(min(max(source.target_lufs + shift_db, TARGET_LUFS[0]), TARGET_LUFS[1]), 4)
            gain_db = gain_to_target_db(lufs, target_lufs, mix.max_gain_db)
            settled.append(replace(source, target_lufs=target_lufs, gain_db=gain_db, role="ambience", snr_db=snr_db))
        else:
            settled.append(replace(source, role="foreground", snr_db=snr_db))
    return tuple(settled)


def power_sum_db(levels_db: Sequence[float]) -> float:
    """The level of sounds that have nothing to do with each other, heard together."""
    return 10 * math.log10(math.fsum(10 ** (level / 10) for level in levels_db))
