"""The text encoder that matches by kind: what a concept is and does, against what a clip's own text says it is.

A clip's vector says which kinds its text names; a concept's vector says how well each kind would stand for it
(`captions.kinds.likeness`), so that one inner product, which is not symmetric, is the fit of a clip. What the concept
is (its name, the subject of its description) counts before what it does: a sound that many things make does not turn
a goose into a car. Clips whose text names no known kind are compared by hashed words.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from sonify.captions.kinds import (
    MATERIALS,
    NARROW,
    PERSON,
    Mention,
    are_related,
    breadth,
    find_kinds,
    is_below,
    is_event,
    kinds_by_word,
    likeness,
    load_kinds,
    load_roles,
    names_of,
    parents,
    places,
)
from sonify.captions.ontology import class_ids_by_name
from sonify.captions.words import tokenize
from sonify.keys import hash64
from sonify.retrieval.text import STOP_WORDS

# Raised when a word, a likeness or a rule changes what is drawn: vectors of two versions do not meet.
KINDS_VERSION = 1
DIMENSION = 1024
# Of a description longer than any model writes, the first words say what sounds.
MAX_TOKENS = 200
# How well a kind fits that the concept names otherwise than as what it is: shares of its likeness.
NAMED_ABOVE = 0.9  # the class above, where it is named too
OBJECT = 0.9  # what is struck or touched, by something that makes no sound of its own
ASIDE = 0.8  # what it touches, or wind or rain around it, where nothing else is said
OF_AGENT = 0.75  # what a person or a place usually sounds like, where its description says something else
BESIDE_NATURE = 0.7
UNRELATED = 0.5  # how it sounds, where that is of another kind than what it is
HEADLESS = 0.55  # a word before an unknown noun: a rain stick is no rain
ELSEWHERE = 0.5  # another thing, where the name says what it is
# A clip that tells the thing and the sound apart (a door creaks) is first of the sound.
THING, SOUND = 0.6, 0.8
# A class with more kinds than this is not met by any of them where the concept is one of them.
WIDE = 10
# Two names within a branch of so many kinds are one sound: an engine and its revving, a dog and its bark.
MERGED = 14
# Words that lead away from what sounds to where it is; the first are of what it touches.
CONTACT = frozenset({"on", "against", "upon", "onto"})
CLAUSE = frozenset({"as", "while", "when", "where", "after", "before", "until", "following", "because", "if"})
PARTICLES = frozenset({"by", "past", "down", "up", "off", "out"})
SETTING = PARTICLES | {
    "at", "behind", "in", "inside", "near", "above", "over", "across", "along", "around", "beside", "under", "below",
    "beneath", "from", "during", "through", "into", "to", "with", "for", "between", "among", "within", "toward",
    "towards", "beyond", "outside", "shortly",
}  # fmt: skip
_ENDINGS = re.compile(r"(?<=...)(?:ings?|ed|es|s|er)$")


@dataclass(frozen=True, slots=True, order=True)
class Query:
    """What is asked of the pool: `text` is what a model that hears is asked, `name` what the concept is called.

    `described` says whether the text is a description, or only a sentence around the name.
    """

    name: str
    text: str
    described: bool


class KindsEncoder:
    """Clips' texts and queries to (N, 1024) float32 rows; the product says how well a clip fits, up to about 1."""

    dimension = DIMENSION

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Encode what clips say of themselves."""
        return np.stack([encode_clip(text) for text in texts])

    def ask(self, queries: Sequence[Query]) -> np.ndarray:
        """Encode what is asked."""
        return np.stack([encode_query(query) for query in queries])


@lru_cache(maxsize=10_000)  # 40 MB
def encode_clip(text: str) -> np.ndarray:
    """Encode a clip's text as a (1024,) float32 row of unit length."""
    tokens = tokenize(text)
    vector = np.zeros(DIMENSION)
    kinds = _most_specific([mention.kind for mention in _mentions(tokens)])
    events = [kind for kind in kinds if is_event(kind)]
    if len(kinds) == 2 and len(events) == 1:
        for kind in kinds:
            vector[places()[kind]] = SOUND if kind in events else THING
    elif kinds:
        vector[[places()[kind] for kind in kinds]] = len(kinds) ** -0.5
    else:
        vector[len(places()) :] = _words(tokens)
    return vector.astype(np.float32)


