import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soxr
import torch
from transformers import ClapFeatureExtractor, ClapModel, RobertaTokenizer

from eval.towers.clap import MIN_TAIL, cut_windows, open_clap
from eval.towers.config import Clap
from eval.towers.tower import Sound, Tower
from tests.builders import noise, refused
from tests.tiny_networks import tiny_clap, tiny_llava

RATE_HZ = 48_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny_clap(tmp_path_factory.mktemp("clap") / "clap")


@pytest.fixture(scope="module")
def tower(folder) -> Tower:
    return open_clap(Clap(kind="clap", model=str(folder)))


def sound(seconds: float, seed: int = 0, rate_hz: int = RATE_HZ) -> Sound:
    return Sound(samples_S=noise(seed, round(seconds * rate_hz)), sample_rate_hz=rate_hz)


def heard(tower: Tower, *sounds: Sound) -> np.ndarray:
    assert tower.sounds is not None
    return tower.sounds.embed(sounds)


def read(tower: Tower, *texts: str) -> np.ndarray:
    assert tower.texts is not None
    return tower.texts.embed(texts)


def test_both_ways_are_the_models_own(tower, folder):
    model: Any = ClapModel.from_pretrained(folder).eval()
    extractor = ClapFeatureExtractor.from_pretrained(folder)
    tokenizer = RobertaTokenizer.from_pretrained(folder)
    one = sound(2.0, rate_hz=44_100)
    at_48 = np.round(soxr.resample(one.samples_S, 44_100, RATE_HZ, quality="HQ") * 32768) / 32768
    features = extractor(at_48, sampling_rate=RATE_HZ, return_tensors="pt")
    tokens = tokenizer(["a dog on grass"], return_tensors="pt")
    with torch.inference_mode():
        audio = model.get_audio_features(features["input_features"], is_longer=torch.zeros(1, 1, dtype=torch.bool))
        text = model.get_text_features(tokens["input_ids"], attention_mask=tokens["attention_mask"])
    assert np.abs(heard(tower, one) - audio.pooler_output.numpy()).max() < 1e-3
    assert np.abs(read(tower, "a dog on grass") - text.pooler_output.numpy()).max() < 1e-5


def test_sounds_and_texts_share_a_space_and_do_not_depend_on_each_other(tower):
    sounds = [sound(1.0, n) for n in range(3)]
    together = heard(tower, *sounds)
    assert together.dtype == np.float32
    assert together.shape[1] == read(tower, "dog", "rain").shape[1]
    for one, row in zip(sounds, together, strict=True):
        assert heard(tower, one).tobytes() == row[None].tobytes()


def test_a_long_sound_is_the_mean_of_its_windows(tower):
    first, second = sound(10.0, 1), sound(3.0, 2)
    both = Sound(samples_S=np.concatenate([first.samples_S, second.samples_S]), sample_rate_hz=RATE_HZ)
    assert np.abs(heard(tower, both)[0] - heard(tower, first, second).mean(axis=0)).max() < 1e-6


@pytest.mark.parametrize(
    ("samples", "windows"),
    [
        (1, [1]),
        (480_000, [480_000]),
        (480_001, [480_000]),  # what resampling ten seconds may give
        (480_000 + MIN_TAIL - 1, [480_000]),
        (480_000 + MIN_TAIL, [480_000, MIN_TAIL]),
        (1_000_000, [480_000, 480_000]),
    ],
)
def test_a_rest_of_less_than_a_second_is_not_heard(samples, windows):
    cut = cut_windows(Sound(samples_S=np.ones(samples, np.float32), sample_rate_hz=RATE_HZ))
    assert [len(window) for window in cut] == windows
    assert cut[0].dtype == np.int16
    assert cut[0].max() == 32767  # full scale is clipped and does not turn over


def test_it_is_named_by_the_hash_of_its_weights(tower, folder):
    assert tower.sha256 == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert tower.sounds is not None
    assert tower.sounds.sample_rate_hz == RATE_HZ
    assert tower.images is None


@pytest.mark.parametrize("name", ["config.json", "processor_config.json", "tokenizer.json"])
def test_what_changes_a_vector_beside_the_weights_changes_its_name(tower, folder, tmp_path, name):
    shutil.copytree(folder, tmp_path / "other")
    (tmp_path / "other" / name).write_text(f"{(folder / name).read_text()} ")
    other = open_clap(Clap(kind="clap", model=str(tmp_path / "other")))
    assert other.sha256 == tower.sha256
    assert other.sounds is not None
    assert other.texts is not None
    assert other.sounds.preprocessing != tower.sounds.preprocessing
    assert other.texts.preprocessing != tower.texts.preprocessing


def test_another_kind_of_model_is_refused(tmp_path):
    llava = tiny_llava(tmp_path / "llava")
    with refused("expected a model of type 'clap', such as laion/clap-htsat-unfused, found 'llava'"):
        open_clap(Clap(kind="clap", model=str(llava)))
