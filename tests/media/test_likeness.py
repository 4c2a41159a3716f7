import subprocess
from itertools import combinations

import numpy as np
import pytest
import soundfile

from sonify.media.clips import cut_recording
from sonify.media.likeness import BANDS, correlation, fingerprint
from sonify.stages.copies import LEAST_CORRELATION
from tests.builders import tone

RATE_HZ = 16000
ENCODINGS = {
    "mp3": ("mp3", ["-b:a", "64k"]),
    "vorbis": ("ogg", ["-c:a", "libvorbis", "-q:a", "4"]),
    "aac": ("m4a", ["-b:a", "96k"]),
    "opus": ("ogg", ["-c:a", "libopus", "-b:a", "64k"]),
    "22 kHz": ("wav", ["-ar", "22050"]),
    "30 ms later": ("flac", ["-af", "adelay=30:all=1"]),
}


def first_clip(path):
    return next(iter(cut_recording(path, RATE_HZ, 5.0))).samples


def as_int16(samples):
    return np.rint(samples * 32767).astype(np.int16)


def test_five_seconds_take_less_than_two_kilobytes():
    data = fingerprint(as_int16(tone()), RATE_HZ)
    assert len(data) < 2000
    assert len(data) % BANDS == 0


def test_a_clip_agrees_wholly_with_itself_at_any_gain_and_with_silence_not_at_all():
    clip = as_int16(tone())
    data = fingerprint(clip, RATE_HZ)
    assert correlation(data, clip, RATE_HZ) > 0.99
    assert correlation(data, clip // 4, RATE_HZ) > 0.98
    assert correlation(data, np.zeros_like(clip), RATE_HZ) == 0.0
    assert correlation(fingerprint(np.zeros_like(clip), RATE_HZ), np.zeros_like(clip), RATE_HZ) == 0.0


@pytest.mark.parametrize("shift_sec", [-0.4, -0.13, 0.03, 0.4])
def test_a_shift_within_the_bounds_is_found(shift_sec):
    sound = np.random.default_rng(0).normal(size=7 * RATE_HZ) * np.repeat(np.random.default_rng(1).random(140), 800)
    start = RATE_HZ + round(shift_sec * RATE_HZ)
    clip, shifted = (as_int16(0.05 * sound[at : at + 5 * RATE_HZ]) for at in (RATE_HZ, start))
    assert correlation(fingerprint(clip, RATE_HZ), shifted, RATE_HZ) > 0.99


def test_a_fingerprint_of_another_length_is_refused():
    clip = as_int16(tone())
    with pytest.raises(ValueError, match="expected a fingerprint"):
        correlation(b"\x01" * 5, clip, RATE_HZ)


def test_other_encodings_of_a_recording_agree(test_data, tmp_path):
    recordings = sorted((test_data / "sounds").glob("*.flac"))[::150]
    for recording in recordings:
        data = fingerprint(first_clip(recording), RATE_HZ)
        for name, (ending, options) in ENCODINGS.items():
            encoded = tmp_path / f"x.{ending}"
            subprocess.run(["ffmpeg", "-v", "error", "-y", "-i", recording, *options, encoded], check=True)
            assert correlation(data, first_clip(encoded), RATE_HZ) >= LEAST_CORRELATION, (recording.name, name)


def test_other_recordings_of_the_same_class_do_not_agree(test_data):
    by_class = {}
    for path in sorted((test_data / "sounds").glob("*.flac")):
        upload, kind = path.stem.split("-")[1], path.stem.split("-")[3]
        by_class.setdefault(kind, {}).setdefault(upload, path)
    compared = 0
    for uploads in by_class.values():
        for left, right in combinations(list(uploads.values())[:2], 2):
            found = correlation(fingerprint(first_clip(left), RATE_HZ), first_clip(right), RATE_HZ)
            assert found < LEAST_CORRELATION - 0.05, (left.name, right.name, found)
            compared += 1
    assert compared > 20


def test_what_soundfile_writes_as_vorbis_agrees(test_data, tmp_path):
    recording = next((test_data / "sounds").glob("*.flac"))
    samples, rate_hz = soundfile.read(recording)
    soundfile.write(tmp_path / "x.ogg", samples, rate_hz)
    data = fingerprint(first_clip(recording), RATE_HZ)
    assert correlation(data, first_clip(tmp_path / "x.ogg"), RATE_HZ) >= LEAST_CORRELATION
