"""What becomes of an entry's files: sounds cut and mixed down, windows, frames of films, squares; and bad files."""

import io
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from PIL import Image

from eval.suites import media
from eval.suites.config import Heard
from eval.suites.entries import Entry
from eval.suites.media import (
    Unusable,
    cut_sound,
    encode_square,
    is_heard,
    read_media,
    read_reference,
    take_picture,
    window_start,
)
from tests.builders import as_pcm, encoded, noise, picture, sine, sound_bytes, tone, write_sound
from tests.eval.suites_built import write_film
from tests.processes import peak_kib

SIDE = 32
HEARD = Heard()
RATE_HZ = 44_100


def entry(audio: Path, image: Path | None = None, **fields) -> Entry:
    return Entry(id="one", recording="one", audio=audio, image=image, **fields)


def pixels(data: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(data)))


def grey_of(image: Image.Image) -> float:
    """As a share of white: the time of a frame of `write_film`, as a share of its length."""
    return float(np.asarray(image).mean()) / 255


# --- sounds


def test_a_sound_is_kept_sample_for_sample_at_its_own_rate(tmp_path):
    pcm = as_pcm(tone(1, 3.0, RATE_HZ))
    sound = cut_sound(write_sound(tmp_path / "a.wav", pcm, RATE_HZ, subtype="PCM_16"))
    assert (sound.sample_rate_hz, sound.start_sec) == (RATE_HZ, 0.0)
    assert np.array_equal(sound.samples_S, pcm)


def test_channels_are_brought_together_by_their_mean(tmp_path):
    left, right = noise(1, RATE_HZ), noise(2, RATE_HZ)
    sound = cut_sound(write_sound(tmp_path / "a.wav", np.stack([left, right], axis=1), RATE_HZ, subtype="FLOAT"))
    assert np.abs(sound.samples_S - (left + right) / 2 * 32768).max() <= 0.51


@pytest.mark.parametrize("side", [1, -1])
def test_what_passes_full_scale_is_made_to_fit_and_not_clipped(tmp_path, side):
    loud = side * np.abs(3 * sine(seconds=1.0, level=1.0))
    sound = cut_sound(write_sound(tmp_path / "a.wav", loud, subtype="FLOAT"))
    assert np.abs(sound.samples_S - loud / 3 * 32767).max() <= 1.0
    assert np.abs(sound.samples_S).max() == 32767


# 30 s of two channels are some twenty blocks of the reader.
@pytest.mark.parametrize(
    ("start_sec", "seconds", "begins"),
    [(0.0, 10.0, 0.0), (12.3, 10.0, 12.3), (25.0, 10.0, 20.0), (29.9, 10.0, 20.0), (0.0, 100.0, 0.0), (7.0, None, 7.0),
     (3.0, 100.0, 0.0), (0.0, None, 0.0), (20.0, 10.0, 20.0)],
)  # fmt: skip
def test_a_part_is_cut_out_and_shifted_into_the_file(tmp_path, start_sec, seconds, begins):
    both = as_pcm(noise(0, (30 * RATE_HZ, 2)))
    path = write_sound(tmp_path / "a.flac", both, RATE_HZ)
    whole = np.rint(both.astype(np.float64).mean(axis=1))
    sound = cut_sound(path, start_sec, seconds)
    first = round(begins * RATE_HZ)
    length = len(whole) if seconds is None else round(seconds * RATE_HZ)
    assert sound.start_sec == pytest.approx(begins)
    assert np.abs(sound.samples_S - whole[first:][:length]).max() <= 1
    assert len(sound.samples_S) == len(whole[first:][:length])


def test_a_long_sound_is_held_no_further_than_it_is_wanted(tmp_path, monkeypatch):
    path = write_sound(tmp_path / "a.flac", tone(0, 30.0, 16_000), 16_000)
    monkeypatch.setattr(media, "MAX_SOUND_SEC", 20.0)
    with pytest.raises(Unusable, match="over 20 s long; set `seconds`") as refused:
        cut_sound(path)
    assert refused.value.reason == "too_large"
    assert cut_sound(path, 0.0, 25.0).seconds == 25.0
    assert cut_sound(path, 10.0).seconds == 20.0


