"""What the gallery shows and plays: a preview of each image, and the sound and spectrogram of each scene."""

import io
import tarfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import soundfile
from PIL import Image

from sonify.errors import WorkError
from sonify.report.gallery.survey import Picture
from sonify.report.spectrogram import spectrogram_image

PREVIEW_PX = 640
SPECTROGRAM_PX = (640, 112)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sound:
    """Files of one scene, relative to the gallery."""

    audio: str
    spectrogram: str
    duration_sec: float
    sample_rate_hz: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Media:
    """Files of one image, relative to the gallery; width and height are of the preview. Sounds are in scene order."""

    preview: str
    width: int
    height: int
    sounds: tuple[Sound, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """Where a member's bytes lie in an archive, so that any thread reads them without walking it again."""

    archive: Path
    name: str
    offset: int
    size_bytes: int

    def read(self) -> bytes:
        """Return the member's bytes."""
        with self.archive.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size_bytes)


def write_media(run_dir: Path, pictures: Sequence[Picture], folder: Path) -> list[Media]:
    """Write the files of every picture under FOLDER/media, numbered in the pictures' order.

    Raises:
        WorkError: a shard or a member is missing or not readable.
    """
    (folder / "media").mkdir()
    members = _locate(run_dir, pictures)

    def write(number: int, picture: Picture) -> Media:
        # Numbered, because a key may be longer than a file name can be.
        return _write_picture([members[name] for name in _member_names(picture)], folder, f"media/{number:06d}")

    with ThreadPoolExecutor() as pool:  # decoding, encoding and FFTs run outside the interpreter's lock
        return list(pool.map(write, range(1, len(pictures) + 1), pictures))


def _member_names(picture: Picture) -> list[str]:
    return [f"{picture.key}.jpg", *(f"{picture.key}.{scene.pair.scene}.flac" for scene in picture.scenes)]


def _locate(run_dir: Path, pictures: Sequence[Picture]) -> dict[str, Member]:
    wanted: dict[Path, list[str]] = {}
    for picture in pictures:
        archive = run_dir / "shards" / picture.split / f"{picture.unit}.tar"
        wanted.setdefault(archive, []).extend(_member_names(picture))
    return {member.name: member for archive in wanted for member in _find(archive, frozenset(wanted[archive]))}


def _find(archive: Path, names: frozenset[str]) -> list[Member]:
    """Walk the headers of an archive; the data between them is skipped, not read."""
    try:
        with tarfile.open(archive, "r:") as tar:
            found = [
                Member(archive=archive, name=info.name, offset=info.offset_data, size_bytes=info.size)
                for info in tar
                if info.isfile() and info.name in names
            ]
    except (OSError, tarfile.TarError) as error:
        raise WorkError(f"{archive}: not readable ({error}); run `sonify verify`") from error
    if missing := names - {member.name for member in found}:
        raise WorkError(f"{archive}: lacks {min(missing)}; run `sonify verify`")
    return found


def _write_picture(members: list[Member], folder: Path, stem: str) -> Media:
    image, *sounds = members
    width, height = _write_preview(image, folder / f"{stem}.jpg")
    return Media(
        preview=f"{stem}.jpg",
        width=width,
        height=height,
        sounds=tuple(_write_sound(sound, folder, f"{stem}-{n}") for n, sound in enumerate(sounds, start=1)),
    )


def _write_preview(member: Member, path: Path) -> tuple[int, int]:
    try:
        image = Image.open(io.BytesIO(member.read()))
        image.draft(None, (PREVIEW_PX, PREVIEW_PX))  # a large JPEG is decoded at 1/2, 1/4 or 1/8
        image.load()
    except OSError as error:
        raise WorkError(f"{member.archive}: {member.name} is not readable ({error}); run `sonify verify`") from error
    image.thumbnail((PREVIEW_PX, PREVIEW_PX))
    image.save(path, quality=82, icc_profile=image.info.get("icc_profile"))
    return image.size


def _write_sound(member: Member, folder: Path, stem: str) -> Sound:
    data = member.read()
    try:
        samples, sample_rate_hz = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise WorkError(f"{member.archive}: {member.name} is not readable ({error}); run `sonify verify`") from error
    (folder / f"{stem}.flac").write_bytes(data)
    picture = spectrogram_image(samples.mean(axis=1), sample_rate_hz, *SPECTROGRAM_PX)
    picture.save(folder / f"{stem}-spectrogram.jpg", quality=80)  # as good to the eye as WebP, in a tenth of the time
    return Sound(
        audio=f"{stem}.flac",
        spectrogram=f"{stem}-spectrogram.jpg",
        duration_sec=len(samples) / sample_rate_hz,
        sample_rate_hz=sample_rate_hz,
    )
