"""FSD50K, as its archives unpack: ground truth, licences and uploaders, and a folder of WAV for each part."""

import csv
import json
from collections.abc import Mapping
from typing import Any

from sonify.config import Fsd50kSounds
from sonify.errors import InputError
from sonify.io.places import list_files, open_place
from sonify.rows import SoundRef
from sonify.sources.sounds.described import first_text
from sonify.sources.sounds.found import SOUND_SUFFIXES, open_text, with_files


def list_fsd50k(source: Fsd50kSounds) -> list[SoundRef]:
    """List the clips of the part (`eval` is meant for evaluation); those without a file are refused.

    Raises:
        InputError: a table is not there or not one, or no clip has a file.
    """
    parts = ("dev", "eval") if source.part == "both" else (source.part,)
    return [ref for part in parts for ref in _list_part(source, part)]


def _list_part(source: Fsd50kSounds, part: str) -> list[SoundRef]:
    table = source.path / "FSD50K.ground_truth" / f"{part}.csv"
    clips = source.path / "FSD50K.metadata" / f"{part}_clips_info_FSD50K.json"
    try:
        with open_text(table, errors="strict") as file:
            labels = {row["fname"]: row["labels"] for row in csv.DictReader(file)}
        with open_place(clips) as file:
            about = json.load(file)
        folder = f"FSD50K.{part}_audio"
        refs = [_ref(source.name, folder, name, of, about.get(name, {})) for name, of in labels.items()]
    except (OSError, ValueError, KeyError, AttributeError, RecursionError, csv.Error) as error:
        raise InputError(
            f"audio.sources: expected FSD50K's FSD50K.ground_truth/{table.name} (fname,labels,...) and"
            f" FSD50K.metadata/{clips.name} (licence and uploader of each) in {source.path}: {error}"
        ) from error
    files = {file.rpartition(".")[0]: file for file in reversed(list_files(source.path, SOUND_SUFFIXES))}
    expected = f"{refs[0].file}.wav" if refs else ""
    return with_files(refs, files, table=table, folder=source.path, expected=expected)


def _ref(source_name: str, folder: str, name: str, labels: str, about: Mapping[str, Any]) -> SoundRef:
    """Labels go from the leaf to the root. `name` is the number of the upload at Freesound."""
    title, uploader, licence = (first_text(about, [field]) or "unknown" for field in ("title", "uploader", "license"))
    return SoundRef(
        corpus=source_name,
        file=f"{folder}/{name}",
        recording=f"freesound/{name}",
        text=labels.replace("_", " ").replace(",", ", "),
        licence=licence,
        attribution=f"{title} by {uploader}, https://freesound.org/s/{name}/",
    )