@lru_cache(maxsize=10_000)
def encode_query(query: Query) -> np.ndarray:
    """Encode what is asked as a (1024,) float32 row: how well each kind fits, and its words."""
    name, text = _tokens_of(query)
    fits = fits_of(name, text)
    return np.hstack([fits, _words([*name, *text])]).astype(np.float32)


def are_one_sound(one: Query, other: Query) -> bool:
    """Whether two concepts name one sound: one's kind is the other's or above it, and no broad branch."""
    first, second = kind_of(one), kind_of(other)
    if first is None or second is None:
        return one.name == other.name
    upper, lower = (first, second) if is_below(second, first) else (second, first)
    return is_below(lower, upper) and breadth()[upper] <= MERGED


@lru_cache(maxsize=10_000)
def kind_of(query: Query) -> str | None:
    """The kind that is asked for, if any is known."""
    return _read(*_tokens_of(query))[0]


def fits_of(name: Sequence[str], description: Sequence[str]) -> np.ndarray:
    """(K,) float64: how well each kind stands for a concept of that name, and of that description where it has one."""
    kind, fits = _read(name, description)
    name = _before_setting(name)
    if kind is not None:
        words = {*name, *description}
        for above in load_kinds()[kind].distances:
            if above != kind and breadth()[above] <= 2 * NARROW and _is_named_beside(above, kind, words):
                fits[places()[above]] = max(fits[places()[above]], NAMED_ABOVE)
    return fits


def _is_named_beside(above: str, kind: str, words: set[str]) -> bool:
    """Whether a class above a kind is named for itself, and not as a part of the kind's own name (a jet engine)."""
    if _is_material(above):
        return False
    own = {word for name in names_of(kind) for word in name}
    return any(name and set(name) <= words and not set(name) <= own for name in names_of(above))


def _tokens_of(query: Query) -> tuple[list[str], list[str]]:
    return tokenize(query.name)[:MAX_TOKENS], tokenize(query.text)[:MAX_TOKENS] if query.described else []


def _read(name: Sequence[str], description: Sequence[str]) -> tuple[str | None, np.ndarray]:
    name = _before_setting(name)
    known = _name_kind(name)
    return _read_description(known, _role(name), description) if description else _read_name(known)


@dataclass(frozen=True, slots=True)
class _Known:
    """What a name names: a kind, whether only something of that kind, and whether an unknown noun follows it.

    `child` is a kind below it that the name has too.
    """

    kind: str
    below: bool
    headless: bool
    child: str | None = None


def _name_kind(name: Sequence[str]) -> _Known | None:
    mentions = _mentions(name)
    things = [mention for mention in mentions if not is_event(mention.kind)]
    if not things:
        return _Known(mentions[-1].kind, below=False, headless=False) if mentions else None
    does = name[-1].endswith("ing")  # dog barking: the first is what does it; church choir: the last is what it is
    thing = things[0] if does else things[-1]
    end = max(mention.end for mention in mentions)
    headless = end < len(name) and not does and not {*name[end:]} & (SETTING | CONTACT)
    attribute = thing.start > 0 and name[thing.start - 1] not in STOP_WORDS  # an espresso machine is one of them
    children = [m.kind for m in mentions if m.kind != thing.kind and is_below(m.kind, thing.kind)]
    return _Known(thing.kind, thing.below or attribute, headless, children[-1] if children else None)


def _read_name(known: _Known | None) -> tuple[str | None, np.ndarray]:
    if known is None:
        return None, np.zeros(len(places()))
    share = HEADLESS if known.headless else 1.0
    if known.child:
        return known.child, share * _fits_below(known.child, known)
    return known.kind, share * _fits(known.kind, known.below)


@dataclass(frozen=True, slots=True)
class _Said:
    """What a description mentions: things and sounds of its main part, what they touch, and what is around."""

    things: list[Mention]
    sounds: list[Mention]
    touched: list[Mention]
    around: list[Mention]
    words: list[str]


def _read_description(
    known: _Known | None, role: str | None, description: Sequence[str]
) -> tuple[str | None, np.ndarray]:
    said = _parse(description)
    first = next(iter((*said.things, *said.sounds)), None)
    if known is not None and not (role and first):
        return _of_thing(known, said)
    usual = OF_AGENT * _fits(known.kind, known.below) if known else np.zeros(len(places()))
    kind, fits = _of_said(said)
    return kind or (known.kind if known else None), np.maximum(usual, fits)


