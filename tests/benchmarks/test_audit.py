"""The classifiers that stand for towers see and hear the same six classes, in one space."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from benchmarks.audit import CLASSES, classifiers, held_out_table
from benchmarks.learning.collection import read_photos, read_recordings
from benchmarks.learning.senses import Ear, Eye
from eval.metrics.alignment import unit
from eval.towers.tower import Judges, Sound


@pytest.fixture(scope="module")
def judges(test_data: Path) -> Judges:
    weights = test_data / "weights"
    eye = Eye(weights / "mobilenet_v2", read_photos(test_data / "learning"))
    return classifiers(weights, eye, Ear(weights / "yamnet"))


def test_a_sound_is_nearest_to_photographs_of_its_own_class(test_data: Path, judges: Judges):
    """One recording and one photograph a class, and the true ones have more than the others on average."""
    assert judges.wav2clip is not None
    assert judges.wav2clip.sounds is not None
    assert judges.clip_b32 is not None
    assert judges.clip_b32.images is not None
    folder = test_data / "learning"
    pictures, sounds = [], []
    for name in CLASSES:
        photo = next(one for one in read_photos(folder) if one.name == name)
        recording = next(one for one in read_recordings(folder) if one.name == name and one.fold == 5)
        samples, rate_hz = soundfile.read(folder / "sounds" / recording.file, dtype="float32")
        pictures.append(Image.open(folder / "photos" / photo.file))
        sounds.append(Sound(samples_S=samples, sample_rate_hz=rate_hz))
    cosines = unit(judges.wav2clip.sounds.embed(sounds)) @ unit(judges.clip_b32.images.embed(pictures)).T
    true, wrong = np.diag(cosines), cosines[~np.eye(len(CLASSES), dtype=bool)]
    assert true.mean() > wrong.mean() + 0.5
    assert (np.argmax(cosines, axis=1) == np.arange(len(CLASSES))).mean() >= 0.8


def test_a_text_names_its_class_whatever_stands_before_it(judges: Judges):
    assert judges.clip_l14 is not None
    assert judges.clip_l14.texts is not None
    named = judges.clip_l14.texts.embed(["dog", "a photo of dog", "sea_waves"])
    assert (named.argmax(axis=1) == [CLASSES.index("dog"), CLASSES.index("dog"), CLASSES.index("sea_waves")]).all()
    assert np.allclose(named.sum(axis=1), 0, atol=1e-6)


def test_takes_of_one_upload_are_one_recording(test_data: Path):
    rows = held_out_table(test_data / "learning", read_recordings(test_data / "learning"), 5)
    assert len(rows) == 42
    recordings = {recording for *_, recording in rows}
    assert all(Path(sound).is_file() and recording in name for name, sound, _, recording in rows)
    assert len(recordings) < len(rows)
