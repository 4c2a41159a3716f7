"""Our own reading of a released model: checked in every part, and no file of it is executed.

A release holds `pipeline.py`, the code of its pipeline, for those who have not this package. Whoever has it runs the
code of the package: a stranger's release is data here.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from sonify.errors import InputError
from sonify.models.fetch import FetchedModel, Files, check_weights, fetch_model, named, read_json
from train.bundle import bundle
from train.checks import check_finite, check_layers, check_numbers, check_scaling, check_words, quiet_libraries
from train.kinds import KINDS, PIXART, Kind, SoundPipeline, is_there

# The names under which diffusers looks for a pipeline's code, and for what it consists of.
PIPELINE_CODE, INDEX = "pipeline.py", DiffusionPipeline.config_name
# What is read of a release.
READ = {".json", ".safetensors"}
OPTIONAL = ("audio_encoder", "feature_extractor")
MAX_INDEX_BYTES = 2**20


def find_release(model: str) -> FetchedModel:
    """A released model: a folder, or a hub id with or without its revision, such as `you/name@v1`, fetched if need be.

    What is both is the folder. Of the hub a release's data is fetched and none of its code, and what it is called is
    pinned to the commit that was found.

    Raises:
        InputError: it is neither here nor to be had, or is something else than a release.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return FetchedModel(model=str(folder.absolute()), path=folder.absolute(), identity="")
    name, at, revision = model.partition("@")
    if at and (Path(name).expanduser().is_dir() or not revision):
        what = "names no revision" if not revision else f"{name} is a folder, which has no revisions"
        raise InputError(f"{model}: {what}; expected a folder, or a hub id such as you/name or you/name@COMMIT")
    # what it is comes first: another pipeline's weights would be gigabytes
    index = fetch_model(name, revision or None, INDEX_FILES)
    fetched = fetch_model(name, index.identity, RELEASE_FILES)
    return FetchedModel(model=named(name, fetched.identity), path=fetched.path, identity=fetched.identity)


def check_index(folder: Path) -> None:
    """Refuse what is no release, by its `model_index.json`."""
    read_settings(folder)


def check_whole_release(folder: Path) -> None:
    """Refuse a release of which a part is missing or cut short, or says what would keep a machine busy for nothing."""
    settings = read_settings(folder)
    kind = KINDS[settings["_class_name"]]
    _check_links(folder, kind)
    for part, name in kind.parts.items():
        if part in OPTIONAL and not is_there(settings, part):
            continue
        if not (folder / part / name).is_file():
            raise InputError(f"{folder / part}: expected {name} in it, found none; fetch the model again")
        if part in kind.networks:
            check_weights(folder / part)
        if part == "tokenizer":
            read_json(folder / part / name)
            check_words(folder / part, folder / "text_encoder")  # its numbers are those of words
        else:
            check_numbers(folder / part / name)
    kind.check_networks(folder)
    for part, (key, layer) in kind.layers.items():
        if (path := folder / part / "config.json").is_file():
            check_layers(path, key, layer)


def _check_links(folder: Path, kind: Kind) -> None:
    """Refuse files that lie elsewhere: those of a snapshot in the hub's cache lie beside it, among its `blobs`."""
    for path in (folder, *(folder / part for part in kind.parts)):
        for file in sorted(path.glob("*")):
            if file.suffix in READ:
                _check_own(folder, file)


def _check_own(folder: Path, file: Path) -> None:
    whole = folder.resolve()
    homes = [whole, *([whole.parent.parent / "blobs"] if whole.parent.name == "snapshots" else [])]
    if not any(file.resolve().is_relative_to(home) for home in homes):
        raise InputError(f"{file}: is a link out of the release; take one that holds its own files")
    if not file.is_file():
        raise InputError(f"{file}: expected a file, found none that can be read to its end; take another release")


