"""What a tower is: a name, the hash of its weights, and up to three ways in.

B  inputs, D  width of a vector
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Sound:
    """What a tower hears: mono float32 in [-1, 1], at its own rate; `name` is the file's, for messages."""

    samples_S: np.ndarray
    sample_rate_hz: int
    name: str = "a sound"


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way into a tower: what is done to an input first, and the network.

    `preprocessing` names all that is done before the network (side, filter, crop, rate); with the hash of the weights
    it says what a vector is. `embed` takes a batch of RGB pictures, `Sound`s or texts, and returns (B, D) float32 as
    the network gives them, not normalised; an input's vector does not depend on what else is in the batch. The network
    is loaded at the first call.
    """

    preprocessing: str
    embed: Callable[[Sequence[Any]], np.ndarray]
    sample_rate_hz: int | None = None  # at which a sound is heard


@dataclass(frozen=True, slots=True, kw_only=True)
class Tower:
    """A network of `sha256`. Its last `logits` columns of a picture's vector are class logits, the others features."""

    name: str  # as the report prints it: `Inception (FID, 2015-12-05)`
    model: str  # the file or hub id
    sha256: str
    images: Way | None = None
    sounds: Way | None = None
    texts: Way | None = None
    logits: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Judges:
    """The towers that judge, by what they are for; None is left out. Any of them may be a caller's own.

    `clip_b32` and `wav2clip` share a space, as do the ways of each single tower.
    """

    inception: Tower | None = None
    clip_b32: Tower | None = None
    clip_l14: Tower | None = None
    clip_l14_336: Tower | None = None
    dinov2: Tower | None = None
    sscd: Tower | None = None
    wav2clip: Tower | None = None
    clap: Tower | None = None
    peav: Tower | None = None