def test_the_sound_of_a_film_is_read(tmp_path):
    for name in ("a.mp4", "a.webm"):
        sound = cut_sound(write_film(tmp_path / name, 4.0, sound=sine(seconds=4.0, sample_rate_hz=48_000)))
        spectrum = np.abs(np.fft.rfft(sound.samples_S[48_000:96_000]))
        assert int(spectrum.argmax()) == 440
        assert sound.seconds == pytest.approx(4.0, abs=0.05)


def test_silence_is_what_no_model_hears():
    for samples, heard in (
        (np.zeros(RATE_HZ), False),
        (np.full(RATE_HZ, 0.5), False),  # a constant is no sound
        (1e-5 * noise(0, RATE_HZ) / 0.1, False),
        (tone(0, 1.0, RATE_HZ), True),
        (tone(0, 0.05, RATE_HZ), True),  # shorter than a block of the measure
        (np.hanning(RATE_HZ) * sine(15_000, 1.0, RATE_HZ), False),  # above what is heard at 16 kHz
    ):
        for seconds in (5.0, 0.2):
            assert is_heard(sound_bytes(samples, RATE_HZ), seconds) is heard


@pytest.mark.parametrize(
    ("seconds", "frame_sec", "windows", "start"),
    [
        (10.0, 5.0, "frame", 2.5),
        (10.0, 0.3, "frame", 0.0),
        (10.0, 9.9, "frame", 5.0),
        (10.0, 400.0, "frame", 5.0),
        (10.0, None, "frame", 2.5),
        (10.0, 9.0, "first", 0.0),
        (10.0, 9.0, "all", 0.0),
        (3.0, 2.9, "frame", 0.0),
        (5.0, 2.9, "frame", 0.0),
    ],
)
def test_the_window_holds_the_frame_and_lies_inside(seconds, frame_sec, windows, start):
    assert window_start(seconds, frame_sec, Heard(windows=windows)) == pytest.approx(start)


def test_the_window_is_the_sound_about_the_frame(tmp_path):
    film = write_film(tmp_path / "a.mkv", 12.0, sound=noise(0, (1, 12 * 48_000)))
    read = read_media(entry(film, film, image_sec=8.0, audio_start_sec=1.0, audio_seconds=10.0), None, HEARD, SIDE)
    assert (read.seconds, read.window_start_sec) == (10.0, 4.5)
    assert read.window is not None
    whole, _ = soundfile.read(io.BytesIO(read.sound), dtype="int16")
    window, rate_hz = soundfile.read(io.BytesIO(read.window), dtype="int16")
    assert np.array_equal(window, whole[round(4.5 * rate_hz) :][: 5 * rate_hz])
    assert grey_of(Image.open(io.BytesIO(read.references[0]))) == pytest.approx(8 / 12, abs=0.02)


@pytest.mark.parametrize(("windows", "seconds"), [("frame", 5.0), ("first", 5.0), ("all", 8.0)])
def test_what_models_hear_is_as_long_as_is_asked_for(tmp_path, windows, seconds):
    path = write_sound(tmp_path / "a.flac", tone(0, 8.0))
    read = read_media(entry(path), None, Heard(windows=windows), SIDE)
    assert read.window is not None
    assert soundfile.info(io.BytesIO(read.window)).duration == seconds
    assert (read.window == read.sound) == (windows == "all")


def test_a_silent_window_of_a_sound_that_is_heard_is_none(tmp_path):
    samples = np.concatenate([tone(0, 2.0), np.zeros(16_000 * 10)])
    path = write_sound(tmp_path / "a.flac", samples)
    assert read_media(entry(path), None, HEARD, SIDE).window is None
    assert read_media(entry(path), None, Heard(windows="first"), SIDE).window is not None
    assert read_media(entry(path), 6.0, HEARD, SIDE).window is not None


# --- pictures


@pytest.fixture(scope="module")
def long_film(tmp_path_factory) -> Path:
    return write_film(tmp_path_factory.mktemp("film") / "long.mkv", 40.0, sound=noise(0, (1, 40 * 48_000)))


@pytest.mark.parametrize("size", [(97, 64), (64, 97), (20, 11), (32, 32)])
def test_a_reference_is_the_centre_square_by_pillows_bicubic(tmp_path, size):
    (tmp_path / "a.png").write_bytes(picture(3, size, "PNG"))
    image = take_picture(tmp_path / "a.png", None)
    array = pixels((tmp_path / "a.png").read_bytes())
    side = min(size)
    top, left = (size[1] - side) // 2, (size[0] - side) // 2
    square = Image.fromarray(array[top : top + side, left : left + side]).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    assert np.array_equal(pixels(encode_square(image, SIDE)), np.asarray(square))


