"""SSCD, the detector of copies: its published TorchScript file.

Such a file holds a program, not only numbers, and torch runs it. So it is loaded only where it is the published one, or
the configuration names its sha256, and from the very bytes that were hashed.

B  pictures
Source: Pizzi et al., A Self-Supervised Descriptor for Image Copy Detection (MIT).
"""

import hashlib
import io
import warnings
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from eval.towers.config import Sscd
from eval.towers.pixels import shorter_side
from eval.towers.tower import Tower, Way
from eval.towers.weights import Embedding, Forward, hash_file
from sonify.errors import InputError

SIDE = 288
FILE = "sscd_disc_mixup.torchscript.pt"
PUBLISHED = "9f26bd4c848cc19b73d2ae92eea6e04886f61a7b764ceb7a13aeee62e6a6db56"


def open_sscd(section: Sscd) -> Tower:
    """The descriptor of copies.

    Raises:
        InputError: the file is not there, or neither the published one nor one whose hash is named.
    """
    path, sha256 = hash_file(section.weights, section.sha256)
    if section.sha256 is None and sha256 != PUBLISHED:
        raise InputError(
            f"{path}: expected the published {FILE} (sha256 {PUBLISHED}), found {sha256}; it is a program, which runs"
            " when it is loaded: name its hash as `sha256` if you trust it"
        )
    preparation = shorter_side(SIDE)
    embed = Embedding(preparation.prepare, partial(_load, path, sha256))
    images = Way(preprocessing=preparation.id, embed=embed)
    return Tower(name="SSCD", model=str(path), sha256=sha256, images=images)


def _load(path: Path, sha256: str, device: torch.device) -> Forward:
    program = path.read_bytes()
    if hashlib.sha256(program).hexdigest() != sha256:
        raise InputError(f"{path}: was replaced since it was opened; start again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", FutureWarning
            )  # that TorchScript is to go; SSCD is published as nothing else
            network = torch.jit.load(io.BytesIO(program), map_location=device).eval()
    except (RuntimeError, ValueError, EOFError) as error:
        raise InputError(f"{path}: not a TorchScript file ({' '.join(str(error).split())[:200]})") from error

    def forward(pictures_BCHW: Tensor) -> Tensor:
        vectors = network(pictures_BCHW)
        if not isinstance(vectors, Tensor) or vectors.ndim != 2 or len(vectors) != len(pictures_BCHW):
            raise InputError(f"{path}: expected a vector for each picture, as SSCD gives; take its published file")
        return vectors

    return forward
