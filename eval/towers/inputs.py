"""What goes into a tower: pictures and sounds that are read and checked, and brought to its rate.

S  samples
"""

import hashlib
import io
from pathlib import Path

import numpy as np
import soxr
from PIL import Image

from eval.towers.tower import Sound
from sonify.errors import InputError
from sonify.media.audio import UnreadableSound, open_recording


def read_picture(path: Path, sha256: str) -> Image.Image:
    """Read an RGB picture.

    Raises:
        InputError: it is not there, is another file than that of `sha256`, or no picture.
    """
    try:
        with Image.open(io.BytesIO(_checked(path, sha256))) as image:
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        why = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: expected a picture, found none that can be read ({why})") from error


def read_sound(path: Path, sha256: str) -> Sound:
    """Read a whole sound at its own rate; of several channels the mean.

    Raises:
        InputError: it is not there, is another file than that of `sha256`, or no sound.
    """
    try:
        with open_recording(_checked(path, sha256)) as (header, blocks):
            parts = [block.mean(axis=0) for block in blocks]
    except UnreadableSound as error:
        raise InputError(f"{path}: expected a sound, found none ({error.reason}: {error.detail})") from error
    if not sum(part.size for part in parts):
        raise InputError(f"{path}: expected a sound, found one of no samples")
    return Sound(samples_S=np.concatenate(parts), sample_rate_hz=header.sample_rate_hz, name=str(path))


def _checked(path: Path, sha256: str) -> bytes:
    """The bytes of a file that were vouched for: the vectors of others would be kept under its name."""
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise InputError(f"{path}: cannot be read (is no regular file)")
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    if (found := hashlib.sha256(data).hexdigest()) != sha256:
        raise InputError(
            f"{path}: was changed since it was listed (expected sha256 {sha256[:12]}..., found {found[:12]}...); put"
            " it back, or make the suite or the images again"
        )
    return data


def at_rate(sound: Sound, sample_rate_hz: int) -> np.ndarray:
    """The (S,) float32 samples at another rate, resampled once by soxr's HQ.

    Raises:
        InputError: it is so short that nothing is left.
    """
    samples_S = np.ascontiguousarray(sound.samples_S, dtype=np.float32)
    assert samples_S.ndim == 1, samples_S.shape
    if sound.sample_rate_hz != sample_rate_hz:
        samples_S = soxr.resample(samples_S, sound.sample_rate_hz, sample_rate_hz, quality="HQ")
    if not len(samples_S):
        raise InputError(
            f"{sound.name}: expected a sound, found none at {sample_rate_hz} Hz; leave it out of the suite"
        )
    return samples_S
