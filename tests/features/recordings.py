"""Real recordings as a pool stores them: 16 kHz, five seconds, 16-bit steps."""

from pathlib import Path

import numpy as np

from sonify.media.clips import cut_recording

SAMPLE_RATE_HZ, SECONDS = 16_000, 5.0


def read_waveforms(folder: Path, count: int) -> np.ndarray:
    """The first clip of each of `count` recordings, (count, 80000) float32."""
    paths = sorted(folder.glob("*.flac"))
    clips = [next(iter(cut_recording(path, SAMPLE_RATE_HZ, SECONDS))) for path in paths[:: len(paths) // count][:count]]
    return np.stack([clip.samples for clip in clips]).astype(np.float32) / 32768
