"""What tests build, small and real: pictures, sounds, input, configurations, rows, and runs read back.

Models are built in `tests.tiny_networks`, runs with features in `tests.feature_runs`; servers stand in `tests.servers`,
what starts and kills processes in `tests.processes`.
"""

import csv
import io
import json
import random
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import soundfile
from PIL import Image

from sonify import layout
from sonify.config import Config, make_config
from sonify.engine.plan import Plan, plan_stage
from sonify.engine.worker import LocalExecutor
from sonify.errors import InputError
from sonify.io.places import files_below
from sonify.io.tables import read_rows, write_rows
from sonify.io.write import sha256_of
from sonify.media.clips import cut_recording
from sonify.prepare import prepare
from sonify.rows import Clip, Concept, ImageConcepts, Pair, Render, SoundRef, SourceClip
from sonify.running import open_run
from sonify.stages.table import stages_of
from sonify.stores import Place

Row = TypeVar("Row")

RATE_HZ = 16_000
SUBJECTS = ("dog", "cat", "church bell", "rain", "train", "rooster", "helicopter", "frog")
SHA256 = "a" * 64


# --- pictures and sounds


def picture(seed: int = 0, size: tuple[int, int] = (48, 32), image_format: str = "JPEG") -> bytes:
    """A small smooth picture, different for each seed."""
    noise = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return encoded(Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC), image_format)


def encoded(image: Image.Image, image_format: str = "JPEG", **options: Any) -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def tone(seed: int = 0, seconds: float = 5.0, sample_rate_hz: int = RATE_HZ) -> np.ndarray:
    """A decaying tone with a little noise, different for each seed: (samples,) float64."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * sample_rate_hz)) / sample_rate_hz
    hum = np.sin(2 * np.pi * (200 + 37 * (seed % 50)) * time) * np.exp(-time / seconds)
    return 0.3 * hum + 0.01 * rng.standard_normal(len(time))


def sine(hz: float = 440.0, seconds: float = 5.0, sample_rate_hz: int = RATE_HZ, level: float = 0.25) -> np.ndarray:
    """A steady tone: (samples,) float64."""
    return level * np.sin(2 * np.pi * hz * np.arange(round(seconds * sample_rate_hz)) / sample_rate_hz)


def noise(seed: int = 0, size: int | tuple[int, ...] = 5 * RATE_HZ, level: float = 0.1) -> np.ndarray:
    """White noise of a standard deviation: float64, where 1.0 is full scale."""
    return np.random.default_rng(seed).normal(0, level, size)


def as_pcm(samples: np.ndarray) -> np.ndarray:
    """Samples as 16-bit steps; what is above full scale is cut."""
    return np.rint(samples * 32768).clip(-32768, 32767).astype(np.int16)


def sound_bytes(samples: np.ndarray, sample_rate_hz: int = RATE_HZ, container: str = "FLAC", **options: Any) -> bytes:
    """The bytes of a sound file."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, sample_rate_hz, format=container, **options)
    return buffer.getvalue()


def write_sound(path: Path, samples: np.ndarray, sample_rate_hz: int = RATE_HZ, **options: Any) -> Path:
    """Write a sound file, with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, sample_rate_hz, **options)
    return path


def first_clips(folder: Path, count: int, sample_rate_hz: int = RATE_HZ, every: int = 1) -> list[np.ndarray]:
    """Of the real recordings in a folder, the first five seconds of each, as a pool stores them: (samples,) int16."""
    files = sorted(folder.glob("*.flac"))[::every][:count]
    return [next(cut_recording(file, sample_rate_hz, 5.0)).samples for file in files]


def read_waveforms(folder: Path, count: int) -> np.ndarray:
    """The first clips of so many of the real recordings, from all over the folder: (count, 80000) float32."""
    every = len(list(folder.glob("*.flac"))) // count
    return np.stack(first_clips(folder, count, every=every)).astype(np.float32) / 32768


# --- input as users have it


def write_csv(path: Path, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Path:
    """Write a table of text."""
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return path


def write_photos(folder: Path, captions: Mapping[str, str], table: bool = True) -> Path:
    """Write a picture for each file name; captions go into captions.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(captions):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture(seed))
    if table:
        write_csv(folder / "captions.csv", ("file", "caption"), list(captions.items()))
    return folder


