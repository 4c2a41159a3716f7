import io
import json
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sonify.config.loader import make_settings
from sonify.engine.record import StageRecord, read_record, write_record
from sonify.errors import InputError, WorkError
from sonify.features.samples import encode_npy
from sonify.io.commits import Commit, Count, write_commit
from sonify.keys import MAX_PART_CHARS, escape_key
from tests.feature_runs import MadeSample, make_feature_run, random_samples
from train.config import Data, TrainConfig
from train.shards import FeatureData, check_matches, first_scenes, open_feature_data


def open_runs(*runs: Path, split: str = "train", window_shards: int = 64) -> FeatureData:
    return open_feature_data(
        make_settings({"runs": [str(run) for run in runs], "split": split, "window_shards": window_shards}, Data)
    )


def config_for(run: Path, **model: object) -> TrainConfig:
    raw = {
        "run_dir": "out",
        "max_steps": 1,
        "data": {"runs": [str(run)]},
        "vae": "a-vae",
        "ast": "an-ast",
        "model": {"sample_size": 8, "caption_channels": 16} | model,
    }
    return make_settings(raw, TrainConfig)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_feature_run(tmp_path / "run", num_images=7, num_validation=3, scenes=("b", "a"), std=True, flip=True)


def change_byte(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 1]))


def test_a_sample_of_a_long_name_is_read(tmp_path: Path) -> None:
    key = escape_key(f"{'東京' * 40}/{'夜景' * 38}.jpg")
    made = replace(random_samples(1)[0], key=key)
    run = make_feature_run(tmp_path / "run", [made], units=1)

    (sample,) = open_runs(run).samples()

    assert len(key) > 2 * MAX_PART_CHARS
    assert sample.key == key
    assert sample.scenes == ("captions",)


def test_all_that_was_stored_is_read(run: Path) -> None:
    shapes = {"scenes": ("b", "a"), "std": True, "flip": True}
    data = open_runs(run)

    for sample, made in zip(data.samples(), random_samples(7, **shapes), strict=True):
        assert sample.key == made.key
        assert sample.scenes == ("a", "b")
        stored = {"latent": made.latent_CHW, **made.more, **{f"{s}.audio": a for s, a in made.audio_TD.items()}}
        for name, array in stored.items():
            found = sample.decode(f"{name}.npy", array.shape)
            assert found.dtype == np.float32
            np.testing.assert_array_equal(found, array.astype(np.float16))
        record = sample.record()
        assert record["key"] == made.key
        assert [scene["scene"] for scene in record["scenes"]] == ["b", "a"]


def test_a_split_has_its_own_samples(run: Path) -> None:
    train, validation = open_runs(run), open_runs(run, split="validation")

    assert (train.num_images, validation.num_images) == (7, 3)
    assert {sample.record()["split"] for sample in validation.samples()} == {"validation"}
    assert train.digest != validation.digest


def test_what_the_features_are_is_known(run: Path) -> None:
    features = open_runs(run).features

    assert (features.vae, features.vae_identity) == ("a-vae", "a-vae-identity")
    assert (features.ear, features.ear_kind, features.ear_identity) == ("an-ast", "ast", "an-ast-identity")
    assert features.layers == ()
    assert (features.size, features.frequency) == (64, "mean")
    assert (features.latent_shape, features.audio_shape) == ((4, 8, 8), (5, 16))


def test_recordings_are_listed_once_and_sorted(tmp_path: Path) -> None:
    samples = [replace(s, recordings=("rain", f"dog-{n % 2}")) for n, s in enumerate(random_samples(5))]
    run = make_feature_run(tmp_path / "run", samples)

    assert open_runs(run).recordings() == ["dog-0", "dog-1", "rain"]


