"""Whether a clip is what its concept asks for, by what a listener heard in it.

A clip is confirmed where the concept's class of the ontology, or a near relative of it, is among its tags: what is
below the class, what is above it unless that is broad, its siblings under a narrow parent, and what is heard for it as
retrieval has it (a bus as an engine). A concept that names no class cannot be contradicted by classes: its clips stay,
unconfirmed. So does a clip in which nothing was heard at all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sonify import layout
from sonify.captions.kinds import ALIKE, likeness, load_kinds
from sonify.captions.kinds import places as kind_places
from sonify.captions.ontology import class_ids_by_name, load_ontology, match_sounds, most_specific
from sonify.captions.words import tokenize
from sonify.config import Confirm, Purity, Tagger
from sonify.io.places import stems
from sonify.io.tables import read_columns
from sonify.retrieval.kinds import Query, kind_of
from sonify.retrieval.text import STOP_WORDS
from sonify.stores import Place

# Below it no score is kept: a limit must lie at it or above.
TAG_FLOOR = 0.01
# Classes with so many below them, themselves included, say little of what is heard: "Vehicle" has 45, "Dog" 8.
BROADEST_ANCESTOR, BROADEST_PARENT = 16, 8
# These say where or how, not what; and silence is between the sounds of most clips.
ELSEWHERE = ("Channel, environment and background", "Silence")
# Speech is private where it can be understood: this branch, and whispering. Singing, babble, laughter and shouts stay.
SPEECH = ("Speech", "Whispering")
NO_SPEECH = ("Speech synthesizer",)
SPEECH_LIKELY = 0.5
# What is heard besides, at its loudest, counts against a clip in full; how steadily the class itself is heard only a
# little. Of twelve forms tried on mixtures with a clip of another class this told them best (`benchmarks.listening`).
OWN_POWER, LEAST_OWN = 0.3, 1e-3
TAGS_TOLD = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipTags:
    """What was heard in N clips: those of clip n lie from `starts[n]` to `starts[n + 1]`, best first.

    `classes` are positions in the ontology, or -1; `words` number the names, which are `names`.
    """

    listener: str
    present: np.ndarray  # (N,) bool, whether the clip was heard
    starts: np.ndarray  # (N + 1,) int64
    classes: np.ndarray  # (T,) int16
    words: np.ndarray  # (T,) int32
    scores: np.ndarray  # (T,) float32, the best of the windows
    means: np.ndarray  # (T,) float32, over the windows
    names: Sequence[str]

    def take(self, clips: np.ndarray) -> "ClipTags":
        """Those of some clips, in that order."""
        starts, tags = _gather(self.starts, clips)
        return ClipTags(
            listener=self.listener,
            present=self.present[clips],
            starts=starts,
            classes=self.classes[tags],
            words=self.words[tags],
            scores=self.scores[tags],
            means=self.means[tags],
            names=self.names,
        )


def read_tags(run_dir: Place, listener_id: str, listener: str, drops_speech: bool) -> ClipTags:
    """What was heard in every clip of the pool, in the order of units; `present` are those that may be drawn.

    Args:
        run_dir: the run.
        listener_id: the folder of its tags.
        listener: its name in pairs.
        drops_speech: clips in which somebody speaks are not to be drawn.
    """
    parts = [_read_unit(run_dir, listener_id, unit) for unit in stems(run_dir / layout.CLIPS)]
    present = np.concatenate([np.zeros(0, bool), *(found for found, _, _ in parts)])
    sizes = np.concatenate([np.zeros(0, np.int64), *(size for _, size, _ in parts)])
    starts = np.concatenate([[0], np.cumsum(sizes)])
    tags = pa.concat_tables([table for _, _, table in parts]) if parts else None
    if tags is None:
        tags = pa.table(
            {"name": pa.array([], pa.string()), "class_id": pa.array([], pa.string()), "score": [], "mean": []}
        )
    names = tags["name"].combine_chunks().dictionary_encode()
    ids = tags["class_id"].combine_chunks().dictionary_encode()
    class_of_id = np.array([places().get(class_id, -1) for class_id in ids.dictionary.to_pylist()], np.int16)
    classes = class_of_id[ids.indices.to_numpy()]
    scores = tags["score"].to_numpy().astype(np.float32)
    if drops_speech:
        rows = np.repeat(np.arange(len(present)), sizes)
        present &= _greatest(rows, np.where(_spoken()[classes], scores, 0), len(present)) < SPEECH_LIKELY
    return ClipTags(
        listener=listener,
        present=present,
        starts=starts,
        classes=classes,
        words=names.indices.to_numpy().astype(np.int32),
        scores=scores,
        means=tags["mean"].to_numpy().astype(np.float32),
        names=names.dictionary.to_pylist(),
    )


def _read_unit(run_dir: Place, listener_id: str, unit: str) -> tuple[np.ndarray, np.ndarray, pa.Table]:
    """Of each clip of a unit, whether it was heard and how many tags it has; and all tags."""
    clips = read_columns(run_dir / layout.clips(unit), ["clip"])["clip"]
    table = read_columns(run_dir / layout.tags(listener_id, unit), ["clip", "tags"])
    rows = pc.index_in(clips, table["clip"].combine_chunks())  # pyright: ignore[reportAttributeAccessIssue]
    present = np.asarray(rows.is_valid())
    sizes = np.zeros(len(clips), np.int64)
    lengths = table["tags"].combine_chunks().value_lengths().to_numpy()
    sizes[present] = lengths  # both are in one order, and what was heard is of the unit
    tags = table["tags"].combine_chunks().flatten()
    return present, sizes, pa.table({name: tags.field(name) for name in ("name", "class_id", "score", "mean")})


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What speaks for K clips as one concept, one entry each.

    `support` is the best score of the concept's class or a relative, `purity` what of all that is heard is it. Where
    the concept names no class nothing is contradicted, and purity is 0: it is not known.
    """

    confirmed: np.ndarray  # (K,) bool
    support: np.ndarray  # (K,) float64
    purity: np.ndarray  # (K,) float64
    names_class: bool


