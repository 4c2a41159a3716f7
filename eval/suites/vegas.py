"""VEGAS: ten classes of short videos of AudioSet, whole or so many of each class.

    ROOT/<class>/video_info.csv     YTID,start_second,end_second: row i, counted from 0, is video_%05d
    ROOT/<class>/audios/video_%05d.wav, ROOT/<class>/img/video_%05d.jpg

Not every row has files: numbers have gaps, which are misses as any other. There is no official split, and a recording
may stand in any pool of AudioSet.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from eval.suites.config import Vegas
from eval.suites.entries import YOUTUBE_ID, Entry, number_in, read_table, wrong
from sonify.errors import InputError

CLASSES = (
    "baby_cry",
    "chainsaw",
    "dog",
    "drum",
    "fireworks",
    "helicopter",
    "printer",
    "rail_transport",
    "snoring",
    "water_flowing",
)
TABLE = "video_info.csv"
COLUMNS = ("YTID", "start_second", "end_second")


def list_vegas(config: Vegas) -> list[Entry]:
    """List the rows of all ten classes.

    Raises:
        InputError: a class has no table, or one that is not as published, or fewer rows than are asked for.
    """
    root = config.path
    entries: list[Entry] = []
    for name in CLASSES:
        path = root / name / TABLE
        rows = list(_list_class(path, name))
        if config.per_class is not None and len(rows) < config.per_class:
            raise InputError(f"{path}: expected {config.per_class} videos (per_class), found {len(rows)}")
        entries += rows
    return entries


def _list_class(path: Path, name: str) -> Iterator[Entry]:
    for number, row in enumerate(read_table(path, "VEGAS' table of a class", columns=COLUMNS)):
        youtube_id, *times = row.cells
        if not re.fullmatch(YOUTUBE_ID, youtube_id):
            raise wrong(path, row.line, "a YouTube id", youtube_id)
        start_sec, end_sec = (number_in(path, row.line, time, "a time in seconds") for time in times)
        if not start_sec < end_sec:
            raise wrong(path, row.line, "an end behind the start", f"{times[0]},{times[1]}")
        video = f"video_{number:05d}"
        yield Entry(
            id=f"{name}_{number:05d}",
            recording=youtube_id,
            audio=path.parent / "audios" / f"{video}.wav",
            image=path.parent / "img" / f"{video}.jpg",
            labels=(name.replace("_", " "),),
            ids=(f"youtube:{youtube_id}",),
        )
