"""The models that a configuration names: are they here or to be had, and does each do what it is for?

Nothing is downloaded unless that is asked for: what is not here is named with its size, and is not tried.
"""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sonify.config import (
    CaptionsExtractor,
    ClapEncoder,
    Config,
    Confirm,
    EndpointVlm,
    Features,
    Tagger,
    TransformersVlm,
    VlmExtractor,
)
from sonify.doctor.apart import Apart, Attempt, Look, tried
from sonify.doctor.findings import Finding, Outcome
from sonify.doctor.specimens import Picture, choose_picture
from sonify.doctor.trials import try_checker, try_clap, try_ear, try_listener, try_vae, try_vlm
from sonify.errors import InputError
from sonify.io.places import size_of
from sonify.io.write import sha256_of
from sonify.models.fetch import (
    AUDIO_CLASSIFIER_FILES,
    CLAP_FILES,
    EAR_FILES,
    SERVER_FILES,
    TOKENIZER_FILES,
    VAE_FILES,
    VLM_FILES,
    Files,
    HubAway,
    ask_hub,
    fetch_model,
    find_model,
    how_to_download,
    is_let_in,
    named,
    size_of_model,
)
from sonify.retrieval.encoders import ClapSettings, clap_of
from sonify.stages.listen import fetch_listener
from sonify.stores import Place
from sonify.vlm.backends import fetch_vlm

SIX = "clap, 6 x 6"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Something that a run has models for.

    `looks` find out whether they are here; then `trial` is done with `about` and `arguments`.
    """

    name: str
    looks: tuple[Look, ...]
    trial: Attempt
    about: str
    arguments: tuple[Any, ...]


def examine_models(config: Config, *, fetch: bool = False) -> Iterator[Finding]:
    """Look for each model, then try each that is here, one after the other.

    Args:
        config: of a run.
        fetch: download first what is not here.
    """
    parts = tuple(_parts_of(config, fetch))
    ready: set[str] = set()
    for part in parts:
        found = [tried(part.name, look) for look in part.looks]
        yield from found
        if all(finding.outcome is Outcome.OK for finding in found):
            ready.add(part.about)
    with closing(Apart()) as apart:
        for part in parts:
            if part.about in ready:
                yield apart(part.trial, part.about, *part.arguments)
            else:
                why = f"{part.name} is not here, or cannot be used as it is"
                yield Finding(about=part.about, outcome=Outcome.NOT_TRIED, found=why)
    if clap_of(config.retrieval.encoder) is None:
        why = "retrieval.encoder is `text`, which compares words and hears nothing"
        yield Finding(about=SIX, outcome=Outcome.NOT_TRIED, found=why)


def _parts_of(config: Config, fetch: bool) -> Iterator[Part]:
    asked = [extractor for extractor in config.concepts.extractors if not isinstance(extractor, CaptionsExtractor)]
    checker = config.concepts.checker
    picture = choose_picture(config.images) if asked or checker or config.features else None
    for extractor in asked:
        arguments = (extractor, config.concepts.max_concepts, picture)
        yield _of_vlm(extractor, fetch, try_vlm, f"{extractor.name}, one image", arguments)
    if checker is not None:
        yield _of_vlm(checker, fetch, try_checker, f"{checker.name}, one check", (checker, picture))
    yield from _of_retrieval(config, fetch)
    if config.features is not None and picture is not None:
        yield from _of_features(config.features, config, fetch, picture)


def _of_vlm(vlm: VlmExtractor, fetch: bool, trial: Attempt, about: str, arguments: tuple[Any, ...]) -> Part:
    if isinstance(vlm, EndpointVlm):
        look = partial(_look_at_server, vlm.name, vlm.url, partial(fetch_vlm, vlm))
    else:
        files = VLM_FILES if isinstance(vlm, TransformersVlm) else SERVER_FILES
        look = partial(look_for, vlm.name, vlm.model, vlm.revision, files, fetch)
    return Part(name=vlm.name, looks=(look,), trial=trial, about=about, arguments=arguments)


def _of_retrieval(config: Config, fetch: bool) -> Iterator[Part]:
    arguments = (config.retrieval, config.audio)
    clap = clap_of(config.retrieval.encoder)
    if clap is not None:
        yield Part(name="clap", looks=_looks_at_clap(clap, fetch), trial=try_clap, about=SIX, arguments=arguments)
    confirm = config.retrieval.confirm
    if confirm is not None:
        name = "tagger" if isinstance(confirm, Tagger) else "listener"
        looks = _looks_at_listener(name, confirm, fetch)
        yield Part(name=name, looks=looks, trial=try_listener, about=f"{name}, six sounds", arguments=arguments)


def _looks_at_clap(clap: ClapSettings, fetch: bool) -> tuple[Look, ...]:
    if isinstance(clap, ClapEncoder):
        return (partial(look_for, "clap", clap.model, clap.revision, CLAP_FILES, fetch),)
    return (
        partial(_look_at_file, "clap", clap.checkpoint, "retrieval.encoder.checkpoint"),
        partial(look_for, "roberta", clap.roberta, clap.roberta_revision, TOKENIZER_FILES, fetch),
    )


def _looks_at_listener(name: str, confirm: Confirm, fetch: bool) -> tuple[Look, ...]:
    if not isinstance(confirm, Tagger):
        return (partial(_look_at_server, name, confirm.url, partial(fetch_listener, confirm)),)
    if confirm.is_tflite:
        return (partial(_look_at_file, name, Path(confirm.model), "retrieval.confirm.model"),)
    return (partial(look_for, name, confirm.model, confirm.revision, AUDIO_CLASSIFIER_FILES, fetch),)


def _of_features(features: Features, config: Config, fetch: bool, picture: Picture) -> Iterator[Part]:
    vae = partial(look_for, "vae", features.vae, features.vae_revision, VAE_FILES, fetch)
    yield Part(name="vae", looks=(vae,), trial=try_vae, about="vae, one image", arguments=(features, picture))
    kind, model, revision = features.ear
    ear = partial(look_for, kind, model, revision, EAR_FILES[kind], fetch)
    yield Part(name=kind, looks=(ear,), trial=try_ear, about=f"{kind}, one sound", arguments=(features, config.audio))


# --- is it here?


def look_for(about: str, model: str, revision: str | None, files: Files, fetch: bool) -> Finding:
    """Whether a folder or a hub's model is here and whole, and else what it would take to bring it."""
    try:
        found = (fetch_model if fetch else find_model)(model, revision, files)
    except HubAway:
        found = None
    except InputError as error:
        if not _lacks_files(model, revision, files):
            facts = {"model": named(model, revision)}
            return Finding(about=about, outcome=Outcome.FAULT, found=str(error), facts=facts)
        found = None  # in part; the rest would be fetched
    if found is None:
        return _to_fetch(about, model, revision, files)
    name, size = named(model, revision), size_of_model(found.path, files)
    facts = {"model": name, "identity": found.identity, "here": True, "size_bytes": size}
    said = f"{name} is here: {_gb(size)}, {found.identity[:19]}"
    return Finding(about=about, outcome=Outcome.OK, found=said, facts=facts)


