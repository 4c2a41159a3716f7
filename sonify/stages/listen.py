"""Clips to tags: every clip of the pool is heard once, and what was heard in it is kept.

`pool/tags/<listener>/<unit>.parquet` follows `pool/clips/<unit>.parquet`, row for row, but for clips that break the
listener. What is kept is enough for every rule that acts on it later, so that another limit needs no second hearing; a
pool that grows or is made again is heard only where it is new.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import soxr

from sonify import layout
from sonify.config import Audio, Config, Confirm, Tagger
from sonify.engine.job import Job
from sonify.engine.record import read_record
from sonify.errors import WorkError
from sonify.features.taggers import SAMPLE_RATE_HZ, LoadedTagger, fetch_tagger, load_tagger
from sonify.io.places import load_array, on_this_machine
from sonify.io.tables import TableWriter, read_rows
from sonify.io.write import Transaction
from sonify.retrieval.confirm import SPEECH_LIKELY, TAG_FLOOR, ClipTags, is_speech, read_tags
from sonify.rows import Clip, HeardClip, Reason, Rejected, Tag
from sonify.stores import Place

# Of each clip at least so many are kept, and all at the floor.
FEWEST_TAGS = 10
DIGITS = 5
# A tagger that hears a quarter of all its classes in most clips confirms whatever is asked.
TOO_MANY_CLASSES, MOST_CLIPS = 0.25, 0.5

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipToHear:
    """A clip with its (S,) int16 samples, without padding, and what was heard in it before."""

    clip: Clip
    samples: np.ndarray
    known: HeardClip | None

    @property
    def key(self) -> str:
        """The clip."""
        return self.clip.clip


def listen_job(config: Config) -> Job:
    """The listening stage. Accounting counts clips."""
    confirm = config.retrieval.confirm
    assert isinstance(confirm, Tagger)
    listener = listener_of(config.run_dir, confirm)
    hearing = TaggerHearing(load_tagger(confirm), config.audio, listener)
    stage = ListenStage(config, hearing, listener)
    return Job(
        read=stage.read,
        begin=hearing.begin,
        process=stage,
        open_sink=lambda unit, transaction, _rejects: stage.open(unit, transaction),
        batch_rows=64,
        close=hearing.close,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerName:
    """Who listens: `id` names the folder of its tags, `name` is what is said of it in pairs, `identity` its bytes."""

    id: str
    name: str
    identity: str


def listener_of(run_dir: Place, confirm: Confirm) -> ListenerName:
    """Who listens in a run: what run.json says the model is, or what lies here."""
    record = read_record(run_dir)
    known = record.models.get(confirm.model, "") if record else ""
    identity = known or fetch_listener(confirm)[confirm.model]
    name = Path(confirm.model).name if Path(confirm.model).is_absolute() else confirm.model
    return ListenerName(id=f"{confirm.kind}-{sha256(identity.encode()).hexdigest()[:12]}", name=name, identity=identity)


def tags_of_run(config: Config) -> ClipTags | None:
    """What was heard in the pool of a run; None where nobody was asked to listen."""
    if config.retrieval.confirm is None:
        return None
    listener = listener_of(config.run_dir, config.retrieval.confirm)
    return read_tags(config.run_dir, listener.id, listener.name, config.audio.speech == "drop")


def fetch_listener(confirm: Confirm) -> Mapping[str, str]:
    """Get a listener here; its name and what exactly it is."""
    assert isinstance(confirm, Tagger)
    return fetch_tagger(confirm)


class TaggerHearing:
    """Hears clips by a tagger."""

    def __init__(self, tagger: LoadedTagger, audio: Audio, listener: ListenerName) -> None:
        self.source = f"{listener.identity} {tagger.arithmetic}"
        self.num_classes = len(tagger.labels)
        self._tagger = tagger
        self._rate_hz = audio.sample_rate

    def begin(self, rows: Sequence[ClipToHear]) -> Sequence[ClipToHear]:
        """A network in the worker has nothing to begin."""
        return rows

    def collect(self, begun: Sequence[ClipToHear]) -> list[HeardClip]:
        """What is heard in a window of clips."""
        sounds = [self._at_its_rate(row.samples) for row in begun if row.known is None]
        fresh = self._tagger(sounds)
        return [row.known or self._describe(row.clip, next(fresh)) for row in begun]

    def close(self) -> None:
        """Nothing was started."""

    def _at_its_rate(self, samples: np.ndarray) -> np.ndarray:
        if self._rate_hz == SAMPLE_RATE_HZ:
            return samples
        return soxr.resample(samples, self._rate_hz, SAMPLE_RATE_HZ, quality="HQ")

    def _describe(self, clip: Clip, scores: np.ndarray) -> HeardClip:
        """Of (W, C) scores of its windows, those that are kept."""
        best, mean = scores.max(0), scores.mean(0, dtype=np.float64)
        order = np.argsort(-best, kind="stable")
        kept = order[: max(FEWEST_TAGS, int((best >= TAG_FLOOR).sum()))]
        tags = tuple(
            Tag(
                name=self._tagger.labels[n].name,
                class_id=self._tagger.labels[n].class_id,
                score=round(float(best[n]), DIGITS),
                mean=round(float(mean[n]), DIGITS),
            )
            for n in kept
        )
        return HeardClip(clip=clip.clip, sha256=clip.sha256, listener=self.source, tags=tags)


class ListenStage:
    """Hears clips, keeps what was heard, and lets those with speech in them go where that is asked."""

    def __init__(self, config: Config, hearing: TaggerHearing, listener: ListenerName) -> None:
        self._run_dir = config.run_dir
        self._listener = listener
        self._hearing = hearing
        self._drops_speech = config.audio.speech == "drop"
        self._rate_hz = config.audio.sample_rate
        self._unit = ""
        self._known: dict[tuple[str, str], HeardClip] = {}
        self._table: TableWriter | None = None
        self._crowded = 0

    def read(self, unit: str) -> Iterator[ClipToHear]:
        """The clips of a unit, with what is known of them."""
        if unit != self._unit:  # a unit that is tried again goes on with what was heard the first time
            heard = read_known(self._run_dir / layout.tags(self._listener.id, unit))
            self._known = {(one.clip, one.sha256): one for one in heard if one.listener == self._hearing.source}
            self._unit = unit
        samples = load_array(on_this_machine(self._run_dir / layout.audio(unit)))
        for n, clip in enumerate(read_rows(self._run_dir / layout.clips(unit), Clip)):
            known = self._known.get((clip.clip, clip.sha256))
            length = max(1, round(clip.duration_sec * self._rate_hz))
            yield ClipToHear(clip=clip, samples=samples[n, :length], known=known)

    def open(self, unit: str, transaction: Transaction) -> "HeardSink":
        """Begin a unit's table."""
        self._table = TableWriter(transaction.create(layout.tags(self._listener.id, unit)), HeardClip)
        self._crowded = 0
        return HeardSink(self)

    def __call__(self, begun: Any) -> list[HeardClip | Rejected]:
        results = self._hearing.collect(begun)
        for heard in results:
            self._known[heard.clip, heard.sha256] = heard
            if self._table is not None:
                self._table.write(heard)
                self._crowded += self._is_crowded(heard)
        return [self._without_speech(heard) for heard in results]

    def finish(self) -> None:
        """End a unit's table, and say so where the listener hears everything in everything."""
        assert self._table is not None
        clips = self._table.num_rows
        self._table.close()
        self._table = None
        if self._crowded > MOST_CLIPS * clips:
            log.warning(
                "%s hears more than a quarter of its classes in %.0f %% of the clips of unit %s: it confirms nearly"
                " whatever is asked",
                self._listener.name, 100 * self._crowded / clips, self._unit,
            )  # fmt: skip

    def _is_crowded(self, heard: HeardClip) -> bool:
        if not heard.tags:
            return False
        least = heard.tags[0].score / 2
        return sum(tag.score >= least for tag in heard.tags) > TOO_MANY_CLASSES * self._hearing.num_classes

    def _without_speech(self, heard: HeardClip) -> HeardClip | Rejected:
        spoken = next((tag for tag in heard.tags if is_speech(tag.class_id)), None)  # the best first
        if not self._drops_speech or spoken is None or spoken.score < SPEECH_LIKELY:
            return heard
        return Rejected(key=heard.clip, reason=Reason.SPEECH, detail=f"{spoken.name} {spoken.score:.2f}")


class HeardSink:
    """Closes a unit's table; the stage fills it, since clips that are let go are kept in it too."""

    def __init__(self, stage: ListenStage) -> None:
        self._stage = stage

    def write(self, row: object) -> None:
        """The stage has written it."""

    def close(self) -> None:
        """Finish the table."""
        self._stage.finish()


def read_known(path: Place) -> list[HeardClip]:
    """What was heard at an earlier time; no commit vouches for it, so what is damaged is heard again."""
    try:
        return list(read_rows(path, HeardClip))
    except (FileNotFoundError, WorkError):
        return []
