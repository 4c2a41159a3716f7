"""What models are tried on: a picture of the user's own set or a drawing, and six recordings that come along."""

import io
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.resources import files
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image, ImageDraw

from sonify.config import Audio, Images
from sonify.config.inputs import FolderSounds
from sonify.errors import InputError, TransientError, WorkError
from sonify.media.clips import CutClip, cut_recording, rules_of
from sonify.media.pixels import UnreadableImage, inspect_image
from sonify.rows import Clip, Concept, Rejected
from sonify.sources.images import list_images, read_images

# Of a user's set, so many are looked at for one that can be read.
MOST_LOOKED_AT = 20
CORPUS = "doctor"


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """An image file, and what a report calls it."""

    name: str
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Sound:
    """A recording of the demo, and what is heard in it."""

    file: str
    concept: Concept


def _sound(file: str, name: str, description: str) -> Sound:
    return Sound(file=f"{file}.opus", concept=Concept(concept=name, description=description))


# Six of the demo's synthesised recordings that have little in common, each of which YAMNet, which had a say in how they
# were made, hears as what it is (0.87 to 1.0, measured). What a CLAP hears in them is not measured.
SOUNDS = (
    _sound("dog-barking-0", "dog", "a dog barking"),
    _sound("rain-1", "rain", "rain falling on leaves and pavement"),
    _sound("siren-0", "siren", "a siren wailing"),
    _sound("church-bell-1", "church bell", "a church bell tolling"),
    _sound("birds-0", "bird", "birds chirping and singing"),
    _sound("helicopter-1", "helicopter", "a helicopter hovering"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeardSound:
    """The first clip of a recording, as the pool has it; `samples` are without the padding."""

    sound: Sound
    clip: Clip
    samples: np.ndarray


@contextmanager
def laid_out_sounds(audio: Audio) -> Iterator[tuple[Audio, tuple[HeardSound, ...]]]:
    """Lay the six recordings out as a corpus, cut by the rules of a configuration: its section with that corpus."""
    with TemporaryDirectory(prefix="sonify-doctor-") as folder:
        shipped = files("sonify") / "demo" / "sounds"
        for sound in SOUNDS:
            (Path(folder) / sound.file).write_bytes((shipped / sound.file).read_bytes())
        corpus = FolderSounds(kind="folder", path=Path(folder), name=CORPUS)
        here = audio.model_copy(update={"sources": (corpus,)})
        yield here, tuple(_cut(Path(folder), sound, audio) for sound in SOUNDS)


def _cut(folder: Path, sound: Sound, audio: Audio) -> HeardSound:
    piece: CutClip = next(cut_recording(folder / sound.file, audio.sample_rate, audio.clip_seconds, rules_of(audio)))
    name = f"{CORPUS}/{sound.file}"
    clip = Clip(
        clip=f"{name}#0",
        recording=name,
        corpus=CORPUS,
        file=sound.file,
        start_sec=0.0,
        duration_sec=piece.duration_sec,
        loudness_lufs=0.0,  # nobody mixes it
        peak_dbfs=0.0,
        text=sound.concept.description,
        licence="CC0-1.0",
        attribution="",
        split="train",
        sha256="",
    )
    return HeardSound(sound=sound, clip=clip, samples=piece.samples[: round(piece.duration_sec * audio.sample_rate)])


def choose_picture(images: Images) -> Picture:
    """The first image of a set that can be read or, where there is none, a drawing that is the same everywhere."""
    with suppress(InputError, TransientError, WorkError, OSError):  # that the set is not there is told elsewhere
        for row in islice(_first_rows(images), MOST_LOOKED_AT):
            with suppress(UnreadableImage):
                if not isinstance(row, Rejected):
                    inspect_image(row.data)
                    return Picture(name=row.uri, data=row.data)
    return draw_picture()


def _first_rows(images: Images) -> Iterator:
    unsampled = images.model_copy(update={"sample": None})  # to draw a sample, every archive would be read
    unit = next(list_images(unsampled, seed=0, must_meet=False))
    yield from read_images(unsampled, unit[:MOST_LOOKED_AT], seed=0)


def draw_picture() -> Picture:
    """A red car on a road in the rain, in front of trees."""
    image = Image.new("RGB", (512, 384), (150, 165, 185))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 200, 512, 290), fill=(88, 130, 70))
    for left in range(-10, 512, 90):
        draw.rectangle((left + 32, 150, left + 44, 215), fill=(96, 66, 40))
        draw.ellipse((left, 70, left + 78, 170), fill=(46, 98, 50))
    draw.rectangle((0, 275, 512, 384), fill=(70, 70, 74))
    for left in range(10, 512, 80):
        draw.rectangle((left, 350, left + 45, 357), fill=(230, 230, 220))
    draw.polygon([(180, 245), (215, 200), (315, 200), (355, 245)], fill=(150, 20, 20))
    draw.polygon([(194, 243), (221, 208), (262, 208), (262, 243)], fill=(190, 215, 230))
    draw.polygon([(270, 208), (311, 208), (340, 243), (270, 243)], fill=(190, 215, 230))
    draw.rounded_rectangle((140, 240, 400, 300), 18, fill=(200, 30, 30))
    draw.ellipse((384, 254, 400, 270), fill=(255, 240, 170))
    for left in (170, 315):
        draw.ellipse((left, 272, left + 58, 330), fill=(20, 20, 22))
        draw.ellipse((left + 18, 290, left + 40, 312), fill=(170, 170, 175))
    for n in range(160):
        x, y = (n * 197) % 530, (n * 89) % 384
        draw.line((x, y, x - 5, y + 14), fill=(205, 215, 228))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return Picture(name="a drawing that comes along (a red car on a road in the rain)", data=buffer.getvalue())