def test_a_picture_with_a_profile_gives_the_same_bytes_at_any_time_of_day(tmp_path):
    from PIL import ImageCms  # noqa: PLC0415 - for this one

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    tagged = encoded(Image.open(io.BytesIO(picture(0))), icc_profile=profile)
    (tmp_path / "a.jpg").write_bytes(tagged)
    data = encode_square(take_picture(tmp_path / "a.jpg", None), SIDE)
    assert b"iCCP" not in data


def test_every_further_picture_is_a_reference(tmp_path):
    for n in range(3):
        (tmp_path / f"{n}.jpg").write_bytes(picture(n))
    path = write_sound(tmp_path / "a.flac", tone(0))
    more = (tmp_path / "1.jpg", tmp_path / "2.jpg")
    read = read_media(entry(path, tmp_path / "0.jpg", more_images=more), None, HEARD, SIDE)
    assert len(set(read.references)) == 3
    with pytest.raises(Unusable, match=r"3\.jpg: no such file"):
        read_media(entry(path, tmp_path / "0.jpg", more_images=(tmp_path / "3.jpg",)), None, HEARD, SIDE)


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "libx264"), ("a.webm", "libvpx-vp9"), ("a.mkv", "mjpeg"), ("a.mov", "mpeg4")]
)
def test_the_frame_that_is_shown_at_a_time_is_taken(tmp_path, name, codec):
    film = write_film(tmp_path / name, codec=codec)
    for at_sec, shown in ((0.0, 0.0), (3.5, 0.35), (3.99, 0.35), (5.0, 0.5), (9.5, 0.95), (10.4, 0.95), (None, 0.5)):
        image = take_picture(film, at_sec)
        assert grey_of(image) == pytest.approx(shown, abs=0.02)
        assert image.size == (96, 64)
    with pytest.raises(Unusable, match=r"its last frame is at 9.5 s, wanted at 12 s") as refused:
        take_picture(film, 12.0)
    assert refused.value.reason == "too_short"


def test_a_time_that_floats_miss_by_a_hair_is_met(tmp_path):
    film = write_film(tmp_path / "a.mp4", 1.0, fps=10)  # 0.3 s are 2.9999999999999996 frames
    assert grey_of(take_picture(film, 0.3)) == pytest.approx(0.3, abs=0.02)


@pytest.mark.parametrize("image_format", ["AVIF", "WEBP", "GIF", "BMP", "TIFF", "PNG", "JPEG"])
def test_every_kind_of_picture_that_the_toolkit_reads_is_one(tmp_path, image_format):
    (tmp_path / "a").write_bytes(picture(0, image_format=image_format))
    image = take_picture(tmp_path / "a", None)
    assert (image.size, image.mode) == ((48, 32), "RGB")


def test_the_middle_of_a_part_is_taken_where_a_part_is_wanted(tmp_path):
    film = write_film(tmp_path / "a.mp4")
    read = read_media(entry(film, film, audio_start_sec=6.0, audio_seconds=2.0), None, HEARD, SIDE)
    assert grey_of(Image.open(io.BytesIO(read.references[0]))) == pytest.approx(0.7, abs=0.02)
    still = read_media(entry(film, film), None, HEARD, SIDE)
    assert grey_of(Image.open(io.BytesIO(still.references[0]))) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("given", "cut", "seconds", "middle_sec"),
    [
        ({}, None, 10.0, 5.0),  # of a film that is longer than what is heard of it
        ({}, 10.0, 10.0, 5.0),
        ({"audio_start_sec": 35.0, "audio_seconds": 10.0}, None, 10.0, 35.0),  # shifted into the file
        ({"audio_start_sec": 20.0, "audio_seconds": 10.0}, 4.0, 4.0, 22.0),
        ({"audio_start_sec": 20.0, "audio_seconds": 10.0, "image_sec": 21.0}, None, 10.0, 21.0),
    ],
)
def test_the_frame_is_of_what_is_heard_and_the_window_holds_it(tmp_path, long_film, given, cut, seconds, middle_sec):
    one = entry(long_film, long_film, **given)
    read = read_media(one, 10.0 if cut is None else cut, HEARD, SIDE)
    assert read.seconds == seconds
    shown = grey_of(Image.open(io.BytesIO(read.references[0])))
    assert shown == pytest.approx(middle_sec / 40, abs=0.02)
    start_sec = min(max(given.get("audio_start_sec", 0.0), 0.0), 40.0 - seconds) + read.window_start_sec
    assert start_sec <= middle_sec <= start_sec + HEARD.seconds
    assert read_reference(one, 10.0 if cut is None else cut, SIDE) == read.references[0]


