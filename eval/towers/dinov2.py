"""DINOv2 by transformers: what is in a picture, for FD-DINOv2, precision and recall, and what looks alike.

B  pictures
"""

from functools import partial

import torch
from transformers import Dinov2Model

from eval.towers.config import Dinov2
from eval.towers.pixels import stretched
from eval.towers.tower import Tower, Way
from eval.towers.weights import Embedding, Forward, hash_models, hash_settings
from sonify.models.fetch import FetchedModel, Files, check_type, check_weights, fetch_model, named
from sonify.models.loading import load_network

FILES = Files(
    patterns=("config.json", "*.safetensors"), checks=(check_type("dinov2", "facebook/dinov2-large"), check_weights)
)
SIDE = 224  # dgm-eval's, though the network was trained on 518


def open_dinov2(section: Dinov2) -> Tower:
    """The class token behind the last norm.

    Raises:
        InputError: the model cannot be had, or is no DINOv2.
    """
    fetched = fetch_model(section.model, section.revision, FILES)
    preparation = stretched(SIDE)
    looks = f"{preparation.id}, {hash_settings(fetched)}"
    return Tower(
        name="DINOv2",
        model=named(section.model, section.revision),
        sha256=hash_models(fetched),
        images=Way(preprocessing=looks, embed=Embedding(preparation.prepare, partial(_load, fetched))),
    )


def _load(fetched: FetchedModel, device: torch.device) -> Forward:
    network = load_network(Dinov2Model, fetched, device, torch.float32)
    return lambda pictures_BCHW: network(pixel_values=pictures_BCHW).pooler_output