def write_sounds(folder: Path, texts: Mapping[str, str], seconds: float = 5.0) -> Path:
    """Write a tone for each file name, and metadata.csv."""
    for seed, name in enumerate(texts):
        write_sound(folder / name, tone(seed, seconds))
    rows = [(name, text, "CC0-1.0", f"by {n}") for n, (name, text) in enumerate(texts.items())]
    write_csv(folder / "metadata.csv", ("file", "text", "licence", "attribution"), rows)
    return folder


def small_input(root: Path, photos: int = 24, recordings: int = 16) -> tuple[Path, Path]:
    """Photos and sounds of a few subjects, in folders below `root`."""
    captions = {f"{n:03d}.jpg": f"a photo of a {SUBJECTS[n % len(SUBJECTS)]}" for n in range(photos)}
    texts = {f"{n:03d}.flac": SUBJECTS[n % len(SUBJECTS)] for n in range(recordings)}
    (root / "sounds").mkdir(parents=True, exist_ok=True)
    return write_photos(root / "photos", captions), write_sounds(root / "sounds", texts)


def tar_bytes(members: Mapping[str, bytes], mode: str = "w") -> bytes:
    """An archive in memory, as anyone would write it; `w:gz` packs it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # pyright: ignore[reportCallIssue, reportArgumentType]
        for name, data in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))
    return buffer.getvalue()


def write_tar(path: Path, members: Mapping[str, bytes]) -> Path:
    """Write an archive, with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar_bytes(members))
    return path


def sa1b_record(image: int, masks: int = 3) -> bytes:
    """The JSON of one SA-1B image, as published."""
    annotations = [
        {
            "id": 500_000_000 + mask,
            "segmentation": {"size": [32, 48], "counts": "Q1a11N2O0O1O10001N2O1N2N^a0"},
            "bbox": [3.0, 4.0, 20.0, 10.0],
            "area": 144,
            "predicted_iou": 0.93,
            "stability_score": 0.97,
            "crop_box": [0.0, 0.0, 48.0, 32.0],
            "point_coords": [[12.5, 8.25]],
        }
        for mask in range(masks)
    ]
    about = {"image_id": image, "width": 48, "height": 32, "file_name": f"sa_{image}.jpg"}
    return json.dumps({"image": about, "annotations": annotations}).encode()


def sa1b_members(images: Mapping[int, bytes] | range) -> dict[str, bytes]:
    """Members of an SA-1B archive: not sorted, each under `./`."""
    members: dict[str, bytes] = {}
    for image in sorted(images, key=lambda n: n % 7):
        members[f"./sa_{image}.jpg"] = picture(image)
        members[f"./sa_{image}.json"] = sa1b_record(image)
    return members


def write_sa1b(folder: Path, images: range) -> Path:
    """Two archives as published, `sa_000020.tar` and `sa_000021.tar`, with half of the images each."""
    half = len(images) // 2
    for part, ids in enumerate((images[:half], images[half:])):
        write_tar(folder / f"sa_00002{part}.tar", sa1b_members(ids))
    return folder


# --- configurations


def small_config(root: Path, run: str = "run", **sections: Any) -> Config:
    """A run over `small_input`, in this process, of units of 8 photos.

    Sections are merged with that key by key; one that names an input of its own (by `kind` or `sources`) replaces it.
    """
    base: dict[str, Any] = {
        "run_dir": str(root / run),
        "images": {"kind": "folder", "path": str(root / "photos"), "shard_size": 8, "validation": 0},
        "audio": sounds_in(root / "sounds"),
        "engine": {"kind": "local"},
    }
    for name, section in sections.items():
        merges = isinstance(section, Mapping) and not {"kind", "sources"} & section.keys()
        base[name] = {**base.get(name, {}), **section} if merges else section
    return make_config(base)


def sounds_in(folder: Path, name: str = "folder", **settings: Any) -> dict[str, Any]:
    """The section of one folder of recordings, all for training."""
    return {"sources": [{"kind": "folder", "path": str(folder), "name": name}], "validation": 0} | settings


