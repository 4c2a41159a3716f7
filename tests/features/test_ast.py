import importlib
from typing import Any

import numpy as np
import pytest
import torch
from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification, ASTModel

from sonify.features.ast import AstFeatures, AstLogMel, load_ast
from sonify.models.fetch import AST_FILES, fetch_model
from tests.builders import read_waveforms, refused
from tests.tiny_networks import edit_json, edit_weights
from train.tiny import AST_WIDTH, write_tiny_ast

CPU = torch.device("cpu")
library: Any = importlib.import_module(ASTFeatureExtractor.__module__)
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_ast(tmp_path_factory.mktemp("tiny") / "ast")


def load(folder, dtype=torch.float32):
    return load_ast(fetch_model(str(folder), None, AST_FILES), CPU, dtype)


def test_the_numbers_are_those_of_the_plain_library_one_sound_at_a_time(folder, test_data):
    network, extractor = load(folder)
    waveforms = read_waveforms(test_data / "sounds", 4)
    found = AstFeatures(network, extractor, "all")(waveforms)
    plain, front_end = ASTModel.from_pretrained(folder).eval(), ASTFeatureExtractor.from_pretrained(folder)
    for features, waveform in zip(found, waveforms, strict=True):
        with torch.no_grad():
            inputs = front_end(waveform, sampling_rate=16000, return_tensors="pt")
            hidden = plain(**inputs).last_hidden_state[0, 2:]  # the tokens of class and distillation are first
        expected = hidden.reshape(12, 101, AST_WIDTH)[:, :49].reshape(12 * 49, AST_WIDTH)
        torch.testing.assert_close(features, expected, atol=1e-4, rtol=0)


def test_the_mean_is_that_of_all_rows_of_one_time(folder, test_data):
    network, extractor = load(folder)
    waveforms = torch.from_numpy(read_waveforms(test_data / "sounds", 2))
    rows = AstFeatures(network, extractor, "all")(waveforms).reshape(2, 12, 49, AST_WIDTH)
    mean = AstFeatures(network, extractor, "mean")(waveforms)
    torch.testing.assert_close(mean, rows.mean(1))
    assert rows.std(1).mean() > 0.1  # they do differ


@pytest.mark.parametrize("frequency", ["mean", "all"])
def test_layers_are_joined_along_the_width_without_the_leading_tokens(folder, test_data, frequency):
    network, extractor = load(folder)
    waveforms = read_waveforms(test_data / "sounds", 2)
    found = AstFeatures(network, extractor, frequency, (1, 2))(waveforms)
    plain, front_end = ASTModel.from_pretrained(folder).eval(), ASTFeatureExtractor.from_pretrained(folder)
    for features, waveform in zip(found, waveforms, strict=True):
        with torch.no_grad():
            inputs = front_end(waveform, sampling_rate=16000, return_tensors="pt")
            hidden = plain(**inputs, output_hidden_states=True).hidden_states
        rows = torch.cat([hidden[1], hidden[2]], -1)[0, 2:].reshape(12, 101, 2 * AST_WIDTH)[:, :49]
        torch.testing.assert_close(
            features, rows.mean(0) if frequency == "mean" else rows.flatten(0, 1), atol=1e-4, rtol=0
        )


def test_three_layers_of_the_published_shape_are_as_wide_as_audiotokens():
    config = ASTConfig(num_hidden_layers=12, intermediate_size=64)  # a layer's inside is nobody's business
    features = AstFeatures(ASTModel(config).eval(), ASTFeatureExtractor(), "all", (4, 8, 12))
    assert features(np.zeros((1, 80_000), np.float32)).shape == (1, 12 * 49, 2304)


def test_a_layer_that_is_not_there_is_one_line(folder):
    with refused(r"features.layers: expected numbers from 1 to 2, the layers of this AST, found \[4\]"):
        AstFeatures(*load(folder), "mean", (2, 4))


