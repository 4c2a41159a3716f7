"""Recordings to clips: standardised samples, loudness measured once, metadata.

The samples of a unit lie in one `.npy` of (clips, samples) int16, so that one clip is one read at a known offset.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import PurePosixPath

import numpy as np

from sonify import layout
from sonify.config import Audio
from sonify.engine.job import Job, RejectTable
from sonify.io.commits import Count
from sonify.io.tables import RowsFile, TableWriter, read_rows
from sonify.io.write import Transaction, sha256_of
from sonify.keys import split_of
from sonify.media.audio import StoredSound, UnreadableSound
from sonify.media.clips import CutClip, cut_recording, rules_of
from sonify.media.mixing import measure_loudness, measure_peak, pcm_sha256
from sonify.rows import Clip, Reason, Rejected, SoundRef
from sonify.sources.sounds import open_sound
from sonify.sources.userfiles import SHA256, read_exclusions
from sonify.stores import Place

# All clips of a recording are held until it is known to be sound: 460 MB at 16 kHz.
MAX_RECORDING_SEC = 4 * 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """A recording's clips with their samples, and those of its clips that left."""

    clips: tuple[tuple[Clip, np.ndarray], ...]
    rejected: tuple[Rejected, ...]


def pool_job(run_dir: Place, audio: Audio, seed: int) -> Job:
    """Sound files to clips. Accounting counts files, and clips beside them."""
    samples = round(audio.clip_seconds * audio.sample_rate)
    return Job(
        read=lambda unit: read_rows(run_dir / layout.listing("pool", unit), SoundRef),
        process=PoolStage(audio, seed),
        open_sink=lambda unit, transaction, rejects: PoolSink(samples, unit, transaction, rejects),
        batch_rows=1,  # one long recording is 80 clips already
    )


class PoolStage:
    """Cuts recordings into clips and measures them."""

    def __init__(self, audio: Audio, seed: int) -> None:
        self._audio = audio
        self._seed = seed
        self._excluded = read_exclusions(audio.exclude)
        self._most_clips = math.ceil(MAX_RECORDING_SEC / audio.clip_seconds)
        self._excludes_hashes = any(SHA256.fullmatch(line) for line in self._excluded)

    def __call__(self, rows: Sequence[SoundRef]) -> list[Recording | Rejected]:
        return [self._refuse(row) or self._cut(row) for row in rows]

    def _refuse(self, ref: SoundRef) -> Rejected | None:
        """What the listing alone decides."""
        if self._excluded & names_of(ref):
            return Rejected(key=ref.key, reason=Reason.EXCLUDED)
        return Rejected(key=ref.key, reason=Reason(ref.refused), detail=ref.detail) if ref.refused else None

    def _cut(self, ref: SoundRef) -> Recording | Rejected:
        try:
            recording = open_sound(self._audio.sources, ref.corpus, ref.file)
            if self._excludes_hashes and _sha256(recording) in self._excluded:
                return Rejected(key=ref.key, reason=Reason.EXCLUDED, detail="by sha256 of the file")
            cuts = islice(self._cuts(recording), self._most_clips + 1)
            results = [self._describe(ref, cut) for cut in cuts]
        except UnreadableSound as error:
            return Rejected(key=ref.key, reason=error.reason, detail=error.detail)
        if len(results) > self._most_clips:
            return Rejected(key=ref.key, reason=Reason.TOO_LARGE, detail=f"over {MAX_RECORDING_SEC} s")
        rejected = tuple(result for result in results if isinstance(result, Rejected))
        clips = tuple(result for result in results if not isinstance(result, Rejected))
        if not clips:
            return Rejected(key=ref.key, reason=rejected[0].reason, detail=rejected[0].detail)
        return Recording(clips=clips, rejected=rejected)

    def _cuts(self, recording: StoredSound) -> Iterator[CutClip]:
        return cut_recording(recording, self._audio.sample_rate, self._audio.clip_seconds, rules_of(self._audio))

    def _describe(self, ref: SoundRef, cut: CutClip) -> tuple[Clip, np.ndarray] | Rejected:
        key = f"{ref.key}#{cut.index}"
        loudness_lufs = measure_loudness(cut.samples, self._audio.sample_rate)
        if not np.isfinite(loudness_lufs):
            return Rejected(key=key, reason=Reason.SILENT, detail="no block above the absolute gate of -70 LUFS")
        sha256 = pcm_sha256(cut.samples)
        if sha256 in self._excluded:
            return Rejected(key=key, reason=Reason.EXCLUDED, detail="by sha256")
        clip = Clip(
            clip=key,
            recording=ref.recording,
            corpus=ref.corpus,
            file=ref.file,
            start_sec=cut.start_sec,
            duration_sec=cut.duration_sec,
            loudness_lufs=loudness_lufs,
            peak_dbfs=measure_peak(cut.samples),
            text=ref.text,
            licence=ref.licence,
            attribution=ref.attribution,
            split=split_of(self._seed, "recording", ref.recording, self._audio.validation),
            sha256=sha256,
        )
        return clip, cut.samples


def names_of(ref: SoundRef) -> frozenset[str]:
    """All by which an exclusion list may name a recording.

    The file, with or without its corpus, its folder or its ending; the upload, with or without where it is from
    (`youtube/ID`, `ID`; `freesound/NUMBER`, `NUMBER`) or an ending.
    """
    file, upload = PurePosixPath(ref.file), ref.recording.partition("/")[2]
    return frozenset({ref.file, ref.key, file.name, file.stem, ref.recording, upload, PurePosixPath(upload).stem})


def _sha256(recording: StoredSound) -> str:
    return hashlib.sha256(recording).hexdigest() if isinstance(recording, bytes) else sha256_of(recording)


class PoolSink:
    """Writes the clips of a unit: their table, and their samples."""

    def __init__(self, samples: int, unit: str, transaction: Transaction, rejects: RejectTable) -> None:
        self._table = TableWriter(transaction.create(layout.clips(unit)), Clip)
        self._audio = RowsFile(transaction.create(layout.audio(unit)), np.dtype("<i2"), samples)
        self._rejects = rejects
        self._rejected: Counter[str] = Counter()

    def write(self, row: Recording) -> None:
        """Add a recording's clips."""
        for clip, samples in row.clips:
            self._table.write(clip)
            self._audio.write(samples)
        for rejected in row.rejected:
            self._rejects.write(rejected)
            self._rejected[rejected.reason] += 1

    def close(self) -> Count:
        """Finish both files and count the clips of the recordings that stayed."""
        self._table.close()
        self._audio.close()
        rows_out = self._table.num_rows
        rejected = dict(sorted(self._rejected.items()))
        return Count(rows_in=rows_out + sum(rejected.values()), rows_out=rows_out, rejected=rejected)
