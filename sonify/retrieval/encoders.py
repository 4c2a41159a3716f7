"""The encoders that put a clip and a concept into one space."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from sonify.captions.ontology import load_ontology
from sonify.config import TextEncoder as TextEncoderConfig
from sonify.retrieval.text import TextEncoder
from sonify.rows import Concept


class Encoder(Protocol):
    """Texts to (N, `dimension`) float32 rows of unit length."""

    dimension: int

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Encode texts."""
        ...


def load_encoder(_config: TextEncoderConfig) -> Encoder:
    """Load the encoder that a config names."""
    return TextEncoder()


def query_text(concept: Concept, query: str) -> str:
    """What is asked of the pool: the description, or for a bare name a sentence around it.

    Source: "Seeing Sound" (arXiv 2501.05413) asks with the description; the sentence is CLAP's usual template.
    """
    if query == "description" and concept.description:
        return concept.description
    return f"This is a sound of {concept.concept}"


def bank_mean(encoder: Encoder) -> np.ndarray:
    """The (D,) mean of a fixed bank of queries, one for each sound of the AudioSet ontology.

    A clip's mean similarity to the bank is its product with this vector, so taking it off every clip's similarity
    is the same as taking this vector off every query.
    Source: Bogolin et al., "Cross Modal Retrieval with Querybank Normalisation" (CVPR 2022), in its linear form.
    """
    names = [f"This is a sound of {sound.name}" for sound in load_ontology().values()]
    return encoder(names).mean(axis=0)
