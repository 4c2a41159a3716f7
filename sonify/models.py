"""Gets the files of a model and says what exactly they are; a repository's own code is never run, nothing is unpickled.

A model is a folder or a hub id. A hub id is looked up in the hub's cache first, and where it is there no network is
used: a revision that is not pinned stays what it was when it was fetched, and workers load what the driver fetched.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sonify.errors import InputError
from sonify.installed import require
from sonify.model_folders import (
    check_ast,
    check_clap,
    check_config,
    check_processor,
    check_tokenizer,
    check_vae,
    check_vlm,
    check_weights,
    identify_folder,
)

TOKENIZER = ("*.json", "*.txt", "*.model", "*.jinja")
# Copies of the weights in another layout: `original/`, `onnx/`, Mistral's own.
COPIES = ("*/*", "consolidated*")

HUB_TIMEOUT_SEC = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """Which files of a model are fetched, and what must hold for them to be used."""

    patterns: tuple[str, ...]
    checks: tuple[Callable[[Path], None], ...]
    ignored: tuple[str, ...] = COPIES


VLM_FILES = Files(
    patterns=(*TOKENIZER, "*.safetensors"), checks=(check_vlm, check_weights, check_tokenizer, check_processor)
)
CLAP_FILES = Files(
    patterns=(*TOKENIZER, "*.safetensors"), checks=(check_clap, check_weights, check_tokenizer, check_processor)
)
TOKENIZER_FILES = Files(patterns=TOKENIZER, checks=(check_config, check_tokenizer))
AST_FILES = Files(patterns=("*.json", "*.safetensors"), checks=(check_ast, check_weights, check_processor))
VAE_FILES = Files(
    patterns=("config.json", "diffusion_pytorch_model*.safetensors", "diffusion_pytorch_model.safetensors.index.json"),
    checks=(check_vae, check_weights),
)
# For a serving engine, which knows what it needs and what it runs.
SERVER_FILES = Files(patterns=(*VLM_FILES.patterns, "*.py", "*.bin", "*.tiktoken"), checks=(check_config,))


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchedModel:
    """A checked folder; `identity` is the commit of a hub id, or what `identify_folder` gives for a folder."""

    model: str
    path: Path
    identity: str


def fetch_model(model: str, revision: str | None, files: Files) -> FetchedModel:
    """Find a model, or download it with progress, and check its files.

    Raises:
        InputError: it is neither here nor to be had, or its files cannot be used; the message says what to do.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise InputError(f"{model}: a folder has no revisions; set `revision: null` instead of {revision}")
        _check(folder, files)
        return FetchedModel(model=model, path=folder.resolve(), identity=identify_folder(folder))
    require("huggingface_hub")
    _check_hub_id(model)
    path = _find_or_download(model, revision, files)
    return FetchedModel(model=model, path=path, identity=path.name)


def _check_hub_id(model: str) -> None:
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


def _find_or_download(model: str, revision: str | None, files: Files) -> Path:
    from huggingface_hub import errors, snapshot_download  # noqa: PLC0415 - the extra `models`

    def snapshot(*, here: bool) -> Path:
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

    try:
        return snapshot(here=True)
    except errors.LocalEntryNotFoundError:
        wrong_here = None
    except InputError as error:  # perhaps only some of its files were fetched, by another program
        wrong_here = error
    try:
        _reach(model, revision)
        return snapshot(here=False)
    except InputError as error:
        raise wrong_here or error from None
    except (errors.HTTPError, OSError) as error:  # pyright: ignore[reportPrivateImportUsage] - httpx of either version
        at = f" --revision {revision}" if revision else ""
        raise wrong_here or InputError(
            f"{_named(model, revision)}: not in the hub's cache, and not to be downloaded from here"
            f" ({type(error).__name__}: {_first_line(error)}); run `hf download {model}{at}` where there is a network,"
            " and set HF_HOME to the folder that it fills"
        ) from error


def _reach(model: str, revision: str | None) -> None:
    """Ask the hub once for a model: the download of a pinned commit would try for half a minute to reach it."""
    from huggingface_hub import HfApi, errors  # noqa: PLC0415

    named = _named(model, revision)
    try:
        HfApi().model_info(model, revision=revision, timeout=HUB_TIMEOUT_SEC)
    except errors.RevisionNotFoundError as error:
        raise InputError(f"{named}: the hub has {model}, but no revision {revision}") from error
    except errors.RepositoryNotFoundError as error:  # the hub says the same of what is private or gated
        raise InputError(
            f"{named}: the hub has no such model, or wants a login: see its page, then `hf auth login` or HF_TOKEN"
        ) from error


def _named(model: str, revision: str | None) -> str:
    return f"{model}@{revision}" if revision else model


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
