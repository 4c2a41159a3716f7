"""Which sound is heard with which photograph: by the true class, by `sonify`, by chance, or with mistakes.

All arms train on the photographs that `sonify` as shipped finds a sound for, and on as many scenes of each, so that
nothing differs but what is heard with them. A photograph of a small class comes several times, as number 0, 1, 2: each
counts as a photograph of its own, with scenes of its own.
"""

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.learning.collection import (
    CLASSES,
    MAX_GAIN_DB,
    NEAR,
    PEAK_DBFS,
    SAMPLE_RATE_HZ,
    TARGET_LUFS,
    Photo,
    Recording,
    read_levelled,
)
from benchmarks.learning.senses import Ear
from sonify.config.loader import make_config
from sonify.config.shipped import find_config
from sonify.io.tables import read_rows
from sonify.media.mixing import gain_to_target_db, measure_loudness, mix_clips
from sonify.pool import ClipSamples, clip_columns
from sonify.rows import Pair
from sonify.running import run

SCENES = 8  # of a training sample, of which each visit hears one
DRAWS = 96  # of `sonify` for a photograph; where it is repeated it has other scenes each time
COPIES = DRAWS // SCENES  # of a photograph that is to hear all of them
PHOTOS_PER_CLASS = 24  # the most; dogs and birds would take most of what a small model can keep
NARROW_LUFS, WIDE_LUFS = (-32.0, -28.0), (-39.0, -21.0)
MISMATCHED = 0.44  # of in-the-wild pairs, picture and sound do not go together, as annotators find
# `sonify` as it ships, the same with a wide range of loudness, and the paper's own rules with the same encoder.
RULES = ("shipped", "wide", "paper")
STAGES = ("pool", "embeddings", "concepts", "pair")  # scenes are heard, and not written


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """A scene: its recordings by file name, the classes they are of, and the condition (T, D)."""

    recordings: tuple[str, ...]
    names: tuple[str, ...]
    audio_TD: np.ndarray  # noqa: N815 - shape suffix


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """A photograph and its scenes; a photograph of a small class comes several times, as number 0, 1, 2."""

    photo: Photo
    number: int
    scenes: tuple[Heard, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """What `sonify` may draw from: the files of recordings, and their classes by file name."""

    files: tuple[Path, ...]
    names: Mapping[str, str]

    @property
    def distractors(self) -> float:
        """The share of recordings of other classes than the photographs'."""
        return float(np.mean([name not in CLASSES for name in self.names.values()]))


def make_pool(data: Path, recordings: Sequence[Recording], distractors: Sequence[Recording]) -> Pool:
    """Recordings of the six classes below `learning/sounds`, and of others in `sounds`."""
    files = [data / "learning" / "sounds" / one.file for one in recordings]
    files += [data / "sounds" / one.file for one in distractors]
    names = {Path(one.file).name: one.name for one in (*recordings, *distractors)}
    return Pool(files=tuple(files), names=names)


def rules_of(name: str) -> dict[str, Any]:
    """The sections that say how pairs are made, from the configurations that come along.

    Both have the text encoder, which needs no weights: the paper's rules by the paper's CLAP are not measured here.
    """
    file = find_config({"paper": "sam"}.get(name, "folder"), "sonify")
    shipped = yaml.safe_load(file.read_text())
    audio = {key: value for key, value in shipped["audio"].items() if key not in ("sources", "validation")}
    rules = {"audio": audio, "retrieval": shipped["retrieval"] | {"encoder": {"kind": "text"}}, "mix": shipped["mix"]}
    if name == "wide":
        rules["mix"] = rules["mix"] | {"lufs": list(WIDE_LUFS)}
    return rules


class Sonified:
    """What `sonify` paired: for each photograph's file its scenes in order, and how each sounds."""

    def __init__(self, run_dir: Path, pool: Pool, ear: Ear) -> None:
        rows = [row for table in sorted((run_dir / "pairs").glob("*.parquet")) for row in read_rows(table, Pair)]
        number = lambda row: int(row.scene.rpartition("-")[2])  # noqa: E731 - scenes are captions-0 to captions-95
        ordered = sorted(rows, key=lambda row: (row.image_uri, number(row)))
        self.scenes = {file: tuple(pairs) for file, pairs in groupby(ordered, key=lambda row: row.image_uri)}
        self._names = pool.names
        self._run_dir = run_dir
        self._clips = ClipSamples(run_dir)
        self._ear = ear
        self.hear = lru_cache(maxsize=None)(self._hear)

    def _hear(self, file: str, number: int) -> Heard:
        """A photograph's scene, mixed as `sonify` renders it."""
        sources = self.scenes[file][number].sources
        gains_db = [source.gain_db for source in sources]
        mix = mix_clips([self._clips[source.clip] for source in sources], gains_db, PEAK_DBFS)
        files = tuple(recording_file(source.clip) for source in sources)
        return Heard(recordings=files, names=tuple(self._names[one] for one in files), audio_TD=self._ear(mix.samples))

    def alone(self) -> list[Heard]:
        """Each clip of the pool by itself, as loud as the middle of what is drawn."""
        heard: list[Heard] = []
        for clip in clip_columns(self._run_dir, ["clip"])["clip"].to_pylist():
            samples, file = self._clips[clip], recording_file(clip)
            gain_db = gain_to_target_db(measure_loudness(samples, SAMPLE_RATE_HZ), TARGET_LUFS, MAX_GAIN_DB)
            audio_TD = self._ear(mix_clips([samples], [gain_db], PEAK_DBFS).samples)
            heard.append(Heard(recordings=(file,), names=(self._names[file],), audio_TD=audio_TD))
        return heard

    def classes(self, file: str) -> Counter[str]:
        """How many sources of each class are in all scenes of a photograph."""
        sources = [source for pair in self.scenes.get(file, ()) for source in pair.sources]
        return Counter(self._names[recording_file(source.clip)] for source in sources)


def sonify_photos(data: Path, pool: Pool, out: Path, rules: str, ear: Ear) -> Sonified:
    """Run `sonify` over the photographs and a pool; captions name what ImageNet's label names."""
    sounds = out / "sounds"
    if not sounds.is_dir():
        sounds.mkdir(parents=True)
        for file in pool.files:
            (sounds / file.name).symlink_to(file.resolve())
    rows = list(csv.DictReader((data / "photos.csv").open(newline="")))
    captions = [(one["file"], f"a photo of a {one['label']}") for one in rows]
    _write_table(out / "captions.csv", ("file", "caption"), captions)
    texts = [(file, name.replace("_", " ")) for file, name in pool.names.items()]
    _write_table(sounds / "metadata.csv", ("file", "text"), texts)
    made = rules_of(rules)
    config = make_config(
        {
            "run_dir": str(out / f"run-{rules}"),
            "images": {"kind": "folder", "path": str(data / "photos"), "validation": 0},
            "audio": made["audio"] | {"sources": [{"kind": "folder", "path": str(sounds)}], "validation": 0},
            "concepts": {"extractors": [{"kind": "captions", "file": str(out / "captions.csv")}]},
            "retrieval": made["retrieval"] | {"draws": DRAWS},
            "mix": made["mix"],
            "engine": {"kind": "local"},
        }
    )
    run(config, stages=STAGES)
    return Sonified(Path(str(config.run_dir)), pool, ear)


def _write_table(path: Path, header: tuple[str, str], rows: Sequence[tuple[str, str]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def recording_file(clip: str) -> str:
    """The file's name in a clip's id, such as `folder/dog.flac#0`."""
    return clip.removeprefix("folder/").partition("#")[0]


def hear_alone(folder: Path, recording: Recording, ear: Ear, target_lufs: float = TARGET_LUFS) -> Heard:
    """A recording alone, as loud as a scene; `folder` is that of its `file`."""
    audio_TD = ear(read_levelled(folder / recording.file, target_lufs))
    return Heard(recordings=(Path(recording.file).name,), names=(recording.name,), audio_TD=audio_TD)


def balanced(photos: Sequence[Photo], seed: int) -> list[tuple[Photo, int]]:
    """`PHOTOS_PER_CLASS` photographs of each class; where there are fewer they are repeated, with numbers from 0 on."""
    rng = np.random.default_rng(seed)
    chosen: list[tuple[Photo, int]] = []
    for name in CLASSES:
        of_class = [photo for photo in photos if photo.name == name]
        kept = [of_class[n] for n in rng.permutation(len(of_class))[:PHOTOS_PER_CLASS]]
        chosen += [(kept[n % len(kept)], n // len(kept)) for n in range(PHOTOS_PER_CLASS)]
    return chosen


def pair_by_sonify(chosen: Sequence[tuple[Photo, int]], made: Sonified, scenes: int = SCENES) -> list[Paired]:
    """Each photograph with scenes that `sonify` drew for it."""
    return [
        Paired(
            photo=photo,
            number=number,
            scenes=tuple(made.hear(photo.file, (scenes * number + n) % DRAWS) for n in range(scenes)),
        )
        for photo, number in chosen
    ]


def pair_freshly(chosen: Sequence[tuple[Photo, int]], made: Sonified) -> list[Paired]:
    """Each photograph with all scenes that `sonify` drew for it, as copies of the sample with some of them each."""
    return [
        Paired(
            photo=photo,
            number=COPIES * number + copy,
            scenes=tuple(made.hear(photo.file, SCENES * copy + n) for n in range(SCENES)),
        )
        for photo, number in chosen
        for copy in range(COPIES)
    ]


def pair_by_class(
    chosen: Sequence[tuple[Photo, int]], folder: Path, recordings: Sequence[Recording], ear: Ear, seed: int
) -> list[Paired]:
    """Each photograph with recordings of its own class, as loud as `sonify` would have them."""
    rng = np.random.default_rng(seed)
    of_class = {name: [one for one in recordings if one.name == name] for name in CLASSES}
    pairs: list[Paired] = []
    for photo, number in chosen:
        own = of_class[photo.name]
        drawn = [own[n] for n in rng.permutation(len(own))[:SCENES]]
        targets = rng.uniform(*NARROW_LUFS, len(drawn))
        scenes = tuple(hear_alone(folder, one, ear, lufs) for one, lufs in zip(drawn, targets, strict=True))
        pairs.append(Paired(photo=photo, number=number, scenes=scenes))
    return pairs


def shuffled(pairs: Sequence[Paired], seed: int) -> list[Paired]:
    """The same scenes and photographs, each scene with any photograph."""
    scenes = [scene for pair in pairs for scene in pair.scenes]
    order = np.random.default_rng(seed).permutation(len(scenes))
    mixed = iter([scenes[n] for n in order])
    return [
        Paired(photo=pair.photo, number=pair.number, scenes=tuple(next(mixed) for _ in pair.scenes)) for pair in pairs
    ]


def mismatched(pairs: Sequence[Paired], others: Sequence[Heard], seed: int) -> list[Paired]:
    """Pairs of which the share `MISMATCHED` hears one of `others` instead, of another class than the photograph's."""
    rng = np.random.default_rng(seed)
    count = sum(len(pair.scenes) for pair in pairs)
    wrong = iter(rng.permutation(count) < round(MISMATCHED * count))

    def heard_with(pair: Paired, scene: Heard) -> Heard:
        if not next(wrong):
            return scene
        foreign = [one for one in others if pair.photo.name not in one.names]
        return foreign[int(rng.integers(len(foreign)))]

    return [
        Paired(photo=pair.photo, number=pair.number, scenes=tuple(heard_with(pair, scene) for scene in pair.scenes))
        for pair in pairs
    ]


def count_sounds(made: Sonified, photos: Sequence[Photo]) -> dict[str, dict[str, float]]:
    """Over ALL photographs, by class and for all classes alike: what share of one's sound is what.

    `right` is of its own class, `near` of a class that a person would accept for some of them, `other_class` of another
    of the six, `distractor` of the rest of the pool, and `none` is the share of photographs without a sound: the five
    add up to one.
    """
    table = {name: _shares(made, [one for one in photos if one.name == name]) for name in CLASSES}
    mean = {key: float(np.mean([row[key] for row in table.values()])) for key in table[CLASSES[0]]}
    mean["photographs"] = len(photos)
    return table | {"all": mean}


def _shares(made: Sonified, photos: Sequence[Photo]) -> dict[str, float]:
    rows = [_kinds(made.classes(photo.file), photo.name) for photo in photos]
    shares = {kind: float(np.mean([row[kind] for row in rows])) for kind in rows[0]}
    return {"photographs": len(photos), "with_sound": 1 - shares["none"]} | shares


def _kinds(classes: Counter[str], own: str) -> dict[str, float]:
    kinds: dict[str, float] = dict.fromkeys(("right", "near", "other_class", "distractor", "none"), 0.0)
    if not classes:
        return kinds | {"none": 1.0}
    for name, count in classes.items():
        near = "near" if name in NEAR.get(own, ()) else "other_class" if name in CLASSES else "distractor"
        kinds["right" if name == own else near] += count / classes.total()
    return kinds
