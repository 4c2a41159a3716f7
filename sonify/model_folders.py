"""What a model's folder must hold to be loaded, and what tells one model's files from another's."""

import hashlib
import json
import struct
from collections.abc import Iterator
from pathlib import Path

from sonify.errors import InputError
from sonify.installed import require

WEIGHTS = ("model.safetensors", "diffusion_pytorch_model.safetensors")  # as transformers and diffusers name them
INDEXES = tuple(f"{name}.index.json" for name in WEIGHTS)
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
VAES = ("AutoencoderKL", "AutoencoderTiny")
PROCESSORS = ("processor_config.json", "preprocessor_config.json")
# The library's own limit on a safetensors header.
MAX_HEADER_BYTES = 100_000_000
SAMPLE_BYTES = 4096
SETTINGS = {".json", ".jinja", ".txt", ".model"}


def check_config(folder: Path) -> None:
    """Refuse a folder without a `config.json` that names a model's type.

    Raises:
        InputError: there is none, or it is not readable.
    """
    _model_type(folder)


def check_clap(folder: Path) -> None:
    """Refuse what is not a CLAP.

    Raises:
        InputError: it is another kind of model.
    """
    found = _model_type(folder)
    if found != "clap":
        raise InputError(
            f"{folder}: expected a model of type 'clap', such as laion/clap-htsat-unfused, found '{found}'"
        )


def check_ast(folder: Path) -> None:
    """Refuse what is not an Audio Spectrogram Transformer.

    Raises:
        InputError: it is another kind of model.
    """
    found = _model_type(folder)
    if found != "audio-spectrogram-transformer":
        raise InputError(
            f"{folder}: expected a model of type 'audio-spectrogram-transformer', such as"
            f" MIT/ast-finetuned-audioset-10-10-0.4593, found '{found}'"
        )


def check_vae(folder: Path) -> None:
    """Refuse what is not one of the autoencoders that are read.

    Raises:
        InputError: it is another kind of model.
    """
    found = diffusers_class(folder)
    if found not in VAES:
        raise InputError(
            f"{folder}: expected one of diffusers' {' or '.join(VAES)}, such as stabilityai/sd-vae-ft-ema, found"
            f" '{found}'"
        )


def diffusers_class(folder: Path) -> str:
    """The class that a folder of diffusers' names, whatever it is.

    Raises:
        InputError: it names none.
    """
    return _named_in_config(folder, "_class_name")


def check_vlm(folder: Path) -> None:
    """Refuse what transformers cannot load by itself as a model that answers about images.

    Raises:
        InputError: it is another kind of model, or needs the code that comes with it.
    """
    require("torch", "transformers")
    from transformers.models.auto.modeling_auto import (  # noqa: PLC0415 - imports torch
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as KNOWN,
    )

    found = _model_type(folder)
    if found in KNOWN:
        return
    if "auto_map" in _read_json(folder / "config.json"):
        raise InputError(
            f"{folder}: a model of type '{found}' is loaded by code from its repository, which is never run here;"
            " serve it by an engine that knows it, with `backend: server`"
        )
    raise InputError(
        f"{folder}: expected a model that answers about images (llava, llava_next, qwen2_vl, smolvlm and"
        f" {len(KNOWN) - 4} more types), found '{found}'"
    )


def check_weights(folder: Path) -> None:
    """Refuse weights that are missing, cut short, or pickled.

    Raises:
        InputError: what is wrong with which file.
    """
    for file in _weight_files(folder):
        if not file.is_file():
            raise InputError(f"{folder}: its index names {file.name}, which is missing; fetch the model again")
        _read_header(file)


def check_tokenizer(folder: Path) -> None:
    """Refuse a folder without a tokenizer.

    Raises:
        InputError: there is none.
    """
    _require_one(folder, "a tokenizer", TOKENIZERS)


def check_processor(folder: Path) -> None:
    """Refuse a folder that does not say how images or sounds are prepared.

    Raises:
        InputError: it does not.
    """
    _require_one(folder, "a processor", PROCESSORS)


