import csv
import sys
import tarfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from PIL import Image

from sonify.captions.ontology import find_sounds
from sonify.captions.words import find_discard_words
from sonify.config import Concepts, Engine, make_config
from sonify.demo.demo import PHOTOS, demo_config, run_demo, write_photos, write_sample, write_sounds
from sonify.errors import InputError
from sonify.running import run

SHIPPED = Path(__file__).parents[2] / "configs" / "sonify" / "demo.yaml"

needs_photographs = pytest.mark.skipif(find_spec("skimage") is None, reason="scikit-image is not installed")


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "sample"
    write_sample(folder)
    return folder


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@needs_photographs
def test_every_photograph_opens_and_has_a_caption_and_a_licence(sample: Path) -> None:
    photos = sample / "photos"
    captions, sources = table(photos / "captions.csv"), table(photos / "sources.csv")
    pictures = {path.name for path in photos.iterdir() if path.suffix in {".png", ".jpg"}}
    assert len(pictures) >= 10
    assert {row["file"] for row in captions} == {row["file"] for row in sources} == pictures
    assert all(row["caption"].strip() for row in captions)
    assert all(row["licence"] and row["source"].startswith("http") and row["attribution"] for row in sources)
    for name in pictures:
        with Image.open(photos / name) as picture:
            picture.load()
            assert picture.format == ("PNG" if name.endswith(".png") else "JPEG")


@needs_photographs
def test_photographs_are_copied_byte_for_byte(sample: Path) -> None:
    spec = find_spec("skimage")
    assert spec is not None
    assert spec.origin is not None
    shipped = Path(spec.origin).parent / "data"
    assert all((sample / "photos" / p.file).read_bytes() == (shipped / p.file).read_bytes() for p in PHOTOS)


@pytest.mark.parametrize("caption", [photo.caption for photo in PHOTOS])
def test_every_caption_names_sounds_and_no_discard_word(caption: str) -> None:
    assert find_sounds(caption)
    assert not find_discard_words(caption, Concepts().discard_words, "substring")


def test_most_captions_are_scenes_of_several_sources() -> None:
    several = [photo for photo in PHOTOS if len(find_sounds(photo.caption)) >= 2]
    assert len(several) > 0.7 * len(PHOTOS)


def test_every_recording_is_in_the_table_and_every_row_is_a_recording(tmp_path: Path) -> None:
    write_sounds(tmp_path)
    rows = table(tmp_path / "metadata.csv")
    assert len(rows) == 90
    assert {row["file"] for row in rows} == {path.name for path in tmp_path.glob("*.opus")}
    assert all(row["file"] == f"{row['recording']}.opus" for row in rows)
    assert len({row["recording"] for row in rows}) == len(rows)
    assert len({row["text"] for row in rows}) == 45
    assert {row["licence"] for row in rows} == {"CC0-1.0"}
    assert {row["attribution"] for row in rows} == {"sonify (synthesised)"}


def test_every_recording_is_sound(tmp_path: Path) -> None:
    write_sounds(tmp_path)
    for path in tmp_path.glob("*.opus"):
        info = soundfile.info(path)
        assert (info.samplerate, info.subtype, info.format) == (48_000, "OPUS", "OGG"), path
        assert 6 <= info.duration <= 12, path
        sound, rate_hz = soundfile.read(path, always_2d=True)
        peak = np.abs(sound).max()
        assert peak < 1, path
        clips = [clip for clip in np.split(sound, range(5 * rate_hz, len(sound), 5 * rate_hz)) if len(clip) >= rate_hz]
        assert all(np.abs(clip).max() > 0.2 * peak > 0.01 for clip in clips), path


def test_the_recordings_are_small_enough_to_ship(tmp_path: Path) -> None:
    write_sounds(tmp_path)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 4_000_000


@needs_photographs
def test_writing_again_gives_the_same_bytes(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos")
    write_sounds(tmp_path / "sounds")
    before = contents(tmp_path / "photos"), contents(tmp_path / "sounds")
    write_photos(tmp_path / "photos")
    write_sounds(tmp_path / "sounds")
    assert (contents(tmp_path / "photos"), contents(tmp_path / "sounds")) == before


@needs_photographs
def test_a_demo_is_enough_for_the_smoke_training_and_a_second_one_has_nothing_to_do(tmp_path, caplog):
    caplog.set_level("INFO")
    write_sample(tmp_path / "demo/sample")
    run(demo_config(tmp_path / "demo").model_copy(update={"engine": Engine(kind="local")}))
    assert run_demo(tmp_path / "demo").is_file()
    made = 0
    for shard in (tmp_path / "demo/shards").rglob("*.tar"):
        with tarfile.open(shard) as tar:
            made += sum(name.endswith(".json") for name in tar.getnames())
    smoke = yaml.safe_load((SHIPPED.parents[1] / "train/smoke.yaml").read_text())
    assert made >= smoke["batch"]["total"], "too few to train on for a step"
    said = f"nothing to do: the demo in {tmp_path / 'demo'} is done already; remove that folder to see it made again"
    assert said in caplog.messages
    caplog.clear()
    next((tmp_path / "demo/commits/render").rglob("*.json")).unlink()
    run_demo(tmp_path / "demo")
    assert said not in caplog.messages


def test_without_scikit_image_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage", None)  # as if it were not installed
    with pytest.raises(InputError, match=r"skimage is not installed: run .*\[sample\]") as raised:
        write_sample(tmp_path / "sample")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "sample").exists()


def test_the_shipped_configuration_goes_on_where_the_demo_ended(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("photos", "sounds"):
        Path("runs/demo/sample", name).mkdir(parents=True)
    shipped = make_config(yaml.safe_load(SHIPPED.read_text()))
    assert shipped.features is not None
    assert shipped.model_copy(update={"features": None}) == demo_config(Path("runs/demo"))
