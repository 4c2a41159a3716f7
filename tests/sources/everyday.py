"""Files of every everyday kind, made by Pillow, libsndfile and PyAV's own encoders: no program is needed."""

import io
from collections.abc import Callable

import av
import numpy as np
import pillow_heif
import soundfile
from PIL import Image

from tests.builders import encoded, picture, tone

SECONDS = 1.0


def image_bytes(kind: str) -> bytes:
    """A picture of 96 x 64."""
    image = Image.open(io.BytesIO(picture(1, (96, 64), "PNG")))
    if kind == "HEIF":
        file = io.BytesIO()
        pillow_heif.from_pillow(image).save(file, quality=90)
        return file.getvalue()
    return encoded(image, {"WebP": "WEBP"}.get(kind, kind))


def by_libsndfile(container: str, subtype: str) -> Callable[[], bytes]:
    """A second of sound in one of libsndfile's formats."""

    def make() -> bytes:
        file = io.BytesIO()
        soundfile.write(file, tone(seconds=SECONDS), 16_000, format=container, subtype=subtype)
        return file.getvalue()

    return make


def by_ffmpeg(codec: str, container: str, rate_hz: int = 44_100, channels: int = 1) -> Callable[[], bytes]:
    """A second of sound in one of FFmpeg's formats."""
    return lambda: encode_by_ffmpeg(codec, container, rate_hz, channels)


def encode_by_ffmpeg(codec: str, container: str, rate_hz: int, channels: int = 1, seconds: float = SECONDS) -> bytes:
    """A tone as one of PyAV's encoders packs it."""
    file = io.BytesIO()
    layout = "mono" if channels == 1 else "stereo"
    samples = np.repeat(tone(seconds=seconds, sample_rate_hz=rate_hz)[None], channels, 0).astype(np.float32)
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=rate_hz, layout=layout)
        assert isinstance(stream, av.AudioStream)
        stream.codec_context.options = {"strict": "-2"}
        if codec.startswith("wma"):
            stream.codec_context.bit_rate = 64_000
        stream.codec_context.open()
        size = stream.codec_context.frame_size or 1024
        resampler = av.AudioResampler(format=stream.format, layout=layout, rate=rate_hz, frame_size=size)
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=layout)
        frame.sample_rate, frame.pts = rate_hz, 0
        for part in (frame, None):
            for converted in resampler.resample(part):
                output.mux(stream.encode(converted))
        output.mux(stream.encode(None))
    return file.getvalue()


def film(container: str, codec: str = "aac", with_sound: bool = True) -> bytes:
    """Ten frames of a grey film, with a second of sound."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        video = output.add_stream("mpeg4", rate=10)
        assert isinstance(video, av.VideoStream)
        video.width, video.height, video.pix_fmt = 64, 64, "yuv420p"
        audio = output.add_stream(codec, rate=44_100, layout="mono") if with_sound else None
        for _ in range(10):
            output.mux(video.encode(av.VideoFrame(64, 64, "yuv420p")))
        output.mux(video.encode(None))
        if isinstance(audio, av.AudioStream):
            samples = tone(seconds=SECONDS, sample_rate_hz=44_100)[None].astype(np.float32)
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
            frame.sample_rate = 44_100
            resampler = av.AudioResampler(format=audio.format, layout="mono", rate=44_100, frame_size=1024)
            for part in (frame, None):
                for converted in resampler.resample(part):
                    output.mux(audio.encode(converted))
            output.mux(audio.encode(None))
    return file.getvalue()


def _in_each(container: str, *codecs: str) -> dict[str, Callable[[], bytes]]:
    return {name: by_ffmpeg(*_CODECS[name][:1], container, *_CODECS[name][1:]) for name in codecs}


# FFmpeg's encoder of each, and the rate that it takes.
_CODECS: dict[str, tuple[str, int]] = {
    "AAC": ("aac", 44_100),
    "ALAC": ("alac", 44_100),
    "AMR-NB": ("libopencore_amrnb", 8_000),
    "PCM": ("pcm_s16le", 44_100),
    "MP3": ("libmp3lame", 44_100),
    "MP2": ("mp2", 44_100),
    "AC-3": ("ac3", 48_000),
    "E-AC-3": ("eac3", 48_000),
    "FLAC": ("flac", 44_100),
    "Opus": ("libopus", 48_000),
    "MS ADPCM": ("adpcm_ms", 44_100),
    "IMA ADPCM": ("adpcm_ima_wav", 44_100),
}
_QT_ADPCM = "adpcm_ima_qt"
# By the names that the documentation gives them: container, then what is in it.
SOUNDS: dict[str, dict[str, Callable[[], bytes]]] = {
    "WAV": {
        "PCM": by_libsndfile("WAV", "PCM_24"),
        "float": by_libsndfile("WAV", "FLOAT"),
        "A-law": by_libsndfile("WAV", "ALAW"),
        "mu-law": by_libsndfile("RF64", "ULAW"),
        **_in_each("wav", "MS ADPCM", "IMA ADPCM", "MP3", "MP2", "AC-3"),
    },
    "W64": {
        "PCM": by_libsndfile("W64", "PCM_16"),
        "float": by_libsndfile("W64", "DOUBLE"),
        **_in_each("w64", "MS ADPCM"),
    },
    "AIFF": {
        "PCM": by_libsndfile("AIFF", "PCM_16"),
        "float": by_libsndfile("AIFF", "FLOAT"),
        "IMA ADPCM": by_ffmpeg(_QT_ADPCM, "aiff"),
    },
    "CAF": {
        "PCM": by_libsndfile("CAF", "PCM_16"),
        "float": by_libsndfile("CAF", "FLOAT"),
        "IMA ADPCM": by_ffmpeg(_QT_ADPCM, "caf"),
        "ALAC": by_ffmpeg("alac", "caf"),
    },
    "AU": {
        "PCM": by_libsndfile("AU", "PCM_16"),
        "A-law": by_libsndfile("AU", "ALAW"),
        "mu-law": by_libsndfile("AU", "ULAW"),
    },
    "FLAC": {"FLAC": by_libsndfile("FLAC", "PCM_16")},
    "Ogg": {
        "Vorbis": by_libsndfile("OGG", "VORBIS"),
        "Opus": by_libsndfile("OGG", "OPUS"),
        **_in_each("ogg", "FLAC"),
    },
    "MPEG audio": {"MP3": by_libsndfile("MP3", "MPEG_LAYER_III"), **_in_each("mp2", "MP2")},
    "AAC": _in_each("adts", "AAC"),
    "AC-3": {"AC-3": by_ffmpeg("ac3", "ac3", 48_000), "E-AC-3": by_ffmpeg("eac3", "eac3", 48_000)},
    "AMR": _in_each("amr", "AMR-NB"),
    "MPEG-4, QuickTime": {
        **_in_each("mp4", "AAC", "ALAC", "MP3", "AC-3", "E-AC-3", "FLAC", "Opus"),
        **_in_each("3gp", "AMR-NB"),
        **_in_each("mov", "PCM"),
    },
    "Matroska, WebM": {
        **_in_each("matroska", "AAC", "FLAC", "MP3", "MP2", "AC-3", "E-AC-3", "PCM"),
        **_in_each("webm", "Opus"),
        "Vorbis": by_ffmpeg("vorbis", "webm", 44_100, 2),
    },
    "ASF": {"WMA 1": by_ffmpeg("wmav1", "asf"), "WMA 2": by_ffmpeg("wmav2", "asf")},
}