def test_first_scenes_are_the_first_and_always_the_same(run: Path) -> None:
    made = random_samples(3, split="validation", scenes=("b", "a"), std=True, flip=True)

    scenes = first_scenes(open_runs(run, split="validation"), 3)

    assert [(key, scene) for key, scene, _, _ in scenes] == [(made[0].key, "a"), (made[0].key, "b"), (made[1].key, "a")]
    np.testing.assert_array_equal(scenes[0][2], made[0].audio_TD["a"].astype(np.float16))
    assert scenes[0][3] == f"a photo called {made[0].key}"
    assert len(first_scenes(open_runs(run, split="validation"), 99)) == 6


def test_several_runs_are_read_one_after_the_other(tmp_path: Path) -> None:
    first = make_feature_run(tmp_path / "first", num_images=3, seed=1)
    second = make_feature_run(tmp_path / "second", num_images=2, seed=2, scenes=("other", "more"))

    data = open_runs(first, second, first)  # a run that is named twice is one

    assert [sample.key[:7] for sample in data.samples()] == ["train-1"] * 3 + ["train-2"] * 2
    assert data.digest != open_runs(second, first).digest != open_runs(second, first, window_shards=1).digest


def test_the_loudness_of_runs_spans_that_of_each(tmp_path: Path) -> None:
    first = make_feature_run(tmp_path / "first", num_images=2, lufs=(-32.0, -28.0))
    second = make_feature_run(tmp_path / "second", num_images=2, lufs=(-40.0, -30.0))

    assert open_runs(first).lufs == (-32.0, -28.0)
    assert open_runs(first, second).lufs == (-40.0, -28.0)


def test_what_is_held_does_not_grow_with_what_is_read(tmp_path: Path) -> None:
    run = make_feature_run(tmp_path / "run", num_images=9, units=3)
    data = open_runs(run, window_shards=1)
    data.read(0, 0)
    size_bytes = len(pickle.dumps(data))

    keys = [data.read(shard, row).key for _ in range(2) for row in range(3) for shard in range(3)]

    assert len(set(keys)) == 9
    assert len(pickle.dumps(data)) < size_bytes + 100


# --- what is refused before the start


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"not a run: expected run\.json"):
        open_runs(tmp_path)


def test_a_run_without_features(run: Path) -> None:
    record = read_record(run)
    assert record is not None
    write_record(run, replace(record, stages={}))

    with pytest.raises(InputError, match=r"run: has no features; add .*sonify features --config F`"):
        open_runs(run)


def test_a_run_none_of_whose_units_is_done(run: Path) -> None:
    shutil.rmtree(run / "commits")

    with pytest.raises(InputError, match="has no features"):
        open_runs(run)


def test_a_run_that_does_not_say_which_vae_it_was(run: Path) -> None:
    record = read_record(run)
    assert record is not None
    write_record(run, replace(record, models={"an-ast": "x"}))

    with pytest.raises(InputError, match=r"run\.json does not say which vae a-vae was"):
        open_runs(run)


def test_a_split_without_samples(tmp_path: Path) -> None:
    run = make_feature_run(tmp_path / "run", num_images=2)

    with pytest.raises(InputError, match=r"no samples of split 'validation' in .*run.*images\.validation"):
        open_runs(run, split="validation")


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (
            {"features": {"ast_revision": "pinned"}, "models": {"an-ast": "a tagger's", "an-ast@pinned": "b"}},
            r"another ear_identity \(b\)",
        ),
        ({"features": {"vae": "taesd"}}, r"another vae_identity \(taesd-identity\) than .*first \(a-vae-identity\)"),
        ({"models": {"an-ast": "b"}}, r"another ear_identity \(b\) than .*first \(an-ast-identity\)"),
        ({"features": {"frequency": "all"}}, r"another frequency \(all\)"),
        ({"features": {"size": 128}}, r"another size \(128\)"),
        ({"features": {"layers": [1, 2]}}, r"another layers \(\(1, 2\)\)"),
        ({"features": {"beats": "a-beats"}}, r"another ear_kind \(beats\)"),
        ({"latent_shape": (3, 8, 8)}, r"another latent_shape \(\(3, 8, 8\)\)"),
        ({"audio_shape": (6, 16)}, r"another audio_shape \(\(6, 16\)\)"),
    ],
)
def test_runs_whose_features_differ(tmp_path: Path, other: dict, named: str) -> None:
    first = make_feature_run(tmp_path / "first", num_images=2)
    second = make_feature_run(tmp_path / "second", num_images=2, **other)

    with pytest.raises(InputError, match=rf"second has features of {named}"):
        open_runs(first, second)


