"""The configuration that a published dataset is rendered under: its own, but for what is the renderer's to choose."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from sonify.config import Config, Images, make_config
from sonify.dataset.format import RECORD
from sonify.dataset.read import PublishedFolder, open_published, read_recorded
from sonify.errors import InputError

# All that the bytes of a rendering depend on beside images and recordings; whole sections, and keys of others.
ADOPTED = ("seed", "audio.clip_seconds", "audio.sample_rate", "audio.validation", "images.validation")
ADOPTED += ("mix", "render", "retrieval")
# Of those, what a renderer may choose, each as a whole: the same sounds, with images of another size.
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
    _check_images(config.images, _find(recorded.config, "images.kind", where), where)
    repairs = config.published.missing == "repair"
    free = FREE | (FREE_IN_REPAIR if repairs else frozenset())
    raw, chosen = (config.model_dump(mode="json", exclude_unset=unset) for unset in (False, True))
    for key in ADOPTED:
        *above, name = key.split(".")
        own, set_here = raw, chosen
        for section in above:
            own, set_here = own[section], set_here.get(section, {})
        own[name] = _adopt(key, own[name], set_here.get(name), _find(recorded.config, key, where), free)
    raw["published"] |= {"scenes": list(recorded.scenes), "digest": folder.digest}
    if repairs and "encoder" not in chosen.get("retrieval", {}):
        _check_encoder(_find(recorded.config, "retrieval.encoder", where), where)
    return make_config(raw, where, check_paths=False)


def _check_images(images: Images, kind: Any, where: str) -> None:
    found = images.kind
    if not isinstance(kind, str):
        raise InputError(f"{where}: images.kind is no text: not the record of a published dataset")
    if kind != found and not any({kind, found} <= kinds for kinds in SAME_KIND):
        raise InputError(f"images.kind: the published images are of kind {kind!r}, found {found!r}: keys would differ")
    if images.sample is not None:
        raise InputError("images.sample: a published dataset says itself which images it has; leave it out")


def _find(published: Mapping[str, Any], key: str, where: str) -> Any:
    value: Any = published
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise InputError(f"{where}: {key} is missing: not the record of a published dataset")
        value = value[part]
    return value


def _adopt(key: str, own: Any, set_here: Any, published: Any, free: Collection[str]) -> Any:
    """The published value of a key, with what of it is set here (None where nothing is) and may be chosen."""
    if set_here is None:
        return published
    for changed, found, expected in _differences(key, own, set_here, published):
        if changed not in free:
            raise InputError(
                f"{changed}: the published dataset was made with {expected!r}, found {found!r}: leave the key out"
            )
    if not isinstance(published, Mapping):
        return published
    return {**published, **{name: own[name] for name in set_here if f"{key}.{name}" in free}}


def _differences(key: str, own: Any, set_here: Any, published: Any) -> Iterator[tuple[str, Any, Any]]:
    """What is set here and differs, key by key."""
    if isinstance(set_here, dict) and isinstance(published, Mapping) and key not in FREE | FREE_IN_REPAIR:
        for name in sorted(set_here):
            yield from _differences(f"{key}.{name}", own[name], set_here[name], published.get(name))
    elif own != published:
        yield key, own, published


def _check_encoder(published: Any, where: str) -> None:
    """A stranger's record names no file that is opened here."""
    if isinstance(published, Mapping):
        for inner in published.values():
            _check_encoder(inner, where)
    elif isinstance(published, str) and (
        published.startswith(("/", ".", "~")) or "://" in published or published.endswith(".pt")
    ):
        raise InputError(
            f"{where}: retrieval.encoder names the file {published[:100]!r}: set retrieval.encoder yourself"
        )


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