def test_a_frame_that_is_not_of_what_is_heard_is_none(tmp_path, long_film):
    one = entry(long_film, long_film, image_sec=20.0)
    for read in (lambda: read_media(one, 10.0, HEARD, SIDE), lambda: read_reference(one, 10.0, SIDE)):
        with pytest.raises(Unusable, match="heard from 0 to 10 s, which its frame at 20 s is not in") as refused:
            read()
        assert refused.value.reason == "too_short"
    assert read_media(one, 21.0, HEARD, SIDE).window_start_sec == 16.0


def test_another_film_shows_its_middle_and_nobody_says_when_that_was(tmp_path, long_film):
    sound = write_sound(tmp_path / "a.flac", tone(0, 12.0))
    read = read_media(entry(sound, long_film), 10.0, HEARD, SIDE)
    assert grey_of(Image.open(io.BytesIO(read.references[0]))) == pytest.approx(0.5, abs=0.02)
    assert read.window_start_sec == 2.5
    assert read_reference(entry(tmp_path / "lost.flac", long_film), 10.0, SIDE) == read.references[0]


def test_a_film_that_a_telephone_took_upright_is_shown_upright(tmp_path):
    film = write_film(tmp_path / "a.mp4", 1.0, size=(96, 64))
    data = bytearray(film.read_bytes())
    matrix = data.index(b"tkhd") + 44  # version 0: flags, two times, track, and so on before it
    turned = [0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30]  # by 90 degrees clockwise
    data[matrix : matrix + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in turned)
    film.write_bytes(data)
    assert take_picture(film, 0.5).size == (64, 96)


def test_a_turned_film_is_turned_clockwise():
    """By the angle that FFmpeg says, which is counter-clockwise: -90 is a quarter to the right."""
    frame = av.VideoFrame.from_ndarray(np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3), format="rgb24")
    plain = np.asarray(media._upright(frame))
    assert frame.rotation == 0
    turned = Image.fromarray(plain).transpose(media._TURNS[-90 % 360])
    assert np.array_equal(np.asarray(turned), np.rot90(plain, -1))


# --- what cannot be used


def damaged_flac() -> bytes:
    data = bytearray(sound_bytes(noise(0)))
    data[len(data) // 2 : len(data) // 2 + 4000] = bytes(4000)
    return bytes(data)


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("none.wav", None, "missing"),
        ("a.wav", b"", "unreadable"),
        ("a.wav", b"no sound at all" * 100, "unreadable"),
        ("a.flac", sound_bytes(noise(0))[:20_000], "unreadable"),
        ("a.flac", damaged_flac(), "unreadable"),
        ("a.wav", sound_bytes(np.zeros(80_000)), "silent"),
        ("a.wav", sound_bytes(np.stack([tone(0), -tone(0)], axis=1)), "silent"),
        ("a.wav", sound_bytes(np.zeros(0), container="WAV"), "too_short"),
        ("a.wav", sound_bytes(np.array([0.1, np.nan] * 4000), container="WAV", subtype="FLOAT"), "bad_samples"),
        ("a.wav", sound_bytes(np.array([0.1, np.inf] * 4000), container="WAV", subtype="FLOAT"), "bad_samples"),
        ("a.wav", sound_bytes(tone(0), 1000, container="WAV"), "unsupported"),
        ("a.wav", sound_bytes(tone(0, 5.0, 768_000), 768_000, container="WAV"), "unsupported"),
        ("a.jpg", picture(0), "unsupported"),
    ],
)
def test_a_sound_that_cannot_be_used_says_why(tmp_path, name, data, reason):
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(Unusable) as refused:
        read_media(entry(tmp_path / name), None, HEARD, SIDE)
    assert refused.value.reason == reason
    assert str(tmp_path / name) in refused.value.detail


