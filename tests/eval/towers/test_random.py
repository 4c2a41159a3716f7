import time
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from eval.towers.config import Random
from eval.towers.random import LOGITS, NAME, open_random, sound_features
from eval.towers.tower import Sound
from tests.builders import noise, picture, refused, sine
from tests.processes import run_python


def photo(seed: int, size: tuple[int, int] = (48, 32)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    return Image.fromarray(pixels)


def sound(seed: int, seconds: float = 1.0) -> Sound:
    return Sound(samples_S=noise(seed, round(seconds * 16_000)), sample_rate_hz=16_000)


def every_way(role: str = "clip_b32", **settings: int) -> dict[str, np.ndarray]:
    tower = open_random(Random(kind="random", **settings), role)
    assert tower.images is not None
    assert tower.sounds is not None
    assert tower.texts is not None
    return {
        "images": tower.images.embed([photo(n) for n in range(4)]),
        "sounds": tower.sounds.embed([sound(n) for n in range(4)]),
        "texts": tower.texts.embed(["dog", "a dog", "rain", ""]),
    }


def test_vectors_are_as_wide_as_asked_and_differ():
    for vectors in every_way(width=32).values():
        assert vectors.shape == (4, 32)
        assert vectors.dtype == np.float32
        assert len(np.unique(vectors, axis=0)) == 4
        assert (np.linalg.norm(vectors, axis=1) > 0.01).all()


SAY = """
from tests.eval.towers.test_random import every_way
from hashlib import sha256
print(sha256(b"".join(rows.tobytes() for rows in every_way().values())).hexdigest())
"""


def test_another_process_makes_the_same_bytes():
    assert run_python(SAY).stdout == run_python(SAY).stdout


def test_a_vector_does_not_depend_on_what_else_is_there():
    tower = open_random(Random(kind="random"), "dinov2")
    assert tower.images is not None
    together = tower.images.embed([photo(n) for n in range(5)])
    for n in range(5):
        assert tower.images.embed([photo(n)]).tobytes() == together[n].tobytes()


def test_the_inception_role_has_positive_features_and_logits():
    tower = open_random(Random(kind="random", width=16), "inception")
    assert tower.images is not None
    assert tower.logits == LOGITS
    vectors = tower.images.embed([photo(n) for n in range(20)])
    assert vectors.shape == (20, 16 + LOGITS)
    assert (vectors[:, :16] >= 0).all()
    assert (vectors[:, 16:] < 0).any()
    other = open_random(Random(kind="random", width=16), "clip_b32")
    assert other.logits == 0
    assert other.images is not None
    assert other.images.preprocessing != tower.images.preprocessing  # else the cache would mix them


def test_seed_and_width_name_it():
    one, same, seeded, wide = (
        open_random(Random(kind="random", **settings), "clip_b32") for settings in ({}, {}, {"seed": 1}, {"width": 65})
    )
    assert one.sha256 == same.sha256
    assert len({one.sha256, seeded.sha256, wide.sha256}) == 3
    assert len({one.name, seeded.name, wide.name}) == 3
    assert one.name.startswith(NAME)
    assert "no judge" in NAME
    assert not np.allclose(every_way()["texts"], every_way(seed=1)["texts"])


def test_like_sounds_and_pictures_are_near_each_other():
    """A vector says something of its input: metrics that are tried on it see more than noise."""
    tower = open_random(Random(kind="random"), "clip_b32")
    assert tower.images is not None
    assert tower.sounds is not None
    a, near, far = tower.images.embed([photo(1), photo(1).resize((96, 64), Image.Resampling.NEAREST), photo(2)])
    assert np.linalg.norm(a - near) < 0.3 * np.linalg.norm(a - far)
    low, louder, high = tower.sounds.embed(
        [Sound(samples_S=sine(hz, 1.0, 16_000, level), sample_rate_hz=16_000) for hz, level in LIKE]
    )
    assert np.linalg.norm(low - louder) < 0.5 * np.linalg.norm(low - high)


LIKE = ((300.0, 0.25), (300.0, 0.3), (5000.0, 0.25))


@pytest.mark.parametrize("samples", [1, 100, 511, 512, 513])
def test_a_sound_of_any_length_is_heard(samples):
    for rate_hz in (16_000, 8_000):
        heard = Sound(samples_S=np.ones(samples, np.float32), sample_rate_hz=rate_hz)
        assert np.isfinite(sound_features(heard)).all()


def test_a_sound_of_which_nothing_is_left_is_named():
    with refused("blip.flac: expected a sound, found none at 16000 Hz"):
        sound_features(Sound(samples_S=np.ones(1, np.float32), sample_rate_hz=96_000, name="blip.flac"))


def test_silence_and_black_are_no_zero_vectors():
    tower = open_random(Random(kind="random"), "clip_b32")
    assert tower.images is not None
    assert tower.sounds is not None
    black = tower.images.embed([Image.new("RGB", (8, 8), (128, 127, 128))])
    silent = tower.sounds.embed([Sound(samples_S=np.zeros(16_000, np.float32), sample_rate_hz=16_000)])
    for vectors in (black, silent):
        assert np.isfinite(vectors).all()
        assert np.linalg.norm(vectors) > 0.01


def test_nothing_in_is_nothing_out():
    tower = open_random(Random(kind="random", width=9), "inception")
    assert tower.images is not None
    assert tower.images.embed([]).shape == (0, 9 + LOGITS)


def test_it_is_fast_enough_for_a_smoke_test():
    tower = open_random(Random(kind="random"), "clip_b32")
    assert tower.images is not None
    assert tower.sounds is not None
    pictures = [Image.open(BytesIO(picture(n, (512, 512)))).convert("RGB") for n in range(48)]
    sounds = [Sound(samples_S=noise(n, 44_100 * 5), sample_rate_hz=44_100) for n in range(24)]
    started = time.process_time()
    tower.images.embed(pictures)
    tower.sounds.embed(sounds)
    assert time.process_time() - started < 2