def _lacks_files(model: str, revision: str | None, files: Files) -> bool:
    """Whether of a hub's model some files are not here, as the hub says."""
    if Path(model).expanduser().is_dir():
        return False
    try:
        return ask_hub(model, revision, files).missing_bytes > 0
    except InputError:
        return False


def _to_fetch(about: str, model: str, revision: str | None, files: Files) -> Finding:
    name = named(model, revision)
    facts: dict[str, Any] = {"model": name, "here": False}
    try:
        hub = ask_hub(model, revision, files)
    except HubAway as error:
        found = f"{name} is not here; size not known: the hub was not reached ({error.reason})"
        todo = how_to_download(model, revision, files)
        return Finding(about=about, outcome=Outcome.FAULT, found=found, todo=todo, facts=facts)
    except InputError as error:
        return Finding(about=about, outcome=Outcome.FAULT, found=str(error), facts=facts)
    facts |= {"identity": hub.commit, "size_bytes": hub.size_bytes, "missing_bytes": hub.missing_bytes}
    facts["is_gated"] = hub.is_gated
    found = f"{name} is not here: {_gb(hub.missing_bytes)} to be fetched"
    if hub.is_gated and not is_let_in(model):
        found = f"{found}, for which a token is needed"
        todo = f"accept its terms at https://huggingface.co/{model}, then `hf auth login` or HF_TOKEN"
        return Finding(about=about, outcome=Outcome.FAULT, found=found, todo=todo, facts=facts)
    token = "with the token that is here" if hub.is_gated else "no token is needed"
    todo = "a run fetches it before its first unit; --fetch fetches it now, and tries it"
    return Finding(about=about, outcome=Outcome.NOTE, found=f"{found}, {token}", todo=todo, facts=facts)


def _look_at_server(about: str, url: str, check: Callable[[], object]) -> Finding:
    check()
    return Finding(about=about, outcome=Outcome.OK, found=f"{url} answers and has the model", facts={"url": url})


def _look_at_file(about: str, place: Place, key: str) -> Finding:
    size = size_of(place)
    if size is None:
        found, todo = f"{place} is not there", f"fetch it from its page (docs/models.md), and set {key}"
        return Finding(about=about, outcome=Outcome.FAULT, found=found, todo=todo)
    facts = {"model": str(place), "identity": f"sha256:{sha256_of(place)}", "here": True, "size_bytes": size}
    return Finding(about=about, outcome=Outcome.OK, found=f"{place} is here: {_gb(size)}", facts=facts)


def _gb(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.2f} GB" if size_bytes >= 1e7 else f"{size_bytes / 1e6:.2f} MB"
