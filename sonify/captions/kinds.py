"""What kind of thing a word names, and which kinds sound alike: the ontology, with the words of WordNet hung into it.

`kinds.csv` holds, for a class, the words for it and the words for what lies below it (a mallard is a duck), whole
branches of WordNet at a time; `likeness.csv` says which classes are heard for which others, though neither lies above
the other: a truck is heard as an engine. Both speak of classes, never of a concept or of a clip.

Source: Miller, "WordNet: A Lexical Database for English" (CACM 1995), by `benchmarks/distil_kinds.py`.
"""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import numpy as np

from sonify.captions.ontology import (
    NO_CLASS,
    SoundClass,
    class_ids_by_name,
    load_ontology,
    plain_name,
    table_rows,
)
from sonify.captions.words import expand, plural, tokenize, verb_forms

# Branches of which a text names the setting or the mood, and no kind of sound.
SETTINGS = ("Music genre", "Music role", "Music mood", "Musical concepts", "Channel, environment and background")
# What a thing is made of names no sound beside another word.
MATERIALS = ("Water", "Liquid", "Wood", "Glass", "Domestic sounds, home sounds")
AMBIGUOUS = "Source-ambiguous sounds"
# A class of more than eight kinds is named for all of them and meant for some: it fits each the less, the more it has.
NARROW = 8
SHRINK = 0.3
DOWN = 0.95
# A recording that is labelled by the class above may be of another kind.
STEP = 0.85
ALIKE = 0.8
PERSON, PLACE = "person", "place"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mention:
    """A kind that tokens name: where, and whether they name only something of that kind (a mallard, of ducks)."""

    start: int
    length: int
    kind: str
    below: bool

    @property
    def end(self) -> int:
        """The token after it."""
        return self.start + self.length


@cache
def load_kinds() -> Mapping[str, SoundClass]:
    """The ontology's classes by id, and below a class that our table divides, what it divides it into."""
    concepts: dict[str, dict[str, None]] = {}
    for row in table_rows():
        if row["class"] != NO_CLASS:
            concepts.setdefault(class_ids_by_name()[row["class"]], {})[row["concept"]] = None
    kinds = dict(load_ontology())
    for class_id, named in concepts.items():
        if len(named) > 1:
            above = {ancestor: steps + 1 for ancestor, steps in kinds[class_id].distances.items()}
            for concept in named:
                kind = f"{class_id}/{concept}"
                kinds[kind] = SoundClass(id=kind, name=concept, abstract=False, distances={kind: 0} | above)
    return kinds


@cache
def places() -> Mapping[str, int]:
    """Each kind's row and column in `likeness`."""
    return {kind: place for place, kind in enumerate(load_kinds())}


def is_below(kind: str, other: str) -> bool:
    """Whether a kind is another, or lies below it."""
    return other in load_kinds()[kind].distances


@cache
def parents(kind: str) -> tuple[str, ...]:
    """The kinds one step above that are more than a heading."""
    kinds = load_kinds()
    return tuple(a for a, steps in kinds[kind].distances.items() if steps == 1 and not kinds[a].abstract)


@cache
def breadth() -> Mapping[str, int]:
    """How many kinds each has below it, itself counted."""
    counts = dict.fromkeys(load_kinds(), 0)
    for kind in load_kinds().values():
        for ancestor in kind.distances:
            counts[ancestor] += 1
    return counts


@cache
def is_event(kind: str) -> bool:
    """Whether it is how something sounds, and several things may: a buzz, or the howl of several animals."""
    if is_below(kind, class_ids_by_name()[AMBIGUOUS]):
        return True
    return len(parents(kind)) > 1 and all(is_below(parent, class_ids_by_name()["Animal"]) for parent in parents(kind))


def _own_parents(kind: str) -> list[str]:
    """The parents that a kind's own name names: an ambulance (siren) is a siren first."""
    words = set(tokenize(load_kinds()[kind].name))
    return [p for p in parents(kind) if any(name and set(name) <= words for name in names_of(p))]


@cache
def names_of(kind: str) -> tuple[tuple[str, ...], ...]:
    """The tokens of each of its names."""
    return tuple(tuple(tokenize(plain_name(name))) for name in load_kinds()[kind].alternatives)


@cache
def likeness() -> np.ndarray:
    """(K, K) float64 in [0, 1]: how well a recording of the column's kind stands for what is asked in the row."""
    fits = _by_descent()
    direct = fits.copy()
    by_name = class_ids_by_name()
    for row in _read_csv("likeness.csv"):
        asked, heard = places()[by_name[row["class"]]], by_name[row["like"]]
        for kind in load_kinds():
            if is_below(kind, heard):
                found = ALIKE * direct[places()[heard], places()[kind]]
                fits[asked, places()[kind]] = max(fits[asked, places()[kind]], found)
    return fits


def _by_descent() -> np.ndarray:
    """Likeness by what lies above and below, and by sounds in common."""
    kinds, place = load_kinds(), places()
    fits = np.zeros((len(kinds), len(kinds)))
    children: dict[str, set[str]] = {kind: set() for kind in kinds}
    for kind, described in kinds.items():
        for ancestor, steps in described.distances.items():
            of_many = min(1.0, (NARROW / breadth()[ancestor]) ** SHRINK)
            fits[place[ancestor], place[kind]] = DOWN * of_many if steps else 1.0
            if steps == 1:
                children[ancestor].add(kind)
    for kind in kinds:
        for ancestor, share in _shares_above(kind).items():
            fitting = share * min(1.0, NARROW / breadth()[ancestor])
            fits[place[kind], place[ancestor]] = max(fits[place[kind], place[ancestor]], fitting)
        for other in {p for child in children[kind] for p in parents(child)} - {kind}:  # goats and sheep both bleat
            common = len(children[kind] & children[other]) / len(children[kind] | children[other])
            fits[place[kind], place[other]] = max(fits[place[kind], place[other]], ALIKE * common)
    return fits


