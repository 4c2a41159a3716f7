"""The configuration that a card shows is taken from the card, filled in and rendered, for each kind of input."""

import io
import json
import re
import shutil
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import pillow_heif
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from sonify.cli import main
from sonify.config import Config, make_config
from sonify.dataset.recipe import recipe
from sonify.dataset.write import publish
from sonify.running import run
from tests.builders import (
    SUBJECTS,
    picture,
    sa1b_members,
    sound_bytes,
    tone,
    write_csv,
    write_photos,
    write_sound,
    write_sounds,
    write_tar,
)
from tests.dataset.folders import HOSTILE, mixes, shard_hashes

RATE_HZ = 8000
PICTURES, RECORDINGS = 5, 5
Source = dict[str, Any]


def flac(number: int) -> bytes:
    return sound_bytes(tone(number, 1.0, RATE_HZ), RATE_HZ)


def write_wav(path: Path, number: int) -> None:
    write_sound(path, tone(number, 1.0, RATE_HZ), RATE_HZ)


def caption(number: int) -> str:
    return f"a photo of a {SUBJECTS[number % RECORDINGS]}"


# --- image sets, each with a setting that rendering takes


def folder_images(root: Path) -> Source:
    write_photos(root, {f"{n}.jpg": caption(n) for n in range(1, PICTURES)} | {"0.heic": caption(0)})
    heic = io.BytesIO()
    pillow_heif.from_pillow(Image.open(io.BytesIO(picture(9)))).save(heic)
    (root / "0.heic").write_bytes(heic.getvalue())
    return {"kind": "folder", "path": root, "shard_size": 3, "heif": True}


def webdataset_images(root: Path) -> Source:
    members = {}
    for n in range(PICTURES):
        members |= {f"{n}.jpg": picture(n), f"{n}.txt": caption(n).encode()}
    write_tar(root / "0.tar", members)
    return {"kind": "webdataset", "path": root}


def sa1b_images(root: Path) -> Source:
    write_tar(root / "sa_000020.tar", sa1b_members(range(1, PICTURES + 1)))
    return {"kind": "sa1b", "path": root}


def parquet_images(root: Path) -> Source:
    root.mkdir()
    cells = pa.array([{"bytes": picture(n), "path": None} for n in range(PICTURES)])
    pq.write_table(pa.table({"photo": cells, "said": [caption(n) for n in range(PICTURES)]}), root / "0.parquet")
    return {"kind": "parquet", "path": root, "image_column": "photo", "caption_column": "said"}


# --- collections of sounds, likewise


def folder_sounds(root: Path) -> Source:
    write_sounds(root, {f"{n}.flac": SUBJECTS[n] for n in range(RECORDINGS)}, seconds=1.0)
    return {"kind": "folder", "path": root}


def esc50_sounds(root: Path) -> Source:
    for n in range(RECORDINGS):
        write_wav(root / f"audio/1-{n}-A-0.wav", n)
    (root / "meta").mkdir()
    head = ("filename", "fold", "target", "category", "esc10", "src_file", "take")
    rows = [(f"1-{n}-A-0.wav", 1, n, SUBJECTS[n].replace(" ", "_"), False, n, "A") for n in range(RECORDINGS)]
    write_csv(root / "meta/esc50.csv", head, rows)
    return {"kind": "esc50", "path": root}


def audioset_sounds(root: Path) -> Source:
    for n in range(RECORDINGS):
        write_wav(root / f"sounds/Yabcdefghij{n}.wav", n)
    labels = [(n, f"/m/{n}", SUBJECTS[n]) for n in range(RECORDINGS)]
    write_csv(root / "labels.csv", ("index", "mid", "display_name"), labels)
    rows = [f'abcdefghij{n}, 0.000, 10.000, "/m/{n}"\n' for n in range(RECORDINGS)]
    (root / "segments.csv").write_text("".join(rows))
    named = {"segments": root / "segments.csv", "labels": root / "labels.csv"}
    return {"kind": "audioset", "path": root / "sounds", "name": "tube", **named}


def fsd50k_sounds(root: Path) -> Source:
    for part, numbers in (("dev", range(2)), ("eval", range(2, RECORDINGS))):
        for n in numbers:
            write_wav(root / f"FSD50K.{part}_audio/{n}.wav", n)
        (root / "FSD50K.ground_truth").mkdir(exist_ok=True)
        rows = [(n, SUBJECTS[n].replace(" ", "_"), f"/m/{n}") for n in numbers]
        write_csv(root / f"FSD50K.ground_truth/{part}.csv", ("fname", "labels", "mids"), rows)
        (root / "FSD50K.metadata").mkdir(exist_ok=True)
        (root / f"FSD50K.metadata/{part}_clips_info_FSD50K.json").write_text("{}")
    return {"kind": "fsd50k", "path": root, "part": "both"}


def bbc_sounds(root: Path) -> Source:
    for n in range(RECORDINGS):
        write_wav(root / f"wav/0{n}.wav", n)
    head = ("location", "description", "secs", "category", "CDNumber", "CDName", "tracknum")
    rows = [(f"0{n}.wav", SUBJECTS[n], 1, "", "", "", n) for n in range(RECORDINGS)]
    (root / "table").mkdir()
    write_csv(root / "table/BBCSoundEffects.csv", head, rows)
    return {"kind": "bbc", "path": root / "wav", "table": root / "table/BBCSoundEffects.csv"}


def webdataset_sounds(root: Path) -> Source:
    members = {}
    for n in range(RECORDINGS):
        members |= {f"{n}.flac": flac(n), f"{n}.txt": SUBJECTS[n].encode()}
    write_tar(root / "0.tar", members)
    return {"kind": "webdataset", "path": root, "licence": "https://example.org/by/4.0: ours"}


