"""The Greatest Hits: somebody hits and scratches things with a drumstick; an item is one such event, or several.

    ROOT/train.txt, ROOT/test.txt       one video a line
    ROOT/<video>_times.txt              seconds material action reaction, an event a line
    ROOT/<video>_denoised.wav           heard: ten seconds around the event
    ROOT/<video>_denoised.mp4           seen: the frame at the event

The event nearest to the middle needs the length of the sound, which is read from its header; where there is none, the
video is a miss, and the middle of its events stands in.

Source: https://web.eecs.umich.edu/~ahowens/vis/vis-data-256.zip
"""

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.suites.config import GreatestHits
from eval.suites.entries import Entry, number_in, read_lines, wrong
from sonify.errors import InputError
from sonify.media.audio import UnreadableSound, read_header

log = logging.getLogger(__name__)

SECONDS = 10.0
ACTIONS = ("hit", "scratch")
APART_SEC = 2.0
_VIDEO = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")


@dataclass(frozen=True, slots=True)
class _Event:
    seconds: float
    material: str


def list_greatest_hits(config: GreatestHits) -> list[Entry]:
    """List the events of the videos of a split, in the order of the lists.

    Videos without an event of a known material are left out, and counted.

    Raises:
        InputError: a list is not there or not as published, a video stands in both, or no event is left.
    """
    root = config.path
    seen: dict[str, str] = {}
    entries: list[Entry] = []
    for split in ("train", "test") if config.split == "all" else (config.split,):
        path = root / f"{split}.txt"
        entries += _list_split(root, path, config, seen)
    if not entries:
        raise InputError(
            f"{root}: expected events of a known material, hit or scratch, found none in {len(seen)} videos"
        )
    if without := len(seen) - len({entry.recording for entry in entries}):
        log.warning("%s: %d of %d videos have no event of a known material and are left out", root, without, len(seen))
    return entries


def list_other_hits(config: GreatestHits) -> list[Entry]:
    """List the events of the videos of the other split, where its list is there; of all videos none is left."""
    split = "test" if config.split == "train" else "train"
    if config.split == "all" or not (config.path / f"{split}.txt").is_file():
        return []
    return list_greatest_hits(config.model_copy(update={"split": split}))


def _list_split(root: Path, path: Path, config: GreatestHits, seen: dict[str, str]) -> Iterator[Entry]:
    for row in read_lines(path, "a video on each line"):
        (video,) = row.cells
        if not _VIDEO.fullmatch(video):
            raise wrong(path, row.line, "the name of a video", video)
        if video in seen:
            raise wrong(path, row.line, f"each video once ({seen[video]} has this one)", video)
        seen[video] = f"{path.name}, line {row.line}"
        events = _read_events(root / f"{video}_times.txt")
        sound = root / f"{video}_denoised.wav"
        chosen = _nearest_to_middle(events, _length_of(sound)) if config.events == "middle" else _apart(events)
        seconds = config.seconds or SECONDS
        for event in chosen:
            # a part that goes over the end is shifted back by whoever reads it
            yield Entry(
                id=video if config.events == "middle" else f"{video}_{round(event.seconds * 1000):06d}",
                recording=video,
                audio=sound,
                audio_start_sec=max(0.0, event.seconds - seconds / 2),
                audio_seconds=seconds,
                image=root / f"{video}_denoised.mp4",
                image_sec=event.seconds,
                labels=(event.material,),
                split=path.stem,
            )


def _read_events(path: Path) -> list[_Event]:
    """The events of a known material, in the order of their times."""
    events: list[_Event] = []
    for row in read_lines(path, "an event on each line", may_be_empty=True):
        cells = row.cells[0].split()
        if len(cells) != 4:
            raise wrong(path, row.line, "4 columns (seconds material action reaction)", row.cells[0])
        seconds, material, action, _ = cells
        at_sec = number_in(path, row.line, seconds, "a time in seconds")
        if material != "None" and action in ACTIONS:
            events.append(_Event(at_sec, material))
    return sorted(events, key=lambda event: event.seconds)


def _nearest_to_middle(events: Sequence[_Event], length_sec: float | None) -> list[_Event]:
    if not events:
        return []
    middle_sec = length_sec / 2 if length_sec is not None else (events[0].seconds + events[-1].seconds) / 2
    return [min(events, key=lambda event: abs(event.seconds - middle_sec))]


def _apart(events: Sequence[_Event]) -> list[_Event]:
    """From the first on, each event that lies at least two seconds behind the one before."""
    chosen: list[_Event] = []
    for event in events:
        if not chosen or event.seconds - chosen[-1].seconds >= APART_SEC:
            chosen.append(event)
    return chosen


def _length_of(sound: Path) -> float | None:
    try:
        header = read_header(sound)
    except UnreadableSound:
        return None
    return header.frames / header.sample_rate_hz
