"""FID's own Inception of 2015-12-05 by torch-fidelity: what is called Inception elsewhere has other weights.

B  pictures
"""

import io
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from eval.towers.config import Inception
from eval.towers.pixels import TF1_299, Preparation
from eval.towers.tower import Tower, Way
from eval.towers.weights import Embedding, Forward, Shapes, check_tensors, hash_file, read_tensors

NAME = "Inception (FID, 2015-12-05)"
LOGITS = 1008


def open_inception(section: Inception, preparation: Preparation = TF1_299) -> Tower:
    """FID's network: 2048 features and, behind them, the 1008 logits without their bias.

    Raises:
        InputError: the weights are not there, of another hash than was asked for, or of another network.
    """
    path, sha256 = hash_file(section.weights, section.sha256)
    shapes = inception_shapes()
    check_tensors(path, shapes, NAME, counters(shapes))  # before other towers have worked for hours
    embed = Embedding(preparation.prepare, partial(_load, path))
    images = Way(preprocessing=preparation.id, embed=embed)
    return Tower(name=NAME, model=str(path), sha256=sha256, images=images, logits=LOGITS)


def inception_shapes() -> dict[str, tuple[int, ...]]:
    """The names and shapes of all that is stored of the network."""
    return {name: tuple(tensor.shape) for name, tensor in _unloaded().state_dict().items()}


def counters(shapes: Shapes) -> list[str]:
    """What counts training steps: older files lack it, and nothing here reads it."""
    return [name for name in shapes if name.endswith("num_batches_tracked")]


class _Unloaded(FeatureExtractorInceptionV3):
    """The network before it has weights: its constructor would unpickle a file, whatever it holds."""

    def load_state_dict(self, *_args: Any, **_options: Any) -> Any:
        return None


def _unloaded() -> FeatureExtractorInceptionV3:
    nothing = io.BytesIO()
    torch.save({}, nothing)
    nothing.seek(0)
    with torch.device("meta"):
        return _Unloaded("inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=nothing)


def _load(path: Path, device: torch.device) -> Forward:
    network, shapes = _unloaded(), inception_shapes()
    none_counted = dict.fromkeys(counters(shapes), torch.tensor(0))
    tensors = none_counted | read_tensors(path, shapes, NAME, counters(shapes))
    nn.Module.load_state_dict(network, tensors, assign=True)
    # The parts run in the order in which they are built; torch-fidelity's own call would resize once more.
    *parts, fc = network.to(device).children()
    trunk = nn.Sequential(*parts)

    def forward(pictures_BCHW: Tensor) -> Tensor:
        features_B2048 = trunk(pictures_BCHW).flatten(1)
        return torch.cat([features_B2048, features_B2048 @ fc.weight.T], 1)

    return forward