def _of_thing(known: _Known, said: _Said) -> tuple[str | None, np.ndarray]:
    """The name says what it is: of the description, what is of that kind counts."""
    mentioned = [*said.things, *said.sounds]
    lower = _named_below(known.kind, [*mentioned, *said.touched, *said.around], said.words)
    if lower:
        return lower, _fits_below(lower, known)
    whole = _fits(known.kind, known.below)
    for other in mentioned:
        if breadth()[known.kind] == 1 and _same_material(other.kind, known.kind):
            return other.kind, np.maximum(_fits(other.kind, False), UNRELATED * whole)
    for other in mentioned:
        if other.kind == known.kind or are_related(known.kind, other.kind):
            return known.kind, np.maximum(whole, _fits(other.kind, other.below))
    usual = (HEADLESS if known.headless else 1.0) * whole
    if not mentioned:
        return known.kind, usual
    other = mentioned[0]
    share = 1.0 if known.headless else UNRELATED if other in said.sounds else ELSEWHERE
    return other.kind if known.headless else known.kind, np.maximum(usual, share * _fits(other.kind, other.below))


def _of_said(said: _Said) -> tuple[str | None, np.ndarray]:
    """The name says nothing, or that it is a person or a place: the description's own subject counts."""
    if said.things:
        thing = said.things[0]
        lower = _named_below(thing.kind, [*said.things, *said.sounds, *said.touched], said.words)
        if lower:
            return lower, _fits_below(lower, _Known(thing.kind, thing.below, False))
        return thing.kind, _fits(thing.kind, thing.below)
    touched = [mention for mention in said.touched if not is_event(mention.kind)]
    if not said.sounds:
        return (touched[0].kind, ASIDE * _fits(touched[0].kind, touched[0].below)) if touched else _nothing()
    return _of_sound(said.sounds[0].kind, touched, said.around)


def _of_sound(sound: str, touched: list[Mention], around: list[Mention]) -> tuple[str, np.ndarray]:
    """Of a sound that many things make, what is touched or what blows around tells whose it is."""
    if touched:
        struck = OBJECT * _fits(touched[0].kind, touched[0].below)
        return touched[0].kind, np.maximum(struck, UNRELATED * _fits(sound, False))
    nature = class_ids_by_name()["Natural sounds"]
    for other in (mention for mention in around if not is_event(mention.kind)):
        if are_related(other.kind, sound):
            return sound, OBJECT * _fits(other.kind, other.below)
        if is_below(other.kind, nature):
            blown = ASIDE * _fits(other.kind, other.below)
            return sound, np.maximum(BESIDE_NATURE * _fits(sound, False), blown)
    return sound, _fits(sound, False)


def _nothing() -> tuple[None, np.ndarray]:
    return None, np.zeros(len(places()))


def _parse(description: Sequence[str]) -> _Said:
    sections = _sections(description)
    mentions = _mentions(description, alone=False)
    main = [mention for mention in mentions if sections[mention.start] == "main"]
    of = next((n for n, word in enumerate(description) if word == "of" and sections[n] == "main"), len(description))
    after = [mention for mention in main if mention.start > of]
    if after:  # a roar of waves is of waves
        main = after + [mention for mention in main if mention.start < of and is_event(mention.kind)]
    return _Said(
        things=[mention for mention in main if not is_event(mention.kind)],
        sounds=[mention for mention in main if is_event(mention.kind)],
        touched=[mention for mention in mentions if sections[mention.start] == "touched"],
        around=[mention for mention in mentions if sections[mention.start] == "around"],
        words=[word for word, section in zip(description, sections, strict=True) if section == "main"],
    )


def _sections(tokens: Sequence[str]) -> list[str]:
    """For each token whether it is of the main part, of what is touched, of what is around, or of another clause."""
    sections: list[str] = []
    section = "main"
    for token in tokens:
        if token in CLAUSE:
            section = "clause"
        elif section != "clause" and token in CONTACT:
            section = "touched"
        elif section != "clause" and token in SETTING:
            section = "around"
        sections.append(section)
    return sections