def _shares_above(kind: str) -> dict[str, float]:
    """What each kind above has of one: a step up costs, and several parents share."""
    shares = {kind: 1.0}
    for node, _ in sorted(load_kinds()[kind].distances.items(), key=lambda item: item[1]):
        above = _own_parents(node) or parents(node)
        for parent in above if node in shares else ():
            shares[parent] = shares.get(parent, 0.0) + STEP * shares[node] / len(above)
    del shares[kind]
    return shares


def are_related(kind: str, other: str) -> bool:
    """Whether one lies above the other, or is heard for it."""
    one, two = places()[kind], places()[other]
    return is_below(kind, other) or is_below(other, kind) or max(likeness()[one, two], likeness()[two, one]) >= 0.5


def find_kinds(tokens: Sequence[str]) -> list[Mention]:
    """Every kind that tokens name, longest phrase first from left to right."""
    phrases = _phrases()
    found: list[Mention] = []
    position = 0
    while position < len(tokens):
        starting = phrases.get(tokens[position], {})
        rest = tuple(tokens[position : position + 6])
        length = next((n for n in range(len(rest), 0, -1) if rest[:n] in starting), 0)
        if length and (named := starting[rest[:length]]) is not None:
            found.append(Mention(start=position, length=length, kind=named[0], below=named[1]))
        position += max(length, 1)
    return found


@cache
def _phrases() -> Mapping[str, Mapping[tuple[str, ...], tuple[str, bool] | None]]:
    """Token sequences by their first token, with the kind and whether they name something below it; None blocks."""
    phrases: dict[str, dict[tuple[str, ...], tuple[str, bool] | None]] = {}
    own = {(tokens, kind) for kind in load_kinds() for tokens in _own_names(kind)}
    for tokens, kind in _sequences():
        named = None if kind is None else (kind, (tokens, kind) not in own)
        phrases.setdefault(tokens[0], {}).setdefault(tokens, named)
    return phrases


def _own_names(kind: str) -> Iterator[tuple[str, ...]]:
    for name in (*names_of(kind), *(tuple(name.split()) for name in _words_of_kinds("names").get(kind, ()))):
        if name:
            yield from expand(" ".join(name))


def _sequences() -> Iterator[tuple[tuple[str, ...], str | None]]:
    """Token sequences and what they name: our table, then the ontology's names, then WordNet's."""
    by_name, kinds = class_ids_by_name(), load_kinds()
    for row in table_rows():
        class_id = None if row["class"] == NO_CLASS else by_name[row["class"]]
        divided = f"{class_id}/{row['concept']}"
        for phrase in row["words"].split("; "):
            for tokens in expand(phrase):
                yield tokens, divided if divided in kinds else class_id
    for kind, name in _ontology_names():
        for tokens in expand(name):
            yield tokens, kind
    for column in ("names", "words"):
        for kind, words in _words_of_kinds(column).items():
            for word in words:
                for tokens in expand(word):
                    yield tokens, kind


def _ontology_names() -> Iterator[tuple[str, str]]:
    """Names of classes as patterns: how something sounds is a verb too."""
    by_name = class_ids_by_name()
    settings = {by_name[name] for name in SETTINGS}
    for sound in load_ontology().values():
        ambiguous = by_name[AMBIGUOUS] in sound.distances
        if settings & sound.distances.keys() or (sound.abstract and not ambiguous):
            continue
        for tokens in names_of(sound.id):
            if tokens:
                yield sound.id, " ".join(tokens) + ("~" if ambiguous and len(tokens) == 1 else "")


@cache
def kinds_by_word() -> Mapping[str, frozenset[str]]:
    """The classes in whose names a word stands, in any form: `horn` is in those of cars, trains and trucks."""
    found: dict[str, set[str]] = {}
    for kind in load_ontology():
        for token in {token for name in names_of(kind) for token in name}:
            stem = token[:-3] if token.endswith("ing") and len(token) > 5 else token
            for form in {token, plural(token), *verb_forms(token), *verb_forms(stem)}:
                found.setdefault(form, set()).add(kind)
    return {word: frozenset(kinds) for word, kinds in found.items()}


@cache
def load_roles() -> Mapping[str, str]:
    """Words for people and for places, which sound in no way of their own."""
    rows = [row for row in _read_csv("kinds.csv") if row["class"] in (PERSON, PLACE)]
    named = ((row["class"], f"{row['names']}; {row['words']}".split("; ")) for row in reversed(rows))
    return {form: role for role, words in named for word in words for form in _both(word)}


def _both(noun: str) -> tuple[str, str]:
    return noun, plural(noun)


@cache
def _words_of_kinds(column: str) -> Mapping[str, tuple[str, ...]]:
    """WordNet's words for each class itself (`names`) or for what is below it (`words`)."""
    by_name = class_ids_by_name()
    rows = [row for row in _read_csv("kinds.csv") if row["class"] not in (PERSON, PLACE)]
    return {by_name[row["class"]]: tuple(filter(None, row[column].split("; "))) for row in rows}


def _read_csv(name: str) -> list[dict[str, str]]:
    text = files("sonify.captions").joinpath(name).read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))
