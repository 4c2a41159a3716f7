"""CLAP in its original library: checkpoints (`.pt`) that transformers' converter has not seen.

Of laion_clap 1.1.5 only the network is used. Importing the library itself would parse our command line, its `load_ckpt`
refuses the released checkpoints unless all of pickle is let in, and both it and the network ask the hub for
`roberta-base` by that name; here the tokenizer and the shape come from the configuration, and the checkpoint holds the
weights. Front end: the network's own, or for fusion the log-mel spectrogram of transformers' CLAP, which is the same.
"""

import json
import pickle
import re
import sys
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from zipfile import is_zipfile

import numpy as np
import torch
from torch.nn import functional
from transformers import ClapFeatureExtractor, RobertaConfig, RobertaModel, RobertaTokenizer

from sonify.config import LaionClapEncoder
from sonify.errors import InputError, missing
from sonify.installed import how_to_install
from sonify.io.places import open_local
from sonify.retrieval.logmel import ClapLogMel
from sonify.stores import Place

# Not `clap_module`, the name under which laion_clap itself would look for it: this one is ours to prepare.
PACKAGE = "sonify_laion_clap"
# Older transformers saved what newer ones compute.
COMPUTED_KEYS = frozenset({"text_branch.embeddings.position_ids"})
# What the released checkpoints hold beside tensors, and what builds nothing but a number: scores as numpy numbers,
# whose constructor has another name in numpy 1.
_NUMBER = np.float64(0).__reduce__()[0]
NUMBERS: list[Any] = [(_NUMBER, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
NUMBERS += [np.dtype, *(type(np.dtype(name)) for name in ("float64", "float32", "int64"))]
ROBERTA_WIDTH = 768  # of the projection that the library puts behind its text tower


class LaionTowers:
    """The original network, in which `fusion` takes a spectrogram and the others the samples."""

    def __init__(self, network: Any, tokenizer: RobertaTokenizer, fusion: bool) -> None:
        self.dimension = int(network.joint_embed_shape)
        self.tokenizer = tokenizer
        self._network = network.eval()
        device = next(network.parameters()).device
        extractor = ClapFeatureExtractor(frequency_min=50, frequency_max=14_000, truncation="fusion")
        self._log_mel = ClapLogMel(extractor).to(device) if fusion else None

    def embed_audio(self, waveforms_bt: torch.Tensor) -> torch.Tensor:
        """As `Towers`; no clip is longer than the window, and so nothing is fused."""
        if self._log_mel is None:
            inputs = {"waveform": waveforms_bt}
        else:
            longer = torch.zeros(len(waveforms_bt), 1, dtype=torch.bool, device=waveforms_bt.device)
            inputs = {"mel_fusion": self._log_mel(waveforms_bt), "longer": longer}
        encoded = self._network.encode_audio(inputs, device=waveforms_bt.device)
        return functional.normalize(self._network.audio_projection(encoded["embedding"]), dim=-1)

    def embed_text(self, tokens: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """As `Towers`."""
        encoded = self._network.encode_text(tokens, device=tokens["input_ids"].device)
        return functional.normalize(encoded, dim=-1)


def load_laion_towers(settings: LaionClapEncoder, roberta: Path, device: torch.device) -> LaionTowers:
    """Build the network and fill it from the checkpoint; `roberta` holds RoBERTa's configuration and tokenizer.

    Raises:
        InputError: the library is not installed, or the checkpoint is not one of this network.
    """
    weights = _read_checkpoint(settings.checkpoint)
    network = _build_network(settings, roberta)
    _fill_network(network, weights, settings)
    tokenizer = RobertaTokenizer.from_pretrained(roberta, local_files_only=True)
    return LaionTowers(network.to(device), tokenizer, settings.fusion)


def _read_checkpoint(place: Place) -> Mapping[str, torch.Tensor]:
    where = f"retrieval.encoder.checkpoint: {place}"
    try:
        with torch.serialization.safe_globals(NUMBERS), open_local(place) as file:
            if not is_zipfile(file):
                raise InputError(f"{where}: not a checkpoint, or not all of it: expected a file that torch.save wrote")
            file.seek(0)
            stored = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"{where}: cannot be read: {error.strerror or error}") from error
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        what = f"names {named.group(1)}" if named else "damaged"
        raise InputError(f"{where}: holds more than tensors and numbers, and is not read ({what})") from error
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{where}: damaged ({str(error).splitlines()[0][:100]})") from error
    weights = stored.get("state_dict", stored) if isinstance(stored, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise InputError(f"{where}: expected laion_clap's named tensors, found {type(stored).__name__}")
    named = {key.removeprefix("module."): value for key, value in weights.items()}
    return {key: value for key, value in named.items() if key not in COMPUTED_KEYS}


def _build_network(settings: LaionClapEncoder, roberta: Path) -> Any:
    library: Any = _import_network()
    shape = json.loads((Path(library.__file__).parent / f"model_configs/{settings.audio_model}.json").read_text())
    text = RobertaConfig.from_pretrained(roberta, local_files_only=True)
    if text.hidden_size != ROBERTA_WIDTH:
        raise InputError(
            f"retrieval.encoder.roberta: {settings.roberta}: expected RoBERTa of width {ROBERTA_WIDTH}, as"
            f" laion_clap's projection is, found {text.hidden_size}"
        )
    library.RobertaModel = SimpleNamespace(from_pretrained=lambda _name: RobertaModel(text))
    shape["text_cfg"]["model_type"] = "roberta"
    return library.CLAP(**shape, enable_fusion=settings.fusion, fusion_type="aff_2d" if settings.fusion else "None")


def _import_network() -> ModuleType:
    """The module that holds laion_clap's network, with nothing of the library around it."""
    spec = find_spec("laion_clap")
    if spec is None or not spec.submodule_search_locations:
        raise missing("laion_clap", "laion", "retrieval.encoder")
    package = ModuleType(PACKAGE)
    package.__path__ = [str(Path(spec.submodule_search_locations[0]) / "clap_module")]
    sys.modules.setdefault(PACKAGE, package)
    try:
        return import_module(f"{PACKAGE}.model")
    except ImportError as error:
        raise InputError(
            f"retrieval.encoder: laion_clap does not import ({error}): run {how_to_install('laion')}"
        ) from error


def _fill_network(network: torch.nn.Module, weights: Mapping[str, torch.Tensor], settings: LaionClapEncoder) -> None:
    expected = {key: value.shape for key, value in network.state_dict().items() if key not in COMPUTED_KEYS}
    found = {key: value.shape for key, value in weights.items()}
    if found == expected:
        network.load_state_dict(weights, strict=not COMPUTED_KEYS & network.state_dict().keys())
        return
    where = f"retrieval.encoder.checkpoint: {settings.checkpoint}"
    fused = any(".fusion_model." in key for key in found)
    if fused != settings.fusion:
        raise InputError(
            f"{where}: a checkpoint {'with' if fused else 'without'} fusion: set `fusion` to {str(fused).lower()}"
        )
    differing = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
    key = differing[0]
    raise InputError(
        f"{where}: not of {settings.audio_model} with {settings.roberta}: {len(differing)} tensors differ, such as"
        f" {key}: expected {_shape(expected.get(key))}, found {_shape(found.get(key))}; see `audio_model` and `roberta`"
    )


def _shape(shape: torch.Size | None) -> str:
    return "none" if shape is None else str(tuple(shape))
