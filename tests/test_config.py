from pathlib import Path

import pytest
import yaml

from sonify.config import load_config, make_config, with_keys_of_before
from sonify.errors import InputError

CONFIGS = sorted(Path(__file__).parent.parent.glob("configs/sonify/*.yaml"))


@pytest.fixture
def minimal(tmp_path):
    (tmp_path / "input").mkdir()
    return {
        "run_dir": str(tmp_path / "run"),
        "images": {"kind": "folder", "path": str(tmp_path / "input")},
        "audio": {"sources": [{"kind": "folder", "path": str(tmp_path / "input")}]},
    }


def write(tmp_path, raw) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def test_defaults_are_the_documented_ones(minimal):
    config = make_config(minimal)
    assert (config.audio.clip_seconds, config.audio.sample_rate) == (5.0, 16000)
    assert config.mix.lufs == (-32.0, -28.0)
    assert (config.retrieval.top_k, config.retrieval.margin, config.retrieval.signed_sqrt) == (100, 0.8, True)
    assert config.scenes == ("captions",)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_config_loads_and_refuses_a_misspelt_key(path):
    raw = yaml.safe_load(path.read_text())
    assert make_config(raw, check_paths=False)
    assert path.read_text().startswith("#")
    for section in [key for key, value in raw.items() if isinstance(value, dict)]:
        misspelt = {**raw, section: {**raw[section], "shard_sise": 3}}
        with pytest.raises(InputError, match="shard_sise: no such key"):
            make_config(misspelt, check_paths=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mix": {"lufs": [-28, -32]}}, "lufs must be"),
        ({"mix": {"peak_dbfs": "loud"}}, "mix.peak_dbfs: .*found 'loud'"),
        ({"mixx": {}}, "mixx: no such key"),
        ({"run_dir": None}, "run_dir"),
        ({"images": {"kind": "zip", "path": "."}}, "zip"),
        ({"images": {"kind": "folder", "path": "/no/such/folder"}}, "images.path: no such file or folder"),
        ({"retrieval": {"margin": 1.5}}, "retrieval.margin"),
        ({"concepts": {"extractors": []}}, "concepts.extractors"),
        (
            {"concepts": {"extractors": [{"kind": "captions"}, {"kind": "captions"}]}},
            "two extractors are named",
        ),
        ({"images": {"kind": "folder", "path": "tests", "exclude": "nowhere.txt"}}, "images.exclude"),
        ({"images": {"kind": "folder", "path": "tests", "exclude": "tests"}}, "images.exclude: no such file: "),
        ({"images": {"kind": "folder", "path": "x" * 5000}}, "images.path"),
        ({"images": {"kind": "folder", "path": "tests", "shard-size": 5}}, "images.shard-size: no such key"),
        ({"run_dir": "tests/run", "images": {"kind": "folder", "path": "tests"}}, "lies inside images.path"),
        ({"retrieval": {"temperature": float("inf")}}, "retrieval.temperature"),
        *(
            (
                {"retrieval": {"encoder": {"kind": kind}, "limit": {"risk": 0.05}}},
                rf"no calibration ships for retrieval\.encoder {kind}, .*calibration names none: make one with"
                r" `python -m eval\.pairing --calibrate`",
            )
            for kind in ("clap", "hybrid")
        ),
        ({"retrieval": {"signed_sqrt": "off"}}, "retrieval.signed_sqrt"),
        # and nothing of the limit, whose default follows from what is set beside it
        ({"retrieval": {"top_k_share": 2}}, "^config: retrieval.top_k_share: [^;]*found 2$"),
        ({"retrieval": {"search": {"device": "gpu"}}}, "device: expected .*; did you mean cuda\\?"),
        ({"audio": {"sources": [{"kind": "folder", "path": "tests"}], "min_tail_sec": 6}}, "min_tail_sec is 6, and no"),
        (
            {"mixx": {}, "retrieval": {"top_k": "x", "hears": "all"}, "render": {"image": 1}, "seed": "x"},
            "; and 2 more$",
        ),
        ({"seed": True}, "seed"),
        ({"seed": "x" * 100_000}, "seed"),
    ],
)
def test_what_is_wrong_is_one_line_that_names_the_key(minimal, change, message):
    with pytest.raises(InputError, match=message) as caught:
        make_config(minimal | change)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_what_lies_inside_is_told_by_where_places_are(minimal, tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    (tmp_path / "linked").symlink_to(tmp_path / "photos")
    monkeypatch.chdir(tmp_path / "photos")
    for path, run_dir in (
        ("../photos", "out"),
        ("../linked", "out"),
        (".", "../linked/out"),
        ("../photos/", "../photos"),
    ):
        with pytest.raises(InputError, match=r"lies inside images\.path"):
            make_config(minimal | {"images": {"kind": "folder", "path": path}, "run_dir": run_dir})
    assert make_config(minimal | {"images": {"kind": "folder", "path": "."}, "run_dir": "../out"})


def test_validation_images_need_validation_recordings(minimal):
    minimal["audio"]["validation"] = 0
    with pytest.raises(InputError, match=r"images.validation is above 0 but audio.validation is 0"):
        make_config(minimal)


def test_overrides_reach_into_sections_and_lists(minimal, tmp_path):
    overrides = ["mix.lufs=[-34,-30]", "audio.sources.0.name=mine", "engine.kind=local"]
    config = load_config(write(tmp_path, minimal), overrides)
    assert config.mix.lufs == (-34.0, -30.0)
    assert config.audio.sources[0].name == "mine"
    assert config.engine.kind == "local"


@pytest.mark.parametrize("override", ["mix", "audio.sources.7.name=x", "seed.x=1", "mix.lufs=[", "nope=1"])
def test_a_wrong_override_is_refused(minimal, tmp_path, override):
    with pytest.raises(InputError):
        load_config(write(tmp_path, minimal), [override])


@pytest.mark.parametrize("text", ["- a list", "{", "\x00", ""])
def test_a_file_that_is_no_config_is_refused(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match="config"):
        load_config(path)


def test_scenes_are_named_by_extractor_and_draw(minimal):
    two = {"extractors": [{"kind": "captions", "name": "a"}, {"kind": "captions", "name": "b"}]}
    assert make_config(minimal | {"concepts": two}).scenes == ("a", "b")
    drawn = minimal | {"concepts": two, "retrieval": {"draws": 2}}
    assert make_config(drawn).scenes == ("a-0", "a-1", "b-0", "b-1")
    assert make_config(drawn | {"render": {"scenes": "any"}}).scenes == (
        "scene-0",
        "scene-1",
        "scene-2",
        "scene-3",
    )


VLM = {"kind": "vlm", "name": "eye", "backend": "transformers", "model": "some/model"}


@pytest.mark.parametrize(
    ("concepts", "message"),
    [
        ({"extractors": [{"kind": "captions"}], "check": True}, "a captions extractor has no model to ask"),
        ({"extractors": [VLM], "checker": VLM}, "there is a checker but check is false"),
        ({"extractors": [VLM | {"backend": "cloud"}]}, "cloud"),
        ({"extractors": [VLM | {"batch": 3}]}, "concepts.extractors.0.batch: no such key"),
        ({"extractors": [VLM | {"backend": "endpoint", "url": "ftp://there"}]}, "concepts.extractors.0.url"),
        ({"extractors": [VLM | {"backend": "endpoint", "url": "http://me:secret@there/v1"}]}, "extractors.0.url"),
        ({"extractors": [VLM | {"backend": "server", "command": []}]}, "concepts.extractors.0.command"),
        ({"extractors": [VLM | {"backend": "endpoint", "url": "http://a..b/v1"}]}, "expected an address such as"),
        ({"extractors": [VLM | {"backend": "endpoint", "url": "http://host:99999/v1"}]}, "expected an address such as"),
        ({"extractors": [VLM | {"backend": "cloud"}]}, r"extractors.0.backend: expected one of .*, found 'cloud'"),
        ({"extractors": [{"kind": "vlm", "name": "x"}]}, "extractors.0.backend: missing"),
        ({"extractors": [VLM | {"template": {"tokenize": False}}]}, "template: tokenize is not for template to set"),
        (
            {"extractors": [VLM | {"template": {"conversation": []}}]},
            "template: conversation is not for template to set",
        ),
    ],
)
def test_what_is_wrong_with_a_model_is_one_line_that_names_the_key(minimal, concepts, message):
    with pytest.raises(InputError, match=message) as raised:
        make_config(minimal | {"concepts": concepts})
    assert "\n" not in str(raised.value)


def test_a_wrong_item_is_not_called_a_list_that_is_too_short(minimal):
    with pytest.raises(InputError) as raised:
        make_config(minimal | {"concepts": {"extractors": [VLM | {"batch_size": 0}]}})
    assert "batch_size" in str(raised.value)
    assert "at least 1 item" not in str(raised.value)


def test_a_key_that_stands_where_its_name_belongs_is_not_printed(minimal):
    key = "sk-1234secret"
    endpoint = VLM | {"backend": "endpoint", "url": "http://127.0.0.1:8000/v1", "api_key_env": key}
    with pytest.raises(InputError, match="api_key_env") as raised:
        make_config(minimal | {"concepts": {"extractors": [endpoint]}})
    assert "secret" not in str(raised.value)


def test_only_stores_that_are_read_are_taken(minimal):
    with pytest.raises(InputError, match=r"images.path.*s3://"):
        make_config(minimal | {"images": {"kind": "folder", "path": "ftp://nobody/x"}})


def test_clips_longer_than_claps_window_are_refused(minimal):
    clap = minimal | {"retrieval": {"encoder": {"kind": "clap"}}}
    assert make_config(clap | {"audio": minimal["audio"] | {"clip_seconds": 10.0}})
    with pytest.raises(InputError, match="clip_seconds is 12, and CLAP hears 10 seconds"):
        make_config(clap | {"audio": minimal["audio"] | {"clip_seconds": 12.0}})


def test_every_input_that_is_named_must_be_there(minimal, tmp_path):
    captions = {"kind": "captions", "file": str(tmp_path / "none.csv")}
    with pytest.raises(InputError, match=r"concepts.extractors.0.file: no such file"):
        make_config(minimal | {"concepts": {"extractors": [captions]}})
    encoder = {"kind": "hybrid", "audio": {"kind": "laion_clap", "checkpoint": str(tmp_path / "none.pt")}}
    with pytest.raises(InputError, match=r"retrieval.encoder.audio.checkpoint: no such file"):
        make_config(minimal | {"retrieval": {"encoder": encoder}})
    (tmp_path / "labels.csv").touch()
    confirm = {"kind": "tagger", "model": str(tmp_path / "ear.tflite"), "labels": str(tmp_path / "labels.csv")}
    with pytest.raises(InputError, match=r"retrieval.confirm.model: no such file .*ear.tflite"):
        make_config(minimal | {"retrieval": {"confirm": confirm}})
    (tmp_path / "ear.tflite").mkdir()
    with pytest.raises(InputError, match=r"retrieval.confirm.model: no such file: .*ear.tflite"):
        make_config(minimal | {"retrieval": {"confirm": confirm}})


def test_a_remote_place_keeps_its_address(minimal):
    raw = minimal | {"images": {"kind": "webdataset", "path": "s3://bucket/folder"}}
    config = make_config(raw, check_paths=False)
    assert str(config.images.path) == "s3://bucket/folder"
    assert config.model_dump(mode="json")["images"]["path"] == "s3://bucket/folder"


def test_a_recorded_configuration_without_later_keys_is_read_as_what_it_did():
    text = {"audio": {}, "retrieval": {"encoder": {"kind": "text"}, "top_k_share": 0.5}}
    filled = with_keys_of_before(text)
    assert filled["audio"] == {"min_tail_sec": 1.0, "remove_dc": True, "downmix": "mean_or_louder"}
    assert filled["retrieval"] == {
        "encoder": {"kind": "text", "matching": "words"},
        "limit": None,
        "merge_names": False,
        "hears": "recording",
        "top_k_share": 0.5,
        "clips_per_recording": 3,
        "repeat_recordings": False,
    }
    assert text == {"audio": {}, "retrieval": {"encoder": {"kind": "text"}, "top_k_share": 0.5}}
    assert with_keys_of_before(filled | {"seed": 1}) == filled | {"seed": 1}
    clap = with_keys_of_before({"retrieval": {"encoder": {"kind": "clap"}, "merge_names": True}})["retrieval"]
    assert (clap["encoder"], clap["limit"], clap["merge_names"]) == ({"kind": "clap"}, None, True)
    assert with_keys_of_before({"retrieval": 3}) == {"retrieval": 3}