def test_another_name_of_the_same_network_is_alike(tmp_path: Path) -> None:
    first = make_feature_run(tmp_path / "first", num_images=2, models={"a-vae": "same"})
    moved = make_feature_run(tmp_path / "second", num_images=2, features={"vae": "moved"}, models={"moved": "same"})

    assert open_runs(first, moved).num_images == 4


def test_a_pinned_network_that_was_recorded_without_its_revision_is_found(tmp_path: Path) -> None:
    first = make_feature_run(tmp_path / "first", num_images=2)
    before = make_feature_run(tmp_path / "second", num_images=2, features={"ast_revision": "pinned"})

    assert open_runs(first, before).num_images == 4


def test_units_without_features_are_told(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    record = read_record(run)
    assert record is not None
    render = StageRecord(digest="d", version=1, settings={})
    write_record(run, replace(record, stages={**record.stages, "render": render}))
    for n in range(3):
        count = Count(rows_in=0, rows_out=0, rejected={})
        commit = Commit(stage="render", unit=f"{n}", digest="d", inputs={}, rows=count, clips=None, files=())
        write_commit(run, commit)

    open_runs(run)

    assert f"{run}: 2 of 3 units have features; the others are left out" in caplog.text


@pytest.mark.parametrize(
    ("vae", "ast", "model", "named"),
    [
        (
            "other",
            "an-ast-identity",
            {},
            r"made by vae a-vae \(a-vae-identity\), .* vae is a-vae \(other\): set `vae_revision`",
        ),
        (
            "a-vae-identity",
            "other",
            {},
            r"made by ast an-ast \(an-ast-identity\), .* ast is an-ast \(other\): set `ast_revision`",
        ),
        ("a-vae-identity", None, {"sample_size": 16}, r"latents are \(4, 8, 8\).* make \(4, 16, 16\)"),
        ("a-vae-identity", None, {"latent_channels": 16}, r"latents are \(4, 8, 8\).* make \(16, 8, 8\)"),
        ("a-vae-identity", None, {"caption_channels": 768}, r"are 16 wide, and model\.caption_channels is 768"),
    ],
)
def test_features_of_another_network_or_size(run: Path, vae: str, ast: str | None, model: dict, named: str) -> None:
    data = open_runs(run)
    for identity in ("an-ast-identity", None):
        check_matches(data, config_for(run), "a-vae-identity", identity)  # of these it is
    with pytest.raises(InputError, match=named):
        check_matches(data, config_for(run, **model), vae, ast)


def test_features_of_a_network_of_another_name_ask_for_the_name(run: Path) -> None:
    config = config_for(run).model_copy(update={"vae": "b-vae"})
    with pytest.raises(InputError, match=r"made by vae a-vae .* vae is b-vae \(other\): set `vae` to"):
        check_matches(open_runs(run), config, "other", None)


@pytest.mark.parametrize(
    ("features", "named"),
    [
        ({"layers": [4, 8]}, r"its features are layers 4, 8 of ast an-ast, .*last layer.*`ast: null`"),
        ({"beats": "a-beats"}, r"its features are the last layer of beats a-beats, .*`ast: null`"),
        ({"beats": "a-beats", "layers": [4, 8, 12]}, r"its features are layers 4, 8, 12 of beats a-beats, "),
    ],
)
def test_features_that_the_ast_of_a_pipeline_does_not_give(tmp_path: Path, features: dict, named: str) -> None:
    run = make_feature_run(tmp_path / "run", num_images=2, features=features)
    data = open_runs(run)
    check_matches(data, config_for(run), "a-vae-identity", None)  # of a model without an ear any width goes
    with pytest.raises(InputError, match=named):
        check_matches(data, config_for(run), "a-vae-identity", "an-ast-identity")


def test_an_ear_is_known_by_its_kind_and_layers(tmp_path: Path) -> None:
    asked = {"beats": "a-beats", "beats_revision": "pinned", "layers": [4, 8, 12]}
    run = make_feature_run(tmp_path / "run", num_images=2, features=asked, models={"a-beats@pinned": "its-identity"})
    features = open_runs(run).features

    assert (features.ear, features.ear_kind, features.ear_identity) == ("a-beats", "beats", "its-identity")
    assert features.layers == (4, 8, 12)


def test_a_run_of_before_had_one_ear(run: Path) -> None:
    expected = open_runs(run).features
    record = read_record(run)
    assert record is not None
    later = ("layers", "beats", "beats_revision")
    settings = {key: value for key, value in record.config["features"].items() if key not in later}
    write_record(run, replace(record, config={**record.config, "features": settings}))

    assert open_runs(run).features == expected


# --- damage


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1024)


