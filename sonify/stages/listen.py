"""Clips to tags: every clip of the pool is heard once, and what was heard in it is kept.

`pool/tags/<listener>/<unit>.parquet` follows `pool/clips/<unit>.parquet`, row for row, but for clips that break the
listener. What is kept is enough for every rule that acts on it later, so that another limit needs no second hearing; a
pool that grows or is made again is heard only where it is new.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import soxr

from sonify import layout
from sonify.config import Audio, Config, Confirm, Listener, Tagger
from sonify.engine.job import Job
from sonify.engine.record import read_record
from sonify.errors import WorkError
from sonify.features.taggers import SAMPLE_RATE_HZ, LoadedTagger, fetch_tagger, load_tagger
from sonify.io.commits import digest_of
from sonify.io.places import load_array, on_this_machine
from sonify.io.tables import TableWriter, read_rows, storable
from sonify.io.write import Transaction
from sonify.models.fetch import named
from sonify.retrieval.confirm import SPEECH_LIKELY, TAG_FLOOR, ClipTags, classes_of, is_speech, read_tags
from sonify.retrieval.encoders import query_of
from sonify.rows import Clip, Concept, HeardClip, Reason, Rejected, Tag
from sonify.stores import Place
from sonify.vlm.backends import fetch_vlm, request_settings, window_of
from sonify.vlm.endpoint import connect_endpoint
from sonify.vlm.hearing import HEARING_PROMPT, HEARING_VERSION, asked_of, encode_wav, read_heard
from sonify.vlm.questions import Answer, NoAnswer, SoundQuestion
from sonify.vlm.repair import Unusable

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
    assert confirm is not None
    listener = listener_of(config.run_dir, confirm)
    if isinstance(confirm, Tagger):
        hearing = TaggerHearing(load_tagger(confirm), config.audio, listener)
    else:
        hearing = EndpointHearing(confirm, config.audio, listener)
    stage = ListenStage(config, hearing, listener)
    return Job(
        read=stage.read,
        begin=hearing.begin,
        process=stage,
        open_sink=lambda unit, transaction, _rejects: stage.open(unit, transaction),
        batch_rows=hearing.window,
        close=hearing.close,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Questions:
    """A window of clips, and the answers about those that were not heard before."""

    rows: Sequence[ClipToHear]
    answers: "Future[list[Answer | NoAnswer]] | None"


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerName:
    """Who listens: `id` names the folder of its tags, `name` is what is said of it in pairs, `identity` its bytes."""

    id: str
    name: str
    identity: str


def listener_of(run_dir: Place, confirm: Confirm) -> ListenerName:
    """Who listens in a run: what run.json says the model is, or what lies here."""
    record = read_record(run_dir)
    known = record.models.get(model_of(confirm), "") if record else ""
    if isinstance(confirm, Tagger):
        identity = known or fetch_listener(confirm)[model_of(confirm)]
    else:
        identity = f"endpoint {confirm.model}"  # whose files are not here
    name = Path(confirm.model).name if Path(confirm.model).is_absolute() else confirm.model
    return ListenerName(id=f"{confirm.kind}-{sha256(identity.encode()).hexdigest()[:12]}", name=name, identity=identity)


def model_of(confirm: Confirm) -> str:
    """What run.json records a listener under."""
    return named(confirm.model, confirm.revision if isinstance(confirm, Tagger) else None)


def tags_of_run(config: Config) -> ClipTags | None:
    """What was heard in the pool of a run; None where nobody was asked to listen."""
    if config.retrieval.confirm is None:
        return None
    listener = listener_of(config.run_dir, config.retrieval.confirm)
    return read_tags(config.run_dir, listener.id, listener.name, config.audio.speech == "drop")


def fetch_listener(confirm: Confirm) -> Mapping[str, str]:
    """Get a listener here, or see that its server has it; its name and what exactly it is."""
    return fetch_tagger(confirm) if isinstance(confirm, Tagger) else fetch_vlm(asked_of(confirm))


class Hearing(Protocol):
    """A loaded listener.

    `source` is all that what it hears depends on, `window` how many clips it takes at once, and `num_classes` how many
    it tells apart (0: it answers in words of its own).
    """

    source: str
    window: int
    num_classes: int

    def begin(self, rows: Sequence[ClipToHear]) -> Any:
        """Start to hear a window of clips."""
        ...

    def collect(self, begun: Any) -> list[HeardClip]:
        """What is heard in them, in their order.

        Raises:
            TransientError: the model's server is not well.
        """
        ...

    def close(self) -> None:
        """Stop what was started."""
        ...


class EndpointHearing:
    """Asks a model behind a server what is heard in each clip."""

    num_classes = 0

    def __init__(self, listener: Listener, audio: Audio, name: ListenerName) -> None:
        vlm = asked_of(listener)
        asked = {"words": HEARING_PROMPT, "tokens": listener.max_new_tokens, **request_settings(vlm)}
        self.source = f"{name.identity} {HEARING_VERSION} {digest_of(asked)[:16]}"
        self.window = window_of(vlm)
        self._rate_hz = audio.sample_rate
        self._endpoint = connect_endpoint(vlm)

    def begin(self, rows: Sequence[ClipToHear]) -> Questions:
        """As `Hearing`; what was answered before is not asked again."""
        wavs = [encode_wav(row.samples, self._rate_hz) for row in rows if row.known is None]
        questions = [SoundQuestion(wav=wav, prompt=HEARING_PROMPT) for wav in wavs]
        return Questions(rows=rows, answers=self._endpoint.submit(questions) if questions else None)

    def collect(self, begun: Questions) -> list[HeardClip]:
        """As `Hearing`; what was said before is read anew."""
        fresh = iter(begun.answers.result() if begun.answers else ())
        return [self._describe(row.clip, row.known or next(fresh)) for row in begun.rows]

    def close(self) -> None:
        """End what is under way."""
        self._endpoint.close()

    def _describe(self, clip: Clip, said: HeardClip | Answer | NoAnswer) -> HeardClip:
        heard = HeardClip(clip=clip.clip, sha256=clip.sha256, listener=self.source, tags=())
        if isinstance(said, NoAnswer):
            return replace(heard, refused=storable(said.detail) or "without a word")
        if isinstance(said, HeardClip) and said.refused and not said.answer:
            return said
        answer = said.answer if isinstance(said, HeardClip) else storable(said.text)
        heard = replace(heard, answer=answer, finished=said.finished)
        read = read_heard(answer, said.finished)
        if isinstance(read, Unusable):
            return replace(heard, refused=storable(f"{read.reason}: {read.detail}"))
        return replace(heard, tags=tuple(tag for one in read for tag in _tags_of(one)))


def _tags_of(concept: Concept) -> Iterator[Tag]:
    """A sound that a model names, once for each class that it is; a model that says it is sure of it."""
    for class_id in classes_of(query_of(concept, "description")) or ("",):
        yield Tag(name=storable(concept.concept), class_id=class_id, score=1.0, mean=1.0)


class TaggerHearing:
    """Hears clips by a tagger."""

    window = 64

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

    def __init__(self, config: Config, hearing: Hearing, listener: ListenerName) -> None:
        self._run_dir = config.run_dir
        self._listener = listener
        self._hearing = hearing
        self._drops_speech = config.audio.speech == "drop"
        self._rate_hz = config.audio.sample_rate
        self._unit = ""
        self._known: dict[tuple[str, str], HeardClip] = {}
        self._table: TableWriter | None = None
        self._crowded = self._silent = 0

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
        self._crowded = self._silent = 0
        return HeardSink(self)

    def __call__(self, begun: Any) -> list[HeardClip | Rejected]:
        results = self._hearing.collect(begun)
        for heard in results:
            self._known[heard.clip, heard.sha256] = heard
            if self._table is not None:
                self._table.write(heard)
                self._crowded += self._is_crowded(heard)
                self._silent += self._is_silent(heard)
        return [self._without_speech(heard) for heard in results]

    def finish(self) -> None:
        """End a unit's table, and say so where the listener hears everything in everything, or nothing."""
        assert self._table is not None
        clips = self._table.num_rows
        self._table.close()
        self._table = None
        for count, what in (
            (self._crowded, "hears more than a quarter of its classes, and so confirms nearly whatever is asked"),
            (self._silent, "hears nothing, or says nothing that can be read, and so confirms and refuses nothing"),
        ):
            if count > MOST_CLIPS * clips:
                share = 100 * count / clips
                log.warning("unit %s: in %.0f %% of the clips %s %s", self._unit, share, self._listener.name, what)

    def _is_silent(self, heard: HeardClip) -> bool:
        return not heard.tags or heard.tags[0].score < TAG_FLOOR

    def _is_crowded(self, heard: HeardClip) -> bool:
        if not self._hearing.num_classes or self._is_silent(heard):
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
