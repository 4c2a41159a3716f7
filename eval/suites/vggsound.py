"""VGGSound's test list, whole, by classes, or where VGGSounder confirms that a clip shows what it sounds.

    test.csv             <ytid>_<start, six digits>.mp4,label      15,446 clips of 14,851 videos, 309 classes
    MEDIA/...            those clips under one of their published names, `<ytid>_<start ms>_<end ms>.*` too
    vggsounder*.csv      video_id,label,modality,background_music,static_image,voice_over      (optional)
    top1_boxes_...json   {"<ytid>_<start ms>_<end ms>": [numbers of frames at 10 a second, the best first]}

Sources: https://www.robots.ox.ac.uk/~vgg/data/vggsound/, https://vggsounder.github.io,
https://github.com/kaist-ami/Sound2Scene (its 50 classes and its frames).
"""

import json
import logging
import os
import re
import string
from collections import Counter
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.suites.config import Confirmed, Media, VggSound
from eval.suites.entries import (
    MAX_LIST_BYTES,
    YOUTUBE_ID,
    Entry,
    cut,
    read_lines,
    read_table,
    select,
    wrong,
)
from sonify.errors import InputError, did_you_mean
from sonify.io.places import is_below

log = logging.getLogger(__name__)

CLIP_SECONDS = 10
# Sound2Scene numbers the frames of a clip that was cut into ten a second.
FRAMES_PER_SECOND = 10
FIELDS = ("ytid", "start", "end", "start_ms", "end_ms", "label")
VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov")
TABLE = ("video_id", "label", "modality", "background_music", "static_image", "voice_over")
_CLIP = re.compile(rf"({YOUTUBE_ID})_(\d{{6}})\.mp4")
_VIDEO = re.compile(rf"({YOUTUBE_ID})_(\d{{6}})")
_FLAGS = {"True": True, "False": False}


@dataclass(frozen=True, slots=True)
class _Clip:
    youtube_id: str
    start: int
    label: str

    @property
    def id(self) -> str:
        return f"{self.youtube_id}_{self.start:06d}"

    @property
    def id_ms(self) -> str:
        return f"{self.youtube_id}_{self.start * 1000}_{(self.start + CLIP_SECONDS) * 1000}"


@dataclass(frozen=True, slots=True)
class _Label:
    label: str
    modality: str
    flags: Mapping[str, bool]


def list_vggsound(config: VggSound) -> list[Entry]:
    """List the clips of the classes that are asked for, and of those the confirmed ones.

    Classes of which `per_class` clips are not to be had are an error in the whole list. Of confirmed clips they are
    left out, and said: a class with fewer would weigh less than the others.

    Raises:
        InputError: a list is not as published, or has fewer of a class than are asked for.
    """
    path = config.test_csv
    clips = list(_read_clips(path))
    classes = {clip.label for clip in clips}
    if config.classes is not None:
        classes = _read_classes(config.classes, classes, path)
        clips = [clip for clip in clips if clip.label in classes]
    more = _confirmed(clips, config.confirmed) if config.confirmed else {clip.id: () for clip in clips}
    frames = _read_frames(config, clips)
    find = _Finder(config.media)
    entries = [
        _entry_of(clip, find(clip), frames[clip.id], more[clip.id])
        for clip in clips
        if clip.id in more and clip.id in frames
    ]
    if not entries:
        raise InputError(f"{path}: expected clips that `confirmed` and `frame` leave, found none of {len(clips)}")
    return entries if config.per_class is None else _balanced(entries, classes, config, config.per_class)


def _entry_of(clip: _Clip, video: Path, frame_sec: float | None, more: tuple[str, ...]) -> Entry:
    return Entry(
        id=clip.id,
        recording=clip.youtube_id,
        audio=video,
        image=video,
        image_sec=frame_sec,
        labels=(clip.label, *more),
        split="test",
        ids=(f"youtube:{clip.youtube_id}",),
    )


