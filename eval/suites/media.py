"""From an entry to the bytes of its files: the sound and its window as FLAC, the reference pictures as PNG.

Nothing is vouched for: sounds are read as a pool's are (`media.audio`), pictures as a run's (`media.pixels`), and of a
film one frame by an allow-list of the same kind. What cannot be used is `Unusable`, with a reason that is counted.

S  samples at the sound's own rate
"""

import io
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import soundfile
from av.container import InputContainer
from av.error import FFmpegError
from PIL import Image

from eval.suites.config import Heard
from eval.suites.entries import Entry
from sonify.io.write import sha256_of
from sonify.media.audio import UnreadableSound, encode_flac, open_recording
from sonify.media.clips import MAX_AMPLITUDE, cut_recording
from sonify.media.headers import kind_of_image
from sonify.media.mixing import FULL_SCALE, measure_loudness
from sonify.media.pixels import MAX_BYTES, MAX_PIXELS, MAX_SIDE_PX, UnreadableImage, decode_rgb
from sonify.rows import Reason

# A sound of which all is taken is held in memory; `seconds` cuts longer ones.
MAX_SOUND_SEC = 600.0
# At which it is asked whether anything is heard: as models do, and a pool.
HEARD_RATE_HZ = 16_000
MIN_HEARD_SEC = 0.4  # BS.1770 measures blocks of that length
# How far behind the last frame of a film a frame may be asked for: streams of one film end at different times.
MAX_BEHIND_SEC = 1.0
# From a key frame to the one that is wanted: 5 minutes of 30 a second, or 10,000 of full HD.
MAX_DECODED_FRAMES = 9_000
MAX_DECODED_PIXELS = 10_000 * 1920 * 1080
MAX_PACKETS = 2_000_000
_HEAD_BYTES = 64

_DEMUXERS = ("matroska", "mov")
_DECODERS = frozenset({"av1", "h264", "hevc", "libdav1d", "mjpeg", "mpeg4", "vp8", "vp9"})
# They also hold while FFmpeg probes, which decodes a frame; no playlist, reference or other file is followed.
_OPTIONS = {
    "format_whitelist": ",".join(_DEMUXERS),
    "codec_whitelist": ",".join(sorted(_DECODERS)),
    "protocol_whitelist": "none",
    "max_pixels": str(MAX_PIXELS),
}
_TURNS = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}