def _gather(starts: np.ndarray, clips: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """New starts, and the positions of the tags of some clips."""
    sizes = starts[clips + 1] - starts[clips]
    ends = np.cumsum(sizes)
    begins = ends - sizes
    tags = np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts[clips] - begins, sizes)
    return np.concatenate([[0], ends]), tags


class Ear:
    """Judges clips of one split by their tags."""

    def __init__(self, tags: ClipTags, confirm: Confirm, purity: Purity | None) -> None:
        self._tags = tags
        self.listener = tags.listener
        tagger = confirm if isinstance(confirm, Tagger) else None
        self._floor = tagger.floor if tagger else 0.0
        self._of_best = tagger.of_best if tagger else 0.0
        self._purest = purity.at_least if purity else 0.0
        self._weight = purity.weight if purity else 0.0

    def judge(self, query: Query, clips: np.ndarray) -> Judged:
        """Judge (K,) clips, by their positions in the split, as what is asked of the pool."""
        classes = classes_of(query)
        starts, tags = _gather(self._tags.starts, clips)
        kin, apart = _kin_of(classes)
        found, scores, means = self._tags.classes[tags], self._tags.scores[tags], self._tags.means[tags]
        rows = np.repeat(np.arange(len(clips)), np.diff(starts))
        is_kin = kin[found]  # -1 is the last entry, of what names no class: there words alone can tell
        unknown = np.flatnonzero(found < 0)
        is_kin[unknown] = [self._shares_word(query.name, int(word)) for word in self._tags.words[tags[unknown]]]
        is_apart = apart[found] & ~is_kin
        support = _greatest(rows, np.where(is_kin, scores, 0.0), len(clips))
        best = _greatest(rows, np.where(_elsewhere()[found], 0.0, scores), len(clips))
        own = np.maximum(_greatest(rows, np.where(is_kin, means, 0.0), len(clips)), LEAST_OWN) ** OWN_POWER
        others = np.bincount(rows, weights=np.where(is_apart, scores, 0.0), minlength=len(clips))
        purity = own / (own + others)
        if not classes:
            everything = np.ones(len(clips), bool)
            return Judged(confirmed=everything, support=support, purity=np.zeros(len(clips)), names_class=False)
        heard_nothing = (best <= 0) | (best < self._floor)
        confirmed = heard_nothing | (support > 0) & (support >= np.maximum(self._floor, self._of_best * best))
        confirmed &= heard_nothing | (purity >= self._purest)
        return Judged(confirmed=confirmed, support=support, purity=purity, names_class=True)

    def _shares_word(self, name: str, word: int) -> bool:
        """Whether a tag without a class shares a word with a concept's name."""
        return bool(content_words(name) & content_words(self._tags.names[word]))

    def weigh(self, judged: Judged) -> np.ndarray:
        """(K,) factors of the draw."""
        return judged.purity**self._weight if judged.names_class else np.ones(len(judged.purity))

    def heard(self, clip: int) -> str:
        """What was heard in a clip, in plain words."""
        span = slice(int(self._tags.starts[clip]), int(self._tags.starts[clip + 1]))
        told = zip(self._tags.words[span][:TAGS_TOLD], self._tags.scores[span][:TAGS_TOLD], strict=True)
        return "; ".join(f"{self._tags.names[word]} {score:.2f}" for word, score in told if score >= TAG_FLOOR)

    def speech(self, clip: int) -> float:
        """How sure the listener was that somebody speaks."""
        span = slice(int(self._tags.starts[clip]), int(self._tags.starts[clip + 1]))
        spoken = self._tags.scores[span][_spoken()[self._tags.classes[span]]]
        return float(spoken.max(initial=0.0))


