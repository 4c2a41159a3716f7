"""A recording's sources apart: what a separator is, what is taken of its sources, and one that is read from a folder.

A separator's folder has `config.json`, the sizes of torchaudio's ConvTasNet under its own names (`ConvTasNetConfig`),
and `model.safetensors`, its weights. What a network was trained on decides what it can take apart; none comes along.

S  samples at 16 kHz, float32 with full scale at 1.0; N  sources
"""

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast

import numpy as np
import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file

from sonify.config.inputs import Section
from sonify.config.loader import make_settings
from sonify.errors import InputError, require
from sonify.models.fetch import FetchedModel, Files, check_type, check_weights, fetch_model, read_json, read_shapes
from sonify.models.loading import cannot_load, place_network
from train.windows import SAMPLE_RATE_HZ

MODEL_TYPE = "conv_tasnet"
WEIGHTS = "model.safetensors"
SEPARATOR_FILES = Files(
    patterns=("config.json", WEIGHTS),
    checks=(check_type(MODEL_TYPE, "a ConvTasNet of torchaudio's in safetensors"), check_weights),
)
# A source further below its mixture than this is left out. Networks have a fixed number of outputs, and say nothing in
# those that they have no source for: what is left there would be heard as a sound of its own.
SILENT_DB = -40.0
# Sources that together are further below their mixture than this are not made to add up to it: nine tenths of the
# amplitude of what would be heard were the mixture itself, once for each source. The number is ours.
LOST_DB = -20.0
# What asteroid calls a ConvTasNet's tensors, and torchaudio.
ASTEROID_NAMES = (
    (r"(en|de)coder\.filterbank\._filters", r"\1coder.weight"),
    (r"masker\.bottleneck\.0\.", "mask_generator.input_norm."),
    (r"masker\.bottleneck\.1\.", "mask_generator.input_conv."),
    (r"masker\.TCN\.(\d+)\.shared_block\.", r"mask_generator.conv_layers.\1.conv_layers."),
    (r"masker\.TCN\.(\d+)\.res_conv\.", r"mask_generator.conv_layers.\1.res_out."),
    (r"masker\.TCN\.(\d+)\.skip_conv\.", r"mask_generator.conv_layers.\1.skip_out."),
    (r"masker\.mask_net\.0\.", "mask_generator.output_prelu."),
    (r"masker\.mask_net\.1\.", "mask_generator.output_conv."),
    (r"\.gamma$", ".weight"),
    (r"\.beta$", ".bias"),
)


class Separator(Protocol):
    """Takes mixtures apart."""

    def separate(self, mixture_S: np.ndarray, rate_hz: int) -> np.ndarray:
        """Return (N, S) float32, the sources of a mixture in any order, silent ones as well."""
        ...


def take_apart(separator: Separator, mixture_S: np.ndarray, name: str) -> np.ndarray:
    """The (N, S) sources of a mixture in which something is heard: the loudest first, silent ones left out.

    Raises:
        InputError: what the separator returned cannot be heard; the message begins with the mixture's name.
    """
    found_NS = np.asarray(separator.separate(mixture_S, SAMPLE_RATE_HZ))
    if found_NS.shape[1:] != mixture_S.shape:
        raise InputError(
            f"{name}: the separator returned {found_NS.shape}: expected sources as long as the mixture, (N,"
            f" {len(mixture_S)})"
        )
    if not np.isfinite(found_NS).all():
        raise InputError(f"{name}: the separator returned NaN or infinity; its weights are damaged, or of another kind")
    levels_db = levels_below(found_NS, mixture_S)
    order = [n for n in np.argsort(-levels_db, kind="stable") if levels_db[n] >= SILENT_DB]
    if not order:
        raise InputError(
            f"{name}: the separator returned silence: no source within {-SILENT_DB:g} dB of the mixture (or, with"
            f" mixture_consistency, all together not within {-LOST_DB:g} dB); take one that was trained on such sounds"
        )
    return found_NS[order].astype(np.float32)


def levels_below(sources_NS: np.ndarray, mixture_S: np.ndarray) -> np.ndarray:
    """The (N,) levels of sources relative to their mixture in dB, by energy; minus infinity for silence."""
    energy = np.square(mixture_S, dtype=np.float64).sum()
    assert energy > 0, "a mixture in which nothing is heard"
    with np.errstate(divide="ignore"):
        return 10 * np.log10(np.square(sources_NS, dtype=np.float64).sum(axis=1) / energy)