class Unusable(Exception):
    """An entry that does not come into the suite; `reason` and `detail` stand in its line of `missing.csv`."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True, kw_only=True)
class CutSound:
    """The part that is kept, 16-bit; `start_sec` is where it begins in the file."""

    samples_S: np.ndarray
    sample_rate_hz: int
    start_sec: float

    @property
    def seconds(self) -> float:
        return len(self.samples_S) / self.sample_rate_hz

    @property
    def end_sec(self) -> float:
        return self.start_sec + self.seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Media:
    """The files of an item. `published_sha256` is of the whole file that the sound is cut from; `window` is None where
    nothing is heard in it."""

    published_sha256: str
    sound: bytes
    seconds: float
    sample_rate_hz: int
    window: bytes | None
    window_start_sec: float
    references: tuple[bytes, ...]


def read_media(entry: Entry, seconds: float | None, heard: Heard, side: int) -> Media:
    """Read all that an entry names.

    Raises:
        Unusable: a file is missing, cannot be read, or nothing is heard in the sound.
    """
    sound = _cut_of(entry, seconds)
    try:
        whole = encode_flac(sound.samples_S, sound.sample_rate_hz)
    except soundfile.LibsndfileError as error:  # above 655,350 Hz
        detail = f"{entry.audio}: {sound.sample_rate_hz} Hz: {error.error_string}"
        raise Unusable(Reason.UNSUPPORTED, detail) from error
    if not is_heard(whole, heard.seconds):
        raise Unusable(Reason.SILENT, f"{entry.audio}: nothing is heard in it")
    frame_sec, references = _frame_of(entry, sound), ()
    if entry.image is not None:
        pictures = [take_picture(entry.image, frame_sec), *(take_picture(path, None) for path in entry.more_images)]
        references = tuple(encode_square(picture, side) for picture in pictures)
    start_sec = window_start(sound.seconds, None if frame_sec is None else frame_sec - sound.start_sec, heard)
    window = _window_of(sound, start_sec, heard)
    return Media(
        published_sha256=_hash_of(entry.audio),
        sound=whole,
        seconds=sound.seconds,
        sample_rate_hz=sound.sample_rate_hz,
        window=window if is_heard(window, heard.seconds) else None,
        window_start_sec=start_sec,
        references=references,
    )


def read_reference(entry: Entry, seconds: float | None, side: int) -> bytes:
    """The picture of an entry of which only that is wanted, as a square PNG: the one that `read_media` takes.

    Raises:
        Unusable: it has none, or one that is missing or cannot be read, or its frame is not of the sound.
    """
    if entry.image is None:
        raise Unusable(Reason.MISSING, f"{entry.id}: the list names no picture")
    is_timed = entry.image == entry.audio or entry.image_sec is not None
    frame_sec = _frame_of(entry, _cut_of(entry, seconds)) if is_timed else None
    return encode_square(take_picture(entry.image, frame_sec), side)


def _cut_of(entry: Entry, seconds: float | None) -> CutSound:
    wanted = min((each for each in (entry.audio_seconds, seconds) if each is not None), default=None)
    return cut_sound(entry.audio, entry.audio_start_sec, wanted)


def _frame_of(entry: Entry, sound: CutSound) -> float | None:
    """When the picture is seen, by the sound's clock: of a film that is heard the middle of what is heard, unless the
    list says when; None for pictures and other films, of which nobody says it."""
    if entry.image_sec is None:
        return (sound.start_sec + sound.end_sec) / 2 if entry.image == entry.audio else None
    if not sound.start_sec <= entry.image_sec <= sound.end_sec:
        heard = f"{sound.start_sec:g} to {sound.end_sec:g} s"
        raise Unusable(
            Reason.TOO_SHORT, f"{entry.audio}: heard from {heard}, which its frame at {entry.image_sec:g} s is not in"
        )
    return entry.image_sec


def _hash_of(path: Path) -> str:
    try:
        return sha256_of(path)
    except OSError as error:  # behind the part that was read
        raise Unusable(Reason.UNREADABLE, f"{path}: {_said(error)}") from error


# --- sounds


def cut_sound(path: Path, start_sec: float = 0.0, seconds: float | None = None) -> CutSound:
    """Read a part of a recording, mono by the mean of its channels, at its own rate.

    A part that would go over the end is shifted into the file; of a shorter file all is taken. What is behind the part
    is not decoded.

    Raises:
        Unusable: missing, not a file that is read, no sample, NaN or infinity, or all of a very long one is wanted.
    """
    _require_file(path)
    try:
        with open_recording(path) as (header, blocks):
            samples_S, first = _part_of(blocks, header.sample_rate_hz, start_sec, seconds)
            return CutSound(
                samples_S=_to_int16(samples_S),
                sample_rate_hz=header.sample_rate_hz,
                start_sec=first / header.sample_rate_hz,
            )
    except UnreadableSound as error:
        raise Unusable(error.reason, f"{path}: {error.detail}") from error
    except (OSError, ValueError) as error:
        raise Unusable(Reason.UNREADABLE, f"{path}: {_said(error)}") from error
    except Unusable as error:
        raise Unusable(error.reason, f"{path}: {error.detail}") from error


def _part_of(
    blocks: Iterator[np.ndarray], rate_hz: int, start_sec: float, seconds: float | None
) -> tuple[np.ndarray, int]:
    """The samples of the part, and its first one's position; no more is held than may come into it."""
    first, length = round(start_sec * rate_hz), round((MAX_SOUND_SEC if seconds is None else seconds) * rate_hz)
    kept: deque[np.ndarray] = deque()
    begin = end = 0
    for block in blocks:
        # written so that NaN fails as well
        if not np.abs(block).max(initial=0.0) <= MAX_AMPLITUDE:
            raise Unusable(Reason.BAD_SAMPLES, "NaN, infinity or values that are no samples")
        kept.append(block.mean(axis=0))
        end += block.shape[1]
        while kept and begin + len(kept[0]) <= min(first, end - length):
            begin += len(kept.popleft())
        if end > first + length or (end == first + length and seconds is not None):
            break
    if end <= first:
        raise Unusable(Reason.TOO_SHORT, f"ends at {end / rate_hz:g} s, and is wanted from {start_sec:g} s on")
    if seconds is None and end > first + length:
        raise Unusable(
            Reason.TOO_LARGE, f"over {MAX_SOUND_SEC:g} s long; set `seconds` to how much of a sound is wanted"
        )
    if seconds is not None:
        first = max(0, min(first, end - length))
    samples_S = np.concatenate(kept)[first - begin :][:length]
    return samples_S, first


