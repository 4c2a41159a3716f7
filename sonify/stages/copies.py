"""What of a published dataset is here: each of its clips against the pool, and each image against the image set.

A copy of a corpus is often another encoding of it, so a clip is `exact` (the same samples), `equivalent` (as loud, and
the same course of the spectrum), `different` or `missing`.
"""

import csv
import io
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePosixPath

from sonify import layout
from sonify.config import Config
from sonify.dataset.format import PublishedClip
from sonify.dataset.read import read_clips
from sonify.dataset.render_from import published_folder
from sonify.engine.job import Job, TableSink
from sonify.engine.plan import withdraw_stage
from sonify.errors import InputError
from sonify.io.places import stems
from sonify.io.tables import read_rows, read_tables
from sonify.io.write import write_atomically
from sonify.media.likeness import correlation
from sonify.pool import ClipSamples, clip_columns

log = logging.getLogger(__name__)

CLIPS_LIST = "copies.csv"
IMAGES_LIST = "missing-images.txt"
# The design's; `sonify.media.likeness` says what was measured.
LEAST_CORRELATION = 0.95
MOST_LOUDNESS_DIFFERENCE_LU = 0.5
# Decoders overshoot full scale, and the pool then lowers the clip: 40 of 700 transcodes by 0.5 to 2 dB (measured).
# A clip that touches full scale may therefore be that much quieter than its copy.
FULL_SCALE_DBFS = -0.01
MOST_OVERSHOOT_DB = 3.0


class CopyState(StrEnum):
    """How a published clip is found in the pool."""

    EXACT = "exact"
    EQUIVALENT = "equivalent"
    DIFFERENT = "different"
    MISSING = "missing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """A published clip and what the pool holds of it (`RUN/copies/`).

    `local` is the pool's clip that stands for it, empty where there is none of its name. A `missing` clip has zeros.
    """

    clip: str
    corpus: str
    file: str
    state: CopyState
    local: str
    local_lufs: float
    loudness_difference_lu: float
    correlation: float

    @property
    def found(self) -> bool:
        """Whether the local clip may be rendered in the place of the published one."""
        return self.state in (CopyState.EXACT, CopyState.EQUIVALENT)


def copies_job(config: Config) -> Job:
    """The stage that compares the published clips with the pool. Accounting counts clips; none is rejected."""
    folder = published_folder(config)
    return Job(
        read=lambda unit: read_clips(folder, unit),
        process=CopiesStage(config),
        open_sink=lambda unit, transaction, _rejects: TableSink(transaction.create(layout.copies(unit)), Copy),
        batch_rows=64,
    )


class CopiesStage:
    """Finds published clips in the pool: by their samples, wherever they lie, else by their name without its ending."""

    def __init__(self, config: Config) -> None:
        self._sample_rate_hz = config.audio.sample_rate
        self._samples = ClipSamples(config.run_dir)
        columns = ["clip", "corpus", "file", "loudness_lufs", "peak_dbfs", "sha256"]
        table = clip_columns(config.run_dir, columns)
        self._clips: list[str] = table["clip"].to_pylist()
        self._lufs: list[float] = table["loudness_lufs"].to_pylist()
        self._peaks: list[float] = table["peak_dbfs"].to_pylist()
        hashes = [bytes.fromhex(sha256) for sha256 in table["sha256"].to_pylist()]
        self._sha256 = hashes
        self._by_sha256 = {sha256: row for row, sha256 in reversed(list(enumerate(hashes)))}
        self._by_clip = {clip: row for row, clip in enumerate(self._clips)}
        self._by_name: dict[str, list[int]] = {}
        names = map(_known_by, self._clips, table["corpus"].to_pylist(), table["file"].to_pylist())
        for row, name in enumerate(names):
            self._by_name.setdefault(name, []).append(row)

    def __call__(self, rows: Sequence[PublishedClip]) -> list[Copy]:
        return [self._find(row) for row in rows]

    def _find(self, clip: PublishedClip) -> Copy:
        sha256 = bytes.fromhex(clip.sha256)
        same_name = self._by_clip.get(clip.clip)
        if same_name is not None and self._sha256[same_name] == sha256:
            return self._copy(clip, CopyState.EXACT, same_name, 1.0)
        if sha256 in self._by_sha256:
            return self._copy(clip, CopyState.EXACT, self._by_sha256[sha256], 1.0)
        name = _known_by(clip.clip, clip.corpus, clip.file)
        compared = [(self._compare(clip, row), row) for row in self._by_name.get(name, ())]
        if not compared:
            return self._copy(clip, CopyState.MISSING, None, 0.0)
        best, row = max(compared, key=lambda pair: pair[0])
        as_loud = is_as_loud(self._lufs[row] - clip.loudness_lufs, self._peaks[row], clip.peak_dbfs)
        state = CopyState.EQUIVALENT if as_loud and best >= LEAST_CORRELATION else CopyState.DIFFERENT
        return self._copy(clip, state, row, best)

    def _compare(self, clip: PublishedClip, row: int) -> float:
        return correlation(clip.fingerprint, self._samples[self._clips[row]], self._sample_rate_hz)

    def _copy(self, clip: PublishedClip, state: CopyState, row: int | None, best: float) -> Copy:
        return Copy(
            clip=clip.clip,
            corpus=clip.corpus,
            file=clip.file,
            state=state,
            local="" if row is None else self._clips[row],
            local_lufs=0.0 if row is None else self._lufs[row],
            loudness_difference_lu=0.0 if row is None else round(self._lufs[row] - clip.loudness_lufs, 4),
            correlation=round(best, 4),
        )


def is_as_loud(difference_lu: float, local_peak_dbfs: float, published_peak_dbfs: float) -> bool:
    """Whether a local clip is as loud as the published one, or differs only by what was taken off an overshoot."""
    quieter, louder = (
        MOST_OVERSHOOT_DB if peak >= FULL_SCALE_DBFS else MOST_LOUDNESS_DIFFERENCE_LU
        for peak in (local_peak_dbfs, published_peak_dbfs)
    )
    return -quieter <= difference_lu <= louder


def _known_by(clip: str, corpus: str, file: str) -> str:
    """By what a clip is known whatever its file's encoding: corpus, file without its ending, position."""
    return f"{corpus}/{PurePosixPath(file).with_suffix('')}#{clip.rpartition('#')[2]}"


