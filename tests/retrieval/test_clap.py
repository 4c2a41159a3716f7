import shutil
from typing import Any

import numpy as np
import pytest
import torch
from transformers import ClapFeatureExtractor, ClapModel, ClapProcessor, RobertaTokenizer

from sonify.config import ClapEncoder
from sonify.errors import InputError, WorkError
from sonify.retrieval.clap import WINDOW, Clap, TransformersTowers, fill_window, load_clap
from sonify.retrieval.encoders import fetch_clap
from tests.builders import first_clips, refused
from tests.tiny_networks import edit_weights, tiny_clap

TEXTS = ["a dog barks", "rain", "wind in the trees " * 30, "", "This is a sound of a church bell"]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_clap(tmp_path_factory.mktemp("models") / "clap")


def settings_of(folder, **changes) -> ClapEncoder:
    if changes.get("device") == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    return ClapEncoder(**{"kind": "clap", "model": str(folder), "device": "cpu", "batch_size": 4, **changes})


def load(folder, **changes) -> Clap:
    return load_clap(settings_of(folder, **changes), fetch_clap(settings_of(folder, **changes)))


class CountedTowers(TransformersTowers):
    """A real model that counts the texts it is asked to embed."""

    def __init__(self, folder) -> None:
        network = ClapModel.from_pretrained(folder)
        super().__init__(
            network, ClapFeatureExtractor.from_pretrained(folder), RobertaTokenizer.from_pretrained(folder)
        )
        self.texts = 0

    def embed_text(self, tokens):
        self.texts += len(tokens["input_ids"])
        return super().embed_text(tokens)


def segments(test_data, count=5):
    clips = first_clips(test_data / "sounds", count, 48_000)
    return [clip[: 240_000 - 7919 * n] for n, clip in enumerate(clips)]


@pytest.mark.parametrize("device", DEVICES)
def test_embeddings_are_those_of_the_models_own_processor(folder, test_data, device):
    clap = load(folder, device=device)
    model: Any = ClapModel.from_pretrained(folder).eval()
    processor: Any = ClapProcessor.from_pretrained(folder)
    sounds = [segment / 32768 for segment in segments(test_data)]
    heard = processor(audio=sounds, sampling_rate=48_000, return_tensors="pt")
    tokens = processor(text=TEXTS, padding=True, truncation=True, max_length=77, return_tensors="pt")
    with torch.inference_mode():
        expected = model.get_audio_features(heard["input_features"].float()).pooler_output.numpy()
        expected_texts = model.get_text_features(**tokens).pooler_output.numpy()
    found = np.stack(list(clap.embed_segments(segments(test_data))))
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() < 1e-4
    assert np.abs(clap(TEXTS) - expected_texts).max() < 1e-4
    assert np.allclose(np.linalg.norm(np.vstack([found, clap(TEXTS)]), axis=1), 1, atol=1e-5)
    assert np.ptp(expected, axis=0).max() > 0.01  # the clips differ far more than that


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("cpus", [1, 2])
def test_what_is_beside_a_clip_or_a_text_does_not_change_its_bits(folder, test_data, device, cpus):
    clap = load(folder, device=device, cpus=cpus)
    sounds = segments(test_data)
    together = list(clap.embed_segments(sounds))
    reversed_ = list(clap.embed_segments(sounds[::-1]))[::-1]
    alone = [next(clap.embed_segments([sound])) for sound in sounds]
    assert np.array_equal(together, reversed_)
    assert np.array_equal(together, alone)
    # words of one length, so that they share batches; a model that was just loaded remembers none
    texts = [f"a {word} dog" for word in ("one", "two", "red", "old", "big", "new", "shy")] + TEXTS
    together = clap(texts)
    for text, row in zip(texts, together, strict=True):
        assert np.array_equal(load(folder, device=device, cpus=cpus)([text])[0], row)
    other = load(folder, device=device, cpus=cpus)
    other(texts[:3])  # so that the rest comes in other batches
    assert np.array_equal(other(texts[3:]), together[3:])


def test_a_text_is_embedded_once(folder):
    towers = CountedTowers(folder)
    clap = Clap(towers, settings_of(folder), torch.device("cpu"))
    first = clap(["a dog", "rain", "a dog"])
    assert np.array_equal(first[0], first[2])
    embedded = towers.texts
    assert embedded > 0
    assert np.array_equal(clap(["rain", "a dog"]), first[[1, 0]])
    assert towers.texts == embedded
    clap(["wind"])
    assert towers.texts > embedded


@pytest.mark.parametrize("size", [1, 70_001, 240_000, WINDOW - 1, WINDOW])
def test_a_short_clip_fills_the_window_as_often_as_it_fits_whole(size):
    segment = np.random.default_rng(size).integers(-32768, 32767, size, dtype=np.int16)
    window = np.zeros(WINDOW, np.float32)
    fill_window(window, segment)
    extractor: Any = ClapFeatureExtractor()
    seen = []
    extractor._np_extract_fbank_features = lambda waveform, _: seen.append(waveform) or np.zeros((1, 64))
    extractor(segment / 32768, sampling_rate=48_000)
    assert np.array_equal(window, seen[0].astype(np.float32))


def damaged(folder, tmp_path, change):
    copy = tmp_path / "damaged"
    shutil.copytree(folder, copy)
    edit_weights(copy / "model.safetensors", change)
    return copy


def test_weights_that_are_not_there_are_refused_and_not_drawn_at_random(folder, tmp_path):
    lacking = damaged(folder, tmp_path, lambda weights: weights.pop("text_projection.linear1.weight"))
    with refused(r"1 of the tensors of ClapModel are not .*such as text_projection\.linear1\.weight"):
        load(lacking)


def test_weights_of_another_shape_are_refused_in_one_line(folder, tmp_path):
    def cut(weights):
        weights["text_projection.linear1.weight"] = weights["text_projection.linear1.weight"][:5].clone()

    with refused(r"text_projection\.linear1\.weight"):
        load(damaged(folder, tmp_path, cut))


def test_weights_that_are_no_numbers_end_the_work(folder, tmp_path, test_data):
    broken = damaged(folder, tmp_path, lambda weights: weights["audio_projection.linear1.weight"].fill_(np.nan))
    with pytest.raises(WorkError, match="NaN"):
        list(load(broken).embed_segments(segments(test_data, 1)))


def test_another_front_end_is_refused(folder, tmp_path):
    copy = tmp_path / "other"
    shutil.copytree(folder, copy)
    processor = ClapProcessor.from_pretrained(copy)
    ClapProcessor(ClapFeatureExtractor(sampling_rate=44_100), processor.tokenizer).save_pretrained(copy)
    with pytest.raises(InputError, match=r"front end of \(48000, 480000, 'repeatpad'\), found \(44100, 441000"):
        load(copy)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(folder):
    settings = ClapEncoder(kind="clap", model=str(folder), device="cuda")
    with pytest.raises(InputError, match="torch finds no GPU"):
        load_clap(settings, fetch_clap(settings))