def fit_scales(sources_NS: np.ndarray, mixture_S: np.ndarray) -> np.ndarray:
    """Sources, each by the factor with which together they come closest to the mixture (least squares).

    A network whose loss does not see the scale of its output (SI-SDR) returns sources of any scale.
    """
    factors_N = np.linalg.lstsq(sources_NS.T.astype(np.float64), mixture_S.astype(np.float64), rcond=None)[0]
    return (sources_NS * factors_N[:, None]).astype(np.float32)


def make_consistent(sources_NS: np.ndarray, mixture_S: np.ndarray) -> np.ndarray:
    """Sources that add up to their mixture: what is missing is given in equal parts to those that are heard.

    Silent ones become silence, and so do all where next to nothing was found: else each would be the mixture again.
    Source: Wisdom et al., Differentiable consistency constraints (arXiv 1811.08521), as MixIT has it (2006.12701);
    there the silent ones get their part as well.
    """
    heard_N = levels_below(sources_NS, mixture_S) >= SILENT_DB
    together_S = sources_NS[heard_N].sum(axis=0)
    consistent_NS = np.zeros_like(sources_NS)
    if levels_below(together_S[None], mixture_S)[0] >= LOST_DB:
        consistent_NS[heard_N] = sources_NS[heard_N] + (mixture_S - together_S) / np.float32(heard_N.sum())
    return consistent_NS


class ConvTasNetConfig(Section):
    """`config.json` of a separator; where no more is said, the names and meanings are torchaudio's."""

    model_type: Literal["conv_tasnet"]
    sample_rate: Literal[16000]
    num_sources: int = Field(ge=2, le=64)
    enc_kernel_size: int = Field(ge=2, le=1024, multiple_of=2)
    enc_num_feats: int = Field(ge=1, le=8192)
    msk_num_feats: int = Field(ge=1, le=8192)
    msk_num_hidden_feats: int = Field(ge=1, le=8192)
    msk_num_layers: int = Field(ge=1, le=16)
    msk_num_stacks: int = Field(ge=1, le=16)
    msk_activate: Literal["sigmoid", "relu"]
    # half a filter of zeros before and after the sound, as torchaudio has it; asteroid's networks have none
    pad: bool = True
    # trained on a loss that does not see the scale of its output, as SI-SDR
    rescale: bool = False
    # the sources are to add up to the mixture; not for a network that leaves noise out
    mixture_consistency: bool = True


@dataclass(frozen=True, slots=True)
class ConvTasNetSeparator:
    """A ConvTasNet of torchaudio's, as a separator."""

    network: torch.nn.Module
    config: ConvTasNetConfig
    device: torch.device

    @torch.inference_mode()
    def separate(self, mixture_S: np.ndarray, rate_hz: int) -> np.ndarray:
        """As `Separator`."""
        if rate_hz != self.config.sample_rate:
            raise ValueError(f"expected a mixture at {self.config.sample_rate} Hz, found {rate_hz}")
        mixture_11S = torch.from_numpy(np.ascontiguousarray(mixture_S, np.float32)).to(self.device)[None, None]
        sources_NS = self.network(mixture_11S)[0].cpu().numpy()
        if not np.isfinite(sources_NS).all():
            return sources_NS  # `take_apart` says so
        if self.config.rescale:
            sources_NS = fit_scales(sources_NS, mixture_S)
        return make_consistent(sources_NS, mixture_S) if self.config.mixture_consistency else sources_NS


def check_separator(arguments: argparse.Namespace) -> None:
    """Refuse `--separate sources` without `--separator`, and the other way round."""
    if arguments.separate == "sources" and arguments.separator is None:
        raise InputError("--separate sources: expected a --separator, the folder of a network that takes sounds apart")
    if arguments.separate != "sources" and arguments.separator is not None:
        raise InputError("--separator: goes with --separate sources, which has each recording taken apart by it")


def find_separator(separator: str) -> FetchedModel:
    """Find the separator of `--separator`, a folder or a hub id, and check its files.

    Raises:
        InputError: there is none, its files are of no separator, or torchaudio is not installed.
    """
    require("torchaudio", extra="laion", what="--separate sources")
    try:
        return fetch_model(separator, None, SEPARATOR_FILES)
    except InputError as error:
        raise InputError(f"--separator: {error}") from error


