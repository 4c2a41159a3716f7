"""A published folder as somebody else's: what it lists and records, and the configuration that it is rendered under.

That is its own, but for what is the renderer's to choose.
"""

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from sonify import layout
from sonify.config import Config, Images, make_config, with_keys_of_before
from sonify.config.inputs import NAME
from sonify.dataset.format import (
    CHECKSUMS,
    CLIPS,
    CLIPS_FILE,
    DATA,
    DATA_FILE,
    FORMAT,
    RECORD,
    SHARDS,
    read_checksums,
)
from sonify.errors import InputError
from sonify.installed import spell
from sonify.io.places import is_below, read_inside
from sonify.rows import ActedRules, ActedSplit
from sonify.stores import Place

# Far above what a billion images need; a file that claims more is refused unread.
MAX_LIST_BYTES = 256 << 20
MAX_RECORD_BYTES = 64 << 20
MOST_SCENES = 1000
# All that the bytes of a rendering depend on beside images and recordings; whole sections, and keys of others.
ADOPTED = ("seed", "audio.clip_seconds", "audio.sample_rate", "audio.validation", "images.validation")
ADOPTED += ("audio.min_tail_sec", "audio.remove_dc", "audio.downmix", "mix", "render", "retrieval")
# Of those, what a renderer may choose, each as a whole: the same sounds, with images of another size.
FREE = frozenset({"render.image"})
# Whoever draws again may do so by another encoder, which has a limit of its own, and have another listen.
FREE_IN_REPAIR = frozenset({"retrieval.encoder", "retrieval.hears", "retrieval.limit"})
FREE_IN_REPAIR |= {"retrieval.confirm", "retrieval.purity"}
# Where a pool is searched is of the machine, and never adopted.
OF_MACHINE = "retrieval.search"
# What only says which clips may be drawn. Files and servers that it needs are not published.
DRAWING = ("limit", "confirm", "purity")
# Two names for archives that are read alike.
SAME_KIND = ({"webdataset", "sa1b"},)
# What a renderer says nothing of: what is adopted, and which images and units there are, which the tables list.
DECIDED = frozenset({*ADOPTED, "images.sample", "images.exclude", "images.shard_size"})


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedFolder:
    """A folder that names its files: the sha256 of each that is read, and of the list itself.

    `data` are the files of pairs of each unit, `clips` the file of clips of each unit of the pool.
    """

    place: Place
    files: Mapping[str, str]
    digest: str
    data: Mapping[str, Sequence[str]]
    clips: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Declaration:
    """What `sonify.json` declares that counts for rendering: the scenes, and the configuration as plain values.

    `models` and `prompts` tell by whom concepts were found; what is no text in them is left out. `acted` are the rules
    as they acted, and None in folders of before.
    """

    scenes: tuple[str, ...]
    config: Mapping[str, Any]
    models: Mapping[str, str]
    prompts: Mapping[str, str]
    acted: ActedRules | None


def open_published(place: Place) -> PublishedFolder:
    """Read the list of a published folder's files.

    Raises:
        InputError: it is no such folder, or names files that no publication has.
    """
    where = f"{place}/{CHECKSUMS}"
    data = _read(place, CHECKSUMS, MAX_LIST_BYTES)
    try:
        listed = read_checksums(data)
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error
    wrong = next((name for name in listed if not is_below(name) or (_is_in_tables(name) and not _is_table(name))), None)
    if wrong is not None:
        raise InputError(f"{where}: {wrong[:200]!r} is no name that `sonify publish` gives")
    files = {name: sha256 for name, sha256 in listed.items() if name in (RECORD, SHARDS) or _is_table(name)}
    pairs: dict[str, list[str]] = {}
    for match in filter(None, map(DATA_FILE.fullmatch, sorted(files))):
        pairs.setdefault(match[2], []).append(match[0])
    clips = {match[1]: match[0] for match in filter(None, map(CLIPS_FILE.fullmatch, sorted(files)))}
    parts = {RECORD: RECORD in files, SHARDS: SHARDS in files, f"{DATA}/*.parquet": pairs, f"{CLIPS}/*.parquet": clips}
    if missing := next((name for name, found in parts.items() if not found), None):
        raise InputError(f"{where}: names no {missing}: not the whole of what `sonify publish` writes")
    return PublishedFolder(place=place, files=files, digest=hashlib.sha256(data).hexdigest(), data=pairs, clips=clips)