def _to_int16(samples_S: np.ndarray) -> np.ndarray:
    """Round to 16 bits; what passes full scale is scaled to fit, since clipping would add sound."""
    scaled = samples_S * np.float32(FULL_SCALE)
    if scaled.max() > FULL_SCALE - 1 or scaled.min() < -FULL_SCALE:
        scaled *= np.float32((FULL_SCALE - 1) / np.abs(scaled).max())
    return np.rint(scaled).astype(np.int16)


def is_heard(flac: bytes, seconds: float) -> bool:
    """Whether any piece of so many seconds has a loudness at 16 kHz: what `train.generate` asks of a sound too."""
    try:
        pieces = cut_recording(flac, HEARD_RATE_HZ, max(seconds, MIN_HEARD_SEC))
        return any(np.isfinite(measure_loudness(piece.samples, HEARD_RATE_HZ)) for piece in pieces)
    except UnreadableSound:  # of too few samples to be one at that rate
        return False


def window_start(seconds: float, frame_sec: float | None, heard: Heard) -> float:
    """Where the window begins in a sound: about the frame, or about the middle where nobody says when a picture was
    taken, and inside."""
    if heard.windows != "frame" or seconds <= heard.seconds:
        return 0.0
    middle_sec = seconds / 2 if frame_sec is None else frame_sec
    return min(max(middle_sec - heard.seconds / 2, 0.0), seconds - heard.seconds)


def _window_of(sound: CutSound, start_sec: float, heard: Heard) -> bytes:
    if heard.windows == "all":
        return encode_flac(sound.samples_S, sound.sample_rate_hz)
    first, length = (round(each * sound.sample_rate_hz) for each in (start_sec, heard.seconds))
    return encode_flac(sound.samples_S[first:][:length], sound.sample_rate_hz)


# --- pictures


def take_picture(path: Path, at_sec: float | None) -> Image.Image:
    """A picture, or the frame of a film at a time (None: its middle); leading bytes say which it is.

    Raises:
        Unusable: missing, or neither that is read.
    """
    _require_file(path)
    try:
        if (size := path.stat().st_size) > MAX_BYTES:
            raise Unusable(Reason.TOO_LARGE, f"{path}: {size:,} bytes; at most {MAX_BYTES:,} are read")
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
        if _is_film(head):
            return read_frame(path, at_sec)
        return decode_rgb(path.read_bytes())
    except UnreadableImage as error:
        raise Unusable(error.reason, f"{path}: {error.detail}") from error
    except OSError as error:
        raise Unusable(Reason.UNREADABLE, f"{path}: {_said(error)}") from error