def parquet_sounds(root: Path) -> Source:
    root.mkdir()
    cells = pa.array([{"bytes": flac(n), "path": None} for n in range(RECORDINGS)])
    pq.write_table(pa.table({"sound": cells, "what": list(SUBJECTS[:RECORDINGS])}), root / "0.parquet")
    return {"kind": "parquet", "path": root, "audio_column": "sound", "text_column": "what", "licence": "CC0-1.0"}


IMAGES = (sa1b_images, folder_images, webdataset_images, parquet_images)
SOUNDS = (
    audioset_sounds,
    folder_sounds,
    esc50_sounds,
    fsd50k_sounds,
    bbc_sounds,
    webdataset_sounds,
    parquet_sounds,
)


def moved(source: Source, old: Path, new: Path) -> Source:
    return {key: new / value.relative_to(old) if isinstance(value, Path) else value for key, value in source.items()}


def config_of(root: Path, images: Source, sounds: list[Source]) -> Config:
    write_csv(root / "captions.csv", ("file", "caption"), [(f"sa_{n}.jpg", caption(n)) for n in range(9)])
    finds: Source = {"kind": "captions"} | ({"file": root / "captions.csv"} if images["kind"] == "sa1b" else {})
    raw = {
        "run_dir": root / "run",
        "images": images | {"validation": 0},
        "audio": {"sources": sounds, "validation": 0, "clip_seconds": 1.0, "sample_rate": RATE_HZ},
        "concepts": {"extractors": [finds]},
        "mix": {"lufs": [-30.0, -26.0]},
        "engine": {"kind": "local"},
    }
    return make_config(json.loads(json.dumps(raw, default=str)))


def read_recipe(folder: Path) -> str:
    """The text between the fences of the card's only YAML."""
    (text,) = re.findall(r"^```yaml\n(.*?)^```$", (folder / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    return text


def fill_in(text: str, images: Source, sounds: list[Source]) -> str:
    """Put a place wherever the text has none, in its order."""
    asked = re.findall(r"(\w+): \.\.\.  # ", text)
    given = iter([images, *sounds])
    source: Source = {}
    for key in asked:
        source = next(given) if key == "path" else source
        text = text.replace(f"{key}: ...", f"{key}: {source[key]}", 1)
    assert next(given, None) is None
    return text


@pytest.mark.parametrize(
    ("write_images", "write_sounds_of"),
    list(zip(cycle(IMAGES), SOUNDS, strict=False)),
    ids=lambda write: write.__name__,
)
def test_a_card_is_enough_to_render_from(
    tmp_path: Path, write_images: Callable[[Path], Source], write_sounds_of: Callable[[Path], Source]
):
    (tmp_path / "mine").mkdir()
    images, sounds = write_images(tmp_path / "mine/images"), write_sounds_of(tmp_path / "mine/sounds")
    config = config_of(tmp_path, images, [sounds])
    run(config)
    publish(config.run_dir, tmp_path / "published")
    assert len(mixes(tmp_path / "run")) == PICTURES
    shutil.move(tmp_path / "mine", tmp_path / "yours")

    there = [moved(source, tmp_path / "mine", tmp_path / "yours") for source in (images, sounds)]
    (tmp_path / "mine.yaml").write_text(fill_in(read_recipe(tmp_path / "published"), there[0], there[1:]))
    command = ["render", "--from", str(tmp_path / "published"), "--config", str(tmp_path / "mine.yaml")]
    assert main([*command, "--out", str(tmp_path / "again"), "engine.kind=local"]) == 0

    assert mixes(tmp_path / "again") == mixes(tmp_path / "run")
    assert shard_hashes(tmp_path / "again") == shard_hashes(tmp_path / "run") != {}


def shown(images: Source | None = None, **source: Any) -> dict[str, Any]:
    config = {
        "images": {"kind": "folder"} | (images or {}),
        "audio": {"sources": [{"kind": "folder", "name": "mine"} | source]},
    }
    return yaml.safe_load(recipe(config, {"mine"}))


def test_only_what_a_renderer_must_say_is_shown():
    settings = {"sample": 5, "validation": 0.5, "shard_size": 7, "exclude": None, "heif": False}
    found = shown(settings, kind="bbc", table=None)
    assert found == {
        "run_dir": "runs/mine",
        "images": {"kind": "folder", "path": "..."},
        "audio": {"sources": [{"kind": "bbc", "name": "mine", "path": "..."}]},
    }
    assert list(found["audio"]["sources"][0]) == ["kind", "name", "path"]
    # a record leaves places out: a table that is not null was set
    assert shown(kind="bbc")["audio"]["sources"][0]["table"] == "..."


def test_a_collection_of_which_nothing_is_heard_is_not_asked_for():
    sources = [{"kind": "folder", "name": name} for name in ("heard", "unheard")]
    found = yaml.safe_load(recipe({"images": {"kind": "folder"}, "audio": {"sources": sources}}, {"heard"}))
    assert [source["name"] for source in found["audio"]["sources"]] == ["heard"]


@pytest.mark.parametrize(
    "text", [HOSTILE, "```\n# x", "yes", "null", "1", "a: b", "a #b", "", "...", "\u2028\x85", "犬 😀", "x" * 500, "-"]
)
def test_words_of_others_stay_words_in_one_line(text):
    config = {
        "images": {"kind": "folder"},
        "audio": {"sources": [{"kind": "webdataset", "name": "a", "licence": text}]},
    }
    written = recipe(config, {"a"})
    assert yaml.safe_load(written)["audio"]["sources"][0]["licence"] == text
    assert len(written.splitlines()) == 10
