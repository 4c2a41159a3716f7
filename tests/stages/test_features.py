import io
import json
import shutil
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import ASTFeatureExtractor, ASTModel

from sonify import layout
from sonify.config.models import Tagger
from sonify.engine.record import require_record, write_record
from sonify.errors import InputError, WorkError
from sonify.features.beats import BeatsFeatures, load_beats
from sonify.features.vae import encode, load_vae
from sonify.io.commits import commit_files, read_commit
from sonify.io.tables import read_rows
from sonify.media.audio import decode_flac
from sonify.media.pixels import decode_square
from sonify.models.fetch import BEATS_FILES, VAE_FILES, fetch_model
from sonify.report.verify import verify
from sonify.rows import Clip, FeatureEntry
from sonify.running import run
from sonify.stages.listen import fetch_listener, listener_of
from sonify.stages.table import stages_of
from tests.builders import hash_run, members_of, refused, run_shuffled, small_config, small_input, stored
from tests.servers import COMMIT, MODEL, away_from_hub, put_into_cache
from tests.tiny_networks import edit_weights, tiny_tagger
from train.tiny import write_tiny_ast, write_tiny_beats, write_tiny_vae

CPU = torch.device("cpu")
OTHER = "f" * 40  # another commit


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks")
    return {"vae": str(write_tiny_vae(folder / "vae")), "ast": str(write_tiny_ast(folder / "ast"))}


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """A run of three units that has come to its shards, with two scenes an image and both splits."""
    root = tmp_path_factory.mktemp("features")
    small_input(root, photos=20, recordings=24)
    run(configure(root, "rendered"))
    return root


def configure(root, name, **features):
    validation = {"validation": 0.3}
    sections: dict[str, object] = {"images": validation, "audio": validation, "retrieval": {"draws": 2, "limit": None}}
    return small_config(root, run=name, **sections, **({"features": {"size": 64, **features}} if features else {}))


def extract(root, name, **features):
    """Go on from the shards, in a copy."""
    shutil.copytree(root / "rendered", root / name)
    config = configure(root, name, **features)
    return config, run(config, ("features",))["features"]


@pytest.fixture(scope="module")
def finished(rendered, networks):
    config, counts = extract(rendered, "finished", **networks, batch_size=3, flip=True, std=True)
    return config, counts


def members(config, folder):
    return members_of(config.run_dir / folder)


def test_every_scene_of_every_image_comes_through_in_its_split(finished):
    config, counts = finished
    assert (counts.rows_in, counts.rows_out, counts.rejected) == (40, 40, {})
    for split in layout.SPLITS:
        shards = sorted((config.run_dir / layout.SHARDS / split).iterdir())
        assert shards
        for shard in shards:
            with (
                tarfile.open(shard) as theirs,
                tarfile.open(config.run_dir / layout.features(split, shard.stem)) as ours,
            ):
                keys = [name.partition(".")[0] for name in theirs.getnames()]
                assert list(dict.fromkeys(keys)) == list(dict.fromkeys(n.partition(".")[0] for n in ours.getnames()))


def test_every_sample_has_the_same_members_of_the_same_shapes(finished):
    config, _ = finished
    found = members(config, layout.FEATURES)
    shapes: dict[str, set] = {}
    for name, data in found.items():
        if name.endswith(".npy"):
            array = np.load(io.BytesIO(data))
            shapes.setdefault(name.partition(".")[2], set()).add((array.shape, array.dtype.name))
    latent, heard = {((4, 8, 8), "float16")}, {((49, 32), "float16")}
    latents = ("latent", "latent_flip", "latent_flip_std", "latent_std")
    assert shapes == {f"{name}.npy": latent for name in latents} | {f"captions-{n}.audio.npy": heard for n in (0, 1)}
    assert len(found) == 20 * 7


