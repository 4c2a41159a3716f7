"""The configuration that a card shows: what a stranger fills in to render the dataset from copies of its input.

It is made from the recorded configuration and the models of its sections, so that a key that comes new is shown too.
What the folder decides itself (`sonify.dataset.render_from`) is not repeated.
"""

import inspect
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import yaml

from sonify.config import Images, Section, Sounds
from sonify.dataset.render_from import DECIDED

PLACE = "..."
RUN_DIR = "runs/mine"
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_ ./+-]*")


def recipe(config: Mapping[str, Any], heard: Collection[str]) -> str:
    """YAML for `sonify render --from DIR --config FILE`, of the sources of which something is heard.

    Whatever lies elsewhere with somebody else is `...`, with what it is behind it.
    """
    sources = [source for source in config["audio"]["sources"] if source["name"] in heard]
    lines = [f"run_dir: {RUN_DIR}", "images:"]
    lines += [f"  {line}" for line in _keys(_model_of(Images, config["images"]["kind"]), config["images"], "images")]
    lines += ["audio:", "  sources:"]
    for source in sources:
        keys = _keys(_model_of(Sounds, source["kind"]), source, "audio.sources")
        lines += [f"    {'-' if n == 0 else ' '} {line}" for n, line in enumerate(keys)]
    return "\n".join(lines)


def _model_of(union: Any, kind: str) -> type[Section]:
    """The section of that `kind`, of an annotated union."""
    models = get_args(get_args(union)[0])
    return next(model for model in models if kind in get_args(model.model_fields["kind"].annotation))


def _keys(model: type[Section], recorded: Mapping[str, Any], section: str) -> Iterator[str]:
    """A line for each key of a section that a renderer must have: its kind, its name, places, and what is set."""
    fields = {name: field for name, field in model.model_fields.items() if f"{section}.{name}" not in DECIDED}
    for name in sorted(fields, key=("kind", "name").__contains__, reverse=True):
        field = fields[name]
        if _is_place(field.annotation):
            # the record leaves out what is a place; one that was not set stands there as null
            if field.is_required() or name not in recorded:
                yield f"{name}: {PLACE}  # {field.description or _in_short(model)}"
        elif field.is_required() or name == "name" or recorded.get(name, field.default) != field.default:
            yield f"{name}: {_scalar(recorded.get(name, field.default))}"


def _is_place(annotation: Any) -> bool:
    return annotation is Path or any(map(_is_place, get_args(annotation)))


def _in_short(model: type[Section]) -> str:
    """What a kind of input is: the first part of the first sentence about its section."""
    first = " ".join(inspect.cleandoc(model.__doc__ or "").partition("\n\n")[0].split())
    return first.partition(";")[0].rstrip(".")


def _scalar(value: Any) -> str:
    """A value as YAML of one line; text that could be anything else is quoted, and what cannot be shown escaped."""
    if isinstance(value, str) and _PLAIN.fullmatch(value) and yaml.safe_load(value) == value:
        return value
    style = '"' if isinstance(value, str) else None
    return yaml.safe_dump([value], default_flow_style=True, default_style=style, width=float("inf"))[1:-2]
