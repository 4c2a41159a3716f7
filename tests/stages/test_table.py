"""The stages of a run: what their settings, and so the names of their commits, depend on."""

import json

import pytest

from sonify.stages import table
from sonify.stages.table import stages_of
from tests.builders import small_config, small_input

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
