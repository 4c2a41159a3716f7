"""Which files are read and which are refused: whole, cut short, mislabelled and forged ones."""

import io
import os
import struct
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from sonify.media.audio import UnreadableSound, decode_flac, encode_flac, read_blocks, read_header
from sonify.rows import Reason
from tests.builders import noise

RATE_HZ = 44_100


def stereo_noise(seconds: float = 1.0, seed: int = 0) -> np.ndarray:
    return noise(seed, (round(seconds * RATE_HZ), 2)).astype(np.float32)


def read(path: Path) -> np.ndarray:
    return np.concatenate(list(read_blocks(path)), axis=1)


def refusal(path: Path) -> UnreadableSound:
    with pytest.raises(UnreadableSound) as caught:
        read(path)
    return caught.value


def write_with_ffmpeg(path: Path, samples: np.ndarray, codec: str, container: str, rate_hz: int) -> Path:
    with av.open(str(path), "w", format=container) as output:
        stream = output.add_stream(codec, rate=rate_hz, layout="stereo")
        assert isinstance(stream, av.AudioStream)
        resampler = av.AudioResampler(format=stream.format, layout="stereo", rate=rate_hz)
        for start in range(0, len(samples), 1024):
            block = np.ascontiguousarray(samples[start : start + 1024].T)
            frame = av.AudioFrame.from_ndarray(block, format="fltp", layout="stereo")
            frame.sample_rate = rate_hz
            frame.pts = start
            for converted in resampler.resample(frame):
                output.mux(stream.encode(converted))
        output.mux(stream.encode(None))
    return path


def wav_bytes(data: bytes, claimed_bytes: int, channels: int = 1, rate_hz: int = 16_000) -> bytes:
    fmt = struct.pack("<HHIIHH", 1, channels, rate_hz, rate_hz * channels * 2, channels * 2, 16)
    riff = struct.pack("<I", min(36 + claimed_bytes, 2**32 - 1))
    return b"RIFF" + riff + b"WAVEfmt \x10\0\0\0" + fmt + b"data" + struct.pack("<I", claimed_bytes) + data


@pytest.mark.parametrize(
    ("container", "subtype"),
    [
        ("WAV", "PCM_U8"),
        ("WAV", "PCM_16"),
        ("WAV", "ULAW"),
        ("WAVEX", "PCM_24"),
        ("RF64", "PCM_32"),
        ("W64", "DOUBLE"),
        ("FLAC", "PCM_24"),
        ("OGG", "VORBIS"),
        ("AIFF", "PCM_S8"),
        ("CAF", "FLOAT"),
        ("AU", "ALAW"),
    ],
)
def test_every_listed_kind_is_read_whatever_its_name(tmp_path: Path, container: str, subtype: str) -> None:
    path = tmp_path / "sound.bin"
    samples = stereo_noise()
    soundfile.write(path, samples, RATE_HZ, format=container, subtype=subtype)

    header = read_header(path)

    assert (header.container, header.subtype) == (container, subtype)
    assert (header.sample_rate_hz, header.channels, header.frames) == (RATE_HZ, 2, len(samples))
    assert read(path).shape == (2, len(samples))