@pytest.mark.parametrize(
    ("seconds", "columns"), [(0.1, 0), (0.2, 1), (1.0, 9), (5.0, 49), (10.0, 99), (10.24, 101), (60.0, 101)]
)
def test_columns_are_those_whose_patch_lies_within_the_sound(folder, seconds, columns):
    features = AstFeatures(*load(folder), "mean")
    samples = round(seconds * 16000)
    assert features.num_columns(samples) == columns
    if columns:
        assert features(np.zeros((1, samples), np.float32)).shape == (1, columns, AST_WIDTH)
    else:
        with pytest.raises(ValueError, match="too short"):
            features(np.zeros((1, samples), np.float32))


def test_shapes_follow_the_models_own_configuration(tmp_path):
    config = ASTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_mel_bins=64,
        max_length=200, patch_size=8, time_stride=4, frequency_stride=8,
    )  # fmt: skip
    ASTModel(config).save_pretrained(tmp_path)
    ASTFeatureExtractor(num_mel_bins=64, max_length=200).save_pretrained(tmp_path)
    features = AstFeatures(*load(tmp_path), "all")
    columns = (98 - 8) // 4 + 1
    assert features.num_columns(16000) == columns
    assert features(np.zeros((1, 16000), np.float32)).shape == (1, 8 * columns, 16)


def test_a_classifiers_checkpoint_is_loaded_without_its_head(tmp_path, folder):
    config = ASTConfig.from_pretrained(folder)
    classifier = ASTForAudioClassification(config)
    classifier.save_pretrained(tmp_path)
    ASTFeatureExtractor().save_pretrained(tmp_path)
    network, _ = load(tmp_path)
    kept = classifier.audio_spectrogram_transformer.layernorm.weight
    assert torch.equal(network.layernorm.weight, kept)
    assert torch.equal(
        network.embeddings.position_embeddings,
        classifier.audio_spectrogram_transformer.embeddings.position_embeddings,
    )


def test_bfloat16_is_near_float32(folder, test_data):
    waveforms = read_waveforms(test_data / "sounds", 2)
    exact = AstFeatures(*load(folder), "mean")(waveforms)
    rough = AstFeatures(*load(folder, torch.bfloat16), "mean")(waveforms)
    assert rough.dtype == torch.float32
    assert 0 < (rough - exact).abs().mean() < 0.03 * exact.std()


def configure(folder, file="config", **changes):
    edit_json(folder / f"{file}.json", lambda content: content.update(changes))


def lose_tensor(folder):
    edit_weights(folder / "model.safetensors", lambda tensors: tensors.pop("layernorm.weight"))


def pickle_weights(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("break_folder", "message"),
    [
        (lambda f: configure(f, model_type="bert"), "expected a model of type 'audio-spectrogram-tr"),
        (lambda f: configure(f, "preprocessor_config", sampling_rate=48000), "expected a front end"),
        (lambda f: configure(f, "preprocessor_config", max_length=512), "expected a front end"),
        (lambda f: (f / "preprocessor_config.json").unlink(), "no file of a processor"),
        (lambda f: (f / "config.json").unlink(), "no config.json"),
        (lose_tensor, "1 of the tensors of ASTModel are not in the weights"),
        (pickle_weights, "pytorch_model.bin, which is a pickle and never read"),
    ],
)
def test_a_folder_that_cannot_be_used_is_one_line(tmp_path, break_folder, message):
    folder = write_tiny_ast(tmp_path / "ast")
    break_folder(folder)
    with refused(message):
        load(folder)


def by_library(extractor: ASTFeatureExtractor, waveforms: np.ndarray) -> np.ndarray:
    return np.stack(
        [extractor(wave, sampling_rate=16000, return_tensors="np")["input_values"][0] for wave in waveforms]
    )


def ours(extractor: ASTFeatureExtractor, waveforms: np.ndarray) -> np.ndarray:
    return AstLogMel(extractor)(torch.from_numpy(waveforms)).numpy()


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
    log_mel = AstLogMel(ASTFeatureExtractor())
    waveforms = torch.from_numpy(noise(1.0))
    assert torch.equal(log_mel(waveforms), torch.cat([log_mel(waveforms[n : n + 1]) for n in range(3)]))
