"""What a record of unknown make (JSON, a table's row) says of a recording."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sonify.io.places import is_utf8

LICENCE_FIELDS = ("licence", "license")
ATTRIBUTION_FIELDS = ("attribution", "author", "artist", "uploader", "username")
TEXT_FIELDS = ("text", "caption", "captions", "description", "tag", "tags")
YOUTUBE_FIELDS = ("youtube_id", "ytid")
RECORDING_FIELDS = ("recording", "id")
# No encoder reads further; a caption has some dozen words.
MAX_TEXT_CHARS = 4096
# As WavCaps and others name what they took from AudioSet.
_YOUTUBE_FILE = re.compile(r"Y([A-Za-z0-9_-]{11})\.\w+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """What was found; a field is empty where the record does not say."""

    text: str
    licence: str
    attribution: str
    recording: str


def describe(record: Mapping[str, Any], source_name: str) -> Described:
    """Read a record by the names that its makers use; of several captions the first counts."""
    return Described(
        text=first_text(record, TEXT_FIELDS),
        licence=first_text(record, LICENCE_FIELDS),
        attribution=first_text(record, ATTRIBUTION_FIELDS),
        recording=_recording(record, source_name),
    )


def first_text(record: Mapping[str, Any], fields: Sequence[str]) -> str:
    """The first field that says something; lists of tags are joined, of other lists the first text counts."""
    for field in fields:
        value = record.get(field)
        texts = [_clean(text) for text in (value if isinstance(value, list | tuple) else [value])]
        texts = [text for text in texts if text]
        if texts:
            return ", ".join(texts)[:MAX_TEXT_CHARS] if field in ("tag", "tags") else texts[0]
    return ""


def _clean(value: Any) -> str:
    """Text on one line that any table can hold; a number is one too (ids)."""
    if not isinstance(value, str | int) or isinstance(value, bool):
        return ""
    text = " ".join(str(value)[:MAX_TEXT_CHARS].split())
    return text if is_utf8(text) else text.encode("utf-8", "replace").decode()


def _recording(record: Mapping[str, Any], source_name: str) -> str:
    """The upload, by its public id where it has one, so that it is the same in all corpora."""
    if youtube := first_text(record, YOUTUBE_FIELDS):
        return f"youtube/{youtube}"
    name = first_text(record, RECORDING_FIELDS)
    if match := _YOUTUBE_FILE.fullmatch(name):
        return f"youtube/{match.group(1)}"
    return f"{source_name}/{name}" if name else ""
