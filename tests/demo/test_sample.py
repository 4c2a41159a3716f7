import csv
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import soundfile
from PIL import Image

from sonify.captions.sounds import find_discard_words, find_sounds
from sonify.config import Concepts
from sonify.demo.sample import PHOTOS, write_photos, write_sample, write_sounds
from sonify.demo.synth import KINDS, VARIATIONS
from sonify.errors import InputError

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


@needs_photographs
def test_every_recording_is_in_the_table_and_every_row_is_a_recording(sample: Path) -> None:
    rows = table(sample / "sounds" / "metadata.csv")
    assert len(rows) == len(KINDS) * VARIATIONS
    assert {row["file"] for row in rows} == {path.name for path in (sample / "sounds").glob("*.flac")}
    assert len({row["recording"] for row in rows}) == len(rows)
    assert {row["licence"] for row in rows} == {"CC0-1.0"}
    assert {row["attribution"] for row in rows} == {"sonify (synthesised)"}
    assert {row["text"] for row in rows} == {kind.text for kind in KINDS}
    for row in rows:
        info = soundfile.info(sample / "sounds" / row["file"])
        assert (info.samplerate, info.subtype, info.format) == (44_100, "PCM_16", "FLAC")
        assert 6 <= info.duration <= 12


@needs_photographs
def test_writing_again_gives_the_same_bytes(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos")
    write_sounds(tmp_path / "sounds", KINDS[:3])
    before = contents(tmp_path / "photos"), contents(tmp_path / "sounds")
    write_photos(tmp_path / "photos")
    write_sounds(tmp_path / "sounds", KINDS[:3])
    assert (contents(tmp_path / "photos"), contents(tmp_path / "sounds")) == before


def test_without_scikit_image_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage", None)  # as if it were not installed
    with pytest.raises(InputError, match=r'pip install "sonify\[sample\]"') as raised:
        write_sample(tmp_path / "sample")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "sample").exists()