def identify_folder(folder: Path) -> str:
    """Hash the settings, and of the weights the names, shapes and both ends of every tensor.

    A hash of all bytes would cost as much as loading the model. This one changes whenever a tensor is trained,
    converted or replaced; it does not see a single number that is edited in the middle of a tensor.
    """
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.iterdir() if path.suffix in SETTINGS and path.is_file()):
        data = file.read_bytes()
        digest.update(f"{file.name} {len(data)}\n".encode() + data)
    for file in _weight_files(folder) if _has_weights(folder) else ():
        digest.update(f"{file.name} {file.stat().st_size}\n".encode())
        for sample in _sample_tensors(file):
            digest.update(sample)
    return f"sha256:{digest.hexdigest()}"


def _sample_tensors(file: Path) -> Iterator[bytes]:
    header = _read_header(file)
    with file.open("rb") as stream:
        data_start = 8 + struct.unpack("<Q", stream.read(8))[0]
        stream.seek(0)
        yield stream.read(data_start)
        for start, end in sorted(tensor["data_offsets"] for name, tensor in header.items() if name != "__metadata__"):
            for at in (start, max(start, end - SAMPLE_BYTES)):
                stream.seek(data_start + at)
                yield stream.read(min(SAMPLE_BYTES, end - at))


def _weight_files(folder: Path) -> list[Path]:
    """The files that the library would load: one, or those that an index names."""
    if whole := _first_of(folder, WEIGHTS):
        return [whole]
    index = _first_of(folder, INDEXES)
    if index is None:
        if pickles := sorted(path.name for pattern in PICKLES for path in folder.glob(pattern)):
            raise InputError(
                f"{folder}: has its weights only as {pickles[0]}, which is a pickle and never read; convert them to"
                " safetensors (many hub models have them so in the revision refs/pr/1)"
            )
        raise InputError(f"{folder}: expected weights in {' or '.join(WEIGHTS)} or their index, found neither")
    shards = _read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise InputError(f"{index}: expected a `weight_map` of tensors to files; fetch the model again")
    return [folder / Path(name).name for name in sorted(set(shards.values()))]


def _has_weights(folder: Path) -> bool:
    return _first_of(folder, (*WEIGHTS, *INDEXES)) is not None


def _first_of(folder: Path, names: tuple[str, ...]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _read_header(file: Path) -> dict:
    """The header of a safetensors file, whose tensors must fill the file to its end."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else MAX_HEADER_BYTES + 1
        text = stream.read(length) if length <= min(size - 8, MAX_HEADER_BYTES) else b""
    try:
        header = json.loads(text)
        tensors = [tensor["data_offsets"] for name, tensor in header.items() if name != "__metadata__"]
        end = max((_end_of(offsets) for offsets in tensors), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{file}: not a safetensors file, or cut short; fetch it again") from error
    if size != 8 + length + end:
        raise InputError(f"{file}: expected {8 + length + end} bytes, found {size}; it is cut short: fetch it again")
    return header


def _end_of(offsets: object) -> int:
    """The last of a tensor's two offsets, which are whole numbers in order."""
    match offsets:
        case [int(start), int(end)] if 0 <= start <= end:
            return end
    raise ValueError(offsets)


def _model_type(folder: Path) -> str:
    return _named_in_config(folder, "model_type")


def _named_in_config(folder: Path, key: str) -> str:
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"{folder}: no config.json, so it is not the folder of a model")
    found = _read_json(path).get(key)
    if not isinstance(found, str):
        raise InputError(f"{path}: expected a `{key}`, found none")
    return found


def _read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError, OSError) as error:  # not UTF-8 is a ValueError as well
        raise InputError(f"{path}: not JSON ({error}); fetch the model again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def _require_one(folder: Path, what: str, names: tuple[str, ...]) -> None:
    if not any((folder / name).is_file() for name in names):
        raise InputError(f"{folder}: has no file of {what}: expected one of {', '.join(names)}")