def archives_in(folder: Path, **settings: Any) -> dict[str, Any]:
    """The section of a folder of WebDataset archives of images, all for training."""
    return {"kind": "webdataset", "path": str(folder), "validation": 0} | settings


# --- a model behind an endpoint: its section, and what it says

SAID = (
    "caption: a dog on grass\ndog: sound of a dog barking (foreground)\nrain: rain falling (ambience)",
    "caption: a cat at home\n- **cat**: a cat meowing (foreground)",
    "caption: a church\n1. church bell: a church bell ringing (background)",
)


def vlm_at(url: str, name: str = "eye", **fields: Any) -> dict[str, Any]:
    """The section of an extractor that asks there and soon gives up."""
    return {
        "kind": "vlm", "name": name, "backend": "endpoint", "model": "stub", "url": url, "concurrency": 4,
        "image_size": 64, "timeout_sec": 2.0, "max_wait_sec": 4.0, **fields,
    }  # fmt: skip


def say(image: Image.Image, prompt: str) -> str:
    """Answer either question about a numbered image in form; no church is confirmed, and number 3 is a drawing."""
    number = number_in(image)
    if "medium:" not in prompt:
        return SAID[number % len(SAID)]
    names = re.search(r"in this order: (.*)\n", prompt)
    assert names
    verdict = "no" if number % len(SAID) == 2 else "yes"
    lines = [f"{name}: visible {verdict}, real yes, sounding yes" for name in names[1].split(", ")]
    return "\n".join([f"medium: {'drawing' if number == 3 else 'photo'}", *lines])


def told(name: str, description: str = "", **fields: Any) -> dict[str, Any]:
    """A concept as a model tells it in JSON: in the foreground of the left half, sounding."""
    return {
        "name": name, "description": description or f"sound of a {name} nearby", "presence": "visible",
        "sounding": True, "prominence": "foreground", "box": [0, 0, 500, 1000], "confidence": 0.75,
    } | fields  # fmt: skip


TOLD: tuple[tuple[Any, ...], ...] = (
    (
        "a dog on a beach",
        told("dog", "sound of a dog barking"),
        told("seagull", presence="off_screen", box=[], confidence=0.5),
        told("parked car", "silent", sounding=False),
    ),
    ("a cat at home", told("cat", "a cat meowing", prominence="background")),
    ("a church", told("church bell", "a church bell ringing", presence="implied", box=[])),
)


def told_json(caption: Any, *concepts: Any) -> str:
    """An answer in the form of the JSON question."""
    return json.dumps({"caption": caption, "concepts": concepts})


def tell(image: Image.Image, prompt: str) -> str:
    """Answer the JSON question about a numbered image in form, and the check as `say` does."""
    return told_json(*TOLD[number_in(image) % len(TOLD)]) if "JSON" in prompt else say(image, prompt)


def number_in(image: Image.Image) -> int:
    """The number that `numbered_image` of the faulty server has drawn."""
    fields = image.convert("L").resize((4, 4), Image.Resampling.BOX).tobytes()
    return sum(1 << n for n, level in enumerate(fields) if level > 127)


# --- rows


def clip_row(clip: str = "folder/000.flac#0", **fields: Any) -> Clip:
    """A clip of five seconds; corpus, recording and file follow from its name."""
    file = clip.partition("#")[0]
    corpus, _, name = file.rpartition("/")
    values: dict[str, Any] = {
        "recording": file, "corpus": corpus, "file": name, "start_sec": 0.0, "duration_sec": 5.0,
        "loudness_lufs": -20.25, "peak_dbfs": -3.0, "text": "dog", "licence": "CC0-1.0", "attribution": "",
        "split": "train", "sha256": SHA256,
    }  # fmt: skip
    return Clip(clip=clip, **(values | fields))


def sound_row(file: str, **fields: Any) -> SoundRef:
    """A recording of a folder's listing."""
    values = {"corpus": "folder", "recording": file, "text": f"sound {file}", "licence": "", "attribution": ""}
    return SoundRef(file=file, **(values | fields))


