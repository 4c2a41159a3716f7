import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from eval.towers.config import Wav2Clip
from eval.towers.tower import Sound
from eval.towers.wav2clip import HANN, Wav2ClipNetwork, load_wav2clip, log_spectrogram, open_wav2clip, wav2clip_shapes
from tests.builders import refused
from tests.eval.towers.built import golden, seeded_weights

RATE_HZ = 16_000
TOLERANCE = 1e-4


def golden_sound(name: str) -> np.ndarray:
    """A sound of the golden file, by the recipe that stands there."""
    t = np.arange(80_000) / RATE_HZ
    sweep = 0.3 * np.sin(2 * np.pi * 220 * t) + 0.2 * np.sin(2 * np.pi * (300 + 150 * t) * t)
    tone5 = (sweep + 0.05 * np.sin(2 * np.pi * 3500 * t) * (np.floor(4 * t) % 2)).astype(np.float32)
    match name:
        case "tone5":
            return tone5
        case "noise10":
            return (np.random.RandomState(21).standard_normal(160_000) * 0.05).astype(np.float32)
        case "real2":
            return golden("wav2clip_encoder")[0]["real2_int16"].astype(np.float32) / 32768
        case "silence1":
            return np.zeros(16_000, np.float32)
        case "short":
            return tone5[:4000]
    raise KeyError(name)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    shapes = {name: shape for name, shape in wav2clip_shapes().items() if name != HANN and "batches" not in name}
    path = tmp_path_factory.mktemp("wav2clip") / "wav2clip.safetensors"
    save_file(seeded_weights(shapes, 1000), path)
    return path


@pytest.fixture(scope="module")
def network(weights) -> Wav2ClipNetwork:
    return load_wav2clip(weights)


def heard(*names: str, rate_hz: int = RATE_HZ) -> list[Sound]:
    return [Sound(samples_S=golden_sound(name), sample_rate_hz=rate_hz, name=name) for name in names]


def test_the_tensors_are_named_and_shaped_as_published():
    facts = golden("wav2clip_encoder")[1]
    assert {name: list(shape) for name, shape in wav2clip_shapes().items()} == facts["keys"] | {HANN: [512]}


@pytest.mark.parametrize("name", ["tone5", "noise10", "real2", "short"])
def test_both_ends_of_the_mlp_are_the_peers_own(network, name):
    arrays = golden("wav2clip_encoder")[0]
    samples_S = torch.from_numpy(golden_sound(name))
    with torch.inference_mode():
        assert np.abs(network.encode(samples_S).numpy() - arrays[f"{name}__pre_mlp"]).max() < TOLERANCE
        assert np.abs(network(samples_S).numpy() - arrays[f"{name}__embedding"]).max() < TOLERANCE


def test_the_spectrogram_is_the_peers_own():
    corner = golden("wav2clip_encoder")[0]["tone5__normalised_logspec_0_8_0_8"]
    log_FT = log_spectrogram(torch.from_numpy(golden_sound("tone5")))
    assert log_FT.shape == (257, 227)
    assert np.abs(log_FT[:8, :8].numpy() - corner).max() < TOLERANCE


def test_the_tower_gives_the_same_one_by_one_and_several_at_once(weights):
    arrays = golden("wav2clip_encoder")[0]
    tower = open_wav2clip(Wav2Clip(kind="wav2clip", weights=weights))
    assert tower.sounds is not None
    together = tower.sounds.embed(heard("tone5", "real2", "short", "silence1"))
    assert together.dtype == np.float32
    assert np.isfinite(together).all()
    for name, row in zip(("tone5", "real2", "short"), together, strict=False):
        assert np.abs(row - arrays[f"{name}__embedding"]).max() < TOLERANCE
        assert tower.sounds.embed(heard(name)).tobytes() == row.tobytes()
    assert 8 < np.linalg.norm(together, axis=1).min() < 42  # not brought to unit length
    assert tower.sounds.embed([]).shape == (0, 512)


def test_the_batch_of_peers_is_another_embedding(weights):
    """What programs that normalise over a batch give is outside of the tolerance that ours is within."""
    arrays = golden("wav2clip_encoder")[0]
    ours, batched = arrays["batch_of_two__one_at_a_time"], arrays["batch_of_two__peers_batch_statistics"]
    assert np.abs(ours - batched).max() > 100 * TOLERANCE


def batch_statistics(log_FT: torch.Tensor) -> torch.Tensor:
    """Normalised over two clips, of which the other is noise."""
    other_FT = raw_spectrogram(torch.from_numpy(golden_sound("noise10")[: 353 * (log_FT.shape[1] - 1)]))
    both = torch.stack([log_FT, other_FT])
    return (log_FT - both.mean()) / (both.std() + 1e-9)


def raw_spectrogram(samples_S: torch.Tensor, hop: int = 353, **options: Any) -> torch.Tensor:
    settings = {"window": torch.hann_window(512), "center": True, "pad_mode": "reflect"} | options
    return (torch.stft(samples_S, 512, hop, return_complex=True, **settings).abs().square() + 1e-7).log()


def normal(log_FT: torch.Tensor) -> torch.Tensor:
    return (log_FT - log_FT.mean()) / (log_FT.std() + 1e-9)


NEIGHBOURS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "batch statistics": lambda samples_S: batch_statistics(raw_spectrogram(samples_S)),
    "hop of 160": lambda samples_S: normal(raw_spectrogram(samples_S, hop=160)),
    "symmetric window": lambda samples_S: normal(
        raw_spectrogram(samples_S, window=torch.hann_window(512, periodic=False))
    ),
    "zero padding": lambda samples_S: normal(raw_spectrogram(samples_S, pad_mode="constant")),
    "log1p": lambda samples_S: normal(torch.log1p(raw_spectrogram(samples_S).exp())),
}