def test_the_numbers_are_those_of_the_libraries_one_at_a_time(finished, networks):
    config, _ = finished
    shards, found = members(config, layout.SHARDS), members(config, layout.FEATURES)
    vae = load_vae(fetch_model(networks["vae"], None, VAE_FILES), CPU, torch.float32)
    network, extractor = ASTModel.from_pretrained(networks["ast"]), ASTFeatureExtractor.from_pretrained(networks["ast"])
    for key in ("000_2ejpg", "005_2ejpg", "019_2ejpg"):
        pixels = decode_square(shards[f"{key}.jpg"], 64)
        for name, seen in (("latent", pixels), ("latent_flip", np.ascontiguousarray(pixels[:, ::-1]))):
            posterior = encode(vae, seen[None])
            for suffix, expected in (("", posterior.mean_BCHW), ("_std", posterior.std_BCHW)):
                stored = np.load(io.BytesIO(found[f"{key}.{name}{suffix}.npy"]))
                np.testing.assert_allclose(stored, expected[0].numpy(), rtol=1e-3, atol=1e-4)
        for scene in ("captions-0", "captions-1"):
            samples, rate = decode_flac(shards[f"{key}.{scene}.flac"])
            inputs = extractor(samples / np.float32(32768), sampling_rate=rate, return_tensors="pt")
            with torch.no_grad():
                hidden = network.eval()(**inputs).last_hidden_state[0, 2:].reshape(12, 101, 32)[:, :49].mean(0)
            stored = np.load(io.BytesIO(found[f"{key}.{scene}.audio.npy"]))
            np.testing.assert_allclose(stored, hidden.numpy(), rtol=2e-3, atol=2e-3)


def test_the_record_says_what_is_heard_and_the_index_where_it_lies(finished):
    config, _ = finished
    clips = {clip.clip: clip for clip in stored(config.run_dir / layout.CLIPS, Clip)}
    shards = members(config, layout.SHARDS)
    seen = 0
    for index in sorted((config.run_dir / layout.FEATURES).rglob("*.parquet")):
        data = index.with_suffix(".tar").read_bytes()
        for entry in read_rows(index, FeatureEntry):
            whole = data[entry.offset : entry.offset + entry.size_bytes] + bytes(1024)
            with tarfile.open(fileobj=io.BytesIO(whole)) as sample:
                file = sample.extractfile(f"{entry.key}.json")
                assert file is not None
                record = json.loads(file.read())
            assert set(record) == {"key", "split", "image_uri", "scenes"}
            assert (record["key"], record["split"]) == (entry.key, index.parent.name)
            original = json.loads(shards[f"{entry.key}.json"])
            sources = [source for scene in record["scenes"] for source in scene["sources"]]
            assert [scene["caption"] for scene in record["scenes"]] == [s["caption"] for s in original["scenes"]]
            assert [s["clip"] for s in sources] == [s["clip"] for e in original["scenes"] for s in e["sources"]]
            for source in sources:
                assert set(source) == {"concept", "description", "label", "clip", "recording"}
                assert source["label"] == clips[source["clip"]].text
                assert source["recording"] == clips[source["clip"]].recording
            assert list(entry.recordings) == sorted({source["recording"] for source in sources})
            seen += 1
    assert seen == 20


def test_what_made_them_is_recorded(finished, networks):
    config, _ = finished
    record = require_record(config.run_dir)
    assert all(record.models[model].startswith("sha256:") for model in networks.values())
    assert record.config["features"]["vae"] == networks["vae"]
    commits = [read_commit(path) for path in commit_files(config.run_dir, "features", record.stages["features"].digest)]
    assert sum(stored.commit.rows.rows_out for stored in commits) == 40
    assert verify(config.run_dir).damage == ()


def test_the_order_of_units_and_the_batch_change_nothing_on_a_cpu(rendered, networks, finished):
    shutil.copytree(rendered / "rendered", rendered / "shuffled")
    same = configure(rendered, "shuffled", **networks, batch_size=3, flip=True, std=True)
    run_shuffled(same)
    assert hash_run(same.run_dir) == hash_run(finished[0].run_dir)
    other, _ = extract(rendered, "larger", **networks, batch_size=8, flip=True, std=True)
    assert members(other, layout.FEATURES) == members(finished[0], layout.FEATURES)


