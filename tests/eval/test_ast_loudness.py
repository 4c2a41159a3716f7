import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from eval.ast_loudness import at_gains, hubert_features, load_hubert
from sonify.media.clips import CutClip
from sonify.media.mixing import FULL_SCALE, measure_loudness
from tests.eval.tiny_judges import write_tiny_hubert
from train.sounds import SAMPLE_RATE_HZ, TARGET_LUFS

CPU = torch.device("cpu")


def noise(level: float) -> CutClip:
    samples = np.random.default_rng(0).standard_normal(SAMPLE_RATE_HZ) * level * FULL_SCALE
    return CutClip(index=0, start_sec=0.0, duration_sec=1.0, samples=samples.astype(np.int16))


@pytest.mark.parametrize("level", [0.002, 0.2])
def test_a_clip_is_as_loud_as_its_gain_says_whatever_it_was(level):
    audio_GS = at_gains(noise(level), [-12.0, 0.0, 9.0])
    assert audio_GS.dtype == np.float32
    heard_lufs = [measure_loudness(audio_S.astype(np.float64) * FULL_SCALE, SAMPLE_RATE_HZ) for audio_S in audio_GS]
    assert heard_lufs == pytest.approx([TARGET_LUFS - 12, TARGET_LUFS, TARGET_LUFS + 9], abs=0.01)


def test_a_gain_beyond_full_scale_is_not_limited():
    quiet_S, loud_S = at_gains(noise(0.1), [0.0, 40.0])
    assert np.abs(loud_S).max() > 1
    assert loud_S == pytest.approx(100 * quiet_S, rel=1e-5)


def test_weights_with_the_names_of_older_libraries_are_read(tmp_path):
    folder = write_tiny_hubert(tmp_path)
    audio_1S = at_gains(noise(0.1), [0.0])
    expected = hubert_features(load_hubert(str(folder), None, CPU)[0], None)(audio_1S)
    tensors = load_file(folder / "model.safetensors")
    now, then = ("parametrizations.weight.original0", "parametrizations.weight.original1"), ("weight_g", "weight_v")
    older = {name.replace(now[0], then[0]).replace(now[1], then[1]): tensor for name, tensor in tensors.items()}
    assert older.keys() != tensors.keys()
    save_file(older, folder / "model.safetensors", metadata={"format": "pt"})
    network, extractor = load_hubert(str(folder), None, CPU)
    assert torch.equal(hubert_features(network, None)(audio_1S), expected)
    assert extractor.sampling_rate == SAMPLE_RATE_HZ
