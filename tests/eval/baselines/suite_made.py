"""A small suite written by hand: real sounds, real pictures, the files of the contract."""

from pathlib import Path

import numpy as np
import soundfile

from eval.suites.suite import Item, Stored, Suite, item_line, read_suite, record_bytes, suite_digest
from sonify.io.write import sha256_of
from tests.builders import picture, tone, write_csv, write_sound

RATE_HZ = 16_000


def write_suite(
    folder: Path,
    labels: tuple[str, ...] = ("dog", "rain", "train", "dog", "rain", "train"),
    *,
    recordings: tuple[str, ...] | None = None,
    silent: tuple[int, ...] = (),
    references: int = 1,
    name: str = "small",
) -> Suite:
    """A suite with an item for each label (several parted by `;`); a `silent` one has no window."""
    items = []
    for n, label in enumerate(labels):
        id = f"item-{n}"
        write_sound(folder / "sounds" / f"{id}.flac", tone(n, 6.0), subtype="PCM_16")
        window = None
        if n not in silent:
            samples, _ = soundfile.read(folder / "sounds" / f"{id}.flac", dtype="int16")
            write_sound(folder / "windows" / f"{id}.flac", np.asarray(samples)[: 5 * RATE_HZ], subtype="PCM_16")
            window = _stored(folder, f"windows/{id}.flac")
        (folder / "images").mkdir(exist_ok=True)
        for place in range(references):
            file = f"images/{id}.png" if place == 0 else f"images/{id}-{place + 1}.png"
            (folder / file).write_bytes(picture(100 * place + n, (64, 64), "PNG"))
        item = Item(
            id=id,
            recording=recordings[n] if recordings else f"recording-{n}",
            ids=(),
            labels=tuple(part for part in label.split(";") if part),
            captions=(),
            split="test",
            group="",
            sound=_stored(folder, f"sounds/{id}.flac"),
            seconds=6.0,
            sample_rate_hz=RATE_HZ,
            window=window,
            window_start_sec=0.0,
            references=tuple(
                _stored(folder, f"images/{id}.png" if place == 0 else f"images/{id}-{place + 1}.png")
                for place in range(references)
            ),
        )
        items.append(item)
    write_lists(folder, items)
    pool_sha256 = sha256_of(folder / "pool.csv")
    suite = Suite(
        folder=folder.absolute(),
        name=name,
        digest=suite_digest(items, (), pool_sha256),
        wanted=len(items),
        missing={},
        settings={},
        items=tuple(items),
        others=(),
        pool=tuple(item.id for item in items),
        pool_sha256=pool_sha256,
    )
    (folder / "items.jsonl").write_bytes(b"".join(item_line(item) for item in items))
    (folder / "suite.json").write_bytes(record_bytes(suite))
    return read_suite(folder)


def write_lists(folder: Path, items: list[Item]) -> None:
    """The lists that models are given, and the pool."""
    columns = ("id", "sound", "seconds", "sample_rate_hz", "sha256")
    for file, stored, seconds in (
        ("sounds.csv", [(item, item.window) for item in items if item.window], 5.0),
        ("sounds_whole.csv", [(item, item.sound) for item in items], 6.0),
    ):
        rows = [(item.id, folder.absolute() / each.file, seconds, RATE_HZ, each.sha256) for item, each in stored]
        write_csv(folder / file, columns, rows)
    write_csv(folder / "pool.csv", ("id", "sha256"), [(item.id, item.sound.sha256) for item in items])


def _stored(folder: Path, file: str) -> Stored:
    return Stored(file=file, sha256=sha256_of(folder / file))
