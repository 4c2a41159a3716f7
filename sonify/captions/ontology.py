"""The sounds that a caption names: classes of the AudioSet ontology, found by their names and by our table of words.

The ontology has 632 classes of sound, of which some have several parents. The longest match wins and takes its words
with it, so that "hot dog" is no dog; where a class and its ancestor are both named, the more specific one stays.

Source: Gemmeke et al., "Audio Set: An ontology and human-labeled dataset for audio events" (ICASSP 2017).
"""

import csv
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from sonify.captions.words import expand, tokenize
from sonify.rows import Concept

# Rows of the table under this class name no sound: their phrases keep other words from matching.
NO_CLASS = "-"
# Captions use the names of these classes in other senses, or name the things without their sounding: only the table's
# words find them. The branches stand for all that is below them.
SILENT_BRANCHES = (
    "Music genre", "Music role", "Music mood", "Musical concepts", "Channel, environment and background",
    "Source-ambiguous sounds", "Miscellaneous sources",
)  # fmt: skip
SILENT_CLASSES = (
    "Animal", "Wild animals", "Liquid", "Water", "Steam", "Wood", "Glass", "Mechanisms", "Tools", "Vehicle", "Hands",
    "Door", "Cupboard open or close", "Drawer open or close", "Dishes, pots, and pans", "Cutlery, silverware",
    "Zipper (clothing)", "Velcro, hook and loop fastener", "Coin (dropping)", "Scissors", "Packing tape, duct tape",
    "Camera", "Gears", "Pulleys", "Domestic sounds, home sounds",
)  # fmt: skip
# What surrounds rather than happens: these classes, and those of which every parent is one of them. Of the branch
# "Channel, environment and background" it is all but devices that play; of the others, what has no one source.
AMBIENCE = (
    "Natural sounds", "Acoustic environment", "Noise", "Crowd", "Chatter", "Hubbub, speech noise, speech babble",
    "Traffic noise, roadway noise", "Mechanical fan", "Air conditioning", "Cricket",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class SoundClass:
    """A class of sound. `distances` has every ancestor's id with the least number of steps to it, itself at 0.

    An `abstract` class only groups others and is never what is heard.
    """

    id: str
    name: str
    abstract: bool
    distances: Mapping[str, int]

    @property
    def alternatives(self) -> tuple[str, ...]:
        """The names that the class's name lists: `Waves, surf` has two."""
        return tuple(part.strip().lower() for part in self.name.split(",") if part.strip())


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """A sound that a text names: the class, and what is heard in plain words."""

    class_id: str
    concept: str


@cache
def load_ontology() -> Mapping[str, SoundClass]:
    """Read the ontology that ships with the package, by class id."""
    text = files("sonify.captions").joinpath("ontology.json").read_text(encoding="utf-8")
    raw = {entry["id"]: entry for entry in json.loads(text)}
    parents: dict[str, list[str]] = {class_id: [] for class_id in raw}
    for entry in raw.values():
        for child in entry["child_ids"]:
            parents[child].append(entry["id"])
    return {
        class_id: SoundClass(
            id=class_id,
            name=entry["name"],
            abstract=bool({"abstract", "blacklist"} & set(entry["restrictions"])),
            distances=_distances(class_id, parents),
        )
        for class_id, entry in raw.items()
    }


@cache
def class_ids_by_name() -> Mapping[str, str]:
    """Class ids by full name; names are unique."""
    return {sound.name: class_id for class_id, sound in load_ontology().items()}


def _distances(class_id: str, parents: Mapping[str, list[str]]) -> dict[str, int]:
    distances = {class_id: 0}
    reached = [class_id]
    for node in reached:
        for parent in parents[node]:
            if parent not in distances:
                distances[parent] = distances[node] + 1
                reached.append(parent)
    return distances


def find_sounds(caption: str) -> tuple[Concept, ...]:
    """Return the sounds that a caption names, in its order, each once."""
    matches = most_specific(match_sounds(tokenize(caption)))
    concepts = dict.fromkeys(match.concept for match in matches)
    return tuple(Concept(concept=concept, description="") for concept in concepts)


def names_ambience(text: str) -> bool:
    """Whether a text names sounds, and only such as surround: rain is one, a dog that barks in the rain is not."""
    matches = match_sounds(tokenize(text))
    return bool(matches) and all(match.class_id in _ambience() for match in matches)


@cache
def _ambience() -> frozenset[str]:
    found = {class_ids_by_name()[name] for name in AMBIENCE}
    parents = {
        sound.id: {ancestor for ancestor, steps in sound.distances.items() if steps == 1}
        for sound in load_ontology().values()
    }
    while below := {child for child, above in parents.items() if above and above <= found} - found:
        found |= below
    return frozenset(found)


def match_sounds(tokens: Sequence[str]) -> list[Match]:
    """Return every class that tokens name, longest match first from left to right."""
    table = load_patterns()
    found: list[Match] = []
    position = 0
    while position < len(tokens):
        length, match = _longest(table, tokens, position)
        if match is not None:
            found.append(match)
        position += length
    return found


def most_specific(matches: Sequence[Match]) -> list[Match]:
    """Drop classes of which a descendant is named too."""
    ontology = load_ontology()
    above = {ancestor for m in matches for ancestor, steps in ontology[m.class_id].distances.items() if steps > 0}
    return [match for match in matches if match.class_id not in above]


def _longest(
    table: Mapping[str, Mapping[tuple[str, ...], Match | None]], tokens: Sequence[str], position: int
) -> tuple[int, Match | None]:
    phrases = table.get(tokens[position])
    if phrases:
        rest = tuple(tokens[position : position + 6])
        for length in range(len(rest), 0, -1):
            if rest[:length] in phrases:
                return length, phrases[rest[:length]]
    return 1, None


@cache
def load_patterns() -> Mapping[str, Mapping[tuple[str, ...], Match | None]]:
    """Token sequences by their first token, with what they name; None blocks. Our table goes before the names."""
    patterns: dict[str, dict[tuple[str, ...], Match | None]] = {}
    for phrase, match in (*_table_patterns(), *_ontology_patterns()):
        for tokens in expand(phrase):
            patterns.setdefault(tokens[0], {}).setdefault(tokens, match)
    return patterns


@cache
def table_rows() -> Sequence[Mapping[str, str]]:
    """Our table of words: what names no sound, which goes first, then the words of each class."""
    text = files("sonify.captions").joinpath("synonyms.csv").read_text(encoding="utf-8")
    return sorted(csv.DictReader(text.splitlines()), key=lambda row: row["class"] != NO_CLASS)


def _table_patterns() -> Iterator[tuple[str, Match | None]]:
    for row in table_rows():
        match = None
        if row["class"] != NO_CLASS:
            match = Match(class_id=class_ids_by_name()[row["class"]], concept=row["concept"])
        for phrase in row["words"].split("; "):
            yield phrase, match


def _ontology_patterns() -> Iterator[tuple[str, Match]]:
    concepts = {match.class_id: match.concept for _, match in _table_patterns() if match}
    branches = {class_ids_by_name()[name] for name in SILENT_BRANCHES}
    for sound in load_ontology().values():
        if sound.abstract or sound.name in SILENT_CLASSES or branches & set(sound.distances):
            continue
        concept = concepts.get(sound.id, plain_name(sound.alternatives[0]))
        for alternative in sound.alternatives:
            if tokens := tokenize(plain_name(alternative)):
                yield " ".join(tokens), Match(class_id=sound.id, concept=concept)


def plain_name(name: str) -> str:
    """A class's name without what it says in brackets."""
    return re.sub(r"\s*\(.*?\)|[()]", "", name).removesuffix(" etc.").strip()