def test_opus_is_read(tmp_path: Path) -> None:
    path = tmp_path / "sound.opus"
    soundfile.write(path, stereo_noise(), 48_000, format="OGG", subtype="OPUS")

    assert read_header(path).subtype == "OPUS"
    assert read(path).shape == (2, RATE_HZ)


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3", "m4a"])
def test_a_recording_is_the_same_in_a_file_and_in_memory(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "sound"
    if kind == "m4a":
        write_with_ffmpeg(path, stereo_noise(), "aac", "ipod", RATE_HZ)
    else:
        soundfile.write(path, stereo_noise(), RATE_HZ, format=kind)
    data = path.read_bytes()

    assert read_header(data) == read_header(path)
    assert np.array_equal(np.concatenate(list(read_blocks(data)), axis=1), read(path))


@pytest.mark.parametrize("data", [b"", b"fLaC", b"<html>404</html>", b"RIFF\x04\0\0\0WAVE"])
def test_bytes_that_are_no_recording_are_refused(data: bytes) -> None:
    with pytest.raises(UnreadableSound) as caught:
        list(read_blocks(data))
    assert caught.value.reason is Reason.UNREADABLE


def test_a_truncated_recording_in_memory_is_refused_like_its_file(tmp_path: Path) -> None:
    path = tmp_path / "sound.flac"
    soundfile.write(path, stereo_noise(), RATE_HZ)
    path.write_bytes(data := path.read_bytes()[: path.stat().st_size // 2])

    with pytest.raises(UnreadableSound) as caught:
        list(read_blocks(data))
    assert (caught.value.reason, caught.value.detail) == (refusal(path).reason, refusal(path).detail)


@pytest.mark.parametrize(
    ("codec", "container", "rate_hz", "subtype"),
    [
        ("aac", "ipod", RATE_HZ, "aac"),
        ("alac", "ipod", RATE_HZ, "alac"),
        ("aac", "adts", RATE_HZ, "aac"),
        ("libopus", "webm", 48_000, "opus"),
        ("flac", "matroska", RATE_HZ, "flac"),
    ],
)
def test_what_libsndfile_cannot_read_goes_to_ffmpeg(
    tmp_path: Path, codec: str, container: str, rate_hz: int, subtype: str
) -> None:
    samples = stereo_noise(seconds=2.0)
    path = write_with_ffmpeg(tmp_path / "sound.wav", samples, codec, container, rate_hz)

    header = read_header(path)
    decoded = read(path)

    assert (header.sample_rate_hz, header.channels, header.subtype) == (rate_hz, 2, subtype)
    # Lossy codecs pad to whole frames and some start with a delay of up to one.
    assert len(samples) <= decoded.shape[1] <= len(samples) + 3 * 1024
    # AAC drops part of the highest octave of white noise.
    assert decoded.std() == pytest.approx(samples.std(), rel=0.2)


def test_ffmpeg_and_libsndfile_give_the_same_samples(tmp_path: Path) -> None:
    samples = np.rint(stereo_noise() * 32768).astype(np.int16)
    soundfile.write(tmp_path / "plain.wav", samples, RATE_HZ)
    as_float = (samples / np.float32(32768)).astype(np.float32)
    path = write_with_ffmpeg(tmp_path / "sound.mkv", as_float, "flac", "matroska", RATE_HZ)

    assert np.array_equal(read(path), read(tmp_path / "plain.wav"))


def test_mp3_of_variable_bitrate_without_a_count_is_read_to_its_end(tmp_path: Path) -> None:
    whole = io.BytesIO()
    loud_then_quiet = np.concatenate([stereo_noise(10), stereo_noise(10) * 1e-3])
    soundfile.write(whole, loud_then_quiet, RATE_HZ, format="MP3", bitrate_mode="VARIABLE", compression_level=0.3)
    data = whole.getvalue()
    assert b"Xing" in data[:100]
    path = tmp_path / "sound.mp3"
    path.write_bytes(data[data.index(data[:2], 4) :])

    assert read(path).shape[1] == pytest.approx(len(loud_then_quiet), abs=3 * 1152)


def test_flac_without_a_length_is_read_to_its_end(tmp_path: Path) -> None:
    samples = stereo_noise()
    soundfile.write(tmp_path / "counted.flac", samples, RATE_HZ)
    data = bytearray((tmp_path / "counted.flac").read_bytes())
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    (tmp_path / "piped.flac").write_bytes(data)

    assert np.array_equal(read(tmp_path / "piped.flac"), read(tmp_path / "counted.flac"))


@pytest.mark.parametrize("kept", [0.5, 0.99])
def test_a_truncated_flac_is_unreadable(tmp_path: Path, kept: float) -> None:
    soundfile.write(tmp_path / "whole.flac", stereo_noise(), RATE_HZ)
    data = (tmp_path / "whole.flac").read_bytes()
    path = tmp_path / "cut.flac"
    path.write_bytes(data[: int(len(data) * kept)])

    assert refusal(path).reason is Reason.UNREADABLE


def test_a_truncated_mp3_is_kept_as_far_as_it_goes(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "whole.mp3", stereo_noise(4), RATE_HZ)
    data = (tmp_path / "whole.mp3").read_bytes()
    path = tmp_path / "cut.mp3"
    path.write_bytes(data[: len(data) // 2])

    assert read(path).shape[1] == pytest.approx(2 * RATE_HZ, rel=0.05)


def test_an_mp3_that_is_damaged_in_the_middle_is_unreadable(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "whole.mp3", stereo_noise(4), RATE_HZ)
    data = bytearray((tmp_path / "whole.mp3").read_bytes())
    middle = len(data) // 2
    data[middle : middle + 5000] = np.random.default_rng(0).bytes(5000)
    path = tmp_path / "damaged.mp3"
    path.write_bytes(data)

    assert refusal(path).reason is Reason.UNREADABLE


def test_a_truncated_m4a_is_unreadable(tmp_path: Path) -> None:
    whole = write_with_ffmpeg(tmp_path / "whole.m4a", stereo_noise(), "aac", "ipod", RATE_HZ).read_bytes()
    path = tmp_path / "cut.m4a"
    path.write_bytes(whole[: len(whole) // 2])

    assert refusal(path).reason is Reason.UNREADABLE


@pytest.mark.parametrize("claimed_bytes", [2**31 - 256, 2**32 - 1])
def test_a_wav_that_claims_gigabytes_gives_what_is_there(tmp_path: Path, claimed_bytes: int) -> None:
    path = tmp_path / "sound.wav"
    path.write_bytes(wav_bytes(np.arange(1000, dtype="<i2").tobytes(), claimed_bytes))

    assert read_header(path).frames == 1000
    assert (read(path)[0] * 32768).tolist() == list(range(1000))


def test_blocks_do_not_grow_with_the_claim(tmp_path: Path) -> None:
    path = tmp_path / "sound.wav"
    soundfile.write(path, np.zeros((100_000, 8)), 16_000)

    sizes = [block.size for block in read_blocks(path)]

    assert max(sizes) <= 2**16
    assert sum(sizes) == 800_000


@pytest.mark.parametrize(("subtype", "tag"), [("G721_32", 0x40), ("GSM610", 0x31)])
def test_what_neither_library_is_to_decode_is_refused(tmp_path: Path, subtype: str, tag: int) -> None:
    path = tmp_path / "sound.wav"
    soundfile.write(path, np.zeros(8000), 8000, subtype=subtype)

    assert refusal(path).reason is Reason.UNSUPPORTED
    assert f"{tag:#06x}" in refusal(path).detail


@pytest.mark.parametrize("container", ["VOC", "PAF", "AVR", "IRCAM"])
def test_containers_that_are_not_listed_are_refused(tmp_path: Path, container: str) -> None:
    path = tmp_path / "sound.wav"
    soundfile.write(path, np.zeros(8000), 8000, format=container, subtype="PCM_16")

    assert refusal(path).reason is Reason.UNSUPPORTED


def test_a_container_that_only_ffmpeg_knows_is_refused(tmp_path: Path) -> None:
    path = write_with_ffmpeg(tmp_path / "sound.avi", stereo_noise(), "pcm_s16le", "avi", RATE_HZ)

    assert refusal(path).reason is Reason.UNSUPPORTED


def test_a_codec_that_is_not_listed_is_refused(tmp_path: Path) -> None:
    path = write_with_ffmpeg(tmp_path / "sound.mka", stereo_noise(), "tta", "matroska", RATE_HZ)

    assert refusal(path).reason is Reason.UNSUPPORTED
    assert "tta" in refusal(path).detail


@pytest.mark.parametrize(("channels", "rate_hz"), [(33, 16_000), (1, 3_999), (1, 768_001)])
def test_impossible_headers_are_refused(tmp_path: Path, channels: int, rate_hz: int) -> None:
    path = tmp_path / "sound.wav"
    path.write_bytes(wav_bytes(bytes(33 * 200), 33 * 200, channels, rate_hz))

    assert refusal(path).reason is Reason.UNSUPPORTED


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"R",
        b"fLaC",
        b"RIFF\0\0\0\0WAVE",
        b"OggS" * 10,
        b"A text that somebody renamed.\n" * 50,
        bytes(5000),
    ],
    ids=["empty", "one byte", "bare fLaC", "bare RIFF", "bare OggS", "text", "zeros"],
)
@pytest.mark.parametrize("name", ["sound.wav", "sound.mp3", "sound.flac", "sound.raw"])
def test_what_is_no_sound_is_unreadable(tmp_path: Path, name: str, data: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(data)

    assert refusal(path).reason is Reason.UNREADABLE


@pytest.mark.parametrize(
    ("playlist", "reason"),
    [
        ("ffconcat version 1.0\nfile inner.wav\n", Reason.UNSUPPORTED),
        ("#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\ninner.wav\n", Reason.UNREADABLE),
    ],
    ids=["concat", "hls"],
)
def test_a_playlist_is_never_followed(tmp_path: Path, playlist: str, reason: Reason) -> None:
    soundfile.write(tmp_path / "inner.wav", stereo_noise(), RATE_HZ)
    path = tmp_path / "sound.wav"
    path.write_text(playlist)

    assert refusal(path).reason is reason


def test_a_video_gives_its_sound_only(tmp_path: Path) -> None:
    path = tmp_path / "film.mkv"
    with av.open(str(path), "w") as output:
        video = output.add_stream("mpeg4", rate=10)
        assert isinstance(video, av.VideoStream)
        video.width, video.height, video.pix_fmt = 64, 64, "yuv420p"
        audio = output.add_stream("flac", rate=RATE_HZ, layout="mono")
        assert isinstance(audio, av.AudioStream)
        output.mux(video.encode(av.VideoFrame(64, 64, "yuv420p")))
        frame = av.AudioFrame.from_ndarray(np.ones((1, 4096), np.int16), format="s16", layout="mono")
        frame.sample_rate = RATE_HZ
        output.mux(audio.encode(frame))
        output.mux(video.encode(None))
        output.mux(audio.encode(None))

    assert read(path).shape == (1, 4096)


def test_a_video_without_sound_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    with av.open(str(path), "w") as output:
        video = output.add_stream("mpeg4", rate=10)
        assert isinstance(video, av.VideoStream)
        video.width, video.height, video.pix_fmt = 64, 64, "yuv420p"
        output.mux(video.encode(av.VideoFrame(64, 64, "yuv420p")))
        output.mux(video.encode(None))

    assert refusal(path).reason is Reason.UNSUPPORTED


@pytest.mark.parametrize("name", ["missing.wav", "."])
def test_a_path_without_a_file_is_unreadable(tmp_path: Path, name: str) -> None:
    assert refusal(tmp_path / name).reason is Reason.UNREADABLE


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_permission_is_unreadable(tmp_path: Path) -> None:
    path = tmp_path / "sound.wav"
    path.write_bytes(wav_bytes(bytes(100), 100))
    path.chmod(0)

    assert refusal(path).reason is Reason.UNREADABLE


def test_a_name_that_is_no_unicode_and_looks_like_a_url_is_only_a_name(tmp_path: Path) -> None:
    folder = tmp_path / "http:"
    folder.mkdir()
    path = folder / b"caf\xe9.m4a".decode("utf-8", "surrogateescape")
    write_with_ffmpeg(tmp_path / "sound.m4a", stereo_noise(), "aac", "ipod", RATE_HZ).rename(path)

    assert read(path).shape[0] == 2


def test_float_samples_above_full_scale_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "sound.wav"
    soundfile.write(path, np.array([0.5, 4.0, -8.0]), 16_000, subtype="FLOAT")

    assert read(path).tolist() == [[0.5, 4.0, -8.0]]


def test_flac_gives_back_its_samples_and_the_same_bytes_twice() -> None:
    samples = np.random.default_rng(0).integers(-32768, 32768, 80_000).astype(np.int16)

    data = encode_flac(samples, 16_000)
    decoded, rate_hz = decode_flac(data)

    assert encode_flac(samples, 16_000) == data
    assert rate_hz == 16_000
    assert decoded.dtype == np.int16
    assert np.array_equal(decoded, samples)