def _read_clips(path: Path) -> Iterator[_Clip]:
    for row in read_table(path, "VGGSound's test.csv", columns=("clip", "label"), header=False):
        name, label = row.cells
        found = _CLIP.fullmatch(name)
        if not found:
            raise wrong(path, row.line, "<YouTube id>_<start, six digits>.mp4", name)
        if not label:
            raise wrong(path, row.line, "a class behind the clip", ",".join(row.cells))
        yield _Clip(found[1], int(found[2]), label)


def _read_classes(path: Path, known: Set[str], test_csv: Path) -> set[str]:
    chosen: set[str] = set()
    for row in read_lines(path, "a class of VGGSound on each line"):
        (label,) = row.cells
        if label not in known:
            expected = f"a class of {test_csv.name}{did_you_mean(label, known)}"
            raise wrong(path, row.line, expected, label)
        if label in chosen:
            raise wrong(path, row.line, "each class once", label)
        chosen.add(label)
    return chosen


def _balanced(entries: list[Entry], classes: Set[str], config: VggSound, per_class: int) -> list[Entry]:
    """The entries of those of the classes of which there are enough."""
    one_of_a_video = config.one_clip_per_recording
    usable = select(entries, config.name, one_per_recording=one_of_a_video).wanted
    counts = Counter(entry.label for entry in usable)
    short = {label: counts[label] for label in sorted(classes) if counts[label] < per_class}
    if not short:
        return entries
    clips = "clips of different videos" if one_of_a_video else "clips"
    if (config.confirmed is None and config.frame != "top1") or len(short) == len(classes):
        label, count = min(short.items(), key=lambda pair: pair[1])
        raise InputError(f"{config.test_csv}: expected {per_class} {clips} of {label!r} (per_class), found {count}")
    said = f"{len(short)} of {len(classes)} classes keep fewer than {per_class} {clips} and are left out"
    log.warning("%s: %s (%s)", config.name, said, ", ".join(short))
    return [entry for entry in entries if entry.label not in short]


# --- VGGSounder


def _confirmed(clips: list[_Clip], config: Confirmed) -> dict[str, tuple[str, ...]]:
    """The clips whose own label is confirmed, with the other labels of the same modality."""
    table = _read_vggsounder(config.vggsounder, config)
    kept: dict[str, tuple[str, ...]] = {}
    for clip in clips:
        labels = [each for each in table.get(clip.id, ()) if each.modality == config.modality]
        own = next((each for each in labels if each.label == clip.label), None)
        if own is not None and _has_flags(own, config):
            kept[clip.id] = tuple(each.label for each in labels if each is not own)
    return kept


def _has_flags(label: _Label, config: Confirmed) -> bool:
    return all(getattr(config, flag) in (None, value) for flag, value in label.flags.items())


def _read_vggsounder(path: Path, config: Confirmed) -> dict[str, list[_Label]]:
    table: dict[str, dict[str, _Label]] = {}
    has_music = False
    for row in read_table(path, "VGGSounder's table", columns=TABLE):
        video, label, modality, *flags = row.cells
        if not _VIDEO.fullmatch(video):
            raise wrong(path, row.line, "<YouTube id>_<start, six digits>", video)
        if modality not in ("A", "V", "AV"):
            raise wrong(path, row.line, "a modality of A, V, AV", modality)
        if any(flag not in _FLAGS for flag in flags):
            raise wrong(path, row.line, "True or False in the last three columns", ",".join(flags))
        values = {name: _FLAGS[flag] for name, flag in zip(TABLE[3:], flags, strict=True)}
        has_music |= values["background_music"]
        if label in table.setdefault(video, {}):
            raise wrong(path, row.line, "each label of a clip once", f"{video},{label}")
        table[video][label] = _Label(label, modality, values)
    if not has_music and config.background_music is not False:
        # the package has two tables, and the one with the plainer name lacks 3,055 of 15,069 clips
        raise InputError(
            f"{path}: expected clips with background music too, found none: take vggsounder+background-music.csv of "
            "the same package, or set confirmed.background_music: false"
        )
    return {video: list(labels.values()) for video, labels in table.items()}


