"""The stages of a run: what their settings, and so the names of their commits, depend on."""

import json
from typing import Any, get_args

import pytest

from sonify.config.inputs import Images, Section, Sounds
from sonify.engine.record import PLACES
from sonify.running import run
from sonify.stages import table
from sonify.stages.table import stages_of
from tests.builders import refused, small_config, small_input

HYBRID = {"kind": "hybrid", "audio": {"kind": "clap", "model": "a/clap"}}


def settings_of(stage, root, **sections):
    """The settings of one stage, as run.json has them."""
    (found,) = (one for one in stages_of(small_config(root, **sections)) if one.key == stage)
    return json.dumps(dict(found.settings))


@pytest.mark.parametrize(
    ("stage", "key", "old", "other"),
    [
        ("concepts/captions", "images.shard_size", 8, {"images": {"shard_size": 5}}),
        (
            "pool",
            "audio.sources.name",
            "folder",
            {"audio": {"sources": [{"kind": "folder", "path": ".", "name": "bells"}]}},
        ),
        (
            "embeddings",
            "retrieval.encoder.audio.batch_size",
            16,
            {"retrieval": {"encoder": HYBRID | {"audio": HYBRID["audio"] | {"batch_size": 4}}}},
        ),
    ],
)
def test_a_key_that_is_added_is_no_setting_while_it_has_its_old_value(tmp_path, monkeypatch, stage, key, old, other):
    small_input(tmp_path)
    own = {"retrieval": {"encoder": HYBRID}} if stage == "embeddings" else {}
    name = key.rpartition(".")[2]
    assert name in settings_of(stage, tmp_path, **own)
    monkeypatch.setattr(table, "ADDED_KEYS", {key: old})
    assert f'{name}"' not in settings_of(stage, tmp_path, **own)
    assert f'{name}"' in settings_of(stage, tmp_path, **other)


def test_nothing_that_says_where_input_lies_is_a_setting(tmp_path):
    """A new kind of image set or collection that names another file says so in PLACES, or names it by content."""
    small_input(tmp_path)
    named = {"images.exclude"}
    for union, key in ((Images, "images"), (Sounds, "audio.sources")):
        kinds: tuple[type[Section], ...] = get_args(get_args(union)[0])
        fields = ((name, field) for kind in kinds for name, field in kind.model_fields.items())
        named |= {f"{key}.{name}" for name, field in fields if "Path" in repr(field.annotation)}
    assert named == PLACES | {"images.exclude"}
    for stage in stages_of(small_config(tmp_path)):
        assert str(tmp_path) not in json.dumps(dict(stage.settings))


@pytest.mark.parametrize("section", ["images", "audio"])
def test_a_changed_list_is_said_in_words(tmp_path, section):
    small_input(tmp_path)
    stage = {"images": "pair", "audio": "pool"}[section]
    excluded = tmp_path / "exclude.txt"
    excluded.write_text("a\n")
    excluding: Any = {section: {"exclude": str(excluded)}}
    run(small_config(tmp_path))
    with refused(f"{stage} was made under another configuration: {section}.exclude was not set then, and is now"):
        run(small_config(tmp_path, **excluding))
    run(small_config(tmp_path, run="second", **excluding))
    excluded.write_text("b\n")
    with refused(f"configuration: {section}.exclude has another content now than then"):
        run(small_config(tmp_path, run="second", **excluding))
    with refused(f"configuration: {section}.exclude was set then, and is not now"):
        run(small_config(tmp_path, run="second"))
