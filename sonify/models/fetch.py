"""Gets the files of a model and says what exactly they are; a repository's own code is never run, nothing is unpickled.

A model is a folder or a hub id. A hub id is looked up in the hub's cache first, and where it is there no network is
used: a revision that is not pinned stays what it was when it was fetched, and workers load what the driver fetched.
"""

import hashlib
import json
import re
import shlex
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sonify.errors import InputError, require

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo

HUB_TIMEOUT_SEC = 10

WEIGHTS = ("model.safetensors", "diffusion_pytorch_model.safetensors")  # as transformers and diffusers name them
INDEXES = tuple(f"{name}.index.json" for name in WEIGHTS)
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
VAES = ("AutoencoderKL", "AutoencoderTiny")
PROCESSORS = ("processor_config.json", "preprocessor_config.json")
# The library's own limit on a safetensors header.
MAX_HEADER_BYTES = 100_000_000
SAMPLE_BYTES = 4096
COMMIT = re.compile("[0-9a-f]{40}")
ATTENTION = "attn_implementation"
SETTINGS = {".json", ".jinja", ".txt", ".model"}
# What is fetched beside the weights, and copies of them in another layout (`original/`, `onnx/`, Mistral's own).
TOKENIZER = ("*.json", "*.txt", "*.model", "*.jinja")
COPIES = ("*/*", "consolidated*")

