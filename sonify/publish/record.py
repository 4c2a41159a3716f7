"""How a run was made, without the places and the secrets of the machine that it was made on."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path, PurePath
from typing import Any

from upath import UPath

from sonify.config import Config, LaionClapEncoder, Section, Vlm
from sonify.engine.record import RunRecord
from sonify.errors import InputError
from sonify.io.places import read_whole
from sonify.publish.rows import FORMAT, RECORD, PublishedRecord, Statistics
from sonify.published.reading import open_published, read_recorded
from sonify.stores import Place
from sonify.vlm.checking import check_question
from sonify.vlm.prompts import concepts_prompt

# Where and how hard somebody works; nothing that is published depends on it.
_PRIVATE = frozenset({"engine", "published", "url", "api_key_env", "environment", "command"})


def make_record(config: Config, run: RunRecord, statistics: Statistics) -> PublishedRecord:
    """Describe what is published."""
    plain, models, prompts = _without_places(config), _models(run.models), _prompts(config)
    if config.published:  # concepts were found by whoever published first
        origin = _read_origin(config.published.path)
        plain["concepts"] = origin["config"]["concepts"]
        plain["images"].pop("shard_size", None)  # units are those of the dataset
        models, prompts = {**_texts(origin["models"]), **models}, _texts(origin["prompts"])
    return PublishedRecord(
        format=FORMAT,
        scenes=config.scenes,
        config=plain,
        versions=dict(sorted(run.versions.items())),
        models=models,
        prompts=prompts,
        rendered_from=config.published.digest if config.published else "",
        statistics=statistics,
    )


def _read_origin(place: Place) -> Mapping[str, Any]:
    """The record of the dataset that a run renders.

    Raises:
        InputError: it is gone, or another.
    """
    read_recorded(open_published(place))
    origin = json.loads(read_whole(place / RECORD))
    if not {"models", "prompts"} <= origin.keys() or "concepts" not in origin["config"]:
        raise InputError(f"{place}/{RECORD}: not the record of a published dataset")
    return origin


def _texts(found: Any) -> dict[str, str]:
    """What a stranger's record maps, as far as it is text."""
    pairs = found.items() if isinstance(found, dict) else ()
    return {name: text for name, text in pairs if isinstance(text, str)}


def record_json(record: PublishedRecord) -> bytes:
    """The record as it is written; counts stay in their order, which says what is most frequent."""
    return (json.dumps(asdict(record), ensure_ascii=False, allow_nan=False, indent=1) + "\n").encode()


def _without_places(value: Any) -> Any:
    """A section as plain values: paths are left out, and of a model that is a folder or a file its name stays."""
    if isinstance(value, Section):
        names = [name for name in type(value).model_fields if name not in _PRIVATE]
        kept = {name: getattr(value, name) for name in names if not isinstance(getattr(value, name), Path | UPath)}
        if isinstance(value, LaionClapEncoder):
            kept["checkpoint"] = value.checkpoint.name
        return {name: _without_places(inner) for name, inner in kept.items()}
    if isinstance(value, list | tuple):
        return [_without_places(inner) for inner in value]
    if isinstance(value, Mapping):
        return {name: _without_places(inner) for name, inner in value.items()}
    return _model_name(value) if isinstance(value, str) else value


def _model_name(text: str) -> str:
    """Hub ids stay as they are; the configuration makes the paths of folders absolute."""
    return PurePath(text).name if text.startswith("/") else text


def _models(models: Mapping[str, str]) -> dict[str, str]:
    """What each model is, by its name; two folders of one name are told apart by what they hold."""
    named: dict[str, str] = {}
    for model, identity in sorted(models.items()):
        name = _model_name(model)
        named[f"{name} ({identity[:12]})" if name in named else name] = identity
    return dict(sorted(named.items()))


def _prompts(config: Config) -> dict[str, str]:
    asked = [extractor for extractor in config.concepts.extractors if isinstance(extractor, Vlm)]
    prompts = {extractor.name: concepts_prompt(config.concepts.max_concepts) for extractor in asked}
    if config.concepts.check:
        # an image's own concepts and foils stand in the place of the dots
        prompts |= {f"{one.name} (check)": check_question(["..."]) for one in config.concepts.extractors}
    return prompts
