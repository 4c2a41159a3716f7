"""The AudioSet ontology: 632 classes of sound, of which some have several parents.

Source: Gemmeke et al., "Audio Set: An ontology and human-labeled dataset for audio events" (ICASSP 2017).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files


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