FolderCheck = Callable[[Path], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """Which files of a model are fetched, and what must hold for them to be used; `parts` are folders that it is of."""

    patterns: tuple[str, ...]
    checks: tuple[FolderCheck, ...]
    ignored: tuple[str, ...] = COPIES
    parts: tuple[str, ...] = ()


def check_config(folder: Path) -> None:
    """Refuse a folder without a `config.json` that names a model's type."""
    _named_in_config(folder, "model_type")


def check_type(expected: str, example: str) -> FolderCheck:
    """The check that refuses all but one type of transformers' models."""

    def check(folder: Path) -> None:
        found = _named_in_config(folder, "model_type")
        if found != expected:
            raise InputError(f"{folder}: expected a model of type '{expected}', such as {example}, found '{found}'")

    return check


def check_vae(folder: Path) -> None:
    """Refuse what is not one of the autoencoders that are read."""
    found = diffusers_class(folder)
    if found not in VAES:
        raise InputError(
            f"{folder}: expected one of diffusers' {' or '.join(VAES)}, such as stabilityai/sd-vae-ft-ema, found"
            f" '{found}'"
        )


def diffusers_class(folder: Path) -> str:
    """The class that a folder of diffusers' names, whatever it is."""
    return _named_in_config(folder, "_class_name")


def check_vlm(folder: Path) -> None:
    """Refuse what transformers cannot load by itself as a model that answers about images."""
    require("torch", "transformers")
    from transformers.models.auto.modeling_auto import (  # noqa: PLC0415 - imports torch
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as KNOWN,
    )

    found = _named_in_config(folder, "model_type")
    if found in KNOWN:
        return
    if "auto_map" in read_json(folder / "config.json"):
        raise InputError(
            f"{folder}: a model of type '{found}' is loaded by code from its repository, which is never run here;"
            " serve it by an engine that knows it, with `backend: server`"
        )
    raise InputError(
        f"{folder}: expected a model that answers about images (llava, llava_next, qwen2_vl, smolvlm and"
        f" {len(KNOWN) - 4} more types), found '{found}'"
    )


def check_audio_classifier(folder: Path) -> None:
    """Refuse what transformers cannot load by itself as a model that classifies sounds."""
    require("torch", "transformers")
    from transformers.models.auto.modeling_auto import (  # noqa: PLC0415 - imports torch
        MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES as KNOWN,
    )

    found = _named_in_config(folder, "model_type")
    if found not in KNOWN:
        raise InputError(
            f"{folder}: expected a model that classifies sounds (audio-spectrogram-transformer, wav2vec2 and"
            f" {len(KNOWN) - 2} more types), found '{found}'"
        )


def check_weights(folder: Path) -> None:
    """Refuse weights that are missing, cut short, or pickled."""
    files = weight_files(folder)
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if not files and pickles:
        raise InputError(
            f"{folder}: has its weights only as {pickles[0]}, which is a pickle and never read; convert them to"
            " safetensors (many hub models have them so in the revision refs/pr/1)"
        )
    if not files:
        raise InputError(f"{folder}: expected weights in {' or '.join(WEIGHTS)} or their index, found neither")
    for index in INDEXES:  # where there is a whole file as well, a library may still follow the index
        if (folder / index).is_file():
            _shards_of(folder / index)
    for file in files:
        if not file.is_file():
            raise InputError(f"{folder}: its index names {file.name}, which is missing; fetch the model again")
        _read_header(file)


def read_shapes(folder: Path) -> dict[str, list[int]]:
    """The names and shapes of the tensors in a folder's weights, by the headers of their files."""
    shapes: dict[str, list[int]] = {}
    for file in weight_files(folder):
        for name, tensor in _read_header(file).items():
            if name == "__metadata__":
                continue
            match tensor.get("shape"):
                case [*sizes] if all(type(size) is int and size >= 0 for size in sizes):
                    shapes[name] = sizes
                case found:
                    raise InputError(f"{file}: expected a shape of {name}, found {found}; fetch the model again")
    return shapes


def check_attention(folder: Path) -> None:
    """Refuse settings that would have transformers fetch code for the attention from a repository, and run it."""
    if named := next(_attention_of(read_json(folder / "config.json")), None):
        raise InputError(
            f"{folder / 'config.json'}: its attention is code of the repository {named}, which is never run here; take"
            " that setting out of the file, or another model"
        )


def _attention_of(settings: object, key: str = "") -> Iterator[str]:
    """The repositories that settings of the attention name, in those of the parts as well."""
    if isinstance(settings, dict):
        for name, value in settings.items():
            yield from _attention_of(value, key if ATTENTION in key else name)
    elif isinstance(settings, str) and ATTENTION in key and "/" in settings:
        yield settings


def check_tokenizer(folder: Path) -> None:
    """Refuse a folder without a tokenizer."""
    _require_one(folder, "a tokenizer", TOKENIZERS)


def check_processor(folder: Path) -> None:
    """Refuse a folder that does not say how images or sounds are prepared."""
    _require_one(folder, "a processor", PROCESSORS)


VLM_FILES = Files(
    patterns=(*TOKENIZER, "*.safetensors"), checks=(check_vlm, check_weights, check_tokenizer, check_processor)
)
CLAP_FILES = Files(
    patterns=(*TOKENIZER, "*.safetensors"),
    checks=(check_type("clap", "laion/clap-htsat-unfused"), check_weights, check_tokenizer, check_processor),
)
TOKENIZER_FILES = Files(patterns=TOKENIZER, checks=(check_config, check_tokenizer))
AST_FILES = Files(
    patterns=("*.json", "*.safetensors"),
    checks=(
        check_type("audio-spectrogram-transformer", "MIT/ast-finetuned-audioset-10-10-0.4593"),
        check_weights,
        check_processor,
    ),
)
BEATS_FILES = Files(
    patterns=("config.json", "model.safetensors"),
    checks=(check_type("beats", "one that `python -m eval.convert_weights beats` writes"), check_weights),
)
AUDIO_CLASSIFIER_FILES = Files(
    patterns=AST_FILES.patterns, checks=(check_audio_classifier, check_weights, check_processor)
)
VAE_FILES = Files(
    patterns=("config.json", "diffusion_pytorch_model*.safetensors", "diffusion_pytorch_model.safetensors.index.json"),
    checks=(check_vae, check_weights),
)
# What listens for features, by its key there.
EAR_FILES = {"ast": AST_FILES, "beats": BEATS_FILES}
# For a serving engine, which knows what it needs and what it runs.
SERVER_FILES = Files(patterns=(*VLM_FILES.patterns, "*.py", "*.bin", "*.tiktoken"), checks=(check_config,))


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchedModel:
    """A checked folder; `identity` is the commit of a hub id, or a digest of a folder's files."""

    model: str
    path: Path
    identity: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HubModel:
    """What the hub has of a model: of the files that are fetched, how much in all and how much is not here yet."""

    commit: str
    size_bytes: int
    missing_bytes: int
    is_gated: bool


class HubAway(InputError):
    """A model is not here, and the hub cannot be asked for it; `reason` is what became of the question."""

    def __init__(self, spelt: str, reason: str, todo: str) -> None:
        super().__init__(
            f"{spelt}: no folder here, not in the hub's cache, and not to be downloaded from here ({reason}); {todo}"
        )
        self.reason = reason


def fetch_model(model: str, revision: str | None, files: Files) -> FetchedModel:
    """Find a model, or download it with progress, and check its files.

    Raises:
        InputError: it is neither here nor to be had, or its files cannot be used; the message says what to do.
    """
    if (own := _find_folder(model, revision, files)) is not None:
        return own
    _check_hub_id(model)
    path = _find_or_download(model, revision, files)
    return FetchedModel(model=model, path=path, identity=path.name)


def find_model(model: str, revision: str | None, files: Files) -> FetchedModel | None:
    """Find a model without a network; None where `fetch_model` would download it.

    Raises:
        InputError: it is neither a folder nor a hub id, or files that are here cannot be used.
    """
    if (own := _find_folder(model, revision, files)) is not None:
        return own
    _check_hub_id(model)
    from huggingface_hub import errors  # noqa: PLC0415 - the extra `models`

    try:
        path = _snapshot(model, revision, files, here=True)
    except errors.LocalEntryNotFoundError:
        return None
    return FetchedModel(model=model, path=path, identity=path.name)


def ask_hub(model: str, revision: str | None, files: Files) -> HubModel:
    """Ask the hub what `fetch_model` would download; nothing is.

    Raises:
        HubAway: it cannot be reached.
        InputError: it has no such model or revision, or wants a login.
    """
    _check_hub_id(model)
    from huggingface_hub import errors, try_to_load_from_cache  # noqa: PLC0415 - the extra `models`

    try:
        info = _reach(model, revision, sizes=True)
    except (errors.HTTPError, OSError) as error:  # pyright: ignore[reportPrivateImportUsage] - as below
        raise _away(model, revision, files, error) from error
    with _of_use(named(model, revision)):
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
        taken = _taken(sizes, files)
        here = {name for name in taken if isinstance(try_to_load_from_cache(model, name, revision=info.sha), str)}
        return HubModel(
            commit=info.sha or "",
            size_bytes=sum(sizes[name] for name in taken),
            missing_bytes=sum(sizes[name] for name in taken if name not in here),
            is_gated=bool(info.gated),
        )


def size_of_model(folder: Path, files: Files) -> int:
    """How many bytes of a folder are the files that are fetched."""
    require("huggingface_hub")
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    return sum(sizes[name] for name in _taken(sizes, files))


def _taken(names: Iterable[str], files: Files) -> list[str]:
    """The files of a repository that are fetched."""
    from huggingface_hub.utils import filter_repo_objects  # noqa: PLC0415 - the extra `models`

    return list(filter_repo_objects(names, allow_patterns=list(files.patterns), ignore_patterns=list(files.ignored)))


def is_let_in(model: str) -> bool:
    """Ask the hub whether it would give a model to this machine's login, or to nobody's."""
    from huggingface_hub import HfApi, errors  # noqa: PLC0415 - the extra `models`

    try:
        HfApi().auth_check(model)
    except (errors.HTTPError, OSError):  # pyright: ignore[reportPrivateImportUsage] - as below
        return False
    return True


def how_to_download(model: str, revision: str | None, files: Files) -> str:
    """The command that brings what is used of a model to a machine without a network."""
    words = ["hf", "download", model, *(["--revision", revision] if revision else [])]
    words += [word for pattern in files.patterns for word in ("--include", pattern)]
    words += [word for pattern in files.ignored for word in ("--exclude", pattern)]
    return f"run `{shlex.join(words)}` where there is a network, and set HF_HOME to the folder that it fills"


def _find_folder(model: str, revision: str | None, files: Files) -> FetchedModel | None:
    """A model that is a folder, checked; None where it is none."""
    folder = Path(model).expanduser()
    if not folder.is_dir():
        return None
    if revision is not None:
        raise InputError(f"{model}: a folder has no revisions; set `revision: null` instead of {revision}")
    _check(folder, files)
    return FetchedModel(model=model, path=folder.resolve(), identity=_identify(folder, files))


def _check_hub_id(model: str) -> None:
    require("huggingface_hub")
    from huggingface_hub.utils import HFValidationError, validate_repo_id  # noqa: PLC0415 - the extra `models`

    try:
        validate_repo_id(model)
    except HFValidationError as error:
        raise InputError(
            f"{model}: there is no such folder, and it is not a hub id such as llava-hf/llava-1.5-7b-hf"
        ) from error


def _check(folder: Path, files: Files) -> None:
    for check in files.checks:
        check(folder)


def _snapshot(model: str, revision: str | None, files: Files, *, here: bool) -> Path:
    """The checked snapshot in the hub's cache, `here` without asking the hub."""
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - the extra `models`

    path = Path(
        snapshot_download(
            model,
            revision=revision,
            allow_patterns=list(files.patterns),
            ignore_patterns=list(files.ignored),
            local_files_only=here,
        )
    )
    _check(path, files)
    return path


def _find_or_download(model: str, revision: str | None, files: Files) -> Path:
    from huggingface_hub import errors  # noqa: PLC0415 - the extra `models`

    try:
        return _snapshot(model, revision, files, here=True)
    except errors.LocalEntryNotFoundError:
        wrong_here = None
    except InputError as error:  # perhaps only some of its files were fetched, by another program
        wrong_here = error
    try:
        _reach(model, revision)
        with _of_use(named(model, revision)):
            return _snapshot(model, revision, files, here=False)
    except InputError as error:
        raise wrong_here or error from None
    except (errors.HTTPError, OSError) as error:  # pyright: ignore[reportPrivateImportUsage] - httpx of either version
        raise wrong_here or _away(model, revision, files, error) from error


def _away(model: str, revision: str | None, files: Files, error: Exception) -> HubAway:
    reason = f"{type(error).__name__}: {_first_line(error)}"
    return HubAway(named(model, revision), reason, how_to_download(model, revision, files))


def _reach(model: str, revision: str | None, *, sizes: bool = False) -> "ModelInfo":
    """Ask the hub once for a model: the download of a pinned commit would try for half a minute to reach it."""
    from huggingface_hub import HfApi, errors  # noqa: PLC0415

    spelt = named(model, revision)
    try:
        with _of_use(spelt):
            info = HfApi().model_info(model, revision=revision, timeout=HUB_TIMEOUT_SEC, files_metadata=sizes)
            if not COMMIT.fullmatch(info.sha or ""):  # it becomes the name of a folder
                raise ValueError(f"expected a commit of 40 hexadecimal digits, found {info.sha!r}")
            return info
    except errors.RevisionNotFoundError as error:
        raise InputError(f"{spelt}: the hub has {model}, but no revision {revision}") from error
    except errors.RepositoryNotFoundError as error:  # the hub says the same of what is private or gated
        raise InputError(
            f"{spelt}: the hub has no such model, or wants a login: see its page, then `hf auth login` or HF_TOKEN"
        ) from error


@contextmanager
def _of_use(spelt: str) -> Iterator[None]:
    """Say in one line that an answer of the hub is none: the library raises whatever its code meets in it."""
    try:
        yield
    except (AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
        why = f"{type(error).__name__}: {_first_line(error)}"[:300]
        raise InputError(
            f"{spelt}: what the hub answers is of no use ({why}); try again, or see what HF_ENDPOINT leads to"
        ) from error


def named(model: str, revision: str | None) -> str:
    """What a model is recorded under: as the configuration names it, so that two revisions of one are told apart."""
    return f"{model}@{revision}" if revision else model


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _identify(folder: Path, files: Files) -> str:
    """A digest of a folder, or of the parts that it consists of."""
    if not files.parts:
        return _identify_folder(folder)
    listing = "".join(f"{part} {_identify_folder(folder / part)}\n" for part in files.parts)
    return f"sha256:{hashlib.sha256(listing.encode()).hexdigest()}"


def _identify_folder(folder: Path) -> str:
    """Hash the settings, and of the weights the names, shapes and both ends of every tensor.

    A hash of all bytes would cost as much as loading the model. This one changes whenever a tensor is trained,
    converted or replaced; it does not see a single number that is edited in the middle of a tensor.
    """
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.iterdir() if path.suffix in SETTINGS and path.is_file()):
        data = file.read_bytes()
        digest.update(f"{file.name} {len(data)}\n".encode() + data)
    for file in weight_files(folder):
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


def weight_files(folder: Path) -> list[Path]:
    """The files that the library would load: one, those that an index names, or none."""
    if whole := _first_of(folder, WEIGHTS):
        return [whole]
    index = _first_of(folder, INDEXES)
    if index is None:
        return []
    return [folder / name for name in _shards_of(index)]


def _shards_of(index: Path) -> list[str]:
    """The files beside an index that it names."""
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise InputError(f"{index}: expected a `weight_map` of tensors to files; fetch the model again")
    for name in shards.values():
        if name in {"", ".."} or name != Path(name).name or "\0" in name:
            raise InputError(
                f"{index}: expected the names of files beside it, found {name[:100]!r}; fetch the model again"
            )
    return sorted(set(shards.values()))


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


def _named_in_config(folder: Path, key: str) -> str:
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"{folder}: no config.json, so it is not the folder of a model")
    found = read_json(path).get(key)
    if not isinstance(found, str):
        raise InputError(f"{path}: expected a `{key}`, found none")
    return found


def read_json(path: Path) -> dict:
    """A JSON object.

    Raises:
        InputError: the file cannot be read, or holds something else.
    """
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
