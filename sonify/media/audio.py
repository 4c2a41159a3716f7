"""Sound files that nobody vouches for: which are read, what their headers say, their samples in blocks.

Each container has one reader: libsndfile where it can, FFmpeg (PyAV) for those that it cannot read, or not
to the end, both from allow-lists. The leading bytes decide which (`containers`), never the file's name.
"""

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import av
import numpy as np
import soundfile
import soxr
from av.container import InputContainer
from av.error import ArgumentError, FFmpegError

from sonify.media.containers import View, layout_of
from sonify.rows import Reason

# 16 channels of ambisonics and 22.2 broadcast sound (24) fit; a header that claims more is damaged.
MAX_CHANNELS = 32
# Telephone sound has 8 kHz and converters end at 768 kHz. The ratio to the pool's rate bounds what resampling
# makes of one block, so a rate of 1 Hz in a header must not get that far.
MIN_SAMPLE_RATE_HZ = 4_000
MAX_SAMPLE_RATE_HZ = 768_000
# Values in one block over all channels, whatever the header claims: 256 KiB of float32 stay in the cache, and
# cutting takes half the time that it takes with 1 MiB (3.9 against 8.5 ms for 5 s of 44.1 kHz).
BLOCK_SAMPLES = 2**16
MAX_SCENE_SEC = 60.0  # `audio.clip_seconds` is at most that
MAX_SCENE_RATE_HZ = 48_000  # and `audio.sample_rate` that
MAX_SCENE_FRAMES = round(MAX_SCENE_SEC * MAX_SCENE_RATE_HZ)

_LIBSNDFILE_CONTAINERS = frozenset({"WAV", "WAVEX", "RF64", "W64", "FLAC", "OGG", "AIFF", "CAF", "AU"})
_LIBSNDFILE_SUBTYPES = frozenset(
    {"PCM_S8", "PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ALAW", "ULAW", "VORBIS", "OPUS"}
)
# MP3 is here because libsndfile reads no further than an estimate of its length: 31 % of a file of variable
# bitrate without a Xing header, and no error where the middle is damaged.
_FFMPEG_DEMUXERS = (
    *("aac", "ac3", "aiff", "amr", "asf", "caf", "eac3", "flac", "matroska", "mov", "mp3", "ogg", "w64", "wav"),
)
_FFMPEG_DECODERS = frozenset(
    {
        *("aac", "ac3", "alac", "amrnb", "eac3", "flac", "mp2", "mp2float", "mp3", "mp3float", "opus"),
        *("vorbis", "wmav1", "wmav2"),
        *("adpcm_ima_qt", "adpcm_ima_wav", "adpcm_ms", "pcm_alaw", "pcm_mulaw", "pcm_s8", "pcm_u8"),
        *("pcm_f32be", "pcm_f32le", "pcm_f64be", "pcm_f64le", "pcm_s16be", "pcm_s16le", "pcm_s24be", "pcm_s24le"),
        *("pcm_s32be", "pcm_s32le"),
    }
)
# The allow-lists also hold while FFmpeg probes: no picture is decoded, no playlist or reference is followed.
_FFMPEG_OPTIONS = {
    "format_whitelist": ",".join(_FFMPEG_DEMUXERS),
    "codec_whitelist": ",".join(sorted(_FFMPEG_DECODERS)),
    "protocol_whitelist": "none",
}