@pytest.mark.parametrize(
    ("file", "harm", "named"),
    [
        ("features/train/000001.tar", cut, r"expected \d+ bytes, it is \d+ bytes long"),
        ("features/train/000001.tar", Path.unlink, r"expected \d+ bytes, it is missing"),
        ("features/train/000000.parquet", cut, "expected .* bytes long"),
        ("features/train/000000.parquet", Path.unlink, "expected .* missing"),
        ("features/train/000000.parquet", lambda path: change_byte(path, 200), "another sha256"),
        ("commits/features/*/000001.json", lambda path: change_byte(path, 50), "damaged"),
    ],
)
def test_damage_that_is_found_when_runs_are_opened(
    run: Path, file: str, harm: Callable[[Path], None], named: str
) -> None:
    (path,) = run.glob(file)
    harm(path)

    with pytest.raises(
        WorkError, match=rf"{path}: {named}.*sonify verify {run} --repair`.*sonify features --config F`"
    ):
        open_runs(run)


def test_each_changed_byte_of_a_sample_is_found(run: Path) -> None:
    archive = run / "features/train/000000.tar"
    size_bytes = archive.stat().st_size
    data = open_runs(run)
    for offset in range(100, size_bytes - 1024, 997):
        change_byte(archive, offset)
        with pytest.raises(WorkError, match=rf"{archive}: sample train-0-\d+: its bytes are not .*--repair"):
            list(data.samples())
        change_byte(archive, offset)

    assert len(list(data.samples())) == 7


def test_an_archive_that_goes_away_after_it_was_opened(run: Path) -> None:
    data = open_runs(run)
    (run / "features/train/000000.tar").unlink()

    with pytest.raises(WorkError, match=r"000000\.tar: sample train-0-000000: cannot be read \(No such file"):
        data.read(0, 0)


class Bomb:
    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.mkdir, (os.environ["BOMB"],)


def run_with(tmp_path: Path, changed: Callable[[MadeSample], MadeSample]) -> FeatureData:
    """Four samples, the third of which is changed before it is stored."""
    samples = random_samples(4)
    samples[2] = changed(samples[2])
    return open_runs(make_feature_run(tmp_path / "run", samples, units=1))


@pytest.mark.parametrize("name", ["evil.pkl", "latent.pyd", "latent.pth", "captions.audio.npy.gz", "../x.npy", "jpg"])
def test_a_foreign_member_is_refused_and_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("BOMB", str(tmp_path / "exploded"))
    bomb = pickle.dumps(Bomb())
    data = run_with(tmp_path, lambda sample: replace(sample, foreign={f"{sample.key}.{name}": bomb}))

    with pytest.raises(WorkError, match=rf"sample train-0-000002: train-0-000002\.{name} is no member .*not opened"):
        data.read(0, 2)
    assert not (tmp_path / "exploded").exists()