def source_row(concept: str = "dog", **fields: Any) -> SourceClip:
    """A clip that was drawn for a concept."""
    values: dict[str, Any] = {
        "description": f"sound of a {concept}", "clip": "folder/000.flac#0", "cosine": 0.5, "score": 0.7,
        "threshold": 0.25, "num_candidates": 3, "target_lufs": -30.0, "gain_db": -9.75,
    }  # fmt: skip
    return SourceClip(concept=concept, **(values | fields))


def pair_row(image: str = "000_2ejpg", **fields: Any) -> Pair:
    """A scene of one source."""
    values: dict[str, Any] = {
        "image_uri": "000.jpg", "image_sha256": SHA256, "width": 48, "height": 32, "split": "train",
        "scene": "captions", "caption": "a dog", "medium": "", "check_answer": "", "sources": (source_row(),),
    }  # fmt: skip
    return Pair(image=image, **(values | fields))


def render_row(pair: Pair, **fields: Any) -> Render:
    """What rendering a scene did."""
    values: dict[str, Any] = {"mix_gain_db": -0.5, "peak_dbfs": -12.5, "mix_sha256": SHA256}
    return Render(image=pair.image, scene=pair.scene, **(values | fields))


def concepts_row(image: str = "000_2ejpg", *concepts: str, **fields: Any) -> ImageConcepts:
    """What was heard in an image: a dog, where nothing is named."""
    values: dict[str, Any] = {
        "image_uri": "000.jpg", "image_sha256": SHA256, "width": 48, "height": 32, "caption": "a dog", "answer": "",
        "concepts": tuple(Concept(concept=name, description=f"sound of a {name}") for name in concepts or ("dog",)),
    }  # fmt: skip
    return ImageConcepts(image=image, **(values | fields))


def write_table(path: Path, row_type: type[Row], rows: Sequence[Row]) -> Path:
    """Write rows as the product stores them, with the folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        write_rows(file, row_type, rows)
    return path


# --- runs, and what they hold


def run_shuffled(config: Config) -> None:
    """Do what is to do of a run, the units of each stage in another order."""
    plans: dict[str, Plan] = {}
    stages = stages_of(config)
    executor = LocalExecutor(config.run_dir, stages)
    with open_run(config.run_dir):
        prepare(config, stages, stages, None)
        for stage in stages:
            tasks = plan_stage(config.run_dir, stage, plans).tasks
            outcomes = list(executor(stage, random.Random(3).sample(tasks, len(tasks))))
            assert all(outcome.commit for outcome in outcomes)
            plans[stage.key] = plan_stage(config.run_dir, stage, plans)
    executor.close()


PROMISED = (
    "pool", layout.ANSWERS, layout.CONCEPTS, layout.CHECKS, layout.PAIRS, layout.RENDERS, layout.SHARDS,
    layout.FEATURES, layout.REJECTS, layout.COMMITS,
)  # fmt: skip


def hash_run(run_dir: Place) -> dict[str, str]:
    """The sha256 of each file that is promised to be the same, by path."""
    files = (f"{folder}/{name}" for folder in PROMISED for name in files_below(run_dir / folder))
    return {path: sha256_of(run_dir / path) for path in files}


def stored(folder: Place, row_type: type[Row]) -> list[Row]:
    """The rows of all tables in a folder, in the order of their names; none where there is no folder."""
    return [row for path in sorted(folder.glob("*.parquet")) for row in read_rows(path, row_type)]


def members_of(folder: Path) -> dict[str, bytes]:
    """The members of all archives below a folder, by name."""
    found: dict[str, bytes] = {}
    for path in sorted(folder.rglob("*.tar")):
        with tarfile.open(path) as archive:
            for member in archive:
                content = archive.extractfile(member)
                assert content is not None
                found[member.name] = content.read()
    return found


# --- refusals


@contextmanager
def refused(match: str | None, error: type[Exception] = InputError) -> Iterator[pytest.ExceptionInfo]:
    """Expect an error that says what is wrong in one line."""
    with pytest.raises(error, match=match) as caught:
        yield caught
    assert "\n" not in str(caught.value)
