"""Tar archives of sounds with a `.json` or `.txt` beside each, as LAION-Audio and img2dataset's kin write them."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from sonify.config import WebDatasetSounds
from sonify.io.places import open_place
from sonify.io.tars import Member, read_member
from sonify.rows import Reason, SoundRef
from sonify.sources.containers import container, list_containers
from sonify.sources.sounds.described import ATTRIBUTION_FIELDS, LICENCE_FIELDS, describe, first_text
from sonify.sources.sounds.found import SOUND_SUFFIXES, index_archive, refused_ref

# What is said of one recording; more is no description.
MAX_RECORD_BYTES = 1 << 20


def list_webdataset(source: WebDatasetSounds) -> list[SoundRef]:
    """List the sounds of every archive; what an archive holds and cannot be read is refused."""
    return [ref for uri in list_containers(source.path, ".tar") for ref in _list_archive(source, uri)]


def _list_archive(source: WebDatasetSounds, uri: str) -> Iterator[SoundRef]:
    members, refused = index_archive(source.name, source.path, uri)
    yield from refused
    by_name = {member.name: member for member in members}
    sounds = [member for member in members if member.name.lower().endswith(SOUND_SUFFIXES)]
    if not sounds:
        return
    with open_place(container(source.path, uri)) as archive:
        for sound in sounds:
            stem = sound.name.rpartition(".")[0]
            beside = by_name.get(f"{stem}.json") or by_name.get(f"{stem}.txt")
            yield _ref(source, f"{uri}/{sound.name}", archive, beside)


def _ref(source: WebDatasetSounds, file: str, archive: BinaryIO, beside: Member | None) -> SoundRef:
    record = _read_record(archive, beside)
    if record is None:
        detail = f"expected a JSON object or UTF-8 text of at most {MAX_RECORD_BYTES} bytes beside it"
        return refused_ref(source.name, file, Reason.BAD_CAPTION, detail)
    said = describe(record, source.name)
    original = record.get("original_data")
    inner = original if isinstance(original, dict) else {}
    return SoundRef(
        corpus=source.name,
        file=file,
        recording=said.recording or f"{source.name}/{file}",
        text=said.text,
        licence=said.licence or first_text(inner, LICENCE_FIELDS) or source.licence,
        attribution=said.attribution or first_text(inner, ATTRIBUTION_FIELDS),
    )


def _read_record(archive: BinaryIO, beside: Member | None) -> Mapping[str, Any] | None:
    """What stands beside a sound: nothing is an empty record, and None is something that is no record."""
    if beside is None:
        return {}
    if beside.size_bytes > MAX_RECORD_BYTES:
        return None
    data = read_member(archive, beside)
    try:
        record = {"text": data.decode()} if beside.name.endswith(".txt") else json.loads(data)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None
