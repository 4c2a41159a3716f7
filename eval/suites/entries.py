"""What a published list names, before any file is looked at, and which of it is taken.

The selection is a function of the list and the suite's name alone: what is missing on the disk never changes it.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One entry of a corpus.

    `audio` and `image` may be the same video: then `image_sec` is the time of the frame, and None for a picture.
    `audio_seconds` None means to the end. `more_images` are further pictures of the same recording. `image` is None
    where the corpus has none. `ids`, `labels`, `captions`, `group` are those of `Item`.
    """

    id: str
    recording: str
    audio: Path
    audio_start_sec: float = 0.0
    audio_seconds: float | None = None
    image: Path | None = None
    image_sec: float | None = None
    more_images: tuple[Path, ...] = ()
    labels: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()
    split: str = ""
    group: str = ""
    ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Entries in their order, class by class: what is `wanted`, and what stands after it and may take its place."""

    wanted: tuple[Entry, ...]
    rest: tuple[Entry, ...]


def select(
    entries: Sequence[Entry], name: str, *, per_class: int | None = None, one_per_recording: bool = False
) -> Selection:
    """Take the first `per_class` of each label in the order of `sha256("<name>:<id>")`; None takes all.

    Of several entries of one recording the first in that order is taken where `one_per_recording` says so.
    """
    ordered = sorted(entries, key=lambda entry: hashlib.sha256(f"{name}:{entry.id}".encode()).digest())
    seen: set[str] = set()
    taken: dict[str, int] = {}
    wanted: list[Entry] = []
    rest: list[Entry] = []
    for entry in ordered:
        if one_per_recording and entry.recording in seen:
            continue
        seen.add(entry.recording)
        label = entry.labels[0] if entry.labels else ""
        taken[label] = taken.get(label, 0) + 1
        (wanted if per_class is None or taken[label] <= per_class else rest).append(entry)
    return Selection(wanted=tuple(wanted), rest=tuple(rest))
