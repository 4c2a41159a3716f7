"""What the gallery shows and plays: a preview of each image, and the sound and spectrogram of each scene."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from soundfile import LibsndfileError

from sonify import layout
from sonify.errors import WorkError
from sonify.io.places import open_place
from sonify.io.tars import Member, index_tar, read_member
from sonify.media.audio import decode_flac
from sonify.media.pixels import UnreadableImage, decode_rgb
from sonify.report.gallery.survey import Picture
from sonify.report.spectrogram import spectrogram_image
from sonify.stores import Place

PREVIEW_PX = (640, 480)  # longer and shorter side at most
SPECTROGRAM_PX = (640, 96)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sound:
    """Files of one scene, relative to the gallery."""

    audio: str
    spectrogram: str
    duration_sec: float
    sample_rate_hz: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Media:
    """Files of one image, relative to the gallery; the size is the preview's, sounds are in scene order."""

    preview: str
    width: int
    height: int
    sounds: tuple[Sound, ...]


def write_media(run_dir: Place, pictures: Sequence[Picture], folder: Path) -> list[Media]:
    """Write the files of every picture under FOLDER/media, numbered in the pictures' order.

    Raises:
        WorkError: a shard or a member is missing or not readable.
    """
    (folder / "media").mkdir()
    members = _locate(run_dir, pictures)

    def write(number: int, picture: Picture) -> Media:
        files = [members[name] for name in _member_names(picture)]
        # Numbered, because a key may be longer than a file name can be.
        return _write_picture(run_dir / _shard(picture), files, folder, f"media/{number:06d}")

    with ThreadPoolExecutor() as pool:  # decoding, encoding and FFTs run outside the interpreter's lock
        return list(pool.map(write, range(1, len(pictures) + 1), pictures))


def _shard(picture: Picture) -> str:
    return layout.shard(picture.split, picture.unit)


def _member_names(picture: Picture) -> list[str]:
    return [f"{picture.key}.jpg", *(f"{picture.key}.{scene.pair.scene}.flac" for scene in picture.scenes)]


def _locate(run_dir: Place, pictures: Sequence[Picture]) -> dict[str, Member]:
    """Find all members that are needed, by name, walking each shard's headers once."""
    wanted: dict[str, set[str]] = {}
    for picture in pictures:
        wanted.setdefault(_shard(picture), set()).update(_member_names(picture))
    members = {}
    for shard, names in wanted.items():
        found = {member.name: member for member in _index(run_dir / shard) if member.name in names}
        if missing := names - found.keys():
            raise WorkError(f"{run_dir / shard}: lacks {min(missing)}; run `sonify verify {run_dir}`")
        members |= found
    return members


def _index(shard: Place) -> list[Member]:
    try:
        members, _ = index_tar(shard, shard.stem)
    except OSError as error:
        raise WorkError(f"{shard}: not readable ({error.strerror}); run `sonify verify`") from error
    return members


def _write_picture(shard: Place, members: Sequence[Member], folder: Path, stem: str) -> Media:
    with open_place(shard) as file:
        image, *sounds = [read_member(file, member) for member in members]
    try:
        preview = _preview(image)
        written = tuple(_write_sound(data, folder, f"{stem}-{n}") for n, data in enumerate(sounds, start=1))
    except (UnreadableImage, LibsndfileError) as error:
        raise WorkError(f"{shard}: {members[0].name} or its sounds are damaged; run `sonify verify`") from error
    preview.save(folder / f"{stem}.jpg", quality=82)
    return Media(preview=f"{stem}.jpg", width=preview.width, height=preview.height, sounds=written)


def _preview(data: bytes) -> Image.Image:
    image = decode_rgb(data, min_side=min(PREVIEW_PX))
    image.thumbnail((max(PREVIEW_PX), max(PREVIEW_PX)))
    return image


def _write_sound(data: bytes, folder: Path, stem: str) -> Sound:
    samples, sample_rate_hz = decode_flac(data)
    (folder / f"{stem}.flac").write_bytes(data)
    picture = spectrogram_image(samples / np.float32(2**15), sample_rate_hz, *SPECTROGRAM_PX)
    # At this quality as good to the eye as WebP, in a tenth of the time.
    picture.save(folder / f"{stem}-spectrogram.jpg", quality=80)
    return Sound(
        audio=f"{stem}.flac",
        spectrogram=f"{stem}-spectrogram.jpg",
        duration_sec=len(samples) / sample_rate_hz,
        sample_rate_hz=sample_rate_hz,
    )
