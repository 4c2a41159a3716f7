import numpy as np

from sonify.features.samples import encode_npy
from sonify.report.estimate import estimate
from sonify.running import plan_run, run
from tests.builders import archives_in, picture, small_config, small_input, vlm_at, write_tar

EYE = vlm_at("http://127.0.0.1:9/v1")


def of(config):
    return estimate(config, plan_run(config))


def test_model_calls_disk_and_units_are_estimated_before_anything_runs(tmp_path):
    small_input(tmp_path, photos=24, recordings=16)
    config = small_config(
        tmp_path,
        concepts={"extractors": [EYE, EYE | {"name": "other"}], "check": True},
        retrieval={"encoder": {"kind": "clap"}},
    )
    expected = of(config)
    assert (expected.images, expected.recordings, expected.clips) == (24, 16, 16)
    assert expected.units == {"pool": 1, "concepts": 3}
    assert expected.model_calls == {
        "embeddings": 16, "concepts/eye": 24, "concepts/other": 24, "checks/eye": 24, "checks/other": 24
    }  # fmt: skip
    assert expected.pool_bytes >= 16 * 5 * 16000 * 2
    assert set(expected.seconds.values()) == {None}
    assert not config.run_dir.exists()


def test_a_listener_is_asked_about_clips_and_not_about_images(tmp_path):
    small_input(tmp_path, photos=24, recordings=16)
    listener = {"kind": "endpoint", "model": "ear", "url": "http://127.0.0.1:9/v1"}
    assert of(small_config(tmp_path, retrieval={"confirm": listener})).model_calls == {"listen": 16}


def test_what_is_done_is_no_more_to_do_and_the_rest_has_a_rate(tmp_path):
    small_input(tmp_path)
    config = small_config(tmp_path)
    run(config, stages=("pool", "embeddings", "concepts"))
    expected = of(config)
    assert expected.seconds["pool"] == expected.seconds["concepts/captions"] == 0.0
    assert expected.seconds["render"] is None


def test_images_in_archives_are_counted_by_their_headers(tmp_path):
    small_input(tmp_path)
    for n in range(6):
        write_tar(tmp_path / "tars" / f"{n}.tar", {f"{k}.jpg": picture(k) for k in range(10)})
    expected = of(small_config(tmp_path, images=archives_in(tmp_path / "tars")))
    assert (expected.images, expected.units["concepts"]) == (60, 6)
    assert of(small_config(tmp_path, images=archives_in(tmp_path / "tars", sample=7))).images == 7


def test_the_disk_of_features_is_that_of_a_sample_of_the_published_networks(tmp_path):
    small_input(tmp_path)
    features = {"size": 512, "flip": True, "frequency": "all"}
    config = small_config(tmp_path, features=features, retrieval={"draws": 2})
    latent, heard = encode_npy(np.zeros((4, 64, 64), np.float16)), encode_npy(np.zeros((12 * 49, 768), np.float16))
    actual = 24 * (2 * len(latent) + 2 * len(heard))
    assert actual < of(config).feature_bytes < 1.1 * actual
    assert of(config).model_calls == {"features": 48}
    assert of(small_config(tmp_path)).feature_bytes == 0


def test_the_disk_of_what_beats_hears_by_three_layers(tmp_path):
    small_input(tmp_path)
    features = {"size": 512, "frequency": "all", "beats": "any/beats", "layers": [4, 8, 12]}
    latent, heard = (encode_npy(np.zeros(shape, np.float16)) for shape in ((4, 64, 64), (31 * 8, 3 * 768)))
    actual = 24 * (len(latent) + len(heard))
    assert actual < of(small_config(tmp_path, features=features)).feature_bytes < 1.1 * actual