def load_separator(fetched: FetchedModel, device: torch.device) -> ConvTasNetSeparator:
    """Load a separator that was found.

    Raises:
        InputError: its configuration is of no separator, or its weights are not those of its configuration.
    """
    file = fetched.path / "config.json"
    config = make_settings(read_json(file), ConvTasNetConfig, f"--separator: {file}", check_paths=False)
    network = _build(config)
    expected = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
    try:
        found, weights = read_shapes(fetched.path), load_file(fetched.path / WEIGHTS)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"--separator: {cannot_load(fetched, error)}") from error
    except InputError as error:
        raise InputError(f"--separator: {error}") from error
    if wrong := sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)):
        name = wrong[0]
        raise InputError(
            f"--separator: {fetched.path}: {len(wrong)} tensors are not those of its config.json, such as {name}:"
            f" expected {expected.get(name, 'none')}, found {found.get(name, 'none')}"
        )
    if not all(tensor.is_floating_point() for tensor in weights.values()):
        raise InputError(f"--separator: {fetched.path / WEIGHTS}: expected floats, found tensors of another kind")
    network.load_state_dict({name: tensor.to(torch.float32) for name, tensor in weights.items()}, assign=True)
    return ConvTasNetSeparator(place_network(network, device, fetched), config, device)


def _build(config: ConvTasNetConfig) -> torch.nn.Module:
    """The network without weights."""
    from torchaudio.models import ConvTasNet  # noqa: PLC0415 - the extra `laion`

    sizes = config.model_dump(
        include={name for name in ConvTasNetConfig.model_fields if name[:4] in ("num_", "enc_", "msk_")}
    )
    with torch.device("meta"):
        network = cast(Any, ConvTasNet(**sizes))
    if not config.pad:
        network.encoder.padding = network.decoder.padding = (0,)
    return network


def from_asteroid(
    arguments: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Weights and config.json of a ConvTasNet that asteroid published: its `state_dict` under its `model_args`.

    Asteroid trains on SI-SDR, and often to leave noise out, so that the sources are scaled and need not add up to the
    mixture. The network is the same to the rounding where a sound is a multiple of its stride, as five seconds are.

    Raises:
        ValueError: it is of a form that torchaudio's network has not; or lacks tensors.
    """
    given = {"fb_name": "free", "causal": False, "norm_type": "gLN", "conv_kernel_size": 3} | dict(arguments)
    filters, kernel, width = (given.get(name) for name in ("n_filters", "kernel_size", "bn_chan"))
    only: dict[str, tuple[Any, ...]] = {
        "fb_name": ("free", "FreeFB"),
        "causal": (False,),
        "norm_type": ("gLN",),
        "conv_kernel_size": (3,),
        "encoder_activation": (None, "linear"),
        "stride": (None, kernel // 2 if isinstance(kernel, int) else None),
        "skip_chan": (width,),
        "in_chan": (None, filters),
        "out_chan": (None, filters),
    }
    for name, known in only.items():
        if (found := given.get(name)) not in known:
            raise ValueError(f"{name}: expected {' or '.join(str(each) for each in known)}, found {str(found)[:80]}")
    sizes = {
        "num_sources": "n_src",
        "enc_kernel_size": "kernel_size",
        "enc_num_feats": "n_filters",
        "msk_num_feats": "bn_chan",
        "msk_num_hidden_feats": "hid_chan",
        "msk_num_layers": "n_blocks",
        "msk_num_stacks": "n_repeats",
        "msk_activate": "mask_act",
    }
    settings = {ours: given.get(theirs) for ours, theirs in sizes.items()}
    settings |= {"model_type": MODEL_TYPE, "sample_rate": int(given.get("sample_rate") or 0)}
    settings |= {"pad": False, "rescale": True, "mixture_consistency": False}
    network = _build(make_settings(settings, ConvTasNetConfig, "model_args", check_paths=False))
    named = {_name_of(name): tensor for name, tensor in tensors.items()}
    expected = {name: tensor.shape for name, tensor in network.state_dict().items()}
    for name, shape in expected.items():  # of the last block asteroid has an output to the next one, which is not there
        if name not in named or named[name].shape != shape:
            raise ValueError(f"no tensor for {name} of the shape {tuple(shape)}: not asteroid's ConvTasNet")
    return {name: named[name] for name in expected}, settings


def _name_of(name: str) -> str:
    for theirs, ours in ASTEROID_NAMES:
        name = re.sub(theirs, ours, name)
    return name
