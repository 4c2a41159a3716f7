import numpy as np
import pytest
import torch

from eval.ast_loudness import at_gains, hubert_features, judge_loudness, load_hubert
from sonify.media.clips import CutClip
from sonify.media.mixing import FULL_SCALE, measure_loudness
from tests.builders import as_pcm, noise
from tests.tiny_networks import edit_weights, tiny_hubert
from train.windows import SAMPLE_RATE_HZ, TARGET_LUFS

CPU = torch.device("cpu")


def noisy_clip(level: float) -> CutClip:
    return CutClip(index=0, start_sec=0.0, duration_sec=1.0, samples=as_pcm(noise(size=SAMPLE_RATE_HZ, level=level)))


@pytest.mark.parametrize("level", [0.002, 0.2])
def test_a_clip_is_as_loud_as_its_gain_says_whatever_it_was(level):
    audio_GS = at_gains(noisy_clip(level), [-12.0, 0.0, 9.0])
    assert audio_GS.dtype == np.float32
    heard_lufs = [measure_loudness(audio_S.astype(np.float64) * FULL_SCALE, SAMPLE_RATE_HZ) for audio_S in audio_GS]
    assert heard_lufs == pytest.approx([TARGET_LUFS - 12, TARGET_LUFS, TARGET_LUFS + 9], abs=0.01)


def test_a_gain_beyond_full_scale_is_not_limited():
    quiet_S, loud_S = at_gains(noisy_clip(0.1), [0.0, 40.0])
    assert np.abs(loud_S).max() > 1
    assert loud_S == pytest.approx(100 * quiet_S, rel=1e-5)


def test_weights_with_the_names_of_older_libraries_are_read(tmp_path):
    folder = tiny_hubert(tmp_path)
    audio_1S = at_gains(noisy_clip(0.1), [0.0])
    expected = hubert_features(load_hubert(str(folder), None, CPU)[0], None)(audio_1S)
    names = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}

    def rename(tensors: dict[str, torch.Tensor]) -> None:
        for now, then in names.items():
            (name,) = (name for name in tensors if now in name)
            tensors[name.replace(now, then)] = tensors.pop(name)

    edit_weights(folder / "model.safetensors", rename)
    network, extractor, _ = load_hubert(str(folder), None, CPU)
    assert torch.equal(hubert_features(network, None)(audio_1S), expected)
    assert extractor.sampling_rate == SAMPLE_RATE_HZ


GAINS_DB = (0.0, 3.0, 6.0, 9.0)
CLIPS = 6


def clips_alone() -> np.ndarray:
    """(C, G, D) features that tell clips and keep nothing of the gain."""
    positions_CD = np.random.default_rng(0).standard_normal((CLIPS, 8))
    return np.repeat(positions_CD[:, None], len(GAINS_DB), axis=1)


def gain_alone() -> np.ndarray:
    """(C, G, 1) features that are the gain."""
    return np.repeat(np.array(GAINS_DB)[None, :, None], CLIPS, axis=0)


def test_features_that_are_loudness_keep_all_of_it():
    kept, _ = judge_loudness(gain_alone(), GAINS_DB, seed=0)
    assert kept.same_gain.mean == 1
    assert kept.gain_error_db.mean == 0
    assert kept.displacement[9.0].mean == 3 * kept.displacement[3.0].mean > 0


def test_features_without_loudness_do_as_well_as_chance():
    kept, neighbours = judge_loudness(clips_alone(), GAINS_DB, seed=0)
    assert kept.same_gain.mean == pytest.approx(kept.same_gain_chance)
    assert kept.gain_error_db.mean == pytest.approx(kept.gain_error_chance_db)
    assert kept.same_gain_chance == 0.25
    assert kept.same_clip.mean == 1
    assert {recall.mean for recall in kept.recall.values()} == {1.0}
    assert {moved.mean for moved in kept.displacement.values()} == {0.0}
    assert all(one.nearest_clip == one.clip for one in neighbours)


def test_rounding_does_not_decide_between_equal_neighbours():
    rng = np.random.default_rng(1)
    rounded = clips_alone() * (1 + 1e-7 * rng.standard_normal((CLIPS, len(GAINS_DB), 8)))
    kept, _ = judge_loudness(rounded, GAINS_DB, seed=0)
    assert kept.same_gain.mean == pytest.approx(kept.same_gain_chance)


def test_a_clip_is_lost_where_gain_moves_it_past_its_neighbour():
    # clips at 0, 10, ... 50 on a line; a gain of g dB moves each by 2 g: 6 by 3 dB, but 4 of those 10 back to the next
    line = (10.0 * np.arange(CLIPS))[:, None, None] + 2 * np.array(GAINS_DB)[None, :, None]
    kept, neighbours = judge_loudness(line, GAINS_DB, seed=0)
    # at 3 dB the clip beside it is nearer (4 against 6), but the last one has none above, the first none below
    assert kept.recall[3.0].mean == pytest.approx(1 / 6)
    assert kept.recall[9.0].mean == pytest.approx(1 / 6)
    assert (neighbours[0].clip, neighbours[0].gain_db) == (0, 0.0)
    assert (neighbours[1].nearest_clip, neighbours[1].nearest_gain_db) in {(0, 0.0), (0, 6.0), (1, 0.0)}


def test_a_gentle_gain_keeps_the_clip():
    line = (10.0 * np.arange(CLIPS))[:, None, None] + np.array(GAINS_DB)[None, :, None]
    kept, _ = judge_loudness(line, GAINS_DB, seed=0)
    assert kept.recall[3.0].mean == 1  # moved by 3 of 10
    assert kept.recall[6.0].mean == pytest.approx(1 / 6)  # by 6: nearer to the next


def test_the_interval_holds_the_mean_and_is_the_seeds():
    features = clips_alone() + 0.3 * np.random.default_rng(2).standard_normal((CLIPS, len(GAINS_DB), 8))
    kept, _ = judge_loudness(features, GAINS_DB, seed=5)
    assert kept.same_gain.low <= kept.same_gain.mean <= kept.same_gain.high
    assert judge_loudness(features, GAINS_DB, seed=5)[0] == kept


@pytest.mark.parametrize(
    ("features_CGD", "gains_db"),
    [
        (np.zeros((1, 2, 3)), (0.0, 1.0)),
        (np.zeros((2, 1, 3)), (0.0,)),
        (np.ones((2, 2, 3)), (0.0, 1.0)),
        (np.eye(4).reshape(2, 2, 4), (0.0, 1.0, 2.0)),
    ],
    ids=["one clip", "one gain", "all the same", "another number of gains"],
)
def test_what_has_no_answer_is_refused(features_CGD, gains_db):
    with pytest.raises(ValueError, match=r"expected two clips|are the same"):
        judge_loudness(features_CGD, gains_db, seed=0)