@pytest.mark.parametrize("stride", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_at_any_step_the_resumed_stage_is_the_same(tmp_path, networks, stride):
    small_input(tmp_path, photos=2, recordings=4)
    run(small_config(tmp_path, run="rendered"))
    features = json.dumps({**networks, "size": 64})
    command = [sys.executable, "-m", "tests.engine.kill_matrix", str(tmp_path), str(stride), features]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 15


def test_all_rows_of_frequency_have_the_means_that_are_stored_otherwise(rendered, networks, finished):
    config, _ = extract(rendered, "all", **networks, frequency="all")
    rows, means = members(config, layout.FEATURES), members(finished[0], layout.FEATURES)
    for name in [name for name in rows if name.endswith(".audio.npy")]:
        array = np.load(io.BytesIO(rows[name])).astype(np.float32)
        assert array.shape == (12 * 49, 32)
        stored = np.load(io.BytesIO(means[name]))
        np.testing.assert_allclose(array.reshape(12, 49, 32).mean(0), stored, rtol=2e-3, atol=2e-3)


def test_a_damaged_shard_is_named_and_repair_makes_it_again(rendered, networks, finished, caplog):
    shutil.copytree(rendered / "rendered", rendered / "damaged")
    config = configure(rendered, "damaged", **networks, batch_size=3, flip=True, std=True)
    shard = config.run_dir / layout.shard("train", "000001")
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(bytes(data))
    with pytest.raises(WorkError, match="1 units were given up"):
        run(config, ("features",))
    assert f"{shard}: damaged (another sha256 than was committed)" in caplog.text
    assert "Traceback" not in caplog.text
    assert not (config.run_dir / layout.features("train", "000001")).exists()
    assert [damage.path for damage in verify(config.run_dir, repair=True).damage] == [layout.shard("train", "000001")]
    run(config)
    assert hash_run(config.run_dir) == hash_run(finished[0].run_dir)


@pytest.mark.parametrize(
    ("tensor", "value"),
    [("quant_conv.bias", float("nan")), ("quant_conv.bias", 1e6), ("layernorm.bias", float("nan"))],
)
def test_numbers_that_are_none_are_never_written(rendered, networks, tmp_path, tensor, value, caplog):
    which = "vae" if tensor.startswith("quant") else "ast"
    broken = tmp_path / which
    shutil.copytree(networks[which], broken)
    edit_weights(next(broken.glob("*.safetensors")), lambda tensors: tensors[tensor].fill_(value))
    shutil.copytree(rendered / "rendered", tmp_path / "run")
    config = configure(rendered, "run", **networks | {which: str(broken)})
    config = config.model_copy(update={"run_dir": tmp_path / "run"})
    with pytest.raises(WorkError, match="units were given up"):
        run(config, ("features",))
    assert f"features.{which}: {broken} gives NaN, infinity or more than float16 holds" in caplog.text
    assert list((config.run_dir / layout.FEATURES).rglob("*.tar")) == []


def test_an_index_that_does_not_fit_its_archive_is_found(finished, tmp_path):
    shutil.copytree(finished[0].run_dir, tmp_path / "run")
    index = tmp_path / "run" / layout.feature_index("train", "000000")
    shutil.copy(tmp_path / "run" / layout.feature_index("validation", "000000"), index)
    assert [damage.path for damage in verify(tmp_path / "run").damage] == [layout.feature_index("train", "000000")]


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"vae": "AST"}, "features.vae: .*expected a `_class_name`"),
        ({"ast": "VAE"}, "features.ast: .*expected a `model_type`"),
        ({"vae": "no/such/folder"}, "features.vae: no/such/folder: there is no such folder"),
        ({"vae": "AST", "ast": "VAE"}, "features.vae: .*; features.ast: "),
        ({"device": "cuda"}, "device: cuda was asked for"),
    ],
)
def test_networks_that_cannot_be_used_stop_the_stage_before_it_starts(rendered, networks, tmp_path, features, message):
    if torch.cuda.is_available() and "device" in features:
        pytest.skip("there is a GPU")
    named = {"AST": networks["ast"], "VAE": networks["vae"]}
    shutil.copytree(rendered / "rendered", tmp_path / "run")
    asked = networks | {key: named.get(value, value) for key, value in features.items()}
    config = configure(rendered, "run", **asked).model_copy(update={"run_dir": tmp_path / "run"})
    with refused(message):
        run(config, ("features",))
    assert not (config.run_dir / layout.FEATURES).exists()


def test_networks_that_changed_are_refused(rendered, networks, tmp_path):
    own = {key: shutil.copytree(folder, tmp_path / key) for key, folder in networks.items()}
    shutil.copytree(rendered / "rendered", tmp_path / "run")
    config = configure(rendered, "run", **{key: str(folder) for key, folder in own.items()})
    config = config.model_copy(update={"run_dir": tmp_path / "run"})
    run(config, ("features",))
    shutil.rmtree(tmp_path / "run" / layout.features("train", "000000").rpartition("/")[0])
    edit_weights(next(own["ast"].glob("*.safetensors")), lambda tensors: tensors["layernorm.bias"].add_(1))
    with pytest.raises(InputError, match=r"features was done with .*/ast as sha256:.*--redo features"):
        run(config, ("features",))


def test_without_the_section_or_the_shards_one_line_says_so(rendered, networks, tmp_path):
    with pytest.raises(InputError, match="features: the configuration has no such section"):
        run(configure(rendered, "rendered"), ("features",))
    small_input(tmp_path, photos=4, recordings=8)
    config = small_config(tmp_path, features=networks | {"size": 64})
    with pytest.raises(InputError, match="features: nothing to work on: render come before it"):
        run(config, ("features",))