def test_a_part_behind_the_end_is_refused(tmp_path):
    path = write_sound(tmp_path / "a.wav", tone(0, 3.0))
    with pytest.raises(Unusable, match="ends at 3 s, and is wanted from 7 s on") as refused:
        cut_sound(path, 7.0, 2.0)
    assert refused.value.reason == "too_short"


def without_end(data: bytes) -> bytes:
    return data[: len(data) // 2]


@pytest.mark.parametrize(
    ("name", "make", "reason", "says"),
    [
        ("none.jpg", None, "missing", "no such file"),
        ("a.jpg", lambda _: b"", "unreadable", "empty file"),
        ("a.jpg", lambda _: b"<html>not found</html>", "unreadable", "not a JPEG"),
        ("a.jpg", lambda _: without_end(picture(0, (300, 200))), "unreadable", "truncated"),
        ("a.png", lambda _: without_end(picture(0, (300, 200), "PNG")), "unreadable", "[^ ]"),
        ("a.psd", lambda _: b"8BPS" + bytes(100), "unsupported", "PSD"),
        ("a.mp4", lambda film: without_end(film("a.mp4")), "unreadable", "Invalid data"),
        ("a.mp4", lambda _: b"\0\0\0\x18ftypisom" + bytes(100), "unreadable", "[^ ]"),
        ("a.webm", lambda _: b"\x1aE\xdf\xa3" + bytes(100), "unreadable", "[^ ]"),
        ("a.mkv", lambda film: film("a.mkv", codec="ffv1"), "unsupported", "no picture that is read|ffv1"),
    ],
)
def test_a_picture_that_cannot_be_used_says_why(tmp_path, name, make, reason, says):
    if make is not None:
        (tmp_path / name).write_bytes(make(lambda *a, **k: write_film(tmp_path / "film" / a[0], 2.0, **k).read_bytes()))
    with pytest.raises(Unusable, match=says) as refused:
        take_picture(tmp_path / name, None)
    assert refused.value.reason == reason
    assert str(tmp_path / name) in refused.value.detail


def test_a_film_without_pictures_is_no_picture(tmp_path):
    with av.open(str(tmp_path / "a.webm"), "w") as film:
        heard = film.add_stream("libopus", rate=48_000, layout="mono")
        block = av.AudioFrame.from_ndarray(np.zeros((1, 960), np.float32), format="fltp", layout="mono")
        block.rate = 48_000
        film.mux(heard.encode(block))
        film.mux(heard.encode(None))
    with pytest.raises(Unusable, match="no picture that is read in matroska") as refused:
        take_picture(tmp_path / "a.webm", None)
    assert refused.value.reason == "unsupported"


@pytest.mark.parametrize(
    ("size", "says"), [((20_000, 20_000), "Invalid data"), ((65_535, 300), "65535 x 300 pixels; at most")]
)
def test_a_film_that_claims_a_huge_picture_is_refused_before_it_is_decoded(tmp_path, size, says):
    film = write_film(tmp_path / "a.mkv", 1.0, codec="mjpeg", size=(320, 256))
    data = film.read_bytes()
    width, height = (side.to_bytes(2, "big") for side in size)
    claimed = {
        b"\xb0\x82\x01\x40": b"\xb0\x82" + width,  # Matroska's PixelWidth and PixelHeight
        b"\xba\x82\x01\x00": b"\xba\x82" + height,
        b"\xff\xc0\x00\x11\x08\x01\x00\x01\x40": b"\xff\xc0\x00\x11\x08" + height + width,  # and the JPEG's own
    }
    for true, false in claimed.items():
        assert true in data
        data = data.replace(true, false)
    film.write_bytes(data)
    before = peak_kib()
    with pytest.raises(Unusable, match=says):
        take_picture(film, 0.0)
    assert peak_kib() - before < 100_000


def test_frames_are_not_decoded_without_end(tmp_path, monkeypatch):
    film = write_film(tmp_path / "a.mp4")
    monkeypatch.setattr(media, "MAX_DECODED_FRAMES", 4)
    assert grey_of(take_picture(film, 5.6)) == pytest.approx(0.55, abs=0.02)  # by the key frame at 5 s
    with pytest.raises(Unusable, match="over 4 frames") as refused:
        take_picture(film, 4.0)
    assert refused.value.reason == "too_large"
    monkeypatch.setattr(media, "MAX_PACKETS", 5)
    with pytest.raises(Unusable, match="over 5 packets"):
        take_picture(film, None)
