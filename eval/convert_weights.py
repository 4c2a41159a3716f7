"""Published pickles of weights as safetensors, so that no pickle is read when pictures and sounds are judged or heard.

    python -m eval.convert_weights inception FILE --out inception.safetensors
    python -m eval.convert_weights wav2clip FILE --out wav2clip.safetensors
    python -m eval.convert_weights beats FILE --out beats
    python -m eval.convert_weights conv_tasnet FILE --out separator

The last two become folders, with their sizes beside their weights: a network that listens, for `features.beats`, and
one that takes sounds apart, for `--separator`.

A pickle can run code. It is read here, once, by torch's reader that makes nothing but tensors; what would need more is
refused, and so is another file than the published one, unless its hash is named by `--sha256`.
"""

from sonify.terminal import run_module

if __name__ == "__main__":  # first of all: what is imported below may not be installed
    raise SystemExit(run_module("eval.convert_weights", extra="eval"))

import argparse
import json
import os
import pickle
import re
import sys
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from eval.towers import inception, wav2clip
from eval.towers.weights import HALVES, Shapes, check_shapes
from sonify.errors import InputError, require
from sonify.features.beats import FIXED, MODEL_TYPE, WEIGHTS, Beats, own_tensors, read_sizes
from sonify.io.write import check_replaceable, replacing, sha256_of, write_whole
from sonify.terminal import Parser, argument_of, run_command
from train.separator import MODEL_TYPE as SEPARATOR_TYPE
from train.separator import from_asteroid

