"""croissant.json: what the tables are, for programs; MLCommons' Croissant 1.0.

Source: https://docs.mlcommons.org/croissant/docs/croissant-spec.html
"""

import json
from pathlib import Path
from typing import Any

import mlcroissant
import pyarrow as pa

from sonify.dataset.card import dataset_name
from sonify.dataset.format import (
    AUDIO,
    CLIPS,
    DATA,
    IMAGES,
    PICTURE,
    SHARDS,
    PublishedClip,
    PublishedPair,
    PublishedRecord,
    PublishedShard,
)
from sonify.io.tables import schema_of
from sonify.io.write import sha256_of

CROISSANT = "croissant.json"
_VERSION = "http://mlcommons.org/croissant/1.0"
_PARQUET = "application/x-parquet"
_TYPES = {pa.string(): "sc:Text", pa.int64(): "sc:Integer", pa.float64(): "sc:Float", pa.bool_(): "sc:Boolean"}
_ABOUT = {
    "pairs": "A row for each image and scene: what is heard, from which clips, and how loud.",
    "clips": "A row for each clip that is heard: where it comes from and under what licence. The format has no type for"
    " bytes: the column `fingerprint` is not listed.",
    "shards": "A row for each rendered archive, to compare a rendering with.",
    AUDIO: "A row for each scene: its sound, as FLAC.",
    IMAGES: "A row for each image, as JPEG.",
}
# Of each table of files its key, the column of files, and what they are.
_FILES = {
    AUDIO: (["image", "scene"], AUDIO, "sc:AudioObject"),
    IMAGES: (["image"], PICTURE, "sc:ImageObject"),
}


def write_croissant(out: Path, record: PublishedRecord, licence: str) -> None:
    """Describe a folder in which the tables lie.

    When, where and as which version it is published is not known here, and not said; nor does any paper describe this
    dataset (`citeAs`): the one that is named describes the method.
    """
    carried = [name for name in (AUDIO, IMAGES) if (out / name).is_dir()]
    described = {
        "@context": _context(),
        "@type": "sc:Dataset",
        "conformsTo": _VERSION,
        "name": dataset_name(record),
        "description": "Soundscapes for images, as metadata: which recordings are heard in which image, and how loud."
        " Made by sonify after the paper Seeing Sound (arXiv 2501.05413).",
        "license": licence,
        "distribution": [
            _file_set("pairs", f"{DATA}/*.parquet"),
            _file_set("clips", f"{CLIPS}/*.parquet"),
            _file_object("shards", out, SHARDS),
            *(_file_set(name, f"{name}/*.parquet") for name in carried),
        ],
        "recordSet": [
            _record_set("pairs", PublishedPair, {"fileSet": {"@id": "pairs-files"}}, ["image", "scene"]),
            _record_set("clips", PublishedClip, {"fileSet": {"@id": "clips-files"}}, ["clip"]),
            _record_set("shards", PublishedShard, {"fileObject": {"@id": "shards-files"}}, ["path"]),
            *(_files(name, *_FILES[name]) for name in carried),
        ],
    }
    text = json.dumps(described, indent=2, ensure_ascii=False)
    (out / CROISSANT).write_text(text + "\n", encoding="utf-8", newline="\n")


def _context() -> Any:
    """The context that the specification gives, word for word: consumers compare it."""
    version = mlcroissant.Context(conforms_to=_VERSION)  # pyright: ignore[reportArgumentType] - an address will do
    return mlcroissant.Metadata(ctx=version).to_json()["@context"]


def _file_set(name: str, pattern: str) -> dict[str, Any]:
    """Files below the folder that holds croissant.json."""
    return {
        "@type": "cr:FileSet",
        "@id": f"{name}-files",
        "name": f"{name}-files",
        "description": _ABOUT[name],
        "encodingFormat": _PARQUET,
        "includes": pattern,
    }


def _file_object(name: str, out: Path, path: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": f"{name}-files",
        "name": f"{name}-files",
        "description": _ABOUT[name],
        "encodingFormat": _PARQUET,
        "contentUrl": path,
        "contentSize": f"{(out / path).stat().st_size} B",
        "sha256": sha256_of(out / path),
    }


def _record_set(name: str, row_type: type, source: dict[str, Any], key: list[str]) -> dict[str, Any]:
    fields = [_field(name, field, source) for field in schema_of(row_type) if not pa.types.is_binary(field.type)]
    return _records(name, key, fields)


def _files(name: str, key: list[str], column: str, data_type: str) -> dict[str, Any]:
    """A table of files: the bytes of each lie inside a column."""
    source = {"fileSet": {"@id": f"{name}-files"}}
    taken = source | {"extract": {"column": column}, "transform": {"jsonPath": "bytes"}}
    identity = {"@type": "cr:Field", "@id": f"{name}/{column}", "name": column}
    texts = [_field(name, pa.field(text, pa.string()), source) for text in key]
    return _records(name, key, [*texts, identity | {"dataType": data_type, "source": taken}])


def _records(name: str, key: list[str], fields: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "@type": "cr:RecordSet",
        "@id": name,
        "name": name,
        "description": _ABOUT[name],
        "key": [{"@id": f"{name}/{column}"} for column in key],
        "field": fields,
    }


def _field(parent: str, field: pa.Field, source: dict[str, Any]) -> dict[str, Any]:
    """A column: plain, a list, or a list of rows, of which each column is read by its path."""
    described = {"@type": "cr:Field", "@id": f"{parent}/{field.name}", "name": field.name}
    listed = pa.types.is_list(field.type)
    of = field.type.value_type if listed else field.type
    repeated = {"repeated": True} if listed else {}
    if not pa.types.is_struct(of):
        column = {"dataType": _TYPES[of], "source": source | {"extract": {"column": field.name}}}
        return described | repeated | column
    inner = [_inner_field(described["@id"], one, source, field.name) for one in of]
    return described | repeated | {"subField": inner}


def _inner_field(parent: str, field: pa.Field, source: dict[str, Any], column: str) -> dict[str, Any]:
    taken = source | {"extract": {"column": column}, "transform": {"jsonPath": field.name}}
    identity = {"@type": "cr:Field", "@id": f"{parent}/{field.name}", "name": field.name}
    listed = pa.types.is_list(field.type)
    repeated = {"repeated": True} if listed else {}
    return identity | repeated | {"dataType": _TYPES[field.type.value_type if listed else field.type], "source": taken}
