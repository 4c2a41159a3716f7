"""Landscapes in both published forms, Into the Wild, and the union of the two.

    lists   ROOT/{audio,image}_{train,val}_landscape.txt    line k of one pairs with line k of the other
            ROOT/landscape-audios/<source>_<n>.wav, ROOT/landscape-images/<source>_<n>.png
            labels.csv     filename,label: the pictures' names, for the sounds too
    table   a file of event_labels<TAB>filename; a filename is <ytid>#<start>#<end>, below ROOT as <filename>.mp4
    itw     ROOT/audio/<ytid>_clip<N>.wav, ROOT/jpg/<ytid>_clip<N>-<1..8>.jpg

Clips of one source are not independent: the 808 of `val` are 83 sources. Into the Wild has no labels and no list: what
lies in `audio` is the list.

Sources: https://github.com/BurakCanBiner/SonicDiffusion (lists, labels.csv), https://github.com/researchmm/MM-Diffusion
and https://github.com/alxzzhou/MACS (the table).
"""

import os
import re
from dataclasses import replace
from pathlib import Path

from eval.suites.config import Itw, Landscapes, LandscapesItw
from eval.suites.entries import TAB, YOUTUBE_ID, Entry, Row, read_lines, read_table, wrong
from sonify.errors import InputError
from sonify.io.places import is_below

ITW_PICTURES = range(1, 9)
ITW_MIDDLE = 4
_SOURCE_CLIP = re.compile(r"([A-Za-z0-9-]{1,40})_([0-9]{1,20})")
_TABLE_CLIP = re.compile(rf"({YOUTUBE_ID})#([0-9]{{1,6}})#([0-9]{{1,6}})")
_ITW_CLIP = re.compile(rf"({YOUTUBE_ID})_clip([0-9]+)")


def list_landscapes(config: Landscapes) -> list[Entry]:
    """List a split of the lists, or the whole table.

    Raises:
        InputError: a list is not as published, or two that belong together do not fit.
    """
    if config.form == "table":
        return _list_table(config)
    return _list_pairs(config.path, config.split, config.labels)


def list_other_landscapes(config: Landscapes) -> list[Entry]:
    """List the other split of the lists, which is of other sources, where it is there; the table has none."""
    split = "train" if config.split == "val" else "val"
    if config.form == "table" or not all(path.is_file() for path in _lists_of(config.path, split)):
        return []
    return _list_pairs(config.path, split, config.labels)


def list_itw(config: Itw) -> list[Entry]:
    """List every clip of Into the Wild, with the picture of its middle or, in the order of their numbers, all eight.

    Raises:
        InputError: there is no folder `audio`, or something else lies in it.
    """
    root = config.path
    folder = root / "audio"
    try:
        names = sorted(name for name in os.listdir(folder) if name.endswith(".wav") and not name.startswith("."))
    except OSError as error:
        raise InputError(f"{folder}: expected Into the Wild's sounds, found no folder ({error.strerror})") from None
    if not names:
        raise InputError(f"{folder}: expected <ytid>_clip<N>.wav, found no such file")
    return [_itw_entry(root, name, all_pictures=config.references == "all") for name in names]


def list_landscapes_itw(config: LandscapesItw) -> list[Entry]:
    """List the clips of Landscapes' `val` and of Into the Wild; `group` says which is which."""
    landscapes = _list_pairs(config.landscapes, "val", config.labels)
    itw = list_itw(Itw(kind="itw", name=config.name, path=config.itw))
    return [
        *(replace(entry, group="landscapes") for entry in landscapes),
        *(replace(entry, group="itw") for entry in itw),
    ]


def _lists_of(root: Path, split: str) -> tuple[Path, Path]:
    return root / f"audio_{split}_landscape.txt", root / f"image_{split}_landscape.txt"


