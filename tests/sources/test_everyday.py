"""A folder of all the everyday formats: what the documentation promises is read, and every file is counted."""

import logging
import os
import re
from pathlib import Path

import pytest

from sonify.media.audio import read_blocks
from sonify.media.clips import cut_recording
from sonify.media.headers import HEIF_SUFFIXES, IMAGE_SUFFIXES
from sonify.media.pixels import decode_for_model, decode_rgb, inspect_image, to_jpeg
from sonify.running import run
from sonify.sources.sounds.forms import SOUND_SUFFIXES
from tests.builders import small_config, sounds_in, write_csv
from tests.sources.everyday import SECONDS, SOUNDS, film, image_bytes
from tests.sources.recordings import put

DATA = Path(__file__).parents[2] / "docs" / "data.md"


def promised(column: str) -> dict[str, list[list[str]]]:
    """A table of the documentation's, by its first column: the endings, and what is in a container."""
    table = re.search(rf"^\| {column} \|.*?\n\n", DATA.read_text(), re.MULTILINE | re.DOTALL)
    assert table is not None
    rows = [line.strip("| ").split(" | ") for line in table.group().strip().splitlines()[2:]]
    return {kind: [re.findall(r"`([^`]+)`", endings), [c for cell in rest for c in cell.split(", ")]]
            for kind, endings, *rest in rows}  # fmt: skip


IMAGES = {kind: endings for kind, (endings, _) in promised("image").items()}
IN_SOUNDS = [(kind, codec) for kind, (_, codecs) in promised("sound").items() for codec in codecs]


def test_the_documentation_names_the_endings_that_are_listed():
    assert sorted(e for endings in IMAGES.values() for e in endings) == sorted((*IMAGE_SUFFIXES, *HEIF_SUFFIXES))
    assert sorted(e for endings, _ in promised("sound").values() for e in endings) == sorted(SOUND_SUFFIXES)
    assert {(kind, codec) for kind, made in SOUNDS.items() for codec in made} == set(IN_SOUNDS)


@pytest.mark.parametrize("kind", IMAGES)
def test_every_image_that_is_promised_is_read(kind):
    data = image_bytes(kind)
    info = inspect_image(data)
    assert (info.width, info.height) == decode_rgb(data).size == (96, 64)
    assert decode_for_model(data, 32) [1].size == (48, 32)  # fmt: skip
    assert inspect_image(to_jpeg(data, None)).verbatim
    red, green, blue = decode_rgb(data).getpixel((70, 20))  # pyright: ignore[reportGeneralTypeIssues]
    expected = decode_rgb(image_bytes("PNG")).getpixel((70, 20))
    assert max(abs(a - b) for a, b in zip((red, green, blue), expected, strict=True)) <= 12  # pyright: ignore


@pytest.mark.parametrize(("kind", "codec"), IN_SOUNDS)
def test_every_sound_that_is_promised_is_read(kind, codec, tmp_path):
    data = SOUNDS[kind][codec]()
    (tmp_path / "sound").write_bytes(data)
    for recording in (data, tmp_path / "sound"):
        clip = next(cut_recording(recording, 16_000, 2.0))
        assert clip.duration_sec == pytest.approx(SECONDS, abs=0.1)
        assert 500 < clip.samples.astype(float).std() < 8000


@pytest.mark.parametrize("container", ["mp4", "mov", "matroska", "3gp"])
def test_a_film_gives_its_sound(container):
    assert sum(block.shape[1] for block in read_blocks(film(container))) == pytest.approx(44_100, rel=0.1)


JUNK = ("._a.jpg", ".DS_Store", "Thumbs.db", "__MACOSX/a.jpg", "@eaDir/a.jpg/x.jpg", ".thumbnails/a.jpg", ".hidden.wav")