@pytest.mark.parametrize("audio", [{"sample_rate": 22050}, {"clip_seconds": 11.0}])
def test_what_ast_does_not_hear_is_refused(rendered, audio):
    with refused("features: AST hears 16000 Hz and at most 10.24 seconds"):
        small_config(rendered, audio=audio, features={"size": 64})


def test_beats_hears_any_length_and_one_rate(rendered):
    assert small_config(rendered, audio={"clip_seconds": 11.0}, features={"size": 64, "beats": "any"}).features
    with refused("features: BEATs hears 16000 Hz, but audio.sample_rate is 22050"):
        small_config(rendered, audio={"sample_rate": 22050}, features={"size": 64, "beats": "any"})


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"layers": [8, 4]}, r"layers: expected ascending numbers, found \[8, 4\]"),
        ({"layers": [4, 4]}, r"layers: expected ascending numbers, found \[4, 4\]"),
        ({"layers": [0, 4]}, r"features\.layers.*greater than or equal to 1"),
        ({"beats_revision": "main"}, "beats_revision is set, and no beats"),
    ],
)
def test_an_ear_that_cannot_be_meant_is_refused(rendered, features, message):
    with refused(message):
        small_config(rendered, features={"size": 64, **features})


# --- other ears, and other layers of one


def heard_in(config):
    """The stored features of each scene, by their names."""
    found = members(config, layout.FEATURES)
    return {name: np.load(io.BytesIO(data)) for name, data in found.items() if name.endswith(".audio.npy")}


def sounds_of(config, scenes):
    """The sounds of scenes of the run, by the names of their features."""
    shards = members(config, layout.SHARDS)
    decoded = {name: decode_flac(shards[name.removesuffix("audio.npy") + "flac"])[0] for name in scenes}
    return {name: samples[None] / np.float32(32768) for name, samples in decoded.items()}


def test_layers_of_an_ast_are_joined_and_the_stage_resumes(rendered, networks, finished):
    config, counts = extract(rendered, "layers", **networks, layers=[1, 2])
    assert counts.rows_out == 40
    heard = heard_in(config)
    assert {array.shape for array in heard.values()} == {(49, 64)}
    network, extractor = ASTModel.from_pretrained(networks["ast"]), ASTFeatureExtractor.from_pretrained(networks["ast"])
    name = "005_2ejpg.captions-1.audio.npy"
    inputs = extractor(sounds_of(config, [name])[name][0], sampling_rate=16000, return_tensors="pt")
    with torch.no_grad():
        hidden = network.eval()(**inputs, output_hidden_states=True).hidden_states
    joined = torch.cat([hidden[1], hidden[2]], -1)[0, 2:].reshape(12, 101, 64)[:, :49].mean(0)
    np.testing.assert_allclose(heard[name], joined.numpy(), rtol=2e-3, atol=2e-3)
    before = hash_run(config.run_dir)
    shutil.rmtree(Path(str(config.run_dir), layout.features("train", "000000")).parent)
    verify(config.run_dir, repair=True)
    run(config, ("features",))
    assert hash_run(config.run_dir) == before


def test_beats_listens_instead_and_the_stage_resumes(rendered, networks, tmp_path):
    beats = str(write_tiny_beats(tmp_path / "beats"))
    asked = {"vae": networks["vae"], "ast": "not/there", "beats": beats, "layers": [4, 8, 12], "frequency": "all"}
    config, counts = extract(rendered, "beats", **asked)
    assert counts.rows_out == 40
    heard = heard_in(config)
    assert {array.shape for array in heard.values()} == {(31 * 8, 3 * 32)}
    network = load_beats(fetch_model(beats, None, BEATS_FILES), CPU, torch.float32)
    names = ["000_2ejpg.captions-0.audio.npy", "019_2ejpg.captions-1.audio.npy"]
    for name, sound in sounds_of(config, names).items():
        expected = BeatsFeatures(network, "all", (4, 8, 12))(sound)[0]
        np.testing.assert_allclose(heard[name], expected.numpy(), rtol=2e-3, atol=2e-3)
    record = require_record(config.run_dir)
    assert record.models[beats].startswith("sha256:")
    assert "not/there" not in record.models
    before = hash_run(config.run_dir)
    shutil.rmtree(Path(str(config.run_dir), layout.features("train", "000000")).parent)
    verify(config.run_dir, repair=True)
    run(config, ("features",))
    assert hash_run(config.run_dir) == before
    other = configure(rendered, "beats", **asked | {"layers": [4, 12]})
    with refused("features.layers.*--redo features"):
        run(other, ("features",))
    moved = shutil.copytree(beats, tmp_path / "moved")
    shutil.rmtree(beats)
    assert run(configure(rendered, "beats", **asked | {"beats": str(moved)}), ("features",))["features"].rows_out == 40


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"layers": [1, 3]}, r"features\.layers: expected numbers from 1 to 2, the layers of this AST, found \[3\]"),
        ({"beats": "AST"}, r"features\.beats: .*expected a model of type 'beats'"),
        ({"beats": "no/such/folder"}, r"features\.beats: no/such/folder: there is no such folder"),
        ({"beats": "BEATS", "layers": [13]}, r"features\.layers: expected numbers from 1 to 12, .* this BEATs, found"),
    ],
)
def test_an_ear_that_cannot_be_used_stops_the_stage(rendered, networks, tmp_path, asked, message):
    named = {"AST": networks["ast"], "BEATS": str(write_tiny_beats(tmp_path / "beats"))}
    shutil.copytree(rendered / "rendered", tmp_path / "run")
    asked = networks | {key: named.get(value, value) if key == "beats" else value for key, value in asked.items()}
    config = configure(rendered, "run", **asked).model_copy(update={"run_dir": tmp_path / "run"})
    with refused(message):
        run(config, ("features",))
    assert not (config.run_dir / layout.FEATURES).exists()


