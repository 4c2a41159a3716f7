"""What CLAP hears of a clip: its piece of the recording at 48 kHz, without the padding, cut as the pool cut it."""

from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np

from sonify.config import Audio
from sonify.errors import WorkError
from sonify.media.audio import UnreadableSound
from sonify.media.clips import CutClip, cut_recording
from sonify.rows import Clip
from sonify.sources.sounds import open_sound

SAMPLE_RATE_HZ = 48_000


class SegmentReader:
    """Clips to (n,) int16 samples, in order; a recording that goes on in the next call is not decoded again."""

    def __init__(self, audio: Audio) -> None:
        self._audio = audio
        self._recording = ("", "")
        self._pieces: Iterator[CutClip] = iter(())
        self._next_index = 0

    def __call__(self, clips: Sequence[Clip]) -> Iterator[np.ndarray]:
        """Yield the samples of each clip.

        Raises:
            TransientError: the disk or the store is not there.
            WorkError: a recording that has clips cannot be read any more, or ends earlier.
        """
        for recording, its_clips in groupby(clips, key=lambda clip: (clip.corpus, clip.file)):
            try:
                for clip in its_clips:
                    yield self._samples(recording, int(clip.clip.rpartition("#")[2]))
            except UnreadableSound as error:
                self._recording = ("", "")
                why = error.detail or error.reason
                raise WorkError(
                    f"{'/'.join(recording)}: has clips in the pool and cannot be read any more ({why}): put it back, or"
                    " make the pool again with `--redo pool`"
                ) from error

    def _samples(self, recording: tuple[str, str], index: int) -> np.ndarray:
        if recording != self._recording or index < self._next_index:
            sound = open_sound(self._audio.sources, *recording)
            self._pieces = cut_recording(sound, SAMPLE_RATE_HZ, self._audio.clip_seconds, min_tail_sec=0)
            self._recording, self._next_index = recording, 0
        for piece in self._pieces:
            self._next_index = piece.index + 1
            if piece.index == index:
                return piece.samples[: round(piece.duration_sec * SAMPLE_RATE_HZ)]
        raise WorkError(
            f"{'/'.join(recording)}: is shorter than when the pool was made: make it again with `--redo pool`"
        )