def test_a_member_of_another_sample_is_refused(tmp_path: Path) -> None:
    data = run_with(tmp_path, lambda sample: replace(sample, foreign={"train-0-000003.json": b"{}"}))

    with pytest.raises(WorkError, match=r"train-0-000003\.json is no member"):
        data.read(0, 2)


def objects_npy() -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([[Bomb()]]), allow_pickle=True)
    return file.getvalue()


GOOD = encode_npy(np.zeros((5, 16), np.float16))


@pytest.mark.parametrize(
    "make",
    [
        objects_npy,
        lambda: encode_npy(np.zeros((5, 16), np.float32)),
        lambda: encode_npy(np.asfortranarray(np.zeros((5, 16), np.float16))),
        lambda: GOOD[:-2],
        lambda: GOOD + b"more",
        lambda: GOOD[:30],
        lambda: b"",
        lambda: GOOD.replace(b"(5, 16), }", b"(999999, 999999), }"),
        lambda: GOOD.replace(b"(5, 16), }", b"[print('!'), 16], }"),
    ],
)
def test_an_array_that_is_none_is_refused_unopened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[], bytes]
) -> None:
    monkeypatch.setenv("BOMB", str(tmp_path / "exploded"))
    data = run_with(
        tmp_path, lambda sample: replace(sample, audio_TD={}, foreign={f"{sample.key}.captions.audio.npy": make()})
    )

    with pytest.raises(WorkError, match=r"sample train-0-000002: captions\.audio\.npy is not a float16 array file"):
        data.read(0, 2).decode("captions.audio.npy", (5, 16))
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (lambda s: replace(s, latent_CHW=np.full((4, 8, 8), np.nan)), r"latent\.npy holds values that are not finite"),
        (lambda s: replace(s, latent_CHW=np.full((4, 8, 8), 1e9)), r"latent\.npy holds values that are not finite"),
        (
            lambda s: replace(s, latent_CHW=np.zeros((4, 8, 9))),
            r"latent\.npy has the shape \(4, 8, 9\), expected \(4, 8, 8\)",
        ),
        (lambda s: replace(s, audio_TD={"other": np.zeros((5, 16))}), r"captions\.audio\.npy is missing"),
        (lambda s: replace(s, audio_TD={}), r"captions\.audio\.npy is missing"),
        (
            lambda s: replace(s, more={"latent_flip": np.zeros((4, 8, 8))}),
            r"latent_flip\.npy is there, and in no other",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_a_sample_that_is_not_as_the_others(
    tmp_path: Path, changed: Callable[[MadeSample], MadeSample], named: str
) -> None:
    data = run_with(tmp_path, changed)

    with pytest.raises(WorkError, match=rf"000000\.tar: sample train-0-000002: {named}"):  # noqa: PT012 - either may
        sample = data.read(0, 2)
        sample.decode("latent.npy", data.latent_shape)
        sample.decode("captions.audio.npy", data.audio_shape)


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"key": "another"}', b"[" * 100_000, b"\xff"])
def test_a_record_that_is_none(tmp_path: Path, content: bytes) -> None:
    data = open_runs(make_feature_run(tmp_path / "run", num_images=1, units=1))
    sample = replace(data.read(0, 0), members={"json": content})

    with pytest.raises(WorkError, match="sample train-0-000000: json"):
        sample.record()


def test_data_travel_to_other_processes(run: Path) -> None:
    data = open_runs(run)
    data.read(0, 0)

    assert pickle.loads(pickle.dumps(data)).read(1, 1).record() == json.loads(data.read(1, 1).members["json"])
