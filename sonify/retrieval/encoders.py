"""The encoders that put a clip and a concept into one space, or into several side by side."""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np

from sonify.captions.ontology import load_ontology
from sonify.config import ClapEncoder, HybridEncoder, LaionClapEncoder
from sonify.config import Encoder as EncoderConfig
from sonify.config import TextEncoder as TextEncoderConfig
from sonify.errors import InputError
from sonify.installed import require
from sonify.io.places import open_place
from sonify.models import CLAP_FILES, TOKENIZER_FILES, fetch_model
from sonify.retrieval.text import TextEncoder
from sonify.rows import Concept
from sonify.stores import Place

ClapConfig = ClapEncoder | LaionClapEncoder


class Encoder(Protocol):
    """Texts to (N, `dimension`) float32 rows of unit length."""

    dimension: int

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Encode texts."""
        ...


class SoundEncoder(Encoder, Protocol):
    """An encoder that hears: a clip is embedded by its sound and not by its text.

    `arithmetic` is what the last bits depend on: the device, its threads and the shape of a batch.
    """

    arithmetic: str

    def embed_segments(self, segments: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Embed sounds, each (n,) int16 at 48 kHz of at most ten seconds, one after the other as they come."""
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
    encoder: Encoder
    hears: SoundEncoder | None = None


class JointEncoder:
    """Spaces side by side: rows are joined so that one inner product is the weighted sum of the parts' cosines."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = tuple(parts)
        self.dimension = sum(part.encoder.dimension for part in parts)

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Encode queries."""
        return self.join([part.encoder(texts) for part in self.parts])

    def join(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        """Join the (N, D) rows of each part: sqrt(share) on both sides of a product is the share."""
        return np.hstack([row * np.float32(math.sqrt(p.share)) for p, row in zip(self.parts, rows, strict=True)])


def load_encoder(config: EncoderConfig) -> JointEncoder:
    """Load the encoder that a config names.

    Raises:
        InputError: a library is not installed, or the model is not to be had or not a CLAP.
    """
    clap = clap_of(config)
    if clap is None:
        return JointEncoder([_text_part(1.0)])
    if isinstance(config, HybridEncoder):
        return JointEncoder([_clap_part(clap, config.weight), _text_part(1 - config.weight)])
    return JointEncoder([_clap_part(clap, 1.0)])


def clap_of(config: EncoderConfig) -> ClapConfig | None:
    """The CLAP of an encoder: itself, a hybrid's, or none."""
    if isinstance(config, TextEncoderConfig):
        return None
    return config.audio if isinstance(config, HybridEncoder) else config


def fetch_encoder(config: EncoderConfig) -> Mapping[str, str]:
    """Get an encoder's models here; their names and what exactly they are.

    Raises:
        InputError: there is no such model, or no way to get it.
    """
    clap = clap_of(config)
    return {} if clap is None else _fetch_clap(clap)


def model_names(config: EncoderConfig) -> tuple[str, ...]:
    """What `fetch_encoder` fetches."""
    clap = clap_of(config)
    if clap is None:
        return ()
    return (clap.model,) if isinstance(clap, ClapEncoder) else (str(clap.checkpoint), clap.roberta)


def cpus_of(config: EncoderConfig) -> int:
    """CPUs that a worker asks for, and threads that the model in it uses."""
    clap = clap_of(config)
    return 1 if clap is None else clap.cpus


def gpus_of(config: EncoderConfig) -> float:
    """GPUs that a worker asks for, where the cluster has any or `device` insists."""
    clap = clap_of(config)
    return 0.0 if clap is None or clap.device == "cpu" else clap.gpus


def _text_part(share: float) -> Part:
    return Part(id="text", model="text", share=share, encoder=TextEncoder())


def _clap_part(config: ClapConfig, share: float) -> Part:
    require("torch", "transformers")
    from sonify.retrieval.clap import load_clap  # noqa: PLC0415 - torch takes seconds to import

    identities = _fetch_clap(config)
    clap = load_clap(config)
    network = [config.audio_model, config.fusion] if isinstance(config, LaionClapEncoder) else []
    identity = hashlib.sha256(json.dumps([sorted(identities.values()), network]).encode()).hexdigest()
    model = f"{identity} {clap.arithmetic}"
    return Part(id=f"{config.kind}-{identity[:12]}", model=model, share=share, encoder=clap, hears=clap)


def _fetch_clap(config: ClapConfig) -> Mapping[str, str]:
    if isinstance(config, ClapEncoder):
        return {config.model: fetch_model(config.model, config.revision, CLAP_FILES).identity}
    roberta = fetch_model(config.roberta, config.roberta_revision, TOKENIZER_FILES).identity
    return {str(config.checkpoint): _sha256(config.checkpoint), config.roberta: roberta}


@lru_cache(maxsize=8)
def _sha256(place: Place) -> str:
    """Of a checkpoint, which no command changes under itself."""
    try:
        digest = hashlib.sha256()
        with open_place(place) as file:
            while block := file.read(1 << 20):
                digest.update(block)
        return digest.hexdigest()
    except OSError as error:
        raise InputError(f"retrieval.encoder.checkpoint: {place}: cannot be read: {error.strerror or error}") from error


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