def _is_in_tables(name: str) -> bool:
    return name.startswith((f"{DATA}/", f"{CLIPS}/"))


def _is_table(name: str) -> bool:
    return bool(DATA_FILE.fullmatch(name) or CLIPS_FILE.fullmatch(name))


def _read(place: Place, name: str, limit: int) -> bytes:
    try:
        data = read_inside(place, name, 0, limit + 1)
    except OSError as error:
        raise InputError(
            f"{place}: not a published dataset: {name}: {error.strerror or error};"
            f" `{spell('publish', 'RUN', '--out', 'DIR')}` makes one"
        ) from error
    if len(data) > limit:
        raise InputError(f"{place}/{name}: more than {limit} bytes")
    return data


def read_declaration(folder: PublishedFolder) -> Declaration:
    """Read `sonify.json`, whose sha256 must be the listed one.

    Raises:
        InputError: it is another file, or none of this format.
    """
    where = f"{folder.place}/{RECORD}"
    data = _read(folder.place, RECORD, MAX_RECORD_BYTES)
    if hashlib.sha256(data).hexdigest() != folder.files[RECORD]:
        raise InputError(f"{where}: another sha256 than {CHECKSUMS} says: get the folder again")
    try:
        record = json.loads(data)
        version, scenes, config = record["format"], record["scenes"], record["config"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{where}: not the record of a published dataset") from error
    if type(version) is not int or version != FORMAT:  # JSON's true equals 1
        raise InputError(f"{where}: format {version!r}, and this sonify reads {FORMAT}: use the sonify that it is of")
    if not _are_scenes(scenes) or not isinstance(config, dict) or "concepts" not in config:
        raise InputError(f"{where}: not the record of a published dataset")
    models, prompts = (_texts(record.get(name)) for name in ("models", "prompts"))
    acted = _read_acted(record.get("acted"), where)
    return Declaration(scenes=tuple(scenes), config=config, models=models, prompts=prompts, acted=acted)


def _read_acted(found: Any, where: str) -> ActedRules | None:
    """What the record says of the rules as they acted; whatever else stands there is left.

    Raises:
        InputError: it is something else.
    """
    if found in (None, {}):
        return None
    try:
        version, kinds = (_count(found[name]) for name in ("version", "kinds"))
        splits = tuple(_read_split(one) for one in found["splits"])
        if len({one.split for one in splits}) < len(splits):
            raise ValueError("a split twice")
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{where}: acted says no rules of a draw: not the record of a published dataset") from error
    return ActedRules(version=version, kinds=kinds, splits=splits)


def _read_split(found: Any) -> ActedSplit:
    if found["split"] not in layout.SPLITS:
        raise ValueError("a split that is none")
    counts = {one.name: _count(found[one.name]) for one in fields(ActedSplit) if one.name != "split"}
    return ActedSplit(split=found["split"], **counts)


def _count(found: Any) -> int:
    if type(found) is not int or found < 0:  # JSON's true is an int here
        raise ValueError("no count")
    return found


def acted_json(acted: ActedRules | None) -> dict[str, Any]:
    """The rules as a record has them; empty where nobody recorded them."""
    return asdict(acted) if acted else {}


def _are_scenes(value: Any) -> bool:
    if not isinstance(value, list) or not 0 < len(value) <= MOST_SCENES or len(set(map(str, value))) < len(value):
        return False
    return all(isinstance(name, str) and len(name) <= 100 and re.fullmatch(NAME, name) for name in value)


def _texts(found: Any) -> dict[str, str]:
    pairs = found.items() if isinstance(found, dict) else ()
    return {name: text for name, text in pairs if isinstance(text, str)}


def published_folder(config: Config) -> PublishedFolder:
    """The folder that a run renders from, as it was when the run was configured."""
    assert config.published is not None
    folder = open_published(config.published.path)
    if folder.digest != config.published.digest:
        raise InputError(f"{folder.place}: changed while it was rendered from; start again")
    return folder


def adopt_settings(config: Config) -> Config:
    """Return the configuration with everything that the published folder decides; one without `published` as it is.

    Raises:
        InputError: there is no published dataset, or a key that is set here says something else than it.
    """
    if config.published is None:
        return config
    folder = open_published(config.published.path)
    recorded = read_declaration(folder)
    made_by = with_keys_of_before(recorded.config)
    where = f"{folder.place}/{RECORD}"
    _check_images(config.images, _find(recorded.config, "images.kind", where), where)
    repairs = config.published.missing == "repair"
    free = FREE | {OF_MACHINE} | (FREE_IN_REPAIR if repairs else frozenset())
    raw, chosen = (config.model_dump(mode="json", exclude_unset=unset) for unset in (False, True))
    search = raw["retrieval"]["search"]
    retrieval, set_in_retrieval = _find(made_by, "retrieval", where), chosen.get("retrieval", {})
    if not isinstance(retrieval, dict):
        raise InputError(f"{where}: retrieval is no section: not the record of a published dataset")
    if repairs:
        _check_drawing(retrieval, set_in_retrieval, where)
    else:
        made_by["retrieval"] = _without_drawing(retrieval, set_in_retrieval)
    for key in ADOPTED:
        *above, name = key.split(".")
        own, set_here = raw, chosen
        for section in above:
            own, set_here = own[section], set_here.get(section, {})
        own[name] = _adopt(key, own[name], set_here.get(name), _find(made_by, key, where), free)
    raw["retrieval"] = {**raw["retrieval"], "search": search}
    raw["published"] |= {"scenes": list(recorded.scenes), "digest": folder.digest}
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
    if (
        isinstance(set_here, dict)
        and isinstance(published, Mapping)
        and key not in FREE | FREE_IN_REPAIR | {OF_MACHINE}
    ):
        for name in sorted(set_here):
            yield from _differences(f"{key}.{name}", own[name], set_here[name], published.get(name))
    elif own != published:
        yield key, own, published


def _without_drawing(published: dict[str, Any], set_here: Mapping[str, Any]) -> dict[str, Any]:
    """A published `retrieval` where nothing is drawn: nobody listens, and a limit needs its calibration.

    Raises:
        InputError: something is set here that would act on a draw.
    """
    idle = [name for name in DRAWING if name != "limit" or _lacks_calibration(published.get(name))]
    if named := next((name for name in idle if set_here.get(name) is not None), None):
        raise InputError(
            f"retrieval.{named}: it acts on what is drawn, and a published dataset is drawn from only with"
            " published.missing: repair: leave the key out"
        )
    return published | dict.fromkeys(idle)


def _check_drawing(published: Mapping[str, Any], set_here: Mapping[str, Any], where: str) -> None:
    """Whoever draws again must name what the record cannot hold; nothing else acts in its place, unsaid.

    Raises:
        InputError: something is to be named, or the record names a file.
    """
    if "encoder" not in set_here:
        _check_model(_find({"retrieval": published}, "retrieval.encoder", where), "encoder", where)
    lacking: list[str] = []
    if "limit" not in set_here and _lacks_calibration(published.get("limit")):
        lacking.append("retrieval.limit, with the calibration that clips were drawn under, or null")
    if "confirm" not in set_here and isinstance(confirm := published.get("confirm"), Mapping):
        model = str(confirm.get("model"))
        if confirm.get("kind") == "endpoint":
            lacking.append(f"retrieval.confirm, with the url of a server that has {model[:100]!r}, or null")
        elif model.endswith(".tflite") or "/" not in model:  # of a file or a folder the name alone is published
            lacking.append(f"retrieval.confirm, with where {model[:100]!r} lies, or null")
        else:
            _check_model(confirm, "confirm", where)
    heard_by = set_here["confirm"] if "confirm" in set_here else published.get("confirm")
    if heard_by is None and "purity" not in set_here and published.get("purity") is not None:
        lacking.append("retrieval.purity, as null, since nobody listens")
    if lacking:
        raise InputError(
            f"{where}: clips are drawn again, and the folder does not say by what: set {'; '.join(lacking)}"
        )


def _lacks_calibration(limit: Any) -> bool:
    """Whether a published limit was read from a file: its key is left out, and null where what ships acted."""
    return isinstance(limit, Mapping) and limit.get("calibration", "") is not None


def _check_model(published: Any, key: str, where: str) -> None:
    """A stranger's record names no file that is opened here."""
    if isinstance(published, Mapping):
        for inner in published.values():
            _check_model(inner, key, where)
    elif isinstance(published, str) and (
        published.startswith(("/", ".", "~")) or "://" in published or published.endswith(".pt")
    ):
        raise InputError(f"{where}: retrieval.{key} names the file {published[:100]!r}: set retrieval.{key} yourself")