def test_what_beats_gives_that_is_none_is_named(rendered, networks, tmp_path, caplog):
    beats = write_tiny_beats(tmp_path / "beats")
    name = "encoder.layers.11.final_layer_norm.bias"
    edit_weights(beats / "model.safetensors", lambda tensors: tensors[name].fill_(1e6))
    shutil.copytree(rendered / "rendered", tmp_path / "run")
    config = configure(rendered, "run", **networks, beats=str(beats))
    with pytest.raises(WorkError, match="units were given up"):
        run(config.model_copy(update={"run_dir": tmp_path / "run"}), ("features",))
    assert f"features.beats: {beats} gives NaN, infinity or more than float16 holds" in caplog.text


def test_two_revisions_of_one_network_are_recorded_apart(rendered, networks, tmp_path, monkeypatch):
    """The default tagger and the usual network of features are one model of the hub."""
    away_from_hub(monkeypatch, tmp_path / "cache")
    heard = put_into_cache(tmp_path / "cache", tiny_tagger(tmp_path / "tagger", ("Dog", "Cat")))
    shutil.copytree(networks["ast"], heard.parent / OTHER)
    (heard.parents[1] / "refs" / "pinned").write_text(OTHER)
    tagger = Tagger(kind="tagger", model=MODEL, device="cpu")
    config = small_config(
        rendered,
        run="apart",
        retrieval={"confirm": tagger.model_dump(mode="json")},
        features={"size": 64, "vae": networks["vae"], "ast": MODEL, "ast_revision": "pinned"},
    )
    stages = stages_of(config)
    (listen,), (made,) = ([s for s in stages if s.name == name] for name in ("listen", "features"))
    assert (dict(listen.fetch()), made.fetch()[f"{MODEL}@pinned"]) == ({MODEL: COMMIT}, OTHER)
    assert all(tuple(stage.fetch()) == stage.models for stage in (listen, made))
    assert fetch_listener(tagger.model_copy(update={"revision": "pinned"})) == {f"{MODEL}@pinned": OTHER}


def test_a_tagger_is_known_by_its_revision(rendered, tmp_path):
    """Its tags are found by what run.json says of that revision, and of no other."""
    shutil.copytree(rendered / "rendered", tmp_path / "run")
    record = require_record(tmp_path / "run")
    write_record(tmp_path / "run", replace(record, models={MODEL: "one", f"{MODEL}@pinned": "other"}))
    tagger = Tagger(kind="tagger", model=MODEL, revision="pinned")
    assert listener_of(tmp_path / "run", tagger).identity == "other"


def test_what_a_version_before_recorded_without_a_revision_needs_no_fetching(rendered, networks, tmp_path, monkeypatch):
    away_from_hub(monkeypatch, tmp_path / "cache")
    snapshot = put_into_cache(tmp_path / "cache", Path(networks["ast"]))
    config, _ = extract(rendered, "before", vae=networks["vae"], ast=MODEL, ast_revision=COMMIT)
    record = require_record(config.run_dir)
    models = {name.partition("@")[0]: identity for name, identity in record.models.items()}
    assert models.keys() != record.models.keys()
    write_record(config.run_dir, replace(record, models=models))
    shutil.rmtree(snapshot)
    assert run(config, ("features",))["features"].rows_out == 40