def _mentions(tokens: Sequence[str], alone: bool = True) -> list[Mention]:
    """The kinds that tokens name, without materials and participles where something else is named.

    Materials count where the text stands `alone`; beside a name they do not, and neither do people.
    """
    mentions = find_kinds(tokens)
    solid = [mention for mention in mentions if not _is_material(mention.kind)]
    mentions = solid if solid or not alone else mentions
    starts = {mention.start for mention in mentions}
    plain = [m for m in mentions if not (m.length == 1 and tokens[m.start].endswith("ing") and m.end in starts)]
    mentions = mentions if any(are_related(m.kind, n.kind) for m in mentions for n in plain if m is not n) else plain
    if alone:
        return mentions
    others = [m for m in mentions if load_roles().get(tokens[m.end - 1]) != PERSON]
    return others or mentions


def _named_below(kind: str, mentions: Sequence[Mention], words: Sequence[str]) -> str | None:
    """The first kind below one that is mentioned, or in whose name one of the words stands."""
    for mention in mentions:
        if mention.kind != kind and is_below(mention.kind, kind):
            return mention.kind
    order, own = places(), {word for name in names_of(kind) for word in name}
    for word in words:
        if word in own or word in STOP_WORDS:
            continue
        near = [k for k in kinds_by_word().get(word, ()) if 1 <= load_kinds()[k].distances.get(kind, 0) <= 2]
        if near:
            return min(near, key=lambda k: order[k])
    return None


def _fits(kind: str, below: bool) -> np.ndarray:
    """How well each kind stands for one; where it is one of very many of that kind, no other of them does."""
    fits = likeness()[places()[kind]].copy()
    if below and breadth()[kind] > WIDE:
        above = load_kinds()[kind].distances
        fits *= [other in above for other in load_kinds()]
    return fits


def _fits_below(kind: str, known: _Known) -> np.ndarray:
    """How well each stands for a kind below one that is named too; what animals do, a recording of the animal has."""
    fits = _fits(kind, below=False)
    for other in load_kinds()[kind].distances:
        if is_below(other, known.kind):
            fits[places()[other]] = max(fits[places()[other]], NAMED_ABOVE)
    if is_below(known.kind, class_ids_by_name()["Animal"]):
        fits = np.maximum(fits, NAMED_ABOVE * _fits(known.kind, known.below))
    return fits


def _is_material(kind: str) -> bool:
    return load_kinds()[kind].name in MATERIALS


def _same_material(one: str, other: str) -> bool:
    """Whether both are sounds of one material or of a door: clinking glass does not break."""
    shared = set(parents(one)) & set(parents(other)) if one != other else set[str]()
    return any(_is_material(kind) or load_kinds()[kind].name == "Door" for kind in shared)


def _most_specific(kinds: Sequence[str]) -> list[str]:
    above = {a for kind in kinds for a, steps in load_kinds()[kind].distances.items() if steps}
    return [kind for kind in dict.fromkeys(kinds) if kind not in above]


def _before_setting(name: Sequence[str]) -> Sequence[str]:
    """A name without where it is: a visitor at the cabin is a visitor, but knocking on a door is of the door."""
    for n, word in enumerate(name):
        leads = n and word in (SETTING | CONTACT) - PARTICLES
        if leads and (not name[n - 1].endswith("ing") or _names_thing(name[: n - 1])):
            return name[:n]
    return name


def _names_thing(tokens: Sequence[str]) -> bool:
    """Whether somebody or something is named that may act."""
    named = any(not is_event(mention.kind) for mention in _mentions(tokens))
    return named or any(load_roles().get(token) == PERSON for token in tokens)


def _role(name: Sequence[str]) -> str | None:
    return load_roles().get(name[-1]) if name else None


def _words(tokens: Sequence[str]) -> np.ndarray:
    """Hashed word stems as a unit row, for what no kind is known of; zeros where there are none."""
    size = DIMENSION - len(places())
    row = np.zeros(size)
    for token in tokens:
        if token not in STOP_WORDS:
            hashed = hash64("kinds encoder", _stem(token))
            row[hashed % size] += 1.0 if hashed >> 63 else -1.0
    length = np.linalg.norm(row)
    return row / length if length else row


def _stem(token: str) -> str:
    stem = _ENDINGS.sub("", token)
    stem = stem[:-1] if len(stem) > 3 and stem[-1] == stem[-2] else stem
    return stem.rstrip("e") if len(stem) > 3 else stem