def _list_pairs(root: Path, split: str, labels_csv: Path | None) -> list[Entry]:
    audio_list, image_list = _lists_of(root, split)
    sounds, pictures = (read_lines(path, "a file of each clip") for path in (audio_list, image_list))
    if len(sounds) != len(pictures):
        raise InputError(
            f"{image_list}: expected {len(sounds)} lines as in {audio_list.name}, found {len(pictures)}: "
            "line k of one pairs with line k of the other"
        )
    labels = _read_labels(labels_csv) if labels_csv else None
    entries: list[Entry] = []
    for sound, picture in zip(sounds, pictures, strict=True):
        clip, source = _read_clip(audio_list, sound, ".wav")
        shown, _ = _read_clip(image_list, picture, ".png")
        if shown != clip:
            raise wrong(image_list, picture.line, f"the picture of {clip}, as in {audio_list.name}", shown)
        if labels is not None and clip not in labels:
            raise wrong(audio_list, sound.line, f"a clip of {labels_csv}", clip)
        entry = Entry(
            id=clip,
            recording=source,
            audio=root / sound.cells[0],
            image=root / picture.cells[0],
            labels=(labels[clip],) if labels is not None else (),
            split=split,
        )
        entries.append(entry)
    return entries


def _read_clip(path: Path, row: Row, suffix: str) -> tuple[str, str]:
    """The name of a clip and its source, of a line such as `landscape-audios/0012_3889.wav`."""
    (name,) = row.cells
    stem = name.rpartition("/")[2].removesuffix(suffix)
    found = _SOURCE_CLIP.fullmatch(stem)
    if not found or not name.endswith(suffix) or not is_below(name):
        raise wrong(path, row.line, f"<folder>/<source>_<n>{suffix}", name)
    return stem, found[1]


def _read_labels(path: Path) -> dict[str, str]:
    labels: dict[str, str] = {}
    for row in read_table(path, "labels.csv of Landscapes", columns=("filename", "label")):
        name, label = row.cells
        clip = name.removesuffix(".png").removesuffix(".wav")
        if not _SOURCE_CLIP.fullmatch(clip) or not label:
            raise wrong(path, row.line, "<source>_<n>.png,label", ",".join(row.cells))
        if clip in labels:
            raise wrong(path, row.line, "each clip once", name)
        labels[clip] = label
    return labels


def _list_table(config: Landscapes) -> list[Entry]:
    if config.table is None:
        raise InputError("config: form: table needs table, a file of event_labels<TAB>filename, found null")
    path, root = config.table, config.path
    videos = {video.name: video for video in sorted(root.rglob("*.mp4"))}
    entries: list[Entry] = []
    for row in read_table(path, "the table of Landscapes", columns=("event_labels", "filename"), delimiter=TAB):
        label, name = row.cells
        found = _TABLE_CLIP.fullmatch(name)
        if not found or not int(found[2]) < int(found[3]):
            raise wrong(path, row.line, "<ytid>#<start>#<end> in seconds", name)
        if not label:
            raise wrong(path, row.line, "a label in front of the name", name)
        video = videos.get(f"{name}.mp4", root / f"{name}.mp4")
        entry = Entry(
            id="_".join(found.groups()),
            recording=found[1],
            audio=video,
            image=video,
            labels=(label.replace("_", " "),),
            ids=(f"youtube:{found[1]}",),
        )
        entries.append(entry)
    return entries


def _itw_entry(root: Path, name: str, all_pictures: bool) -> Entry:
    clip = name.removesuffix(".wav")
    found = _ITW_CLIP.fullmatch(clip)
    if not found:
        raise InputError(f"{root / 'audio'}: expected <ytid>_clip<N>.wav, found {name!r}")
    others = [number for number in ITW_PICTURES if all_pictures and number != ITW_MIDDLE]
    return Entry(
        id=clip,
        recording=found[1],
        audio=root / "audio" / name,
        image=root / "jpg" / f"{clip}-{ITW_MIDDLE}.jpg",
        more_images=tuple(root / "jpg" / f"{clip}-{number}.jpg" for number in others),
        ids=(f"youtube:{found[1]}",),
    )