def everyday_photos(folder: Path) -> Path:
    """Every kind of image under each of its endings, with captions, and what lies beside such files."""
    captions: list[tuple[str, str]] = []
    for kind, endings in IMAGES.items():
        for number, ending in enumerate(endings):
            name = f"{kind}-{number}{ending.upper() if number else ending}"
            put(folder / name, image_bytes(kind))
            captions.append((name, "a dog barks"))
    put(folder / "damaged.gif", b"GIF89a" + bytes(20))
    put(folder / "called.png", image_bytes("AVIF"))
    put(folder / "beside/one.tif", image_bytes("TIFF"))
    put(folder / "beside/one.txt", b"rain")
    write_csv(folder / "captions.csv", ("file", "caption"), captions)
    for name in ("raw.cr2", "drawing.xcf", "film.mov", "film2.MOV", "README", "notes.txt", *JUNK):
        put(folder / name, b"x")
    (folder / "broken.jpg").symlink_to("nowhere.jpg")
    return folder


def everyday_sounds(folder: Path) -> Path:
    """Every kind of sound, films, and what lies beside such files."""
    endings = {kind: endings for kind, (endings, _) in promised("sound").items()}
    rows: list[tuple[str, str]] = []
    for kind, codecs in SOUNDS.items():
        for number, (codec, make) in enumerate(codecs.items()):
            ending = endings[kind][number % len(endings[kind])]
            put(folder / f"{kind}/{codec}{ending}", make())
            rows.append((f"{kind}/{codec}{ending}", "dog"))
    put(folder / "film.mkv", film("matroska"))
    put(folder / "silent film.mp4", film("mp4", with_sound=False))
    put(folder / "text.wav", b"a text that somebody renamed")
    write_csv(folder / "metadata.csv", ("file", "text"), rows)
    for name in ("song.mid", "song.ape", "list.m3u", "cover.jpg", *JUNK):
        put(folder / name, b"x")
    return folder


def counted(folder: Path) -> int:
    """As `find -L FOLDER -type f | wc -l` counts."""
    return sum(os.path.isfile(Path(at) / name) for at, _, names in os.walk(folder, followlinks=True) for name in names)


def said(folder: Path, text: str) -> list[int]:
    """What the line of a listing says of a folder: input, read beside, ignored, junk."""
    (line,) = [line for line in text.splitlines() if f"{folder}: " in line and " are input" in line]
    patterns = (r"([\d,]+) files are input", r"([\d,]+) read beside", r"ignored: ([^;]*)", r"([\d,]+) of no use")
    parts = [found.group(1) if (found := re.search(pattern, line)) else "" for pattern in patterns]
    return [sum(int(n.replace(",", "")) for n in re.findall(r"(?:^|, )(\d[\d,]*\d|\d)", part)) for part in parts]


@pytest.mark.parametrize("heif", [True, False])
def test_a_folder_of_all_everyday_formats_adds_up_in_a_run(tmp_path, caplog, heif):
    photos, sounds = everyday_photos(tmp_path / "photos"), everyday_sounds(tmp_path / "sounds")
    caplog.set_level(logging.INFO)
    config = small_config(
        tmp_path,
        images={"kind": "folder", "path": photos, "validation": 0, "heif": heif},
        audio=sounds_in(sounds),
        retrieval={"limit": None},
    )
    done = run(config)

    images = sum(map(len, IMAGES.values())) - (0 if heif else len(HEIF_SUFFIXES)) + 3
    recordings = len(IN_SOUNDS) + 3
    assert said(photos, caplog.text) == [images, 2, 6 + (0 if heif else 3), len(JUNK)]
    assert said(sounds, caplog.text) == [recordings, 1, 4, len(JUNK)]
    for folder in (photos, sounds):
        assert sum(said(folder, caplog.text)) == counted(folder)
    assert "1 that are no files (links that lead nowhere" in caplog.text
    assert ("3 .heic" in caplog.text) is False
    assert ("images.heif: true reads .heic" in caplog.text) is not heif
    assert (done["pool"].rows_in, dict(done["pool"].rejected)) == (recordings, {"unreadable": 1, "unsupported": 1})
    concepts = done["concepts/captions"]
    assert (concepts.rows_in, dict(concepts.rejected)) == (images, {"unreadable": 1, "no_caption": 1})
    assert done["render"].rows_out == images - 2