@pytest.mark.parametrize("neighbour", NEIGHBOURS)
def test_its_usual_wrong_neighbours_are_told_apart(network, neighbour):
    samples_S = torch.from_numpy(golden_sound("tone5"))
    expected = golden("wav2clip_encoder")[0]["tone5__embedding"]
    with torch.inference_mode():
        right = network.audio_transform["sequential"](
            network.audio_encoder(normal(raw_spectrogram(samples_S))[None, None])
        )
        wrong = network.audio_transform["sequential"](
            network.audio_encoder(NEIGHBOURS[neighbour](samples_S)[None, None])
        )
    assert np.abs(right[0].numpy() - expected).max() < TOLERANCE
    assert np.abs(wrong[0].numpy() - expected).max() > 2 * TOLERANCE


def test_the_deviation_is_unbiased():
    """Of the shortest sound that is heard, where n - 1 and n differ by 2e-3."""
    log_FT = log_spectrogram(torch.from_numpy(golden_sound("tone5")[:257]))
    assert log_FT.shape == (257, 1)
    assert float(log_FT.double().std(correction=1)) == pytest.approx(1, abs=1e-6)
    assert float(log_FT.double().std(correction=0)) != pytest.approx(1, abs=1e-3)


def test_a_sound_at_44100_is_resampled_and_not_fed_as_it_is(weights):
    tower = open_wav2clip(Wav2Clip(kind="wav2clip", weights=weights))
    assert tower.sounds is not None
    assert tower.sounds.sample_rate_hz == RATE_HZ
    t = np.arange(44_100) / 44_100
    at_44 = (0.3 * np.sin(2 * np.pi * 440 * t) + 0.1 * np.sin(2 * np.pi * 1700 * t)).astype(np.float32)
    t = np.arange(16_000) / 16_000
    at_16 = (0.3 * np.sin(2 * np.pi * 440 * t) + 0.1 * np.sin(2 * np.pi * 1700 * t)).astype(np.float32)
    sounds = [
        Sound(samples_S=at_16, sample_rate_hz=16_000),
        Sound(samples_S=at_44, sample_rate_hz=44_100),
        Sound(samples_S=at_44, sample_rate_hz=16_000),  # fed as it is
    ]
    one, resampled, fed = tower.sounds.embed(sounds)
    assert cosine(one, resampled) > 0.995
    assert cosine(one, fed) < cosine(one, resampled) - 0.003


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.parametrize(("samples", "rate_hz", "left"), [(256, 16_000, 256), (1, 16_000, 1), (600, 48_000, 200)])
def test_a_sound_that_is_too_short_is_named(weights, samples, rate_hz, left):
    tower = open_wav2clip(Wav2Clip(kind="wav2clip", weights=weights))
    assert tower.sounds is not None
    sound = Sound(samples_S=np.zeros(samples, np.float32), sample_rate_hz=rate_hz, name="click.flac")
    with refused(f"click.flac: expected 257 samples at 16000 Hz for Wav2CLIP, found {left}"):
        tower.sounds.embed([*heard("short"), sound])


def test_the_tower_is_named_by_the_hash_of_its_file(weights):
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    tower = open_wav2clip(Wav2Clip(kind="wav2clip", weights=weights, sha256=sha256))
    assert (tower.name, tower.sha256, tower.images, tower.texts) == ("Wav2CLIP", sha256, None, None)
    with refused(f"expected weights of sha256 {'0' * 64}, found {sha256}"):
        open_wav2clip(Wav2Clip(kind="wav2clip", weights=weights, sha256="0" * 64))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("audio_encoder.bn1.bias"), "1 are missing.*audio_encoder.bn1.bias is not there"),
        (
            lambda tensors: tensors.update({"audio_transform.sequential.3.weight": torch.zeros(256, 512)}),
            r"audio_transform.sequential.3.weight is \[256, 512\] instead of \[512, 512\]",
        ),
        (
            lambda tensors: tensors.update({"audio_encoder.conv1.weight": torch.zeros(64, 3, 7, 7)}),
            r"conv1.weight is \[64, 3, 7, 7\] instead of \[64, 1, 7, 7\]",
        ),
        (lambda tensors: tensors.update({"image_transform.x": torch.zeros(1)}), "image_transform.x is unknown"),
    ],
)
def test_a_file_of_other_tensors_is_refused_at_once(weights, tmp_path, change, message):
    tensors = load_file(weights)
    change(tensors)
    save_file(tensors, tmp_path / "other.safetensors")
    with refused(message):
        open_wav2clip(Wav2Clip(kind="wav2clip", weights=tmp_path / "other.safetensors"))


def test_a_file_that_is_cut_is_refused(weights, tmp_path):
    (tmp_path / "cut.safetensors").write_bytes(weights.read_bytes()[:-100])
    with refused("cut.safetensors: not a safetensors file, or damaged"):
        open_wav2clip(Wav2Clip(kind="wav2clip", weights=tmp_path / "cut.safetensors"))


def test_the_window_and_the_counts_of_a_published_file_are_taken(weights, tmp_path):
    counts = {name: torch.tensor(7) for name in wav2clip_shapes() if name.endswith("num_batches_tracked")}
    save_file(load_file(weights) | counts | {HANN: torch.hann_window(512)}, tmp_path / "all.safetensors")
    tower = open_wav2clip(Wav2Clip(kind="wav2clip", weights=tmp_path / "all.safetensors"))
    other = open_wav2clip(Wav2Clip(kind="wav2clip", weights=weights))
    assert tower.sounds is not None
    assert other.sounds is not None
    assert tower.sounds.embed(heard("short")).tobytes() == other.sounds.embed(heard("short")).tobytes()
