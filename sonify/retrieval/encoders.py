"""The encoders that put a clip and a concept into one space, or into several side by side."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby
from typing import TYPE_CHECKING, Protocol

import numpy as np

from sonify.captions.ontology import load_ontology
from sonify.config import Audio, ClapEncoder, Encoder, HybridEncoder, LaionClapEncoder, TextEncoder
from sonify.errors import InputError, WorkError, require
from sonify.installed import spell_redo
from sonify.io.write import sha256_of
from sonify.media.audio import UnreadableSound
from sonify.media.clips import CutClip, cut_recording, rules_of
from sonify.models.fetch import CLAP_FILES, TOKENIZER_FILES, FetchedModel, fetch_model
from sonify.retrieval.kinds import KINDS_VERSION, KindsEncoder, Query
from sonify.retrieval.text import WordsEncoder
from sonify.rows import Clip, Concept
from sonify.sources.sounds import open_sound
from sonify.stores import Place

if TYPE_CHECKING:
    from sonify.retrieval.clap import Clap

ClapSettings = ClapEncoder | LaionClapEncoder


class QueryEncoder(Protocol):
    """Texts to (N, `dimension`) float32 rows of unit length."""

    dimension: int

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Encode texts."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One space of an encoder, in which `share` of the cosine is measured.

    Clips are embedded by their sound where `hears` is given, else by their text. `id` names the folder of the part's
    embeddings; `model` is all that their bits depend on.
    """

    id: str
    model: str
    share: float
    encoder: QueryEncoder
    hears: "Clap | None" = None


