import importlib
from typing import Any

import numpy as np
import pytest
import torch
from transformers import ASTFeatureExtractor

from sonify.features.logmel import LogMel
from tests.features.recordings import read_waveforms

library: Any = importlib.import_module(ASTFeatureExtractor.__module__)
TOLERANCE = 1e-4


def by_library(extractor: ASTFeatureExtractor, waveforms: np.ndarray) -> np.ndarray:
    return np.stack(
        [extractor(wave, sampling_rate=16000, return_tensors="np")["input_values"][0] for wave in waveforms]
    )


def ours(extractor: ASTFeatureExtractor, waveforms: np.ndarray) -> np.ndarray:
    return LogMel(extractor)(torch.from_numpy(waveforms)).numpy()


def noise(seconds: float, count: int = 3) -> np.ndarray:
    rng = np.random.default_rng(0)
    levels = 10.0 ** np.array([-4, -2, 0])[:count, None]
    return (levels * rng.standard_normal((count, round(seconds * 16000)))).clip(-1, 1).astype(np.float32)


def test_real_recordings_agree_with_the_library(test_data):
    assert library.is_speech_available()  # torchaudio, with which AST was trained
    waveforms = read_waveforms(test_data / "sounds", 50)
    extractor = ASTFeatureExtractor()
    expected = by_library(extractor, waveforms)
    assert expected.std() > 0.3
    assert np.abs(ours(extractor, waveforms) - expected).max() < TOLERANCE


def test_where_the_librarys_two_ways_agree_ours_agrees_with_both(test_data, monkeypatch):
    waveforms = read_waveforms(test_data / "sounds", 20)
    with_torchaudio = by_library(ASTFeatureExtractor(), waveforms)
    monkeypatch.setattr(library, "is_speech_available", lambda: False)
    with pytest.warns(UserWarning, match="mel filter has all zero"):
        extractor = ASTFeatureExtractor()
    in_float64 = by_library(extractor, waveforms)
    agreed = np.abs(with_torchaudio - in_float64) < TOLERANCE / 2
    assert agreed.mean() > 0.9999
    assert np.abs(ours(extractor, waveforms) - in_float64)[agreed].max() < TOLERANCE


@pytest.mark.parametrize("seconds", [0.025, 0.5, 1.0, 5.0, 10.0, 10.24, 12.0])
def test_any_length_agrees_and_the_rest_is_padding(seconds):
    extractor = ASTFeatureExtractor()
    assert np.abs(ours(extractor, noise(seconds)) - by_library(extractor, noise(seconds))).max() < TOLERANCE


@pytest.mark.parametrize("changes", [{"num_mel_bins": 64, "max_length": 200}, {"do_normalize": False}, {"mean": -1.0}])
def test_other_front_ends_agree_as_well(changes):
    extractor = ASTFeatureExtractor(**changes)
    assert np.abs(ours(extractor, noise(1.0)) - by_library(extractor, noise(1.0))).max() < TOLERANCE


def test_silence_and_a_constant_are_finite():
    extractor = ASTFeatureExtractor()
    waveforms = np.stack([np.zeros(16000), np.full(16000, 0.5)]).astype(np.float32)
    found = ours(extractor, waveforms)
    assert np.isfinite(found).all()
    assert np.abs(found - by_library(extractor, waveforms)).max() < TOLERANCE


def test_a_sound_alone_has_the_bits_that_it_has_in_a_batch():
    log_mel = LogMel(ASTFeatureExtractor())
    waveforms = torch.from_numpy(noise(1.0))
    assert torch.equal(log_mel(waveforms), torch.cat([log_mel(waveforms[n : n + 1]) for n in range(3)]))
