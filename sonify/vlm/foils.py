"""Things that are asked for although they are not there: a model that says yes to everything confirms these too."""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import product

from sonify.captions.ontology import class_ids_by_name, load_ontology
from sonify.captions.sounds import match_sounds, most_specific
from sonify.captions.words import tokenize
from sonify.keys import hash64
from sonify.rows import Concept
from sonify.vlm.naming import name_key

# Ordinary sounding things that few photographs show, over many branches of the ontology; no people, for a model may
# well call some woman an opera singer.
FOILS = (
    "accordion", "bagpipes", "harp", "church organ", "xylophone", "drum kit", "trombone", "harmonica", "gong",
    "rooster", "donkey", "frog", "owl", "turkey", "whale", "pig", "rattlesnake", "mosquito", "lion", "crow",
    "helicopter", "steam train", "fire engine", "speedboat", "skateboard", "race car", "lawn mower", "chainsaw",
    "jackhammer", "sewing machine", "typewriter", "vacuum cleaner", "hair dryer", "blender", "cash register",
    "alarm clock", "telephone ringing", "kettle", "fireworks", "waterfall", "volcano eruption",
)  # fmt: skip
# What is below one of these only is not related: a bus and a blender. All animals are, all instruments, all vehicles.
BROAD_CLASSES = ("Sounds of things", "Source-ambiguous sounds", "Channel, environment and background")
UNRELATED_STEPS = 100


def foils_for(concepts: Sequence[Concept], key: str, seed: int) -> tuple[str, str]:
    """Two foils for an image, drawn by its key, unlike its concepts and unlike each other.

    Where the concepts leave no foil that is unrelated, it is one that is as far from them as can be.
    """
    said = {concept.concept: f"{concept.concept}; {concept.description}" for concept in concepts}
    first = _draw(FOILS, said, key, seed)
    others = [foil for foil in FOILS if foil != first]
    return first, _draw(others, {**said, first: first}, key, seed)


def _draw(foils: Sequence[str], said: Mapping[str, str], key: str, seed: int) -> str:
    """The foil of the highest hash among those that share no word and no near ancestor with what is said."""
    taken = {word for name in said for word in name_key(name)}
    classes = {class_id for text in said.values() for class_id in _classes(text)}

    def rank(foil: str) -> tuple[bool, int, int]:
        return taken.isdisjoint(name_key(foil)), _steps(_classes(foil), classes), hash64(seed, "foil", key, foil)

    return max(foils, key=rank)


@lru_cache(maxsize=10_000)
def _classes(text: str) -> tuple[str, ...]:
    return tuple(match.class_id for match in most_specific(match_sounds(tokenize(text))))


def _steps(ours: Iterable[str], theirs: Iterable[str]) -> int:
    """Steps through the nearest common ancestor that is no broad class; `UNRELATED_STEPS` where there is none."""
    ontology = load_ontology()
    broad = {class_ids_by_name()[name] for name in BROAD_CLASSES}
    pairs = product((ontology[one].distances for one in ours), [ontology[other].distances for other in theirs])
    shared = ((one, two, ancestor) for one, two in pairs for ancestor in (one.keys() & two.keys()) - broad)
    return min((one[ancestor] + two[ancestor] for one, two, ancestor in shared), default=UNRELATED_STEPS)