SUFFIX = ".safetensors"
CONFIG = "config.json"
MODEL_TYPES = {"beats": MODEL_TYPE, "conv_tasnet": SEPARATOR_TYPE}  # what CONFIG says of those that become folders
# What torch's reader says of a pickle that holds more than tensors.
CODE = re.compile(r"GLOBAL (\S+)|Trying to (?:call|instantiate)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A network that is published as a pickle: which file it is, and the hash of it, where that is known.

    `unpack` gives the tensors of what the file held, and with them the settings of a network that becomes a folder.
    """

    unpack: Callable[["Network", Path, Any], "Unpacked"]
    file: str
    sha256: str | None
    is_folder: bool = False


Unpacked = tuple[dict[str, Tensor], Mapping[str, Any]]


def _unpack_tower(
    name: str,
    shapes: Callable[[], Shapes],
    optional: Callable[[Shapes], Sequence[str]],
    ignored: tuple[str, ...] = (),
) -> Callable[[Network, Path, Any], Unpacked]:
    """What unpacks a network of known shapes."""

    def unpack(network: Network, file: Path, found: Any) -> Unpacked:
        named = _named_tensors(network, file, found)
        tensors = {name: tensor for name, tensor in named.items() if not name.startswith(ignored)}
        own = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        wanted = shapes()
        check_shapes(str(file), own, wanted, name, optional(wanted))
        return {name: _plain(file, name, tensor) for name, tensor in tensors.items()}, {}

    return unpack


def _unpack_beats(network: Network, file: Path, found: Any) -> Unpacked:
    """The weights of a BEATs without its predictor, and its sizes."""
    if not isinstance(found, dict) or not isinstance(found.get("cfg"), dict):
        raise InputError(f"{file}: expected a checkpoint with cfg and model, found another; expected {network.file}")
    named = _named_tensors(network, file, found.get("model"))
    _check_settings(network, file, "cfg", found["cfg"])
    try:
        sizes = read_sizes(found["cfg"])
        with torch.device("meta"):
            beats = Beats(sizes)
        tensors = own_tensors(beats, {name: _plain(file, name, tensor) for name, tensor in named.items()})
    except ValueError as error:
        raise InputError(f"{file}: {error}; expected {network.file}") from error
    return tensors, {"model_type": MODEL_TYPE, **FIXED, **asdict(sizes)}


def _unpack_conv_tasnet(network: Network, file: Path, found: Any) -> Unpacked:
    """The weights of a ConvTasNet of asteroid's under torchaudio's names, and the config.json of a separator."""
    if not isinstance(found, dict) or not isinstance(found.get("model_args"), dict):
        raise InputError(f"{file}: expected model_args and state_dict, found another; expected {network.file}")
    require("torchaudio", extra="laion")
    named = _named_tensors(network, file, found.get("state_dict"))
    _check_settings(network, file, "model_args", found["model_args"])
    plain = {name: _plain(file, name, tensor) for name, tensor in named.items()}
    try:
        return from_asteroid(found["model_args"], plain)
    except (InputError, ValueError, TypeError, OverflowError) as error:  # the last two of a sample rate that is none
        raise InputError(f"{file}: {error}; expected {network.file}") from error


NETWORKS = {
    "inception": Network(
        unpack=_unpack_tower(inception.NAME, inception.inception_shapes, inception.counters),
        file="weights-inception-2015-12-05-6726825d.pth of torch-fidelity's release v0.2.0",
        # Begins with the eight digits in its name, by which torch checks a download.
        sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    ),
    "wav2clip": Network(
        unpack=_unpack_tower(
            wav2clip.NAME,
            wav2clip.wav2clip_shapes,
            lambda _: wav2clip.unused(),
            ("image_transform.", "loss_fn_", wav2clip.HANN),
        ),
        file="Wav2CLIP.pt of lyrebird-wav2clip's release v0.1.0-alpha",
        sha256=None,
    ),
    "beats": Network(
        unpack=_unpack_beats,
        file="BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2.pt, or another checkpoint, of microsoft/unilm's beats",
        sha256=None,
        is_folder=True,
    ),
    "conv_tasnet": Network(
        unpack=_unpack_conv_tasnet,
        file="pytorch_model.bin of a ConvTasNet for 16 kHz that asteroid published",
        sha256=None,
        is_folder=True,
    ),
}


def convert(kind: str, file: Path, out: Path, expected: str | None = None) -> tuple[str, str]:
    """Write a published file of `NETWORKS` as safetensors; returns the sha256 of what was read, and of those weights.

    The same file always gives the same bytes.

    Raises:
        InputError: the file is not there, another than the published one or than was asked for, would run code, is
            damaged, or holds another network.
    """
    network = NETWORKS[kind]
    if network.is_folder:
        _check_folder(kind, out)
    if not network.is_folder and out.suffix != SUFFIX:
        raise InputError(f"--out {out}: expected a name that ends in {SUFFIX}")
    if not file.is_file():
        raise InputError(f"{file}: there is no such file; expected {network.file}")
    if is_safetensors(file):
        use = (
            "see `features.beats` and `--separator`"
            if network.is_folder
            else "name it as `weights` in the towers' configuration"
        )
        raise InputError(f"{file}: is of safetensors already; {use}")
    source = sha256_of(file)
    _check_source(network, file, source, expected)
    tensors, settings = network.unpack(network, file, _unpickle(file))
    # one entry only: several would be written in an order of their own each time
    data = save(tensors, metadata={"source_sha256": source})
    if network.is_folder:
        config = f"{json.dumps(settings, indent=2, sort_keys=True)}\n".encode()
        with replacing(Path(os.path.realpath(out))) as folder:  # a configuration without weights would pass for a model
            (folder / WEIGHTS).write_bytes(data)
            (folder / CONFIG).write_bytes(config)
    else:
        write_whole(out, data)
    return source, sha256(data).hexdigest()


def _check_folder(kind: str, out: Path) -> None:
    """Refuse to put a network where something else is than one of its kind."""
    if out.is_file():
        raise InputError(f"--out {out}: is a file; name the folder that gets {CONFIG} and {WEIGHTS}")
    check_replaceable(out, f"a {kind}", {CONFIG, WEIGHTS}, {})
    if not (out / CONFIG).exists():
        return
    try:
        found = json.loads((out / CONFIG).read_bytes())
    except (OSError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or found.get("model_type") != MODEL_TYPES[kind]:
        raise InputError(f"--out {out}: holds another model than a {kind}; choose another place")


def is_safetensors(file: Path) -> bool:
    """Whether a file begins as one of safetensors does: with a length, and JSON."""
    with file.open("rb") as stream:
        return stream.read(9)[8:] == b"{"


def _check_source(network: Network, file: Path, found: str, expected: str | None) -> None:
    if expected is not None and found != expected:
        raise InputError(f"{file}: expected sha256 {expected}, found {found}; fetch it again, or mend --sha256")
    if expected is None and network.sha256 not in (None, found):
        raise InputError(
            f"{file}: expected {network.file} (sha256 {network.sha256}), found {found}; fetch it again, or give"
            f" `--sha256 {found}` if you mean this file"
        )


def _unpickle(file: Path) -> Any:
    try:
        with warnings.catch_warnings(action="ignore"):  # of old protocols, and of what is refused below
            return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file) or None)
    except Exception as error:  # of a damaged file it raises whatever its code meets
        why, said = type(error).__name__, " ".join(str(error).split())
        if named := CODE.search(said):
            what = f" ({named[1][:100]})" if named[1] else ""
            raise InputError(f"{file}: holds more than tensors{what}, which could run code; it was not read") from error
        if not isinstance(error, pickle.UnpicklingError):  # that one would have the file read with all that it holds
            why += f": {said[:150]}"
        raise InputError(f"{file}: not a file of torch's, or damaged ({why}); fetch it again") from error


def _named_tensors(network: Network, file: Path, found: Any) -> dict[str, Tensor]:
    if not isinstance(found, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in found.items()
    ):
        raise InputError(f"{file}: expected tensors by name, found something else; expected {network.file}")
    return found


def _check_settings(network: Network, file: Path, what: str, settings: Mapping[Any, Any]) -> None:
    """Refuse tensors in the place of words and numbers, with which they cannot even be compared."""
    if wrong := next((name for name, value in settings.items() if isinstance(value, Tensor)), None):
        raise InputError(
            f"{file}: expected words and numbers in {what}, found a tensor as {str(wrong)[:80]}; expected"
            f" {network.file}"
        )


def _plain(file: Path, name: str, tensor: Tensor) -> Tensor:
    kinds = (*HALVES, torch.float32, torch.int64)
    if tensor.dtype not in kinds or tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        raise InputError(f"{file}: expected {name} as plain floats, found {tensor.dtype} ({tensor.layout})")
    size, stored = tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()
    if size > stored:  # a few numbers can be repeated to any size, and would be written out
        raise InputError(f"{file}: {name} is of {size:,} bytes, of which the file holds {stored:,}: it repeats itself")
    if not torch.isfinite(tensor).all():
        raise InputError(f"{file}: {name} holds NaN or infinity: it is damaged; fetch it again")
    # a copy: several names of one tensor, which a pickle may have, are two in the other format
    return tensor.to(torch.float32 if tensor.is_floating_point() else tensor.dtype, copy=True).contiguous()


def main(argv: Sequence[str] | None = None, prog: str = "python -m eval.convert_weights") -> int:
    """Run the command and return its exit code."""
    parser = Parser(prog=prog, description="Write published weights, which are pickles, as safetensors.")
    parser.add_argument("network", choices=sorted(NETWORKS), help="whose weights they are")
    parser.add_argument("file", type=Path, metavar="FILE", help="the published file")
    parser.add_argument("--out", type=Path, required=True, help=f"where to write: a name that ends in {SUFFIX}")
    parser.add_argument("--sha256", type=argument_of(_hexadecimal), help="of the file, where it is not the usual one")
    arguments = parser.parse_args(argv)
    return run_command("convert_weights", lambda: _run(arguments))


def _hexadecimal(text: str) -> str:
    if not re.fullmatch("[0-9a-f]{64}", text.lower()):
        raise ValueError("expected 64 hexadecimal digits")
    return text.lower()


def _run(arguments: argparse.Namespace) -> None:
    source, written = convert(arguments.network, arguments.file, arguments.out, arguments.sha256)
    unknown = arguments.sha256 is None and NETWORKS[arguments.network].sha256 is None
    note = "  (what it should be is published nowhere)" if unknown else ""
    sys.stdout.write(f"{source}  {arguments.file}{note}\n{written}  {arguments.out}\n")
