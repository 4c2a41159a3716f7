"""The text encoder: concepts and clips' own texts in one space, without a model.

Most of a vector are the ontology's classes that the text names, with their ancestors, each step up at 0.6: so "puppy"
meets "dog", and "pet" meets both a little. The rest are hashed words and character trigrams, for what the ontology
does not know.
"""

import re
from collections.abc import Sequence
from functools import cache, lru_cache

import numpy as np

from sonify.captions.ontology import load_ontology, match_sounds, most_specific
from sonify.captions.words import tokenize
from sonify.keys import hash64

DIMENSION = 1024
# A class's ancestor counts 0.6, its grandparent 0.36: a clip of the parent class has cosine 0.6, below the margin.
WEIGHT_PER_STEP = 0.6
# Share of a vector's square that the classes have: with 0.8, clips of another class that share a word stay below the
# margin (measured on 73 photos and 400 recordings: every draw of the photo's own class).
CLASS_SHARE = 0.8
# Words of the query's sentence and of captions that say nothing of the sound.
STOP_WORDS = frozenset(
    {"a", "an", "the", "of", "in", "on", "at", "to", "and", "or", "with", "by", "is", "are", "be", "this", "that"}
    | {"it", "its", "sound", "sounds", "noise", "audio", "recording", "clip"}
)
_TRIGRAMS = re.compile(r"(?=(...))")


class WordsEncoder:
    """Texts to (N, 1024) float32 rows of unit length; a text that says nothing is one fixed row, like no other."""

    dimension = DIMENSION

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        return np.stack([encode_text(text) for text in texts])


@lru_cache(maxsize=10_000)  # 40 MB
def encode_text(text: str) -> np.ndarray:
    """Encode one text as a (1024,) float32 unit row."""
    tokens = [token for token in tokenize(text) if token not in STOP_WORDS]
    matches = most_specific(match_sounds(tokens))
    classes = sum((_class_vector(match.class_id) for match in matches), np.zeros(DIMENSION))
    words = sum((_word_vector(token) for token in tokens), np.zeros(DIMENSION))
    vector = _unit(classes) * np.sqrt(CLASS_SHARE) + _unit(words) * np.sqrt(1 - CLASS_SHARE)
    if not vector.any():
        vector = _word_vector("")
    return _unit(vector).astype(np.float32)


@cache
def _class_vector(class_id: str) -> np.ndarray:
    places = _class_places()
    vector = np.zeros(DIMENSION)
    for ancestor, steps in load_ontology()[class_id].distances.items():
        vector[places[ancestor]] = WEIGHT_PER_STEP**steps
    return _unit(vector)


@cache
def _class_places() -> dict[str, int]:
    """Each class's own dimension; the rest of the dimensions are shared by hashed words."""
    return {class_id: place for place, class_id in enumerate(load_ontology())}


@lru_cache(maxsize=5_000)  # 40 MB
def _word_vector(word: str) -> np.ndarray:
    vector = np.zeros(DIMENSION)
    first = len(_class_places())
    for feature in (f"word {word}", *_TRIGRAMS.findall(f" {word} ")):
        hashed = hash64("text encoder", feature)
        weight = 1.0 if feature.startswith("word ") else 0.4
        vector[first + hashed % (DIMENSION - first)] += weight if hashed >> 63 else -weight
    return vector


def _unit(vector: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(vector)
    return vector / length if length else vector