INDEX_FILES = Files(patterns=(INDEX,), checks=(check_index,))
RELEASE_FILES = Files(
    patterns=(
        INDEX,
        *(f"{part}/{name}" for kind in KINDS.values() for part, name in kind.parts.items()),
        "tokenizer/*.json",
        *(f"{part}/{weights}*.safetensors" for kind in KINDS.values() for part, weights in kind.networks.items()),
        *(
            f"{part}/{weights}.safetensors.index.json"
            for kind in KINDS.values()
            for part, weights in kind.networks.items()
        ),
    ),
    checks=(check_whole_release,),
    ignored=(),
)


def pipeline_source(kind: Kind = PIXART) -> bytes:
    """The code that a release holds as `PIPELINE_CODE`: that of its pipeline, with all of ours that it needs."""
    return bundle(kind.pipeline.__module__, kind.name)


def write_code(folder: Path) -> None:
    """Write the code beside the parts of a saved pipeline, and into the index where that of each part lies.

    diffusers finds `embedder/embedder.py` by the name of the file that the index has in the place of a library.
    """
    path = folder / INDEX
    index = json.loads(path.read_bytes())
    kind = KINDS[index["_class_name"]]
    (folder / PIPELINE_CODE).write_bytes(pipeline_source(kind))
    for part, (file, module, name) in kind.code.items():
        if is_there(index, part) and index[part][1] == name:
            (folder / part / f"{file}.py").write_bytes(bundle(module, name))
            index[part] = [file, name]
    path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def load_pipeline(folder: Path, device: torch.device, dtype: torch.dtype) -> SoundPipeline:
    """Load a released pipeline; `dtype` is that of the network which predicts the noise, the others stay float32.

    Raises:
        InputError: the folder holds another kind of model, or is damaged, or its parts do not belong together, or it
            does not fit on the GPU.
    """
    check_whole_release(folder)
    settings = read_settings(folder)
    kind = KINDS[settings["_class_name"]]
    quiet_libraries()
    parts = kind.load(folder, settings, device, dtype)
    _check_parts(folder, kind, parts, settings)
    try:
        pipeline: Any = kind.pipeline(**parts, **{key: settings[key] for key in kind.settings})
    except ValueError as error:  # of a prompt, which only its tokenizer can tell
        raise InputError(f"{folder / INDEX}: {error}; release the pipeline again") from error
    pipeline.set_progress_bar_config(disable=True)  # our commands have progress of their own
    return pipeline


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings and components of a released pipeline, without loading it.

    Raises:
        InputError: the folder holds another kind of model, or none, or a setting is none that a release has.
    """
    path = folder / INDEX
    if path.exists():
        _check_own(folder, path)
        if (size := path.stat().st_size) > MAX_INDEX_BYTES:
            raise InputError(f"{path}: expected {MAX_INDEX_BYTES} bytes at most, found {size}; take another release")
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(
            f"{folder}: not a released pipeline: no {path.name} in it; `python -m train.release` makes one"
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON; release the pipeline again") from error
    name = found.get("_class_name") if isinstance(found, dict) else None
    if not isinstance(name, str) or name not in KINDS:
        raise InputError(f"{folder}: expected a pipeline of kind {' or '.join(KINDS)}, found {name}")
    kind = KINDS[name]
    settings = {**kind.before, **found}
    for key, expected, holds in kind.read_index(settings):
        if not holds:
            raise InputError(
                f"{path}: expected a setting {key}, {expected}, found {settings.get(key)!r}; release the pipeline again"
            )
    return settings


def _check_parts(folder: Path, kind: Kind, parts: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Check loaded parts against the sampler of training and each other."""
    check_scaling(folder / "vae", parts["vae"])
    for part, what, expected, found in kind.expect(parts, settings):
        if found != expected:
            raise InputError(f"{folder / part}: expected {what} {expected}, found {found}; release the pipeline again")
    for part in kind.networks:
        check_finite(folder / part, parts[part])