# --- frames, and where clips lie


def _read_frames(config: VggSound, clips: list[_Clip]) -> dict[str, float | None]:
    """The time of the frame in each clip that has one; None is the middle, as some clips are shorter than others."""
    if config.frame == "middle":
        return {clip.id: None for clip in clips}
    if config.top1 is None:
        raise InputError("config: frame: top1 needs top1, Sound2Scene's top1_boxes_top10_moments.json, found null")
    path = config.top1
    moments = _read_json(path)
    frames: dict[str, float | None] = {}
    for clip in clips:
        if clip.id_ms in moments:
            numbers = moments[clip.id_ms]
            best = numbers[0] if isinstance(numbers, list) and numbers else None
            if type(best) is not int or not 0 <= best <= CLIP_SECONDS * FRAMES_PER_SECOND:
                raise InputError(
                    f"{path}, {clip.id_ms}: expected numbers of frames from 0 to 100, found {cut(repr(best))}"
                )
            # they are called the 47th and so on; whether any list begins at 0 is a tenth of a second
            frames[clip.id] = max(best - 1, 0) / FRAMES_PER_SECOND
    return frames


def _read_json(path: Path) -> dict[str, Any]:
    try:
        moments = json.loads(path.read_bytes()) if path.stat().st_size <= MAX_LIST_BYTES else None
    except OSError as error:
        raise InputError(f"{path}: expected Sound2Scene's json of frames, found none ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: expected Sound2Scene's json of frames, found no JSON ({error})") from None
    if not isinstance(moments, dict):
        raise InputError(f"{path}: expected Sound2Scene's json of frames, found no object of names")
    return moments


class _Finder:
    """Where a clip lies: the pattern's name where there is such a file, else another published name that is there."""

    def __init__(self, media: Media) -> None:
        self._folder = media.dir
        self._pattern = media.pattern
        fields = [name for _, name, _, _ in _parse(media.pattern) if name is not None]
        if unknown := [name for name in fields if name not in FIELDS]:
            raise InputError(f"config: media.pattern: expected fields of {', '.join(FIELDS)}, found {{{unknown[0]}}}")
        self._names: dict[Path, frozenset[str]] = {}

    def __call__(self, clip: _Clip) -> Path:
        first = self._folder / self._named(clip)
        names = self._names_in(first.parent)
        spelt = (f"{stem}{suffix}" for stem in (first.stem, clip.id, clip.id_ms) for suffix in VIDEO_SUFFIXES)
        default = first.with_suffix(VIDEO_SUFFIXES[0]) if first.suffix == ".*" else first
        return next((first.parent / name for name in (first.name, *spelt) if name in names), default)

    def _named(self, clip: _Clip) -> str:
        end = clip.start + CLIP_SECONDS
        times = {"start": clip.start, "end": end, "start_ms": clip.start * 1000, "end_ms": end * 1000}
        try:
            name = self._pattern.format(ytid=clip.youtube_id, label=clip.label, **times)
        except (ValueError, IndexError, KeyError, AttributeError, TypeError) as error:
            raise InputError(f"config: media.pattern: {self._pattern!r} names no file ({error})") from None
        if not is_below(name):
            raise InputError(f"config: media.pattern: expected a name below media.dir, found {name!r}")
        return name

    def _names_in(self, folder: Path) -> frozenset[str]:
        """The files of a folder, listed once."""
        if folder not in self._names:
            try:
                self._names[folder] = frozenset(os.listdir(folder))
            except OSError:
                self._names[folder] = frozenset()
        return self._names[folder]


def _parse(pattern: str) -> list[tuple[str, str | None, str | None, str | None]]:
    try:
        return list(string.Formatter().parse(pattern))
    except ValueError as error:
        raise InputError(f"config: media.pattern: {pattern!r} names no file ({error})") from None
