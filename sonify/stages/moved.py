"""Input that lies elsewhere than when a run was last worked on: is it the same?

Settings do not say where input lies, so that a run goes on when it is moved, or its input is. What a path protected
from is looked for here: that what was listed is there, and that some of it has the content that the run was made from.
"""

import logging
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from itertools import accumulate, chain
from typing import Any, NoReturn

import numpy as np

from sonify import layout
from sonify.config import Audio, Config, FolderImages
from sonify.engine.record import PLACES, RunRecord
from sonify.errors import InputError
from sonify.installed import spell_redo
from sonify.io.places import folders_in, load_array, stems
from sonify.io.tables import read_columns, read_tables
from sonify.media.audio import UnreadableSound
from sonify.media.clips import cut_recording, rules_of
from sonify.rows import Reason, Rejected
from sonify.sources.images import join_images, list_images, listed_images
from sonify.sources.mistakes import spread
from sonify.sources.sounds import list_sounds, open_sound
from sonify.stores import Place

log = logging.getLogger(__name__)

# So many units are looked at, one image or clip each; of archives few, which a store sends whole.
UNITS = 8
ARCHIVES = 2
# Another build of a resampler or decoder rounds otherwise; another recording is another in nearly every sample.
SAME_STEPS = 16


def moved_input(config: Config, before: RunRecord | None) -> frozenset[str]:
    """The listings whose input lies elsewhere than the run's record says."""
    if before is None:
        return frozenset()
    now, then = _places(config.model_dump(mode="json")), _places(before.config)
    return frozenset(listing for listing in now if now[listing] != then[listing])