def encode_square(image: Image.Image, side: int) -> bytes:
    """The centre square of a picture by Pillow's bicubic, as PNG; the same picture gives the same bytes."""
    width, height = image.size
    short = min(width, height)
    left, top = (width - short) // 2, (height - short) // 2
    square = image.crop((left, top, left + short, top + short))
    if short != side:
        square = square.resize((side, side), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    # the pixels alone: a picture brought to sRGB carries a profile that holds the time of day
    Image.fromarray(np.asarray(square)).save(buffer, "PNG")
    return buffer.getvalue()


def _is_film(head: bytes) -> bool:
    """Whether the bytes begin as MP4 and its kin, or as Matroska; AVIF and HEIF are of the former, and pictures."""
    return head.startswith(b"\x1aE\xdf\xa3") or (head[4:8] in (b"ftyp", b"moov", b"mdat") and not kind_of_image(head))


def read_frame(path: Path, at_sec: float | None) -> Image.Image:
    """The frame that is shown at a time of a film, upright; None is its middle.

    Raises:
        Unusable: no film that is read, too large, damaged there, or shorter than that.
    """
    try:
        if at_sec is None:
            at_sec = _middle(path)
        frame = _frame_at(path, at_sec, seeks=True) or _frame_at(path, at_sec, seeks=False)
    except FFmpegError as error:
        raise Unusable(Reason.UNREADABLE, f"{path}: {error.strerror or type(error).__name__}") from error
    except Unusable as error:
        raise Unusable(error.reason, f"{path}: {error.detail}") from error
    except (ValueError, ArithmeticError, OSError, EOFError, MemoryError) as error:
        raise Unusable(Reason.UNREADABLE, f"{path}: {_said(error)}") from error
    if frame is None:
        raise Unusable(Reason.UNREADABLE, f"{path}: no frame could be decoded")
    return frame


@contextmanager
def _open_film(path: Path) -> Iterator[tuple[InputContainer, av.VideoStream]]:
    """Open without a name, from which FFmpeg would guess; nothing is decoded yet."""
    with (
        path.open("rb", buffering=0) as file,
        av.open(file, "r", options=_OPTIONS, metadata_errors="replace") as container,
    ):
        stream = next(iter(container.streams.video), None)
        if stream is None or stream.codec_context is None or stream.time_base is None:
            raise Unusable(Reason.UNSUPPORTED, f"no picture that is read in {container.format.name}")
        codec = stream.codec_context
        if codec.name not in _DECODERS:
            raise Unusable(Reason.UNSUPPORTED, f"{codec.name} in {container.format.name} is not read")
        _check_size(codec.width, codec.height)
        codec.thread_count = 1  # each core has a worker of its own
        codec.options = {"max_pixels": _OPTIONS["max_pixels"]}
        yield container, stream


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE_PX:
        raise Unusable(
            Reason.TOO_LARGE, f"{width} x {height} pixels; at most {MAX_PIXELS // 1_000_000} megapixels are read"
        )


def _middle(path: Path) -> float:
    """By the times of its packets: the length in a header is a claim."""
    with _open_film(path) as (container, stream):
        begin = end = None
        for number, packet in enumerate(container.demux(stream)):
            if number >= MAX_PACKETS:
                raise Unusable(Reason.TOO_LARGE, f"over {MAX_PACKETS:,} packets")
            if packet.pts is not None:
                begin = packet.pts if begin is None else min(begin, packet.pts)
                end = max(packet.pts + (packet.duration or 0), packet.pts if end is None else end)
        if begin is None or end is None:
            raise Unusable(Reason.UNREADABLE, "no frame in it")
        return float((end - begin) * _base(stream)) / 2


def _base(stream: av.VideoStream) -> float:
    assert stream.time_base is not None
    return float(stream.time_base)


def _frame_at(path: Path, at_sec: float, seeks: bool) -> Image.Image | None:
    """Decode from the key frame before, or from the beginning; None where that key frame was none before."""
    with _open_film(path) as (container, stream):
        # a thousandth of a tick, since 9.9 s in tenths is 98.99999 of them
        wanted = (stream.start_time or 0) + at_sec / _base(stream) + 1e-3
        if not abs(wanted) < 2**62:
            raise Unusable(Reason.UNREADABLE, f"no frame can be at {at_sec:g} s")
        if seeks:
            container.seek(int(wanted), stream=stream, backward=True)
        shown: av.VideoFrame | None = None
        pixels = 0
        for number, frame in enumerate(container.decode(stream)):
            _check_size(frame.width, frame.height)
            pixels += frame.width * frame.height
            if number >= MAX_DECODED_FRAMES or pixels > MAX_DECODED_PIXELS:
                raise Unusable(Reason.TOO_LARGE, f"over {number:,} frames from one key frame to the wanted one")
            is_behind = frame.pts is not None and frame.pts > wanted
            if is_behind and shown is None and seeks:
                return None
            if not is_behind or shown is None:
                shown = frame
            if is_behind:
                break
        if shown is None:
            return None
        shown_sec = ((shown.pts or 0) - (stream.start_time or 0)) * _base(stream)
        if at_sec - shown_sec > MAX_BEHIND_SEC + float(1 / (stream.average_rate or 1)):
            raise Unusable(Reason.TOO_SHORT, f"its last frame is at {shown_sec:g} s, wanted at {at_sec:g} s")
        return _upright(shown)


def _upright(frame: av.VideoFrame) -> Image.Image:
    if frame.is_corrupt:
        raise Unusable(Reason.UNREADABLE, "the frame is damaged")
    image = frame.to_image()
    turn = _TURNS.get(round(frame.rotation) % 360)
    return image.convert("RGB") if turn is None else image.convert("RGB").transpose(turn)


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise Unusable(Reason.MISSING, f"{path}: no such file")


def _said(error: BaseException) -> str:
    return " ".join(str(getattr(error, "strerror", None) or error or type(error).__name__).split())[:200]