def _greatest(rows: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
    """The greatest value of each row; 0 where it has none."""
    greatest = np.zeros(count)
    np.maximum.at(greatest, rows, values)
    return greatest


@lru_cache(maxsize=100_000)
def content_words(text: str) -> frozenset[str]:
    """The words of a text that say what sounds."""
    return frozenset(tokenize(text)) - STOP_WORDS


@cache
def places() -> dict[str, int]:
    """Each class's position in the ontology."""
    return {class_id: place for place, class_id in enumerate(load_ontology())}


@lru_cache(maxsize=100_000)
def classes_of(query: Query) -> tuple[str, ...]:
    """The classes that a concept is to be heard as: its kind, as retrieval reads it, or else all that it names."""
    kind = kind_of(query)
    if kind is not None:
        found = load_kinds()[kind].distances
        return (min(found.keys() & load_ontology().keys(), key=lambda class_id: (found[class_id], class_id)),)
    for text in (query.name, query.text) if query.described else (query.name,):
        if matches := most_specific(match_sounds(tokenize(text))):
            return tuple(dict.fromkeys(match.class_id for match in matches))
    return ()


@cache
def _below(class_id: str) -> frozenset[str]:
    """A class and all below it."""
    return frozenset(sound.id for sound in load_ontology().values() if class_id in sound.distances)


@cache
def relatives(class_id: str) -> frozenset[str]:
    """The classes that confirm a class."""
    ontology = load_ontology()
    found = set(_below(class_id))
    for ancestor, steps in ontology[class_id].distances.items():
        if ontology[ancestor].abstract:
            continue
        if len(_below(ancestor)) <= BROADEST_ANCESTOR:
            found.add(ancestor)
        if steps == 1 and len(_below(ancestor)) <= BROADEST_PARENT:
            found |= _below(ancestor)
    alike = likeness()[kind_places()[class_id]]
    return frozenset(found | {other for other in ontology if alike[kind_places()[other]] >= ALIKE})


@cache
def _kin_of(classes: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Of each class of the ontology: does it confirm these, and is it something else? The last entry is no class.

    What is above the classes is neither, however broad: who hears a dog hears an animal.
    """
    kin = _mask(frozenset().union(*(relatives(class_id) for class_id in classes)))
    above = _mask({ancestor for class_id in classes for ancestor in load_ontology()[class_id].distances})
    apart = ~kin & ~above & ~_elsewhere()
    apart[-1] = True  # what it is is not known, and it is heard besides
    return kin, apart


@cache
def _elsewhere() -> np.ndarray:
    """What says nothing against a concept, however clear; the last entry are words that name no class."""
    mask = _mask(_branches(ELSEWHERE))
    mask[-1] = True
    return mask


@cache
def _spoken() -> np.ndarray:
    return _mask(_branches(SPEECH) - _branches(NO_SPEECH))


def is_speech(class_id: str) -> bool:
    """Whether a class is somebody speaking."""
    return class_id in places() and bool(_spoken()[places()[class_id]])


def _branches(names: Sequence[str]) -> frozenset[str]:
    return frozenset().union(*(_below(class_ids_by_name()[name]) for name in names))


def _mask(classes: frozenset[str] | set[str]) -> np.ndarray:
    mask = np.zeros(len(places()) + 1, bool)
    mask[[places()[class_id] for class_id in classes]] = True
    return mask