def _places(config: Mapping[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """What says where the input of each listing lies: of the image set, and of each collection by its name."""

    def of(section: Mapping[str, Any], key: str) -> dict[str, Any]:
        return {name: value for name, value in section.items() if f"{key}.{name}" in PLACES}

    sources = {source["name"]: of(source, "audio.sources") for source in config["audio"]["sources"]}
    return {"concepts": {"images": of(config["images"], "images")}, "pool": sources}


def check_moved(run_dir: Place, config: Config, before: RunRecord, listings: Collection[str]) -> None:
    """Make sure that the input of some listings is still what the run listed and was made from.

    Raises:
        InputError: files are not there, or are others.
    """
    if "concepts" in listings and stems(run_dir / layout.UNITS / "concepts"):
        move = Move(
            key="images.path", old=before.config["images"]["path"], new=str(config.images.path), redo="concepts"
        )
        _check_images(run_dir, config, move)
    if "pool" in listings and stems(run_dir / layout.UNITS / "pool"):
        then, now = _places(before.config)["pool"], _places(config.model_dump(mode="json"))["pool"]
        for number, source in enumerate(config.audio.sources):
            moved = [key for key, place in now[source.name].items() if then.get(source.name, {}).get(key) != place]
            if moved and source.name in then:
                key, old, new = moved[0], then[source.name].get(moved[0]), now[source.name][moved[0]]
                move = Move(key=f"audio.sources.{number}.{key}", old=str(old), new=str(new), redo="pool")
                _check_sounds(run_dir, config.audio.model_copy(update={"sources": (source,)}), move)


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """What was moved from where to where, and which stage is done again for other input."""

    key: str
    old: str
    new: str
    redo: str

    def check_there(self, listed: Collection[str], found: Collection[str]) -> None:
        """Refuse a place that lacks what was listed."""
        if lost := [name for name in listed if name not in found]:
            self.refuse(
                f"{len(lost):,} of the {len(listed):,} files that this run has of it are not there (the first:"
                f" {lost[0]}): bring them there"
            )
        log.info("%s: the %s files of this run are at %s now", self.key, f"{len(listed):,}", self.new)

    def refuse(self, what: str) -> NoReturn:
        """Say what is wrong with the new place."""
        raise InputError(
            f"{self.key}: it was {self.old}, and at {self.new} {what}, or take another run_dir, or"
            f" `{spell_redo(self.redo)}` for other input"
        )


def _check_images(run_dir: Place, config: Config, move: Move) -> None:
    listed = {
        uri: below
        for _, table in read_tables(run_dir / layout.UNITS / "concepts", ["uri", "below"])
        for uri, below in zip(table["uri"].to_pylist(), table["below"].to_pylist(), strict=True)
    }
    units = list_images(config.images, config.seed, below=next(iter(listed.values()), None))
    found = {ref.uri for unit in units for ref in unit}
    if config.published:  # which lists what somebody else had: of that, what was here
        present = _present(run_dir)
        listed = {uri: below for uri, below in listed.items() if uri in present}
    move.check_there(listed, found)
    if not config.published:  # whose images are checked by their sha256 whenever they are read
        for uri in _other_images(run_dir, config):
            move.refuse(f"{uri} is another picture than the one that this run has of it: put that one there")


def _present(run_dir: Place) -> set[str]:
    """The published images that were here, and the archives and folders that they are in."""
    tables = read_tables(run_dir / layout.CONCEPTS / layout.PUBLISHED, ["image_uri", "present"])
    rows = (zip(table["image_uri"].to_pylist(), table["present"].to_pylist(), strict=True) for _, table in tables)
    uris = (uri for uri, here in chain.from_iterable(rows) if here)
    return {part for uri in uris for part in accumulate(uri.split("/"), lambda above, name: f"{above}/{name}")}


def _other_images(run_dir: Place, config: Config) -> Iterator[str]:
    """Of some units an image each whose bytes are not those that concepts were found in."""
    folders = [run_dir / layout.CONCEPTS / name for name in folders_in(run_dir / layout.CONCEPTS)]
    done = {unit: folder for folder in folders for unit in stems(folder)}
    for unit in spread(sorted(done), UNITS if isinstance(config.images, FolderImages) else ARCHIVES):
        rows = read_columns(done[unit] / f"{unit}.parquet", ["image", "image_uri", "image_sha256"]).slice(0, 1)
        for row in rows.to_pylist():
            refs = listed_images(run_dir, unit)
            for found in join_images(config.images, refs, config.seed, {row["image"]: row["image_sha256"]}):
                if isinstance(found, Rejected) or sha256(found[0].data).hexdigest() != found[1]:
                    yield row["image_uri"]


def _check_sounds(run_dir: Place, audio: Audio, move: Move) -> None:
    corpus = audio.sources[0].name
    columns = ("corpus", "file", "refused")
    tables = read_tables(run_dir / layout.UNITS / "pool", columns)
    rows = (zip(*(table[name].to_pylist() for name in columns), strict=True) for _, table in tables)
    listed = [file for name, file, refused in chain.from_iterable(rows) if name == corpus and refused != Reason.MISSING]
    move.check_there(listed, {ref.file for ref in list_sounds(audio) if ref.refused != Reason.MISSING})
    for file in _other_sounds(run_dir, audio):
        move.refuse(f"{file} is another recording than the one that this run has of it: put that one there")


def _other_sounds(run_dir: Place, audio: Audio) -> Iterator[str]:
    """Of some units a recording each whose first clip is not the one that the pool has."""
    corpus = audio.sources[0].name
    for unit in spread(stems(run_dir / layout.CLIPS), UNITS):
        columns = read_columns(run_dir / layout.clips(unit), ["clip", "corpus", "file"]).to_pylist()
        row = next((row for row, clip in enumerate(columns) if clip["corpus"] == corpus), None)
        if row is not None:
            stored = load_array(run_dir / layout.audio(unit))[row]
            if not _is_heard(audio, columns[row]["file"], int(columns[row]["clip"].rpartition("#")[2]), stored):
                yield columns[row]["file"]


def _is_heard(audio: Audio, file: str, index: int, stored: np.ndarray) -> bool:
    try:
        sound = open_sound(audio.sources, audio.sources[0].name, file)
        cuts = cut_recording(sound, audio.sample_rate, audio.clip_seconds, rules_of(audio))
        samples = next((cut.samples for cut in cuts if cut.index == index), None)
    except UnreadableSound:
        return False
    if samples is None or samples.shape != stored.shape:
        return False
    return int(np.abs(samples.astype(np.int32) - stored).max(initial=0)) <= SAME_STEPS
