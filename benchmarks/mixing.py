"""Mixing from stored loudness, against pyloudnorm asked at each use of a clip.

Run as `python -m benchmarks.mixing`; ten seconds. The floor is a ratio of 6. Both read their clips from a
memory-mapped int16 array; the rate counts uses of a clip, with the sum, the ceiling and the rounding.
"""

import tempfile
from pathlib import Path

import numpy as np
import pyloudnorm

from benchmarks.measure import interleaved, report
from sonify.media.mixing import gain_to_target_db, measure_loudness, mix_clips

SAMPLE_RATE_HZ = 16_000
CLIP_SAMPLES = 5 * SAMPLE_RATE_HZ
CLIPS = 200
MIXES = 100
SOURCES = 3  # in one mix, of the five that a scene may have
TARGET_LUFS = -30.0
CEILING_DBFS = -1.0

METER = pyloudnorm.Meter(SAMPLE_RATE_HZ, filter_class="DeMan")  # the same filters on both sides


def make_pool(path: Path) -> np.ndarray:
    """Write noise of many levels as (CLIPS, CLIP_SAMPLES) int16 and map it into memory."""
    rng = np.random.default_rng(0)
    levels = 10 ** rng.uniform(1.5, 3.7, (CLIPS, 1))
    np.save(path, np.rint(rng.normal(0, levels, (CLIPS, CLIP_SAMPLES))).clip(-32768, 32767).astype(np.int16))
    return np.load(path, mmap_mode="r")


def mix_from_stored(pool: np.ndarray, loudness: list[float], clips: np.ndarray) -> np.ndarray:
    gains = [gain_to_target_db(loudness[clip], TARGET_LUFS, max_gain_db=60.0) for clip in clips]
    return mix_clips([pool[clip] for clip in clips], gains, CEILING_DBFS).samples


def mix_by_measuring(pool: np.ndarray, clips: np.ndarray) -> np.ndarray:
    total = np.zeros(CLIP_SAMPLES)
    for clip in clips:
        samples = pool[clip] / 32768
        total += samples * 10 ** ((TARGET_LUFS - METER.integrated_loudness(samples)) / 20)
    peak, ceiling = np.abs(total).max(), 10 ** (CEILING_DBFS / 20)
    return np.rint(total * min(1.0, ceiling / peak) * 32768).astype(np.int16)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        pool = make_pool(Path(folder, "pool.npy"))
        loudness = [measure_loudness(clip, SAMPLE_RATE_HZ) for clip in pool]
        rng = np.random.default_rng(1)
        mixes = [rng.choice(CLIPS, SOURCES, replace=False) for _ in range(MIXES)]
        stored, measured = mix_from_stored(pool, loudness, mixes[0]), mix_by_measuring(pool, mixes[0])
        assert np.abs(stored.astype(int) - measured).max() <= 1
        ours, theirs = interleaved(
            lambda: [mix_from_stored(pool, loudness, clips) for clips in mixes],
            lambda: [mix_by_measuring(pool, clips) for clips in mixes],
        )
    uses = MIXES * SOURCES
    report("mixing", uses / ours, uses / theirs, "uses/s", sources=SOURCES)


if __name__ == "__main__":
    main()