class UnreadableSound(Exception):
    """A file from which no clip can be taken."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True, kw_only=True)
class SoundHeader:
    """What a file says about itself, in libsndfile's words (`WAV`, `PCM_16`) or FFmpeg's (`aac`, `mp3`).

    `frames` is a claim, and where FFmpeg reads the file an estimate (0: none given).
    """

    sample_rate_hz: int
    channels: int
    frames: int
    container: str
    subtype: str


# Where a recording's bytes are: a file of its own, or what was read out of an archive or a table.
StoredSound = Path | bytes
Source = BinaryIO | View  # a whole file, or a part of one
Opened = tuple[SoundHeader, Iterator[np.ndarray]]


def read_header(recording: StoredSound) -> SoundHeader:
    """Read and check the header; no sample is decoded by libsndfile, a first packet may be by FFmpeg.

    Raises:
        UnreadableSound: the file is not one that is read (`unsupported`), or no sound file (`unreadable`).
    """
    with open_recording(recording) as (header, _):
        return header


def read_blocks(recording: StoredSound) -> Iterator[np.ndarray]:
    """Yield the samples, (channels, frames) float32 with full scale at 1.0 and not limited to it.

    Raises:
        UnreadableSound: as `read_header`, or the decoder fails on the way.
    """
    with open_recording(recording) as (_, blocks):
        yield from blocks


class _Memory(io.BytesIO):
    """A recording in memory, which takes seeking before its first byte as `View` does."""

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self.tell(), os.SEEK_END: self.getbuffer().nbytes}[whence]
        return super().seek(start + offset) if start + offset >= 0 else -1


@contextmanager
def open_recording(recording: StoredSound) -> Iterator[Opened]:
    """Open a recording for one pass: its header, already checked, and the blocks of `read_blocks`.

    A stream that ends early without an error of its decoder is kept as far as it goes: WAV headers written to
    a pipe claim gigabytes, or nothing. A decoder's error, as in a truncated FLAC, refuses the whole file. Of a chained
    Ogg every chain is read, brought to the rate and the channels of the first. Of a film the first sound is taken,
    and no picture decoded.

    Raises:
        UnreadableSound: as `read_blocks`.
    """
    with _Memory(recording) if isinstance(recording, bytes) else _open_file(recording) as file:
        layout = layout_of(file)
        if layout.refused:
            raise UnreadableSound(Reason.UNSUPPORTED, f"{layout.refused} is not read")
        file.seek(0)
        sources = [View(file, part) for part in layout.parts] or [file]
        open_by = _open_by_libsndfile if layout.reader == "libsndfile" else _open_by_ffmpeg
        try:
            with open_by(sources) as opened:
                yield opened
        except soundfile.LibsndfileError as error:
            raise UnreadableSound(Reason.UNREADABLE, error.error_string) from error
        except FFmpegError as error:
            raise UnreadableSound(Reason.UNREADABLE, error.strerror or type(error).__name__) from error


def _open_file(path: Path) -> BinaryIO:
    if not path.is_file():
        raise UnreadableSound(Reason.UNREADABLE, "no such file")
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError as error:
        raise UnreadableSound(Reason.UNREADABLE, "no permission to read it") from error
    # Without a name, from which FFmpeg would guess; without a buffer, as libsndfile moves the descriptor.
    return cast(BinaryIO, open(descriptor, "rb", buffering=0))


@contextmanager
def _open_by_libsndfile(sources: Sequence[Source]) -> Iterator[Opened]:
    with _sound_of(sources[0]) as sound:
        header = _header_of(sound)
        if len(sources) == 1:
            yield header, _libsndfile_blocks(sound)
        else:
            yield header, _chained_blocks(sound, sources, header)


def _sound_of(source: Source) -> soundfile.SoundFile:
    # By descriptor: a path would also be tried by its extension, and "-" is standard input.
    if isinstance(source, View | _Memory):
        return soundfile.SoundFile(cast(BinaryIO, source))
    return soundfile.SoundFile(source.fileno(), closefd=False)


def _header_of(sound: soundfile.SoundFile) -> SoundHeader:
    header = SoundHeader(
        sample_rate_hz=sound.samplerate,
        channels=sound.channels,
        frames=sound.frames,
        container=sound.format,
        subtype=sound.subtype,
    )
    return _checked(header, sound.format in _LIBSNDFILE_CONTAINERS and sound.subtype in _LIBSNDFILE_SUBTYPES)


def _chained_blocks(first: soundfile.SoundFile, sources: Sequence[Source], header: SoundHeader) -> Iterator[np.ndarray]:
    yield from _libsndfile_blocks(first)
    for number, source in enumerate(sources[1:], start=2):
        try:
            sound = _sound_of(source)
        except soundfile.LibsndfileError:
            if number == len(sources):
                return  # the recording was ended within the head of a chain
            raise
        with sound:
            yield from _like_first(_libsndfile_blocks(sound), _header_of(sound), header)


def _like_first(blocks: Iterator[np.ndarray], header: SoundHeader, first: SoundHeader) -> Iterator[np.ndarray]:
    """A chain at the rate and with the channels of the first, of which all get the mean where there are others."""
    if header.channels != first.channels:
        blocks = (np.repeat(block.mean(axis=0, keepdims=True), first.channels, axis=0) for block in blocks)
    if header.sample_rate_hz == first.sample_rate_hz:
        yield from blocks
        return
    stream = soxr.ResampleStream(
        header.sample_rate_hz, first.sample_rate_hz, first.channels, dtype="float32", quality="HQ"
    )
    for block in blocks:
        if (part := stream.resample_chunk(np.ascontiguousarray(block.T))).size:
            yield np.ascontiguousarray(part.T)
    if (part := stream.resample_chunk(np.empty((0, first.channels), np.float32), last=True)).size:
        yield np.ascontiguousarray(part.T)


@contextmanager
def _open_by_ffmpeg(sources: Sequence[Source]) -> Iterator[Opened]:
    try:
        container = av.open(sources[0], "r", options=_FFMPEG_OPTIONS, metadata_errors="replace")
    except ArgumentError as error:
        raise UnreadableSound(Reason.UNSUPPORTED, "a container that is not read") from error
    with container:
        stream = next(iter(container.streams.audio), None)
        if stream is None or stream.codec_context is None:
            raise UnreadableSound(Reason.UNSUPPORTED, f"no sound that is read in {container.format.name}")
        header = SoundHeader(
            sample_rate_hz=stream.codec_context.sample_rate,
            channels=stream.codec_context.channels,
            frames=round((container.duration or 0) / av.time_base * stream.codec_context.sample_rate),
            container=container.format.name,
            subtype=stream.codec_context.name,
        )
        checked = _checked(header, allowed=header.subtype in _FFMPEG_DECODERS)
        yield checked, _ffmpeg_blocks(container, stream, checked)


def _checked(header: SoundHeader, allowed: bool) -> SoundHeader:
    if not allowed:
        raise UnreadableSound(Reason.UNSUPPORTED, f"{header.subtype} in {header.container} is not read")
    if not 1 <= header.channels <= MAX_CHANNELS:
        raise UnreadableSound(Reason.UNSUPPORTED, f"{header.channels} channels, expected 1 to {MAX_CHANNELS}")
    if not MIN_SAMPLE_RATE_HZ <= header.sample_rate_hz <= MAX_SAMPLE_RATE_HZ:
        expected = f"expected {MIN_SAMPLE_RATE_HZ} to {MAX_SAMPLE_RATE_HZ}"
        raise UnreadableSound(Reason.UNSUPPORTED, f"{header.sample_rate_hz} Hz, {expected}")
    return header


def _libsndfile_blocks(sound: soundfile.SoundFile) -> Iterator[np.ndarray]:
    shape = (BLOCK_SAMPLES // sound.channels, sound.channels)
    while len(block := sound.read(out=np.empty(shape, np.float32))):
        yield np.ascontiguousarray(block.T)


def _ffmpeg_blocks(container: InputContainer, stream: av.AudioStream, header: SoundHeader) -> Iterator[np.ndarray]:
    to_float = av.AudioResampler(format="fltp")
    parts: list[np.ndarray] = []
    for frame in container.decode(stream):
        if (frame.sample_rate, frame.layout.nb_channels) != (header.sample_rate_hz, header.channels):
            raise UnreadableSound(Reason.UNREADABLE, "the sample rate or the channels change on the way")
        parts += [converted.to_ndarray() for converted in to_float.resample(frame)]
        if sum(part.size for part in parts) >= BLOCK_SAMPLES:
            yield np.concatenate(parts, axis=1)
            parts = []
    if parts:
        yield np.concatenate(parts, axis=1)


def encode_flac(samples: np.ndarray, sample_rate_hz: int) -> bytes:
    """Encode (frames,) int16 as 16-bit FLAC; the same samples and library give the same bytes."""
    buffer = io.BytesIO()
    # Level 5, which libsndfile also chooses: level 8 saves 0.7 % and takes 1.7 times as long, level 0 costs
    # 5 % and is hardly faster (200 clips of 5 s, 1.1 ms each).
    soundfile.write(buffer, samples, sample_rate_hz, format="FLAC", subtype="PCM_16", compression_level=5 / 8)
    return buffer.getvalue()


def decode_flac(data: bytes) -> tuple[np.ndarray, int]:
    """Decode what `encode_flac` made into its int16 samples and sample rate.

    Raises:
        soundfile.LibsndfileError: the bytes are no FLAC, or damaged.
    """
    return soundfile.read(io.BytesIO(data), dtype="int16")


def most_flac_bytes(frames: int) -> int:
    """More than `encode_flac` makes of so many frames, whatever they are: of white noise 7 kB more than its PCM in a
    minute at 48 kHz, and 96 bytes more where there is one."""
    return 2 * frames + frames // 64 + 4096


def decode_mono_flac(data: bytes, max_frames: int = MAX_SCENE_FRAMES) -> tuple[np.ndarray, int]:
    """Decode a FLAC of one channel that nobody vouches for: (frames,) float32, exactly its steps, and sample rate.

    Raises:
        UnreadableSound: it is none, is damaged or cut, is longer than any scene, or has more bytes than that takes.
    """
    if not data.startswith(b"fLaC"):  # else libsndfile would take it for whatever it looks like
        raise UnreadableSound(Reason.UNREADABLE, "not a FLAC")
    try:
        with soundfile.SoundFile(cast(BinaryIO, _Memory(data))) as sound:
            header = _header_of(sound)
            if header.container != "FLAC" or header.channels != 1:
                raise UnreadableSound(Reason.UNSUPPORTED, f"{header.channels} channels in {header.container}")
            most = min(max_frames, round(MAX_SCENE_SEC * header.sample_rate_hz))
            if not 0 < header.frames <= most or header.sample_rate_hz > MAX_SCENE_RATE_HZ:
                raise UnreadableSound(Reason.UNSUPPORTED, f"{header.frames} frames of {header.sample_rate_hz} Hz")
            if len(data) > most_flac_bytes(header.frames):
                raise UnreadableSound(Reason.UNSUPPORTED, f"{len(data)} bytes for {header.frames} frames")
            samples = sound.read(dtype="float32")
    except soundfile.LibsndfileError as error:
        raise UnreadableSound(Reason.UNREADABLE, error.error_string) from error
    return samples, header.sample_rate_hz
