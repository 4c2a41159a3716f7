"""The configuration that a published dataset is rendered under: its own, but for what is the renderer's to choose."""

from collections.abc import Iterator, Mapping
from typing import Any

from sonify.config import Config, Section, make_config
from sonify.errors import InputError
from sonify.publish.rows import RECORD
from sonify.published.reading import PublishedFolder, RecordedConfig, open_published, read_recorded

# All that the bytes of a rendering depend on beside images and recordings; whole sections, and keys of others.
ADOPTED = ("seed", "audio.clip_seconds", "audio.sample_rate", "audio.validation", "images.validation")
ADOPTED += ("mix", "render", "retrieval")
# Of those, what a renderer may choose: the same sounds, with images of another size.
FREE = frozenset({"render.image"})
# Whoever draws again may do so by another encoder.
FREE_IN_REPAIR = frozenset({"retrieval.encoder"})
# Two names for archives that are read alike.
SAME_KIND = ({"webdataset", "sa1b"},)


def adopt_settings(config: Config) -> Config:
    """Return the configuration with everything that the published folder decides; one without `published` as it is.

    Raises:
        InputError: there is no published dataset, or a key that is set here says something else than it.
    """
    if config.published is None:
        return config
    folder = open_published(config.published.path)
    recorded = read_recorded(folder)
    where = f"{folder.place}/{RECORD}"
    _check_images(config, recorded, where)
    free = FREE | (FREE_IN_REPAIR if config.published.missing == "repair" else frozenset())
    raw = config.model_dump(mode="json")
    for key in ADOPTED:
        _adopt(config, raw, key, _find(recorded.config, key, where), free)
    raw["published"] |= {"scenes": list(recorded.scenes), "digest": folder.digest}
    _check_encoder(config, raw, where)
    return make_config(raw, where, check_paths=False)


def _check_images(config: Config, recorded: RecordedConfig, where: str) -> None:
    kind = _find(recorded.config, "images.kind", where)
    found = config.images.kind
    if not isinstance(kind, str):
        raise InputError(f"{where}: images.kind is no text: not the record of a published dataset")
    if kind != found and not any({kind, found} <= kinds for kinds in SAME_KIND):
        raise InputError(f"images.kind: the published images are of kind {kind!r}, found {found!r}: keys would differ")
    if config.images.sample is not None:
        raise InputError("images.sample: a published dataset says itself which images it has; leave it out")


def _adopt(config: Config, raw: dict[str, Any], key: str, published: Any, free: frozenset[str]) -> None:
    """Put the published value of a key in the place of the own one."""
    *sections, last = key.split(".")
    section: Any = config
    target = raw
    for name in sections:
        section, target = getattr(section, name), target[name]
    own = {}
    if last in section.model_fields_set:
        for changed, expected, found in _differences(getattr(section, last), published, key):
            if changed not in free:
                raise InputError(
                    f"{changed}: the published dataset was made with {expected!r}, found {found!r}: leave the key out"
                )
    if isinstance(published, Mapping):
        kept = (name for name in section_fields(section, last) if f"{key}.{name}" in free)
        own = {name: target[last][name] for name in kept}
        target[last] = {**published, **own}
    else:
        target[last] = published


def section_fields(section: Any, name: str) -> frozenset[str]:
    """The keys of a section that were set."""
    value = getattr(section, name)
    return frozenset(value.model_fields_set) if name in section.model_fields_set else frozenset()


def _differences(own: Any, published: Any, key: str) -> Iterator[tuple[str, Any, Any]]:
    """What is set here and differs, key by key."""
    if not isinstance(own, Section) or not isinstance(published, Mapping):
        found = own.model_dump(mode="json") if isinstance(own, Section) else list(own) if _is_list(own) else own
        if found != published:
            yield key, published, found
        return
    for name in sorted(own.model_fields_set):
        below = f"{key}.{name}"
        if below in FREE | FREE_IN_REPAIR:  # as a whole: its parts belong together
            value = getattr(own, name)
            found = value.model_dump(mode="json") if isinstance(value, Section) else value
            if found != published.get(name):
                yield below, published.get(name), found
        else:
            yield from _differences(getattr(own, name), published.get(name), below)


def _is_list(value: Any) -> bool:
    return isinstance(value, tuple)


def _find(published: Mapping[str, Any], key: str, where: str) -> Any:
    value: Any = published
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise InputError(f"{where}: {key} is missing: not the record of a published dataset")
        value = value[part]
    return value


def _check_encoder(config: Config, raw: Mapping[str, Any], where: str) -> None:
    """A stranger's record names no file that is opened here."""
    assert config.published is not None
    if config.published.missing != "repair" or "encoder" in section_fields(config, "retrieval"):
        return
    for value in _texts(raw["retrieval"]["encoder"]):
        if value.startswith(("/", ".", "~")) or "://" in value or value.endswith(".pt"):
            raise InputError(
                f"{where}: retrieval.encoder names the file {value[:100]!r}: set retrieval.encoder yourself"
            )


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, str):
        yield value


def published_folder(config: Config) -> PublishedFolder:
    """The folder that a run renders from, as it was when the run was configured.

    Raises:
        InputError: it is another one now.
    """
    assert config.published is not None
    folder = open_published(config.published.path)
    if folder.digest != config.published.digest:
        raise InputError(f"{folder.place}: changed while it was rendered from; start again")
    return folder