class JointEncoder:
    """Spaces side by side: rows are joined so that one inner product is the weighted sum of the parts' cosines.

    `identity` is what a calibration was made for; `by_name` says whether what a concept is called is asked for too.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = tuple(parts)
        self.dimension = sum(part.encoder.dimension for part in parts)
        self.identity = " + ".join(part.id if part.share == 1 else f"{part.share:g} {part.id}" for part in parts)
        self.by_name = any(isinstance(part.encoder, KindsEncoder) for part in parts)

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Encode the texts of clips."""
        return self.join([part.encoder(texts) for part in self.parts])

    def ask(self, queries: Sequence[Query]) -> np.ndarray:
        """Encode queries; a part that does not ask for names encodes their texts."""
        texts = [query.text for query in queries]
        rows = [
            part.encoder.ask(queries) if isinstance(part.encoder, KindsEncoder) else part.encoder(texts)
            for part in self.parts
        ]
        return self.join(rows)

    def join(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        """Join the (N, D) rows of each part: sqrt(share) on both sides of a product is the share."""
        return np.hstack([row * np.float32(math.sqrt(p.share)) for p, row in zip(self.parts, rows, strict=True)])


def load_encoder(settings: Encoder, hears: str = "recording") -> JointEncoder:
    """Load the encoder that a configuration names; `hears` is the key of that name, which acts on a CLAP's clips.

    Raises:
        InputError: a library is not installed, or the model is not to be had or not a CLAP.
    """
    clap = clap_of(settings)
    if clap is None:
        assert isinstance(settings, TextEncoder)
        return JointEncoder([_text_part(settings, 1.0)])
    if isinstance(settings, HybridEncoder):
        return JointEncoder([_clap_part(clap, settings.weight, hears), _text_part(settings, 1 - settings.weight)])
    return JointEncoder([_clap_part(clap, 1.0, hears)])


def clap_of(settings: Encoder) -> ClapSettings | None:
    """The CLAP of an encoder: itself, a hybrid's, or none."""
    if isinstance(settings, TextEncoder):
        return None
    return settings.audio if isinstance(settings, HybridEncoder) else settings


def fetch_encoder(settings: Encoder) -> Mapping[str, str]:
    """Get an encoder's models here; their names and what exactly they are.

    Raises:
        InputError: there is no such model, or no way to get it.
    """
    clap = clap_of(settings)
    return {} if clap is None else _identities(clap, fetch_clap(clap))


def _text_part(settings: TextEncoder | HybridEncoder, share: float) -> Part:
    if settings.matching == "words":
        return Part(id="text", model="text", share=share, encoder=WordsEncoder())
    name = f"kinds-{KINDS_VERSION}"
    return Part(id=name, model=name, share=share, encoder=KindsEncoder())


def _clap_part(settings: ClapSettings, share: float, hears: str) -> Part:
    require("torch", "transformers")
    from sonify.retrieval.clap import load_clap  # noqa: PLC0415 - torch takes seconds to import

    fetched = fetch_clap(settings)
    identities = _identities(settings, fetched)
    clap = load_clap(settings, fetched)
    network = [settings.audio_model, settings.fusion] if isinstance(settings, LaionClapEncoder) else []
    identity = hashlib.sha256(json.dumps([sorted(identities.values()), network]).encode()).hexdigest()
    model = f"{identity} {clap.arithmetic}"
    name = f"{settings.kind}-{identity[:12]}"
    # of the same model, but other vectors, and other limits: neither may be taken for the other
    of_clip = "-clip" if hears == "clip" else ""
    return Part(id=name + of_clip, model=model + of_clip, share=share, encoder=clap, hears=clap)


def fetch_clap(settings: ClapSettings) -> FetchedModel:
    """Get a CLAP's files or, of laion_clap's, those of its RoBERTa, whose checkpoint is a file of its own."""
    if isinstance(settings, ClapEncoder):
        return fetch_model(settings.model, settings.revision, CLAP_FILES)
    return fetch_model(settings.roberta, settings.roberta_revision, TOKENIZER_FILES)


def _identities(settings: ClapSettings, fetched: FetchedModel) -> Mapping[str, str]:
    found: dict[str, str] = {}
    if isinstance(settings, LaionClapEncoder):
        found[str(settings.checkpoint)] = _checkpoint_sha256(settings.checkpoint)
    return found | {fetched.model: fetched.identity}


@lru_cache(maxsize=8)
def _checkpoint_sha256(place: Place) -> str:
    """Taken once: no command changes a checkpoint under itself."""
    try:
        return sha256_of(place)
    except OSError as error:
        raise InputError(f"retrieval.encoder.checkpoint: {place}: cannot be read: {error.strerror or error}") from error


class SegmentReader:
    """What an encoder hears of clips: the pieces that the pool cut, at the encoder's rate and without padding.

    Clips become (n,) int16 samples, in order; a recording that goes on in the next call is not decoded again.
    """

    def __init__(self, audio: Audio, sample_rate_hz: int) -> None:
        self._audio = audio
        self._rules = replace(rules_of(audio), min_tail_sec=0.0)
        self._sample_rate_hz = sample_rate_hz
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
                    f" make the pool again with `{spell_redo('pool')}`"
                ) from error

    def _samples(self, recording: tuple[str, str], index: int) -> np.ndarray:
        if recording != self._recording or index < self._next_index:
            sound = open_sound(self._audio.sources, *recording)
            self._pieces = cut_recording(sound, self._sample_rate_hz, self._audio.clip_seconds, self._rules)
            self._recording, self._next_index = recording, 0
        for piece in self._pieces:
            self._next_index = piece.index + 1
            if piece.index == index:
                return piece.samples[: round(piece.duration_sec * self._sample_rate_hz)]
        raise WorkError(
            f"{'/'.join(recording)}: is shorter than when the pool was made: make it again with `{spell_redo('pool')}`"
        )


def query_text(concept: Concept, query: str) -> str:
    """What is asked of the pool: the description, or for a bare name a sentence around it.

    Source: "Seeing Sound" (arXiv 2501.05413) asks with the description; the sentence is CLAP's usual template.
    """
    if query == "description" and concept.description:
        return concept.description
    return _sentence(concept.concept)


def query_of(concept: Concept, query: str) -> Query:
    """What is asked of the pool, with what the concept is called."""
    text = query_text(concept, query)
    return Query(name=concept.concept, text=text, described=text != _sentence(concept.concept))


def _sentence(name: str) -> str:
    return f"This is a sound of {name}"


def bank_of(encoder: JointEncoder) -> np.ndarray:
    """(C, D) rows of a fixed bank of clips, one named after each sound of the AudioSet ontology."""
    return encoder([sound.name for sound in load_ontology().values()])


def bank_mean(encoder: JointEncoder) -> np.ndarray:
    """The (D,) mean of a fixed bank of queries, one for each sound of the AudioSet ontology.

    A clip's mean similarity to the bank is its product with this vector, so taking it off every clip's similarity
    is the same as taking this vector off every query.
    Source: Bogolin et al., "Cross Modal Retrieval with Querybank Normalisation" (CVPR 2022), in its linear form.
    """
    names = [sound.name for sound in load_ontology().values()]
    return encoder.ask([Query(name=name, text=_sentence(name), described=False) for name in names]).mean(axis=0)