def read_copies(config: Config) -> Iterator[Copy]:
    """What was found of every published clip."""
    for unit in stems(config.run_dir / layout.COPIES):
        yield from read_rows(config.run_dir / layout.copies(unit), Copy)


def check_copies(config: Config) -> None:
    """Say what is missing or different, by corpus, and write both lists into the run; before anything is rendered.

    Raises:
        InputError: something is, and `published.missing` is `stop`.
    """
    assert config.published is not None
    states = _list_clips(config)
    images, absent = _list_images(config)
    for corpus, counts in sorted(states.items()):
        log.info("copies: %s: %s", corpus, ", ".join(f"{counts[state]:,} {state}" for state in CopyState))
    log.info("copies: images: %s of %s are missing", f"{absent:,}", f"{images:,}")
    lost = {
        corpus: counts[CopyState.DIFFERENT] + counts[CopyState.MISSING] for corpus, counts in sorted(states.items())
    }
    if config.published.missing == "stop" and (absent or any(lost.values())):
        total = sum(counts.total() for counts in states.values())
        by_corpus = ", ".join(f"{corpus} {n:,}" for corpus, n in lost.items() if n)
        for stage in ("copies", "concepts"):  # looked at again, as what is missing may be here then
            withdraw_stage(config.run_dir, stage)
        what = [
            (sum(lost.values()), f"of {total:,} clips are missing or different ({by_corpus})", CLIPS_LIST),
            (absent, f"of {images:,} images are missing", IMAGES_LIST),
        ]
        said = "; ".join(f"{n:,} {text}, see {config.run_dir / file}" for n, text, file in what if n)
        raise InputError(f"{said}; get them, or go on with --missing skip or --missing repair (published.missing)")


def _list_clips(config: Config) -> Mapping[str, Counter[CopyState]]:
    """Write RUN/copies.csv, what is not found first, and count by corpus and state."""
    counts: dict[str, Counter[CopyState]] = {}
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow(("clip", "corpus", "file", "state", "local", "correlation", "loudness_difference_lu"))
    for found in (False, True):
        for copy in read_copies(config):
            if copy.found == found:
                counts.setdefault(copy.corpus, Counter())[copy.state] += 1
                numbers = (copy.correlation, copy.loudness_difference_lu) if copy.local else ("", "")
                table.writerow((copy.clip, copy.corpus, copy.file, copy.state, copy.local, *numbers))
    write_atomically(config.run_dir, CLIPS_LIST, text.getvalue().encode())
    return counts


def _list_images(config: Config) -> tuple[int, int]:
    """Write RUN/missing-images.txt and count the images, and those that are missing."""
    images, absent = 0, []
    for _, columns in read_tables(config.run_dir / layout.CONCEPTS / layout.PUBLISHED, ["image", "present"]):
        rows = dict.fromkeys(zip(columns["image"].to_pylist(), columns["present"].to_pylist(), strict=True))
        images += len(rows)
        absent += [image for image, present in rows if not present]
    write_atomically(config.run_dir, IMAGES_LIST, "".join(f"{image}\n" for image in absent).encode())
    return images, len(absent)
