import re

import pytest

from sonify.config import Config, explain_option, explain_word, make_config
from sonify.config.problems import keys_of
from sonify.errors import InputError
from train.config import TrainConfig

INPUT = {
    "run_dir": "run",
    "images": {"kind": "folder", "path": "/", "validation": 0},
    "audio": {"sources": [{"kind": "folder", "path": "/"}], "validation": 0},
}
SERVER = {"kind": "vlm", "name": "eye", "backend": "server", "model": "m", "command": "vllm"}


def with_server(**changes: object) -> dict:
    return {"concepts": {"extractors": [SERVER | changes]}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"imags": {}}, "imags: no such key; did you mean images?"),
        ({"mix": {"lfus": [1, 2]}}, "mix.lfus: no such key; did you mean mix.lufs?"),
        ({"lufs": [-34, -30]}, "lufs: no such key; did you mean mix.lufs?"),
        ({"temprature": 1}, "temprature: no such key; did you mean concepts.extractors.0.temperature or "),
        ({"path": "x"}, "path: no such key; did you mean images.path or audio.sources.0.path or published.path?"),
        ({"xyzzy": 1}, "xyzzy: no such key; check the spelling"),
        (with_server(modle="x"), "concepts.extractors.0.modle: no such key; did you mean concepts.extractors.0.model?"),
        (
            {"images": {"kind": "webdataset", "path": "/", "validation": 0, "shard_size": 3}},
            "images.shard_size: no such key here; it belongs to folder",
        ),
        (with_server(backend="sever"), "found 'sever'; did you mean server?"),
        (
            {"concepts": {"extractors": [{"name": "x"}]}},
            "extractors.0.kind: missing, must be set to one of captions, vlm",
        ),
        ({"retrieval": {"encoder": {"model": "x"}}}, "one of text, clap, laion_clap, hybrid"),
        ({"retrieval": {"encoder": {"kind": "clip"}}}, "found 'clip'; did you mean clap?"),
        ({"retrieval": {"encoder": "clap"}}, "found 'clap'; did you mean {kind: clap}?"),
        ({"engine": {"kind": "locla"}}, "engine.kind: expected 'local' or 'ray', found 'locla'; did you mean local?"),
        ({"retrieval": {"hubness": False}}, "found false; YAML reads no, off, yes and on as false and true"),
        (
            {"images": "photos"},
            "images: expected a section, such as {key: value}, found 'photos'; did you mean images.path?",
        ),
        ({"audio": {"sources": "sounds"}}, "found 'sounds'; did you mean audio.sources.0.path?"),
        ({"mix": {"lufs": "loud"}}, "mix.lufs: expected a list, such as [a, b], found 'loud'"),
        ({"mix": {"lufs": "-34,-30"}}, "found '-34,-30'; write mix.lufs=[-34,-30]"),
        ({"mix": {"max_gain_db": "1e1"}}, "found '1e1'; YAML takes it for text: write 1.0e+1"),
        ({"seed": "1e999"}, "seed: expected a whole number, found '1e999'; write it without an exponent"),
        (
            with_server(model="~nobody-of-that-name"),
            "0.model: expected a path, and '~nobody-of-that-name' is nobody's home",
        ),
        (with_server(model="x" * 5000), "0.model: expected a hub id or a folder (File name too long)"),
        (
            {"run_dir": "~nobody-of-that-name/x"},
            "run_dir: expected a path, and '~nobody-of-that-name' is nobody's home",
        ),
        ({"seed": None}, "seed: expected a whole number, found null"),
        (
            with_server(environment=3),
            "concepts.extractors.0.environment: expected a section, such as {key: value}, found 3",
        ),
        (with_server(environment={"A": 3}), "environment.A: expected text, found 3; put it in quotes: '3'"),
        (with_server(environment={"a-b": "x"}), "concepts.extractors.0.environment.a-b: string should match pattern"),
        (with_server(command=3), "command: expected 'vllm', 'sglang', 'lmdeploy' or 'transformers' or a list"),
    ],
)
def test_a_message_names_the_key_and_what_may_have_been_meant(change, message):
    with pytest.raises(InputError) as raised:
        make_config(INPUT | change)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_empty_command_has_one_thing_wrong_with_it():
    with pytest.raises(InputError) as raised:
        make_config(INPUT | with_server(command=[]))
    assert str(raised.value) == "config: concepts.extractors.0.command: expected at least 1, found []"


def test_every_key_in_the_wrong_place_is_told_the_right_one():
    names = {key.rpartition(".")[2] for key in keys_of(Config)} - Config.model_fields.keys()
    assert len(names) > 60
    for name in names - {"0"}:
        with pytest.raises(InputError) as raised:
            make_config(INPUT | {name: 1})
        assert re.search(rf"^config: {name}: no such key; did you mean .*\.{name}\b", str(raised.value))


@pytest.mark.parametrize(
    ("kind", "option", "value", "said"),
    [
        (Config, "images.path", "PHOTOS", "keys are written without dashes: images.path=PHOTOS"),
        (Config, "seed", "3", "keys are written without dashes: seed=3"),
        (Config, "seed", "--dry-run", "keys are written without dashes: seed=..."),
        (TrainConfig, "optimizer.learning_rate", "1", "keys are written without dashes: optimizer.learning_rate=1"),
        (Config, "dryrun", "", ""),
    ],
)
def test_a_key_with_dashes_is_said_to_have_none(kind, option, value, said):
    assert explain_option(kind)(option, value) == said


@pytest.mark.parametrize(
    ("word", "following", "said"),
    [
        ("images.path", "PHOTOS", "'images.path': a key and its value are joined by =: images.path=PHOTOS"),
        ("images.path", "seed=3", "'images.path': a key and its value are joined by =: images.path=..."),
        ("seed:3", "", "'seed:3': a key and its value are joined by =: seed=3"),
        ("image.path", "x", "unknown argument 'image.path': expected key=value, such as seed=3; did you mean images?"),
        ("nonsense", "", "unknown argument 'nonsense': expected key=value, such as seed=3"),
    ],
)
def test_a_word_that_is_no_override_says_how_one_is_written(word, following, said):
    assert explain_word(word, following, Config) == said
